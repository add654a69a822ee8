package daemon

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/transport"
)

// docs/promises.md lists the promises and their other tests.

func TestPromise3MakeBeforeBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		reload := make(chan os.Signal, 1)
		g.Hangup = reload
		g.Reload = func() (*Settings, error) { return nil, nil }
		g.run()
		g.until("assigned", 1)
		old := g.wantAssigned()

		for _, rule := range []simulator.Rule{
			{On: simulator.OnAccept, Close: true},
			{On: simulator.OnTLS, ServerCertificate: "other-ca"},
			{On: simulator.OnConnect, Connack: code(5)},
			{On: simulator.OnSubscribe, Close: true},
			{On: simulator.OnRegister, Status: 401},
			{On: simulator.OnRegister, Status: 404},
			{On: simulator.OnRegister, State: "disabled"},
			{On: simulator.OnRegister, State: "assigned", Omit: []string{"assignedHub"}},
			{On: simulator.OnRegister, State: "assigned", AssignedHub: "no host name"},
			{On: simulator.OnPoll, State: "failed"},
			{On: simulator.OnPoll, Close: true},
		} {
			if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{rule}}); err != nil {
				t.Fatal(err)
			}
			seen := g.log.FilterMessage("fault").Len()
			time.Sleep(forcedGap)
			reload <- os.Interrupt
			g.until("fault", seen+1)
			if rec := g.wantAssigned(); rec.Generation != old.Generation || rec.Checksum != old.Checksum {
				t.Errorf("%+v: the published record has changed: %+v", rule, rec)
			}
		}

		// If the hub did change, the new record replaces the old one immediately, but only when
		// it is durable.
		moved := simulator.Rule{On: simulator.OnPoll, State: "assigned", AssignedHub: "moved.azure-devices.net", Substatus: "deviceDataMigrated"}
		if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{moved}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(forcedGap)
		reload <- os.Interrupt
		g.until("assigned", 2)
		if rec := g.wantAssigned(); rec.Generation != old.Generation+1 || rec.AssignedHub != "moved.azure-devices.net" {
			t.Errorf("generation %d, hub %s", rec.Generation, rec.AssignedHub)
		}
		if n, _ := g.notified("READY=1"); n < 2 {
			t.Error("READY was not sent again after the reloads")
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// The test searches all output of a gateway for its secrets.
func TestPromise8SecretsStaySecret(t *testing.T) {
	for _, certified := range []bool{false, true} {
		t.Run(map[bool]string{false: "a symmetric key", true: "a private key"}[certified], func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t,
					simulator.Rule{On: simulator.OnConnect, Connack: code(5), Times: 1},
					simulator.Rule{On: simulator.OnConnect, Garbage: "HTTP/1.1 400 Bad Request\r\n\r\n", Times: 1},
					simulator.Rule{On: simulator.OnRegister, Status: 401, Times: 1},
					simulator.Rule{On: simulator.OnRegister, Body: new("{"), Times: 1},
					simulator.Rule{On: simulator.OnPoll, Close: true, Times: 1},
				)
				g.Settings.Dialer.Protocols = []transport.Protocol{transport.MQTT, transport.WebSocket}
				secrets := []string{strings.TrimSpace(g.sim.DeviceKey(device)), "SharedAccessSignature", "sig=", "PRIVATE KEY"}
				if certified {
					g.Settings.Credentials = []attest.Credential{g.certificate(device)}
					key, err := os.ReadFile(filepath.Join(g.dir, "device-key.pem"))
					if err != nil {
						t.Fatal(err)
					}
					secrets = append(secrets, strings.Split(string(key), "\n")[1])
				}
				g.run()
				g.until("assigned", 1)
				if err := g.end(); err != nil {
					t.Error(err)
				}
				if len(g.faults()) < 4 {
					t.Fatalf("only %v went wrong", g.faults())
				}

				said := map[string]string{"STATUS=": ""}
				for _, e := range g.log.All() {
					fields, err := json.Marshal(e.ContextMap())
					if err != nil {
						t.Fatal(err)
					}
					said["the log"] += e.Message + string(fields) + "\n"
				}
				for _, n := range g.notes {
					said["STATUS="] += n.state + "\n"
				}
				for _, dir := range []string{g.Store.Directory, g.Store.RuntimeDirectory} {
					said[filepath.Base(dir)] = snapshot(t, dir)
				}
				for where, text := range said {
					if text == "" {
						t.Errorf("%s is empty: nothing was searched", where)
					}
					for _, secret := range secrets {
						if strings.Contains(text, secret) {
							t.Errorf("%.20s… is in %s", secret, where)
						}
					}
				}
			})
		})
	}
}
