package daemon

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/simulator"
)

func TestAChangeToTheOtherNameOfTheHubIsANewIdentityAndIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		named := func(hub string) simulator.Rule {
			return simulator.Rule{On: simulator.OnRegister, State: "assigned", AssignedHub: hub, Times: 1}
		}
		g := newGateway(t, named("contoso.azure-devices.net"), named("contoso.device.azure-devices.net"), named("fabrikam.azure-devices.net"))
		g.Settings.Interval = time.Hour
		g.run()
		g.until("assigned", 3)
		entries := g.log.FilterMessage("assigned").All()
		if err := g.end(); err != nil {
			t.Error(err)
		}
		for i, want := range []string{"", "contoso.azure-devices.net", ""} {
			fields := entries[i].ContextMap()
			if fields["otherName"] != want || fields["generation"] != uint64(i+1) {
				t.Errorf("assignment %d: the other name is %q, generation %d, want %q, %d", i+1, fields["otherName"], fields["generation"], want, i+1)
			}
			const sentence = "; this hub was previously assigned as contoso.azure-devices.net, and consumers must use the new name"
			if text := event.Message("assigned", fields); strings.Contains(text, sentence) != (want != "") {
				t.Errorf("assignment %d is logged as %q", i+1, text)
			}
		}
	})
}
