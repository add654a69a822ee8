package system

import "testing"

func TestDpsdContinuesWithoutJournaldAndLogsWhenItIsBack(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		process := g.show("dpsd.service", "MainPID")
		g.run("systemctl stop 'systemd-journald*.socket' systemd-journald.service; ! systemctl -q is-active systemd-journald.service")
		g.run("kill -HUP " + process) // it logs that, and registers
		dps.until(2)
		g.expect("dpsd.service", "MainPID", process)
		g.expect("dpsd.service", "NRestarts", "0")

		g.run("systemctl start systemd-journald.socket systemd-journald-dev-log.socket systemd-journald.service")
		g.write("/etc/dpsd/dpsd.toml", "[dps]\n", 0o644)
		g.run("kill -HUP " + process)
		if got := g.event("reload-refused").text("_PID"); got != process {
			t.Errorf("process %s has logged, want %s", got, process)
		}
		g.expect("dpsd.service", "NRestarts", "0")
	})
}
