package daemon

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
)

// refused reports whether err is the error that Run returns, with Once, when the service has
// refused every credential or the enrollment.
func refused(err error) bool {
	var f fault.Fault
	return errors.As(err, &f) && !errors.Is(err, ErrTimeout)
}

func TestOnceReturnsAnErrorWhenItIsStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Silent: true})
		g.Once = true
		g.run()
		g.until("connected", 1)
		if err := g.end(); !errors.Is(err, ErrStopped) || refused(err) {
			t.Errorf("Run returned %v, want ErrStopped", err)
		}
	})
}

// missingKey is a credential whose file does not exist.
func (g *gateway) missingKey() attest.Credential {
	return attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, "missing.key")}}
}

func TestOnceContinuesToItsTimeoutAfterEveryFaultThatIsNoRefusalByTheService(t *testing.T) {
	unauthorized := simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"}
	for _, tt := range []struct {
		name  string
		fault fault.Code // the last one
		given func(*gateway)
		rules []simulator.Rule
	}{
		{"a missing key", fault.CredentialUnreadable, func(g *gateway) { g.Settings.Credentials = []attest.Credential{g.missingKey()} }, nil},
		{"a key that is none", fault.CredentialInvalid, func(g *gateway) { g.write("device.key", "no key") }, nil},
		{"a missing serial number", fault.InputUnreadable, func(g *gateway) {
			g.Settings.RegistrationID = attest.RegistrationID{File: filepath.Join(g.dir, "serial")}
		}, nil},
		{"a payload that is no JSON", fault.InputInvalid, func(g *gateway) {
			g.write("payload", "{")
			g.Settings.PayloadFile = filepath.Join(g.dir, "payload")
		}, nil},
		{"a missing CA file", fault.CAUnreadable, func(g *gateway) { g.Settings.Dialer.CAFile = filepath.Join(g.dir, "ca.pem") }, nil},
		{"a state directory that cannot be made", fault.StateUnwritable, func(g *gateway) {
			if err := os.WriteFile(g.Store.Directory, nil, 0o600); err != nil {
				g.t.Fatal(err)
			}
		}, nil},
		{"a state file of a newer dpsd", fault.StateNewerSchema, func(g *gateway) {
			if err := errors.Join(os.Mkdir(g.Store.Directory, 0o755),
				os.WriteFile(filepath.Join(g.Store.Directory, "state.json"), []byte(`{"schema":2}`), 0o600)); err != nil {
				g.t.Fatal(err)
			}
		}, nil},
		{"a refusal that a wrong clock explains", fault.ClockImplausible, func(g *gateway) { g.BuiltAt = g.start.AddDate(1, 0, 0) },
			[]simulator.Rule{unauthorized}},
		{"a missing key after one that the service refused", fault.CredentialUnreadable, func(g *gateway) {
			g.Settings.Credentials = append(g.Settings.Credentials, g.missingKey())
		}, []simulator.Rule{unauthorized}},
		{"a missing key before one that the service refuses", fault.Unauthorized, func(g *gateway) {
			g.Settings.Credentials = append([]attest.Credential{g.missingKey()}, g.Settings.Credentials...)
		}, []simulator.Rule{unauthorized}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, tt.rules...)
				g.Once, g.Timeout = true, time.Hour
				tt.given(g)
				g.run()
				err := <-g.done
				var last fault.Fault
				if !errors.Is(err, ErrTimeout) || refused(err) || !errors.As(err, &last) || last.Code != tt.fault {
					t.Errorf("Run returned %v, want ErrTimeout with %s", err, tt.fault)
				}
				if took := time.Since(g.start).Round(2 * time.Second); took != time.Hour {
					t.Errorf("it took %s, want an hour", took)
				}
				if n := g.log.FilterMessage("fault").Len(); n < 3 {
					t.Errorf("%d faults in an hour: it did not try again", n)
				}
				g.sim.Close()
			})
		})
	}
}

func TestOnceEndsWhenTheServiceHasRefusedEveryCredential(t *testing.T) {
	unauthorized := simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"}
	for _, tt := range []struct {
		name  string
		rules []simulator.Rule
		given func(*gateway)
		want  []fault.Code
	}{
		{"two keys", []simulator.Rule{unauthorized}, func(g *gateway) {
			g.Settings.Credentials = append(g.Settings.Credentials, g.Settings.Credentials[0])
		}, []fault.Code{fault.Unauthorized, fault.Unauthorized}},
		{"two keys, with a lost connection in between",
			[]simulator.Rule{{On: simulator.OnRegister, Status: 401, RetryAfter: "none", Times: 1}, {On: simulator.OnConnect, Skip: 1, Times: 1, Connack: code(3)}, unauthorized},
			func(g *gateway) { g.Settings.Credentials = append(g.Settings.Credentials, g.Settings.Credentials[0]) },
			[]fault.Code{fault.Unauthorized, fault.ConnackUnavailable, fault.Unauthorized}},
		{"an expired certificate", []simulator.Rule{unauthorized}, expired, []fault.Code{fault.CertificateExpired}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, tt.rules...)
				g.Once, g.Timeout = true, 24*time.Hour
				tt.given(g)
				g.run()
				if err := <-g.done; !refused(err) {
					t.Errorf("Run returned %v, want the refusal", err)
				}
				g.wantFaults(tt.want...)
				g.sim.Close()
			})
		})
	}
}

func TestOnceWithoutATimeoutWaitsForAFileForever(t *testing.T) {
	long(t)
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Once = true
		g.Settings.Credentials = []attest.Credential{g.missingKey()}
		changed := make(chan struct{}, 1)
		g.watching(changed)
		g.run()
		time.Sleep(30*24*time.Hour + time.Minute)
		g.write("missing.key", g.sim.DeviceKey(device))
		changed <- struct{}{}
		began := time.Now()
		if err := <-g.done; err != nil {
			t.Errorf("Run returned %v", err)
		}
		if took := time.Since(began); took != settle+6*time.Second {
			t.Errorf("assigned %s after the key appeared, want %s", took, settle+6*time.Second)
		}
		g.wantAssigned()
		g.sim.Close()
	})
}
