package daemon

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
)

// hubPipe is a HubSocket whose connections are pipes, which work in virtual time.
type hubPipe struct {
	conns chan net.Conn

	mu      sync.Mutex
	err     error         // of Accept; nil: none
	expired chan struct{} // closed when a deadline has passed
	closed  chan struct{}
}

func newHubPipe() *hubPipe {
	return &hubPipe{conns: make(chan net.Conn), expired: make(chan struct{}), closed: make(chan struct{})}
}

func (p *hubPipe) Accept() (net.Conn, error) {
	p.mu.Lock()
	expired, err := p.expired, p.err
	p.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case c := <-p.conns:
		return c, nil
	case <-expired:
		return nil, os.ErrDeadlineExceeded
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

// fails makes the next calls of Accept fail; nil: they do not.
func (p *hubPipe) fails(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.err = err
}

// SetDeadline supports a time in the past and the zero time.
func (p *hubPipe) SetDeadline(t time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if t.IsZero() {
		p.expired = make(chan struct{})
	} else {
		close(p.expired)
	}
	return nil
}

func (p *hubPipe) Close() error   { close(p.closed); return nil }
func (p *hubPipe) Addr() net.Addr { return &net.UnixAddr{Name: "/run/dpsd/hub/x.sock", Net: "unix"} }

// client returns a client of the socket.
func (p *hubPipe) client() *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		select {
		case p.conns <- theirs:
			return ours, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}}}
}

// serves gives the gateway a socket for each name.
func (g *gateway) serves(names ...string) map[string]*hubPipe {
	pipes := map[string]*hubPipe{}
	g.HubSockets = map[string]HubSocket{}
	for _, name := range names {
		pipes[name] = newHubPipe()
		g.HubSockets[name] = pipes[name]
	}
	return pipes
}

// wantWithheld compares why services get no credentials; "": they do.
func (s *supervisor) wantWithheld(t *testing.T, want consumer.Reason) {
	t.Helper()
	synctest.Wait()
	if got := s.consumers.board.State().Withheld; got != want {
		t.Errorf("withheld because of %q, want %q", got, want)
	}
}

func TestServicesLearnTheIdentityAsSoonAsItIsAssigned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.serves("telemetry")
		g.write("ca.pem", string(g.sim.CA()))
		g.Settings.Dialer.CAFile = filepath.Join(g.dir, "ca.pem")
		s := g.supervised()
		s.wantWithheld(t, consumer.NotAssigned)
		g.until("assigned", 1)
		s.wantWithheld(t, "")
		st, rec := s.consumers.board.State(), g.wantAssigned()
		if st.Hub != (hub.Identity{Host: rec.AssignedHub, DeviceID: device}) || st.Generation != 1 || !st.Tokens || st.Certificate != nil || st.RootsFile != g.Settings.Dialer.CAFile {
			t.Errorf("%+v", st)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// systemd starts a unit that is ordered after dpsd as soon as it has received READY=1.
func TestAUnitThatStartsAtREADYGetsTheIdentityFromBothSockets(t *testing.T) {
	for name, gateway := range map[string]func(*testing.T) *gateway{
		"at the first assignment": func(t *testing.T) *gateway { return newGateway(t) },
		"with a record": func(t *testing.T) *gateway {
			g := restarted(t)
			g.Settings.OnBoot = PolicyIfNeeded
			return g
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := gateway(t)
				g.serves("telemetry")
				sending, looked := make(chan struct{}), make(chan struct{})
				g.Notify = func(state string) error { // the loop waits for it
					if strings.HasPrefix(state, "READY=1") {
						close(sending)
						<-looked
					}
					return g.note(state)
				}
				s := g.supervised()
				<-sending
				if st := s.consumers.board.State(); st.Withheld != "" || st.Hub.DeviceID != device {
					t.Errorf("services get %+v", st)
				}
				if st, _ := s.board.Look(time.Now()); !st.Ready || st.Identity == nil || st.Identity.DeviceID != device {
					t.Errorf("the status is %+v", st)
				}
				close(looked)
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// Services start when the gateway boots, and a fleet may have a long boot delay, or no network.
func TestAfterARestartServicesDoNotWaitForARegistration(t *testing.T) {
	for _, policy := range []Policy{"", PolicyVerify, PolicyIfNeeded} {
		t.Run("on_boot = "+string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := restarted(t)
				g.serves("telemetry")
				g.Settings.OnBoot, g.Settings.BootDelayMax = policy, time.Hour
				s := g.supervised()
				s.wantWithheld(t, "")
				if waited := time.Since(g.start); waited != 0 || g.registers() != 0 {
					t.Errorf("after %s and %d registrations", waited, g.registers())
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestServicesGetNothingForTheRecordOfAnotherConfiguration(t *testing.T) {
	for _, policy := range []Policy{"", PolicyIfNeeded} {
		t.Run("on_boot = "+string(policy), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := restarted(t)
				g.serves("telemetry")
				g.write("payload.json", `{"site": 1}`)
				g.Settings.PayloadFile = filepath.Join(g.dir, "payload.json")
				g.Settings.OnBoot, g.Settings.BootDelayMax = policy, time.Hour
				s := g.supervised()
				s.wantWithheld(t, consumer.OtherConfiguration)
				g.until("assigned", 1)
				s.wantWithheld(t, "")
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// A gateway without a battery boots with a wrong time. Services must not take the hub of another
// configuration for theirs until the time is correct.
func TestAnImplausibleClockDoesNotHideThatTheRecordBelongsToAnotherConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		pipe := g.serves("telemetry")["telemetry"]
		g.write("payload.json", `{"site": 1}`)
		g.Settings.PayloadFile = filepath.Join(g.dir, "payload.json")
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}}
		g.Settings.BootDelayMax, g.BuiltAt = time.Hour, time.Now().Add(time.Hour)
		g.run()
		if status, answer := pipe.requested(t, http.MethodGet, "/v1/hub", ""); status != http.StatusServiceUnavailable || answer["code"] != string(consumer.OtherConfiguration) {
			t.Errorf("%d %v", status, answer)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAReloadWithAnotherIdentityWithholdsCredentialsImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.serves("telemetry")
		hangup, file := g.reloads()
		s := g.supervised()
		g.until("assigned", 1)
		time.Sleep(time.Hour)

		same := g.Settings
		same.Consumers = []consumer.Consumer{{Name: "telemetry", Lifetime: time.Minute}}
		file.contains(&same)
		hangup <- os.Interrupt
		s.wantWithheld(t, "") // although the registration takes 6 s
		time.Sleep(time.Hour)

		other := same
		other.PayloadFile = filepath.Join(g.dir, "payload.json")
		g.write("payload.json", `{"site": 1}`)
		file.contains(&other)
		hangup <- os.Interrupt
		s.wantWithheld(t, consumer.OtherConfiguration)
		g.until("assigned", 3)
		s.wantWithheld(t, "")
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// A reload cancels the running registration, whose fingerprint is that of the old configuration.
func TestAReloadDuringARegistrationWithholdsCredentials(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		g.serves("telemetry")
		hangup, file := g.reloads()
		s := g.supervised()
		s.wantWithheld(t, "")
		other := g.Settings
		other.RegistrationID = attest.RegistrationID{Template: "gw-2"}
		file.contains(&other)
		time.Sleep(time.Second) // DPS answers after 6 s
		hangup <- os.Interrupt
		s.wantWithheld(t, consumer.OtherConfiguration)
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// clockOf gives the gateway a wall clock that tests can set.
func (g *gateway) clockOf(steps chan time.Duration) (set func(time.Duration)) {
	var mu sync.Mutex
	var by time.Duration
	g.Now = func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return time.Now().Add(by)
	}
	g.ClockStepped = steps
	return func(d time.Duration) {
		mu.Lock()
		by += d
		mu.Unlock()
		steps <- d
	}
}

func TestServicesGetNothingWhileTheClockIsImplausible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.serves("telemetry")
		set := g.clockOf(make(chan time.Duration))
		s := g.supervised()
		g.until("assigned", 1)
		s.wantWithheld(t, "")
		time.Sleep(time.Hour)
		set(-48 * time.Hour)
		s.wantWithheld(t, consumer.ClockImplausible)
		set(48 * time.Hour)
		s.wantWithheld(t, "")
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestServicesLearnThatTheClockHasStepped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.serves("telemetry")
		set := g.clockOf(make(chan time.Duration))
		s := g.supervised()
		g.until("assigned", 1)
		synctest.Wait()
		_, stepped := s.consumers.board.Watch()
		time.Sleep(time.Hour)
		set(10 * time.Minute)
		synctest.Wait()
		select {
		case <-stepped:
		default:
			t.Error("the servers do not know about the step")
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// Steps of less than a minute are not reported.
func TestServicesGetCredentialsWhenAClockThatIsSlightlySlowBecomesPlausible(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		g.serves("telemetry")
		g.Settings.OnBoot = PolicyIfNeeded
		g.BuiltAt = time.Now().Add(30 * time.Second)
		s := g.supervised()
		s.wantWithheld(t, consumer.ClockImplausible)
		time.Sleep(30*time.Second - 1)
		s.wantWithheld(t, consumer.ClockImplausible)
		time.Sleep(time.Nanosecond)
		s.wantWithheld(t, "")
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// The loop must not wait for a disk that hangs during a save.
func TestTheStateOfServicesDoesNotWaitForADiskThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		g.serves("telemetry")
		s := g.supervisor()
		if err := s.open(time.Now()); err != nil {
			t.Fatal(err)
		}
		defer s.close()
		s.recognized(s.consumers.record.ConfigFingerprint)
		s.postConsumers(time.Now())
		s.running.cancel = func() {}
		held := s.store
		s.store = nil // any access would have to wait
		s.BuiltAt = time.Now().Add(time.Hour)
		s.postConsumers(time.Now())
		if st := s.consumers.board.State(); st.Hub.DeviceID != device || st.Withheld != consumer.ClockImplausible {
			t.Errorf("%+v", st)
		}
		s.store = held
		g.sim.Close()
	})
}

func TestTheCredentialOfServicesIsTheOneThatTheHubKnows(t *testing.T) {
	primary := attest.SymmetricKey{Key: attest.Reference{File: "/primary"}}
	secondary := attest.SymmetricKey{Key: attest.Reference{Credential: "secondary"}}
	x := attest.X509{Certificate: attest.Reference{File: "/c.pem"}, PrivateKey: attest.Reference{File: "/k.pem"}}
	signer := attest.X509{Certificate: attest.Reference{File: "/c.pem"}, PrivateKey: attest.Reference{Signer: "/s.sock"}}
	loaded := attest.X509{Certificate: attest.Reference{Credential: "c"}, PrivateKey: attest.Reference{Credential: "k"}}
	for _, test := range []struct {
		says       string
		configured []attest.Credential
		last       string // the credential of the last assignment
		state      string // registration state of DPS
		want       attest.Credential
		files      bool
	}{
		{"the first, if nothing is known", []attest.Credential{primary, x}, "", "", primary, false},
		{"the one of the last assignment", []attest.Credential{primary, secondary}, secondary.String(), "", secondary, false},
		{"a certificate, with its files", []attest.Credential{primary, x}, x.String(), `{"symmetricKey":{}}`, x, true},
		{"a key after a certificate", []attest.Credential{x, primary}, primary.String(), "", primary, false},
		{"the type that DPS names, if the last one was removed", []attest.Credential{primary, x}, "x509 file:/old.pem", `{"x509":{"enrollmentGroupId":"g"}}`, x, true},
		{"the type that DPS names", []attest.Credential{x, primary}, "", `{"symmetricKey":{}}`, primary, false},
		{"the first, if DPS names both types", []attest.Credential{x, primary}, "", `{"symmetricKey":{},"x509":{}}`, x, true},
		{"the first, if DPS names a type without a value", []attest.Credential{x, primary}, "", `{"symmetricKey":null}`, x, true},
		{"a key in a signer, which is no file", []attest.Credential{signer}, "", "", signer, false},
		{"a key that systemd provides, which only dpsd can read", []attest.Credential{loaded}, "", "", loaded, false},
	} {
		t.Run(test.says, func(t *testing.T) {
			s := &supervisor{settings: Settings{Credentials: test.configured}}
			s.consumers.assignedBy = test.last
			s.consumers.record.RegistrationState = json.RawMessage(test.state)
			got := s.hubCredential()
			if got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
			if files := s.certificateFiles(got); (files != nil) != test.files || files != nil && (files.Certificate != "/c.pem" || files.PrivateKey != "/k.pem") {
				t.Errorf("files %+v", files)
			}
		})
	}
	t.Run("an issued certificate precedes that of the credential", func(t *testing.T) {
		s := &supervisor{settings: Settings{Credentials: []attest.Credential{x}}}
		s.consumers.record.Certificate = &store.Certificate{CertificateFile: "/1/chain.pem", PrivateKeyFile: "/1/key.pem", NotAfter: time.Unix(7, 0)}
		if files := s.certificateFiles(x); *files != (consumer.Files{Certificate: "/1/chain.pem", PrivateKey: "/1/key.pem", NotAfter: time.Unix(7, 0)}) {
			t.Errorf("files %+v", files)
		}
	})
}

func TestTheCredentialOfTheLastAssignmentIsKnownAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, Times: 1})
		g.Settings.Credentials = append(g.Settings.Credentials, g.key("secondary.key", g.sim.DeviceKey(device)))
		want := g.Settings.Credentials[1].String()
		g.serves("telemetry")
		s := g.supervised()
		g.until("assigned", 1)
		synctest.Wait()
		if got := s.consumers.signing.Load(); got == nil || got.key.String() != want {
			t.Errorf("tokens are signed with %v, want %q", got, want)
		}
		if s.consumers.assignedBy != want {
			t.Errorf("assigned with %q, want %q", s.consumers.assignedBy, want)
		}
		g.stop()
		if err := <-g.done; err != nil {
			t.Fatal(err)
		}
		g.Settings.OnBoot = PolicyIfNeeded
		s = g.supervised()
		synctest.Wait()
		if got := s.consumers.signing.Load(); got == nil || got.key.String() != want {
			t.Errorf("tokens are signed with %v, want %q", got, want)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
