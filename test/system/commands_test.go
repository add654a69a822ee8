package system

import (
	"strings"
	"testing"
)

// The users as which a command runs.
const (
	stranger = "setpriv --reuid=nobody --regid=nogroup --clear-groups "
	member   = "setpriv --reuid=nobody --regid=nogroup --groups=dpsd "
	reader   = "setpriv --reuid=nobody --regid=nogroup --groups=dpsd-keys " // of keys
)

func TestTheCommandsReachTheServiceInItsSandbox(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		for _, who := range []string{"", stranger, member} {
			if out := g.run(who + "dpsd status"); !strings.Contains(out, "gw-1") || !strings.Contains(out, "dpsd-sim.azure-devices.net") {
				t.Errorf("%sdpsd status does not name device and hub:\n%s", who, out)
			}
			g.run(who + "dpsd wait --for confirmed --timeout 60s")
		}
		if out, status := g.try(stranger + "dpsd reprovision"); status == 0 {
			t.Errorf("a stranger may ask for a registration:\n%s", out)
		}
		if n := dps.registrations(); n != 1 {
			t.Errorf("%d registrations, want 1", n)
		}
		g.run(member + "dpsd reprovision --wait")
		if n := dps.registrations(); n != 2 {
			t.Errorf("%d registrations, want 2", n)
		}
		if out, status := g.try("dpsd check"); status != 0 {
			t.Errorf("dpsd check ends with %d:\n%s", status, out)
		}
	})
}

func TestAReportOfABootedGatewayIsCompleteAndContainsNoKey(t *testing.T) {
	inBoth(t, func(t *testing.T, s suite) {
		g := withDpsd(t, s)
		dps := provisioned(g, "")
		const drop = "[Service]\nEnvironment=\"SITE=hall 7\" \\\n  HTTPS_PROXY=http://gateway:hunter2@proxy:3128\n"
		g.run("mkdir -p /etc/systemd/system/dpsd.service.d")
		g.write("/etc/systemd/system/dpsd.service.d/site.conf", drop, 0o644)
		g.run("systemctl daemon-reload")
		for _, who := range []string{"", stranger} {
			parts := "rm -rf /tmp/r && mkdir -m 777 /tmp/r && cd /tmp/r && " + who + "dpsd report >name 2>missing; mkdir all; tar -xzf $(cat name) --strip-components=1 -C all; "
			missing := g.run(parts + "cat missing")
			if who == "" && missing != "" {
				t.Errorf("root's report is not whole:\n%s", missing)
			}
			if who != "" && (!strings.Contains(missing, "journal.txt") || !strings.Contains(missing, "Try: sudo dpsd report")) {
				t.Errorf("%sdpsd report does not report that this user cannot read the journal:\n%s", who, missing)
			}
			g.run("cd /tmp/r/all && grep -q '\"running\": true' status.json && grep -q '^dpsd_' metrics.txt && grep -q ^ExecStart= unit.txt && grep -q ^ActiveState=active unit-properties.txt")
			g.run("cd /tmp/r/all && grep -qx 'Environment=\\[masked\\] SITE HTTPS_PROXY' unit.txt && grep -q '^dpsd .* installed$' versions.txt")
			if who == "" {
				g.run("grep -q 'gw-1' /tmp/r/all/journal.txt")
			}
			for _, secret := range []string{dps.key("gw-1"), "hunter2", "hall 7"} {
				if out, status := g.try("grep -rF '" + strings.TrimSpace(secret) + "' /tmp/r/all"); status != 1 {
					t.Errorf("%sdpsd report contains a secret (grep ends with %d):\n%s", who, status, out)
				}
			}
		}
	})
}
