package system

import (
	"strings"
	"testing"
)

func TestAReloadWithAnInvalidFileFailsAndChangesNothing(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		process := g.show("dpsd.service", "MainPID")
		const mistake = "/etc/dpsd/dpsd.toml:2:1: dps.id_scop: unknown key"

		g.write("/etc/dpsd/dpsd.toml", strings.Replace(dps.configuration(""), "id_scope", "id_scop", 1), 0o644)
		if out, status := g.try("systemctl reload dpsd"); status == 0 {
			t.Errorf("the reload succeeds: %s", out)
		}
		if said := g.run("journalctl --boot --unit=dpsd --output=cat"); !strings.Contains(said, mistake) {
			t.Errorf("the journal does not name the mistake:\n%s", said)
		}
		g.expect("dpsd.service", "ActiveState", "active")
		g.expect("dpsd.service", "MainPID", process)
		g.expect("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-1")
		if n := dps.registrations(); n != 1 {
			t.Errorf("%d registrations, want 1: dpsd was asked to register again", n)
		}

		// If a signal arrives without the check, dpsd refuses the file.
		g.run("kill -HUP " + process)
		g.untilShown("dpsd.service", "StatusText", mistake)
		g.until("the reload has ended", "test $(systemctl show --value -p ActiveState dpsd) = active")
		g.expect("dpsd.service", "MainPID", process)
	})
}

func TestAReloadAppliesAValidFile(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		process := g.show("dpsd.service", "MainPID")

		// The new configuration names a different gateway with its key in a file.
		g.write("/etc/dpsd/keys/gw-2.key", dps.key("gw-2"), 0o640)
		g.run("chgrp dpsd-keys /etc/dpsd/keys/gw-2.key")
		if out, status := g.try(stranger + "cat /etc/dpsd/keys/gw-2.key"); status == 0 {
			t.Errorf("everybody can read the key: %s", out)
		}
		g.write("/etc/dpsd/dpsd.toml", strings.NewReplacer("gw-1", "gw-2", "credential:dps-primary-key", "file:/etc/dpsd/keys/gw-2.key").Replace(dps.configuration("")), 0o644)
		g.run("systemctl reload dpsd")
		g.untilShown("dpsd.service", "StatusText", "Assigned to dpsd-sim.azure-devices.net as gw-2")
		g.expect("dpsd.service", "MainPID", process)
		g.expect("dpsd.service", "ActiveState", "active")
	})
}

// A file that the configuration names may be missing for a while: dpsd reports that and retries.
func TestAReloadWithAMissingInputSucceeds(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		process := g.show("dpsd.service", "MainPID")
		g.write("/etc/dpsd/dpsd.toml", strings.NewReplacer(
			"registration_id = \"gw-1\"", "registration_id_file = \"/etc/dpsd/serial\"",
			"credential:dps-primary-key", "file:/etc/dpsd/keys/missing",
			"/etc/dpsd/ca.pem", "/etc/dpsd/missing.pem").Replace(dps.configuration("")), 0o644)
		g.run("systemctl reload dpsd")
		g.untilShown("dpsd.service", "StatusText", "unreadable")
		g.expect("dpsd.service", "MainPID", process)
		g.expect("dpsd.service", "ActiveState", "active")
	})
}

// The running dpsd reads the file itself. A check that cannot determine whether the file is valid
// does not prevent that.
func TestAReloadSucceedsWhenTheCheckOfTheFileCannotRun(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		process := g.show("dpsd.service", "MainPID")
		g.run("mv /usr/bin/dpsd /usr/bin/dpsd.away; systemctl reload dpsd")
		dps.until(2)
		g.expect("dpsd.service", "MainPID", process)
		g.expect("dpsd.service", "ActiveState", "active")
	})
}
