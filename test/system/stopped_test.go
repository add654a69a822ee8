package system

import (
	"strings"
	"testing"
)

// dpsd status derives its sentence from the state of the unit in systemd.
func TestStatusSaysWhyDpsdDoesNotRun(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		says := func(reason, detail, advice string) {
			t.Helper()
			out, _ := g.try("dpsd status --json | grep -A 3 '\"stopped\"'; dpsd status")
			for _, text := range []string{`"reason": "` + reason + `"`, detail, "what to do: " + advice} {
				if !strings.Contains(out, text) {
					t.Errorf("%s: %s: dpsd status does not contain %q:\n%s", s.name, reason, text, out)
				}
			}
			t.Logf("%s: %s:\n%s", s.name, reason, out)
		}
		says("no-configuration", "open /etc/dpsd/dpsd.toml: no such file or directory", "")
		g.configure(dps, "")
		says("condition-unmet", "was missing", "systemctl start --no-block dpsd")
		g.run("systemctl start dpsd && systemctl stop dpsd")
		says("stopped", "it was stopped at ", "systemctl start --no-block dpsd")
		g.run("systemctl --quiet disable dpsd")
		says("disabled", "does not start it at boot", "systemctl enable --now --no-block dpsd")
		g.run("systemctl --quiet mask dpsd")
		says("masked", "is masked", "systemctl unmask dpsd && systemctl enable --now --no-block dpsd")
		g.run("systemctl --quiet unmask dpsd && systemctl --quiet enable dpsd")

		g.run("cp /etc/dpsd/dpsd.toml /root/ && sed -i s/id_scope/id_scop/ /etc/dpsd/dpsd.toml; systemctl start dpsd || :")
		g.expect("dpsd.service", "ActiveState", "failed")
		says("configuration-invalid", `dps.id_scop: unknown key; did you mean "id_scope"?`, "")
		g.run("cp /root/dpsd.toml /etc/dpsd/")
		says("configuration-invalid", "the configuration is valid now", "systemctl start --no-block dpsd")

		for _, failing := range []struct{ prepare, dropIn, reason, detail, advice string }{
			{"", "LoadCredentialEncrypted=dps-primary-key:" + sealedKey, "no-credential", sealedKey + " does not exist", "systemd-creds encrypt --name=dps-primary-key KEY-FILE " + sealedKey},
			{"mkdir -p -m 700 /etc/credstore.encrypted; echo damaged >" + sealedKey, "LoadCredentialEncrypted=dps-primary-key:" + sealedKey, "no-credential", "cannot decrypt a credential (dps-primary-key)", "systemd-creds encrypt"},
			{"", "ReadWritePaths=/srv/missing", "restarting", "usually because a directory of ReadWritePaths= is missing", "journalctl -u dpsd -e"},
			{"", "ExecStart=\nExecStart=/bin/sh -c 'kill -KILL $$$$'", "restarting", "killed by signal 9 (killed)", "journalctl -u dpsd -e"},
		} {
			g.write("/etc/systemd/system/dpsd.service.d/failing.conf", "[Service]\nRestartSec=1h\n"+failing.dropIn+"\n", 0o644)
			g.run(failing.prepare + "\nsystemctl daemon-reload; systemctl start --no-block dpsd")
			g.untilShown("dpsd.service", "SubState", "auto-restart")
			says(failing.reason, failing.detail, failing.advice)
			g.run("systemctl stop dpsd; systemctl reset-failed; rm -f " + sealedKey)
		}
		g.run("rm /etc/systemd/system/dpsd.service.d/failing.conf; systemctl daemon-reload; systemctl start dpsd")
		if out := g.run("dpsd status --json"); strings.Contains(out, `"stopped"`) {
			t.Errorf("%s: a running dpsd is said not to run:\n%s", s.name, out)
		}

		g.reboot()
		g.run("systemctl --quiet disable dpsd; systemctl stop dpsd")
		g.reboot()
		says("disabled", "does not start it at boot", "systemctl enable --now --no-block dpsd")
		g.run("systemctl --quiet enable dpsd")
		says("never-started", "has not been started since boot", "systemctl start --no-block dpsd")
	})
}
