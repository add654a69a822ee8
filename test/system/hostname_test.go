package system

import (
	"strings"
	"testing"
)

// A script of the first boot also sets the name in /etc/hostname. DHCP sets only that of the
// kernel,
// which is transient.
func TestAHostNameThatArrivesAfterTheStartIsUsedWithoutARestart(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := g.service(prompt)
		g.configure(dps, "")
		named := strings.Replace(dps.configuration("[retry]\nrefused_initial = \"1h\"\n"), `"`+registrationID+`"`, `"%H"`, 1)
		if !strings.Contains(named, "%H") {
			t.Fatalf("the configuration has no registration ID:\n%s", named)
		}
		for _, c := range []struct{ how, command string }{
			{"as DHCP sets it", "hostname " + registrationID},
			{"as an administrator sets it", "hostname " + registrationID + " && echo " + registrationID + " >/etc/hostname"},
		} {
			g.run("systemctl stop dpsd; rm -rf /var/lib/dpsd/*; hostname localhost; rm -f /etc/hostname")
			g.write("/etc/dpsd/dpsd.toml", named, 0o644)
			g.run("systemctl start --no-block dpsd")
			g.untilShown("dpsd.service", "StatusText", "input-unreadable")
			g.contains("dpsd status", "hostnamectl set-hostname NAME")
			process := g.show("dpsd.service", "MainPID")
			g.run(c.command)
			g.until("dpsd is ready, "+c.how, "systemctl -q is-active dpsd.service")
			g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
			g.expect("dpsd.service", "MainPID", process)
			g.expect("dpsd.service", "NRestarts", "0")
		}
		if out, status := g.try("setpriv --reuid=dpsd --regid=dpsd --clear-groups hostname other"); status == 0 {
			t.Errorf("the service's user may set the host name: %s", out)
		}
	})
}
