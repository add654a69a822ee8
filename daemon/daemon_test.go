package daemon

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

func TestAGatewayIsProvisioned(t *testing.T) {
	for _, tt := range []struct {
		name      string
		protocol  transport.Protocol
		certified bool
	}{
		{"over TLS with a key", transport.MQTT, false},
		{"over TLS with a certificate", transport.MQTT, true},
		{"over WebSocket with a key", transport.WebSocket, false},
		{"over WebSocket with a certificate", transport.WebSocket, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t)
				g.Settings.Dialer.Protocols = []transport.Protocol{tt.protocol}
				if tt.certified {
					g.Settings.Credentials = []attest.Credential{g.certificate(device)}
				}
				g.run()
				if took := g.until("assigned", 1); took != 6*time.Second {
					t.Errorf("it took %s, want two delays of 3 s and nothing else", took)
				}
				if rec := g.wantAssigned(); rec.Generation != 1 || rec.Substatus != "initialAssignment" {
					t.Errorf("generation %d, substatus %q", rec.Generation, rec.Substatus)
				}
				if err := g.end(); err != nil {
					t.Errorf("Run returned %v after SIGTERM, want nil", err)
				}
				g.wantFaults()
				sum := simulator.Summarize(g.sim.Log())
				if sum.Connections != 1 || len(sum.Registers) != 1 || len(sum.Polls) != 2 || len(sum.Violations) != 0 {
					t.Errorf("%d connections, %d registers, %d polls, violations %q; want 1, 1, 2, none", sum.Connections, len(sum.Registers), len(sum.Polls), sum.Violations)
				}
			})
		})
	}
}

// The run of the design: CONNACK 3, silence, a delay that is longer than a connection is held,
// a throttle, a service error, and then the assignment. Its virtual time is exactly the sum of
// the requested and the random delays.
func TestFailuresDelayTheAssignmentExactlyAsRequested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t,
			simulator.Rule{On: simulator.OnConnect, Connack: code(3), Times: 1},
			simulator.Rule{On: simulator.OnRegister, Silent: true, Times: 1},
			simulator.Rule{On: simulator.OnRegister, RetryAfter: "120", Times: 1},
			simulator.Rule{On: simulator.OnPoll, Status: 429, RetryAfter: "600", Times: 1},
			simulator.Rule{On: simulator.OnPoll, Status: 500, RetryAfter: "none", Times: 1},
		)
		g.run()
		took := g.until("assigned", 1)

		random, h := seeded(7), pace.History{}
		_ = pace.Boot(0, random) // the boot delay uses no random number
		want := time.Duration(0)
		for _, step := range []any{
			fault.New(fault.ConnackUnavailable, "", nil),
			60 * time.Second, // silence, until response_timeout
			fault.New(fault.NoReply, "", nil),
			120 * time.Second, // Retry-After, without a connection
			fault.Fault{Class: fault.Throttling, RetryAfter: 600 * time.Second},
			fault.New(fault.ServiceError, "", nil),
			3 * time.Second, // the next poll is the first that counts
		} {
			switch s := step.(type) {
			case time.Duration:
				want += s
			case fault.Fault:
				wait, _ := g.Settings.Retry.After(s, false, &h, random)
				want += wait
			}
		}
		if took != want {
			t.Errorf("took %s, want %s", took, want)
		}
		g.wantAssigned()
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults(fault.ConnackUnavailable, fault.NoReply, fault.Throttled, fault.ServiceError)
		sum := simulator.Summarize(g.sim.Log())
		if len(sum.Registers) != 2 {
			t.Errorf("%d registers; a poll that fails keeps its operation", len(sum.Registers))
		}
		if len(sum.Violations) != 0 {
			t.Errorf("violations %q", sum.Violations)
		}
	})
}

func TestPromise1READYMeansProvisioned(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		var early error
		g.Notify = func(state string) error {
			if strings.Contains(state, "READY=1") {
				_, early = g.record()
			}
			return g.note(state)
		}
		g.run()
		g.until("assigned", 1)
		synctest.Wait()
		if n, _ := g.notified("READY=1"); n != 1 {
			t.Errorf("READY=1 was sent %d times", n)
		}
		if early != nil {
			t.Errorf("READY=1 came before state.json was readable: %v", early)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if n, _ := g.notified("STOPPING=1"); n != 1 {
			t.Error("the service manager was notified of SIGTERM")
		}
	})
}

func TestNothingIsWrittenForTheSameAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		reload := make(chan os.Signal, 1)
		g.Hangup = reload
		g.Reload = func() (*Settings, error) { return &g.Settings, nil }
		g.run()
		g.until("assigned", 1)
		before := snapshot(t, g.Store.Directory)
		reload <- os.Interrupt
		g.until("assigned", 2)
		if after := snapshot(t, g.Store.Directory); after != before {
			t.Errorf("the files changed:\n%s\n%s", before, after)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// snapshot returns every file that others read, with its modification time.
func snapshot(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, e := range entries {
		// One contains the process ID of each run, the other is the recorder's.
		if e.Name() == "lock" || e.Name() == "attempts.json" {
			continue
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString(e.Name() + " " + info.ModTime().String() + " " + string(data) + "\n")
	}
	return b.String()
}

func TestCredentialFailover(t *testing.T) {
	wrong := "d3JvbmcgbWF0ZXJpYWwgd3JvbmcgbWF0ZXJpYWw="
	t.Run("the second credential is tried immediately when the first is refused", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			g.Settings.Credentials = []attest.Credential{g.key("old.key", wrong), g.Settings.Credentials[0]}
			g.run()
			if took := g.until("assigned", 1); took != 6*time.Second {
				t.Errorf("took %s", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
			g.wantFaults(fault.Unauthorized)
		})
	})
	t.Run("no credential is tried twice in a round, and the next round begins with the first", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			g.Settings.Credentials = []attest.Credential{g.key("a.key", wrong), g.key("b.key", wrong)}
			g.run()
			g.until("fault", 4)
			if err := g.end(); err != nil {
				t.Error(err)
			}
			var used []string
			for _, e := range g.log.FilterMessage("fault").All() {
				used = append(used, filepath.Base(e.ContextMap()["credential"].(string))+" "+e.ContextMap()["lane"].(string))
			}
			want := "a.key next-credential, b.key refused, a.key next-credential, b.key refused"
			if got := strings.Join(used, ", "); got != want {
				t.Errorf("%s, want %s", got, want)
			}
			if n := len(simulator.Summarize(g.sim.Log()).Registers); n != 4 {
				t.Errorf("%d registers in two rounds", n)
			}
		})
	})
	t.Run("a refusal with Retry-After also delays the next credential", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "45", Times: 1})
			g.Settings.Credentials = []attest.Credential{g.Settings.Credentials[0], g.key("second.key", g.sim.DeviceKey(device))}
			g.run()
			if took := g.until("assigned", 1); took != 51*time.Second {
				t.Errorf("took %s, want 45 s and 6 s", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("after an unreadable key the next credential is used without a connection", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			missing := attest.SymmetricKey{Key: attest.Reference{File: filepath.Join(g.dir, "missing")}}
			g.Settings.Credentials = []attest.Credential{missing, g.Settings.Credentials[0]}
			g.run()
			g.until("assigned", 1)
			if err := g.end(); err != nil {
				t.Error(err)
			}
			g.wantFaults(fault.CredentialUnreadable)
			if g.dials != 1 {
				t.Errorf("%d connections", g.dials)
			}
		})
	})
}

func TestAKeyThatAppearsAMinuteAfterStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		key := filepath.Join(g.dir, "late.key")
		g.Settings.Credentials = []attest.Credential{attest.SymmetricKey{Key: attest.Reference{File: key}}}
		g.Settings.Retry.RefusedInitial = 5 * time.Minute
		changed := make(chan struct{}, 1)
		g.watching(changed)
		g.run()
		g.until("fault", 1)
		time.Sleep(time.Minute)
		g.write("late.key", g.sim.DeviceKey(device))
		changed <- struct{}{}
		began := time.Since(g.start)
		if took := g.until("assigned", 1) - began; took != settle+6*time.Second {
			t.Errorf("took %s after the key appeared", took)
		}
		if want := [][]string{{key}}; !reflect.DeepEqual(g.inputs, want) {
			t.Errorf("watched %q, want %q", g.inputs, want)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults(fault.CredentialUnreadable)
	})
}

func TestAContinuouslyChangingFileCausesNoTraffic(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"})
		changed := make(chan struct{})
		g.watching(changed)
		g.run()
		for range 600 {
			changed <- struct{}{}
			time.Sleep(100 * time.Millisecond)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if n := len(simulator.Summarize(g.sim.Log()).Registers); n < 2 || n > 7 {
			t.Errorf("%d registers in a minute of changes", n)
		}
	})
}

func TestPromise4RetryAfterIsAFloor(t *testing.T) {
	throttled := simulator.Rule{On: simulator.OnRegister, Status: 429, RetryAfter: "600", Times: 1}
	t.Run("a restart", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, throttled)
			g.run()
			g.until("fault", 1)
			g.stop()
			if err := <-g.done; err != nil {
				t.Error(err)
			}
			time.Sleep(time.Minute)
			g.run()
			if took := g.until("assigned", 1); took != 606*time.Second {
				t.Errorf("registered %s after the first 429, want 606 s", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("SIGHUP", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, throttled)
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) { return &g.Settings, nil }
			g.run()
			g.until("fault", 1)
			reload <- os.Interrupt
			if took := g.until("assigned", 1); took != 606*time.Second {
				t.Errorf("registered %s after the 429", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("but not another registration ID", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, throttled)
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) {
				s := g.Settings
				s.RegistrationID = attest.RegistrationID{Template: "gw-2"}
				s.Credentials = []attest.Credential{g.key("gw-2.key", g.sim.DeviceKey("gw-2"))}
				if err := g.sim.SetScenario(nil); err != nil {
					return nil, err
				}
				return &s, nil
			}
			g.run()
			g.until("fault", 1)
			reload <- os.Interrupt
			if took := g.until("assigned", 1); took != 6*time.Second {
				t.Errorf("took %s", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestReload(t *testing.T) {
	t.Run("before the first READY systemd is not notified", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, simulator.Rule{On: simulator.OnConnect, Connack: code(3), Times: 3})
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) { return &g.Settings, nil }
			g.run()
			g.until("fault", 1)
			reload <- os.Interrupt
			g.until("reloaded", 1)
			synctest.Wait()
			if n, _ := g.notified("RELOADING=1"); n != 0 {
				t.Error("RELOADING=1 was sent before READY=1")
			}
			if n, _ := g.notified("READY=1"); n != 0 {
				t.Error("READY=1 was sent without an assignment")
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("after READY, RELOADING and READY follow immediately, and the registration runs in the background", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) { return &g.Settings, nil }
			g.run()
			g.until("assigned", 1)
			time.Sleep(time.Hour)
			reload <- os.Interrupt
			g.until("assigned", 2)
			_, reloading := g.notified("RELOADING=1\nMONOTONIC_USEC=")
			n, _ := g.notified("READY=1")
			_, second := g.notified("READY=1\nSTATUS=Configuration reloaded")
			if n != 2 || second.Sub(reloading) != 0 {
				t.Errorf("READY=1 %d times, %s after RELOADING=1", n, second.Sub(reloading))
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("an invalid configuration is refused, and the old one remains", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) { return nil, errors.New("dpsd.toml:3:1: dps.id_scop: unknown key") }
			g.run()
			g.until("assigned", 1)
			reload <- os.Interrupt
			g.until("reload-refused", 1)
			synctest.Wait()
			if n, _ := g.notified("READY=1\nSTATUS=The new configuration is invalid; the previous one stays in effect: dpsd.toml:3:1"); n != 1 {
				t.Errorf("notes %v", g.notes)
			}
			time.Sleep(time.Hour)
			if err := g.end(); err != nil {
				t.Error(err)
			}
			if n := len(simulator.Summarize(g.sim.Log()).Registers); n != 1 {
				t.Errorf("%d registers", n)
			}
		})
	})
	t.Run("a running attempt is canceled", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Silent: true, Times: 1})
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) { return &g.Settings, nil }
			g.run()
			time.Sleep(10 * time.Second)
			reload <- os.Interrupt
			if took := g.until("assigned", 1); took != 16*time.Second {
				t.Errorf("took %s", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
			g.wantFaults()
		})
	})
}

// A hang is a phase that exceeds its deadline: here a dial that ignores its context. From then
// on, neither EXTEND_TIMEOUT_USEC nor WATCHDOG=1 is sent.
func TestAHangStopsTheWatchdogMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Watchdog = 30 * time.Second
		release := make(chan struct{})
		hang := false
		dial := g.Settings.Dialer.DialContext
		settings := g.Settings
		dialer := *settings.Dialer
		dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if hang {
				<-release
				return nil, errors.New("released")
			}
			return dial(ctx, network, address)
		}
		settings.Dialer = &dialer
		g.Settings = settings
		reload := make(chan os.Signal, 1)
		g.Hangup = reload
		g.Reload = func() (*Settings, error) { return &g.Settings, nil }

		g.run()
		g.until("assigned", 1)
		time.Sleep(10 * time.Minute)
		if n, _ := g.notified("WATCHDOG=1"); n != 40 {
			t.Errorf("WATCHDOG=1 was sent %d times in ten idle minutes, want every 15 s", n)
		}
		hang = true
		reload <- os.Interrupt
		g.until("hung", 1)
		atHang, _ := g.notified("WATCHDOG=1")
		time.Sleep(10 * time.Minute)
		if n, _ := g.notified("WATCHDOG=1"); n != atHang {
			t.Errorf("WATCHDOG=1 was sent %d times after the hang was seen", n-atHang)
		}
		close(release)
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAHangBeforeREADYStopsTheExtensions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		release := make(chan struct{})
		g.Settings.Dialer.DialContext = func(context.Context, string, string) (net.Conn, error) {
			<-release
			return nil, errors.New("released")
		}
		g.run()
		time.Sleep(29 * time.Second)
		if n, _ := g.notified("EXTEND_TIMEOUT_USEC=60000000"); n != 1 {
			t.Errorf("%d extensions while the dial is within its deadline", n)
		}
		g.until("hung", 1)
		atHang, _ := g.notified("EXTEND_TIMEOUT_USEC=")
		time.Sleep(time.Hour)
		if n, _ := g.notified("EXTEND_TIMEOUT_USEC="); n != atHang {
			t.Errorf("%d extensions after the hang was seen", n-atHang)
		}
		close(release)
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestWaitingForWeeksKeepsExtending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnConnect, Connack: code(3)})
		g.run()
		time.Sleep(24 * time.Hour)
		n, _ := g.notified("EXTEND_TIMEOUT_USEC=")
		if want := int(24 * time.Hour / (extension / 4)); n < want-1 || n > want {
			t.Errorf("%d extensions in a day, want %d", n, want)
		}
		if n, _ := g.notified("READY=1"); n != 0 {
			t.Error("READY=1 without an assignment")
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if n := simulator.Summarize(g.sim.Log()).Connections; n < 280 || n > 600 {
			t.Errorf("%d connections in a day of CONNACK 3", n)
		}
		last := g.log.FilterMessage("fault").All()
		if advice := last[len(last)-1].ContextMap()["advice"].(string); !strings.Contains(advice, "times in a row; id_scope is probably wrong") {
			t.Errorf("after %d CONNACK 3 the advice names id_scope: %q", len(last), advice)
		}
	})
}

// SIGTERM at any time: the attempt sends DISCONNECT if there is a connection, and Run returns
// within two seconds.
func TestSIGTERMAtAnyMoment(t *testing.T) {
	for _, tt := range []struct {
		name  string
		rule  simulator.Rule
		after time.Duration
	}{
		{"before TLS", simulator.Rule{On: simulator.OnAccept, Silent: true}, 5 * time.Second},
		{"during the handshake", simulator.Rule{On: simulator.OnTLS, Silent: true}, 5 * time.Second},
		{"before CONNACK", simulator.Rule{On: simulator.OnConnect, Silent: true}, 5 * time.Second},
		{"before SUBACK", simulator.Rule{On: simulator.OnSubscribe, Silent: true}, 5 * time.Second},
		{"before the reply", simulator.Rule{On: simulator.OnRegister, Silent: true}, 5 * time.Second},
		{"between polls", simulator.Rule{On: simulator.OnPing}, 5 * time.Second},
		{"in a long delay", simulator.Rule{On: simulator.OnRegister, RetryAfter: "600"}, 5 * time.Minute},
		{"after a fault", simulator.Rule{On: simulator.OnRegister, Status: 404}, time.Minute},
		{"when the gateway is assigned", simulator.Rule{On: simulator.OnPing}, time.Hour},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, tt.rule)
				g.run()
				time.Sleep(tt.after)
				before := time.Now()
				g.stop()
				if err := <-g.done; err != nil {
					t.Errorf("Run returns nil, got %v", err)
				}
				if took := time.Since(before); took > 2*time.Second {
					t.Errorf("took %s", took)
				}
				synctest.Wait() // sent data arrives
				g.sim.Close()
				if tt.name == "between polls" {
					log := g.sim.Log()
					found := false
					for _, e := range log {
						found = found || e.Packet == "DISCONNECT"
					}
					if !found {
						t.Error("an open connection was not ended by DISCONNECT")
					}
				}
			})
		})
	}
}

// The end of the attempt and that of dpsd are two events, of which the loop may see either first.
func TestAnAttemptThatEndsBecauseDpsdStopsIsNotAFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name     string
			stopping bool
			err      error
			faults   int
		}{
			{"dpsd stops, and the attempt was canceled", true, context.Canceled, 0},
			{"dpsd stops, and the attempt had failed before", true, io.EOF, 1},
			{"dpsd does not stop", false, context.Canceled, 1},
		} {
			g := newGateway(t)
			s := g.supervisor()
			if err := s.open(time.Now()); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			if c.stopping {
				stop()
			}
			s.running.cancel = func() {}
			if err := s.finish(ctx, registered{err: classify.At(fault.StageConnect, c.err), recording: &recording{}}, time.Now()); err != nil {
				t.Error(err)
			}
			if n := g.log.FilterMessage("fault").Len(); n != c.faults {
				t.Errorf("%s: %d faults, want %d", c.name, n, c.faults)
			}
			stop()
			s.close()
			g.sim.Close()
		}
	})
}

func TestOnce(t *testing.T) {
	for _, tt := range []struct {
		name    string
		rules   []simulator.Rule
		timeout time.Duration
		want    func(error) bool
		took    time.Duration
	}{
		{"returns after the assignment", nil, 0, func(err error) bool { return err == nil }, 6 * time.Second},
		{"continues after transient faults", []simulator.Rule{{On: simulator.OnConnect, Connack: code(3), Times: 5}}, 0, func(err error) bool { return err == nil }, 0},
		{"ends when the credential is refused", []simulator.Rule{{On: simulator.OnRegister, Status: 401}}, time.Hour, refused, 0},
		{"ends when the enrollment is refused", []simulator.Rule{{On: simulator.OnRegister, State: "disabled"}}, time.Hour, refused, 0},
		{"ends at the timeout", []simulator.Rule{{On: simulator.OnConnect, Connack: code(3)}}, time.Minute, func(err error) bool { return errors.Is(err, ErrTimeout) }, time.Minute},
		{"ends at the timeout in the middle of an attempt", []simulator.Rule{{On: simulator.OnConnect, Silent: true}}, 10 * time.Second, func(err error) bool { return errors.Is(err, ErrTimeout) }, 10 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, tt.rules...)
				g.Once, g.Timeout = true, tt.timeout
				g.run()
				if err := <-g.done; !tt.want(err) {
					t.Errorf("Run returned %v", err)
				}
				if took := time.Since(g.start); tt.took > 0 && took.Round(time.Second) != tt.took {
					t.Errorf("took %s, want %s", took, tt.took)
				}
				g.sim.Close()
			})
		})
	}
}

func TestASecondInstanceIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.run()
		g.until("assigned", 1)
		other := *g.Daemon
		var locked *store.LockedError
		if err := other.Run(context.Background()); !errors.As(err, &locked) || locked.PID != os.Getpid() {
			t.Errorf("got %v", err)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheBootDelayIsDrawnOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Settings.BootDelayMax = time.Hour
		g.run()
		want := pace.Boot(time.Hour, seeded(7)) + 6*time.Second
		if took := g.until("assigned", 1); took != want {
			t.Errorf("took %s, want %s", took, want)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheProtocolThatWorkedLastIsTriedFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Settings.Dialer.Protocols = []transport.Protocol{transport.MQTT, transport.WebSocket}
		blocked, dialled := true, []string(nil)
		dial := g.Settings.Dialer.DialContext
		g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, _ := net.SplitHostPort(address)
			dialled = append(dialled, port)
			if blocked && port == "8883" {
				return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
			}
			return dial(ctx, network, address)
		}
		for _, want := range []string{"8883 443", "443", "443"} {
			dialled = nil
			g.run()
			g.until("assigned", g.log.FilterMessage("assigned").Len()+1)
			g.stop()
			if err := <-g.done; err != nil {
				t.Error(err)
			}
			if got := strings.Join(dialled, " "); got != want {
				t.Errorf("dialled %s, want %s", got, want)
			}
			blocked = want == "8883 443" // later 8883 is open again, but dpsd does not need it
		}
		g.sim.Close()
		g.wantFaults()
	})
}

func TestTheFloorAppliesRegardlessOfTheCaseOfTheServiceName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 429, RetryAfter: "600", Times: 1})
		reload := make(chan os.Signal, 1)
		g.Hangup = reload
		g.Reload = func() (*Settings, error) {
			s := g.Settings
			dialer := *s.Dialer
			dialer.Host = strings.ToUpper(dialer.Host)
			s.Dialer = &dialer
			return &s, nil
		}
		g.run()
		g.until("fault", 1)
		reload <- os.Interrupt
		if took := g.until("assigned", 1); took != 606*time.Second {
			t.Errorf("registered %s after the 429", took)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAREADYThatCouldNotBeSentIsSentAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		var busy atomic.Bool
		busy.Store(true)
		g.Notify = func(state string) error {
			if busy.Load() {
				return errors.New("the queue is full")
			}
			return g.note(state)
		}
		g.run()
		g.until("assigned", 1)
		time.Sleep(time.Minute)
		busy.Store(false)
		time.Sleep(time.Minute)
		if n, at := g.notified("READY=1\nSTATUS=Assigned to "); n != 1 || at.Sub(g.start) > 66*time.Second+extension/4 {
			t.Errorf("READY=1 %d times, after %s", n, at.Sub(g.start))
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
