package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
)

// A TLS interceptor whose root this gateway trusts may refuse everything. That says nothing about
// the credential. The simulator's certificate for one of Azure's names is issued by its own
// authority.
func TestARefusalOnAnInspectedConnectionCountsAgainstNoCredential(t *testing.T) {
	on := func(r simulator.Rule) simulator.Rule { r.Times = 3; return r }
	certificate := func(g *gateway) attest.Credential { return g.certificate(device) }
	key := func(g *gateway) attest.Credential { return g.key("device.key", g.sim.DeviceKey(device)) }
	for _, c := range []struct {
		name       string
		rule       simulator.Rule
		credential func(*gateway) attest.Credential
	}{
		{"CONNACK 5", on(simulator.Rule{On: simulator.OnConnect, Connack: code(5)}), key},
		{"401", on(simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"}), key},
		{"the certificate, within the handshake of TLS 1.2", on(simulator.Rule{On: simulator.OnTLS, TLSMax: "1.2", Alert: "unknown_ca", AlertAt: "certificate"}), certificate},
		{"the certificate, after that of TLS 1.3", on(simulator.Rule{On: simulator.OnTLS, TLSMax: "1.3", Alert: "unknown_ca", AlertAt: "certificate"}), certificate},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, c.rule)
				g.Settings.Dialer.Host = global
				// The second credential would never be used if the refusal counted against the
				// first.
				g.Settings.Credentials = []attest.Credential{c.credential(g), g.key("other.key", g.sim.DeviceKey("other"))}
				g.run()
				took := g.until("assigned", 1)
				if err := g.end(); err != nil {
					t.Error(err)
				}
				g.wantFaults(fault.TLSIntercepted, fault.TLSIntercepted, fault.TLSIntercepted)
				if limit := 7*time.Second + 6*time.Second; took > limit {
					t.Errorf("assigned after %s, want the transient lane's %s at most", took, limit)
				}
			})
		})
	}
	t.Run("at an endpoint outside Azure an interceptor cannot be detected, and the refusal counts", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, simulator.Rule{On: simulator.OnConnect, Connack: code(5), Times: 1})
			g.Settings.Credentials = append(g.Settings.Credentials, g.key("second.key", g.sim.DeviceKey(device)))
			g.run()
			g.until("assigned", 1)
			if err := g.end(); err != nil {
				t.Error(err)
			}
			g.wantFaults(fault.ConnackRefused)
		})
	})
}
