package system

import (
	"strings"
	"testing"
)

// As whom a command is run.
const (
	stranger = "setpriv --reuid=nobody --regid=nogroup --clear-groups "
	member   = "setpriv --reuid=nobody --regid=nogroup --groups=dpsd "
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
