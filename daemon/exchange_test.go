package daemon

import (
	"crypto/tls"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/simulator"
)

// remembering is a gateway with a TLS session to resume. The rules apply to its next connections.
func remembering(t *testing.T, certificate bool, rules ...simulator.Rule) *gateway {
	t.Helper()
	g := newGateway(t)
	if certificate {
		g.Settings.Credentials = []attest.Credential{g.certificate(device)}
	}
	g.Settings.Dialer.Sessions = tls.NewLRUClientSessionCache(4)
	tickets := simulator.Settings{SessionTickets: true}
	if err := g.sim.SetScenario(&simulator.Scenario{Settings: tickets}); err != nil {
		t.Fatal(err)
	}
	g.publish()
	if err := g.sim.SetScenario(&simulator.Scenario{Settings: tickets, Rules: rules}); err != nil {
		t.Fatal(err)
	}
	return g
}

func TestAFailureOnAResumedSessionIsReportedAndCostsNoFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := remembering(t, false, simulator.Rule{On: simulator.OnConnect, Reset: true, Resumed: true})
		g.run()
		if took := g.until("assigned", 1); took > 10*time.Second {
			t.Errorf("assigned after %s", took)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults()
		entries := g.log.FilterMessage(event.ResumptionFailed).All()
		if len(entries) != 1 || !strings.HasPrefix(entries[0].ContextMap()["cause"].(string), "connection-lost: ") {
			t.Errorf("reported: %v", entries)
		}
	})
}

// The session of a refused connection is not kept: otherwise each attempt would first fail on
// it, and connect twice.
func TestARefusedCertificateCostsOneConnectionAnAttempt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := remembering(t, true, simulator.Rule{On: simulator.OnConnect, Connack: code(5)})
		g.run()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		if err := g.end(); err != nil {
			t.Error(err)
		}
		// The first attempt had a session to resume.
		if attempts := len(g.faults()); attempts < 3 || g.dials != attempts+1 {
			t.Errorf("%d connections for %d attempts", g.dials, attempts)
		}
	})
}
