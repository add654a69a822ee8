package daemon

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/test/inmemory"
)

// supervised runs the daemon, and returns the supervisor with which the control socket
// communicates.
func (g *gateway) supervised() *supervisor { return g.supervisedAt(time.Now()) }

// supervisedAt is supervised for a gateway whose clock shows another time.
func (g *gateway) supervisedAt(now time.Time) *supervisor {
	g.t.Helper()
	s := g.supervisor()
	if err := s.open(now); err != nil {
		g.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	g.stop, g.done = cancel, make(chan error, 1)
	go s.recorder.run()
	go func() {
		err := s.run(ctx)
		s.recorder.stop()
		s.close() // another supervisor may follow
		g.done <- err
	}()
	return s
}

func (s *supervisor) reprovisions() control.Reprovision {
	answers := make(chan answer, 1)
	s.requests <- request{answers, false}
	return (<-answers).Reprovision
}

func (s *supervisor) statusDocument() control.Status {
	synctest.Wait()
	st, _ := s.board.Look(time.Now())
	return st
}

func TestTheStatusHasHealthPhaseFaultsAndIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, ErrorCode: 401002, RetryAfter: "none", Times: 2})
		g.Settings.Interval = 24 * time.Hour
		s := g.supervised()
		want := func(health control.Health, phase string) control.Status {
			t.Helper()
			st := s.statusDocument()
			if st.Health != health || st.Phase.Name != phase {
				t.Errorf("%s in phase %s, want %s in %s", st.Health, st.Phase.Name, health, phase)
			}
			return st
		}
		g.until("fault", 2)
		st := want(control.Unprovisioned, control.PhaseWaiting)
		if len(st.Faults) != 1 || st.Faults[0].Code != string(fault.Unauthorized) || st.Faults[0].Count != 2 || !st.Faults[0].Unresolved ||
			st.Faults[0].ServiceCode != 401002 || st.Faults[0].TrackingID == "" || st.Faults[0].Advice == "" {
			t.Errorf("faults: %+v", st.Faults)
		}
		if st.Next == nil || st.Next.Lane != string(pace.LaneRefused) || st.Next.Why != "after unauthorized" || st.Next.In < 45 {
			t.Errorf("next: %+v", st.Next)
		}
		if st.Ready || st.Identity != nil || st.Confirmed != nil || st.Attempts != (control.AttemptsCount{Started: 2, Failed: 2}) {
			t.Errorf("%+v", st)
		}

		g.until("assigned", 1)
		st = want(control.OK, control.PhaseWaiting)
		if st.Identity == nil || st.Identity.DeviceID != device || st.Identity.Generation != 1 || !st.Identity.Durable || st.Identity.Foreign {
			t.Errorf("identity: %+v", st.Identity)
		}
		if !st.Ready || st.Confirmations != 1 || st.Faults[0].Unresolved || st.Next == nil || st.Next.Why != "interval" {
			t.Errorf("%+v %+v", st, st.Next)
		}
		if c := st.Connection; c == nil || c.Protocol != "mqtt" || c.Address != "localhost:8883" {
			t.Errorf("connection: %+v", st.Connection)
		}
		if !strings.HasPrefix(st.Text, "Assigned to dpsd-sim.azure-devices.net") {
			t.Errorf("text: %q", st.Text)
		}
		g.ends()
	})
}

// A save may hang with the disk, and then holds the store's lock. The loop continues, and
// returns what it knew before.
func TestTheStatusDoesNotWaitForADiskThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		s := g.supervisor()
		if err := s.open(time.Now()); err != nil {
			t.Fatal(err)
		}
		defer s.close()
		if st := s.status(time.Now()); st.Identity == nil {
			t.Fatal("no identity")
		}
		s.running.cancel = func() {}
		held := s.store
		s.store = nil // any access would have to wait
		st := s.status(time.Now())
		s.store = held
		if st.Identity == nil || st.Identity.DeviceID != device {
			t.Errorf("%+v", st.Identity)
		}
		g.sim.Close()
	})
}

func TestTheStatusReportsARecordOfAnotherConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		g.Settings.Dialer.Host = global
		if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnRegister, Status: 500, Times: 1}}}); err != nil {
			t.Fatal(err)
		}
		s := g.supervised()
		g.until("fault", 1)
		if st := s.statusDocument(); st.Identity == nil || !st.Identity.Foreign || st.Health != control.Degraded {
			t.Errorf("before: %+v, %s", st.Identity, st.Health)
		}
		g.until("assigned", 1)
		if st := s.statusDocument(); st.Identity == nil || st.Identity.Foreign || st.Health != control.OK {
			t.Errorf("after: %+v, %s", st.Identity, st.Health)
		}
		g.ends()
	})
}

func TestARequestedRegistration(t *testing.T) {
	t.Run("is made immediately, and the next ones together a minute later", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			s := g.supervised()
			g.until("assigned", 1)
			time.Sleep(time.Hour)
			if in := s.reprovisions().In; in != 0 {
				t.Errorf("the first is made in %v s", in)
			}
			g.until("assigned", 2)
			first := s.reprovisions().In
			time.Sleep(10 * time.Second)
			second := s.reprovisions().In
			if first != 54 || second != 44 {
				t.Errorf("the second is made in %v s, and then in %v s, want 54 and 44: a minute after the first, which took 6 s", first, second)
			}
			g.until("assigned", 3)
			time.Sleep(time.Hour)
			if st := s.statusDocument(); st.Confirmations != 3 {
				t.Errorf("%d registrations, want 3", st.Confirmations)
			}
			g.ends()
		})
	})
	t.Run("ends a delay after a refusal, but never the floor", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 429, RetryAfter: "600", Times: 1},
				simulator.Rule{On: simulator.OnRegister, State: "disabled", Times: 1})
			s := g.supervised()
			g.until("fault", 1)
			if in := s.reprovisions().In; in < 599 || in > 600 {
				t.Errorf("made in %v s, want the rest of the floor of 600 s", in)
			}
			refused := g.until("fault", 2)
			if refused < 600*time.Second {
				t.Errorf("sent a request after %s, before the floor", refused)
			}
			s.reprovisions()
			if took := g.until("assigned", 1) - refused; took > 10*time.Second {
				t.Errorf("registered %s after the request", took)
			}
			g.ends()
		})
	})
	t.Run("refers to the current one if one is in progress", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			s := g.supervised()
			time.Sleep(time.Second)
			if a := s.reprovisions(); a.In != 0 || a.Confirmations != 0 {
				t.Errorf("%+v", a)
			}
			time.Sleep(time.Hour)
			if st := s.statusDocument(); st.Confirmations != 1 {
				t.Errorf("%d registrations, want 1", st.Confirmations)
			}
			g.ends()
		})
	})
}

func TestTheRecorderKeepsEachAttemptWithItsSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 500, Times: 1})
		g.run()
		g.until("assigned", 1)
		synctest.Wait()
		g.ends()
		attempts := store.Attempts(g.Store.Directory, g.Store.RuntimeDirectory)
		if len(attempts) != 2 {
			t.Fatalf("%d attempts: %+v", len(attempts), attempts)
		}
		failed, assigned := attempts[0], attempts[1]
		if failed.Outcome != "fault" || failed.Fault != string(fault.ServiceError) || failed.Trigger != "start" || failed.TrackingID == "" || failed.RetryIn == 0 {
			t.Errorf("%+v", failed)
		}
		if assigned.Outcome != "assigned" || assigned.Trigger != "after service-error" || assigned.Protocol != "mqtt" || assigned.Clock != "plausible" {
			t.Errorf("%+v", assigned)
		}
		var stages []string
		for _, step := range assigned.Steps {
			stages = append(stages, step.Stage)
			if step.Stage == "poll" && (step.Milliseconds < 5000 || step.Milliseconds > 7000) {
				t.Errorf("polling took %d ms, want the 6 s of two waits", step.Milliseconds)
			}
		}
		if got := strings.Join(stages, " "); got != "identity credential tcp connect subscribe register poll state" {
			t.Errorf("steps: %s", got)
		}
		if assigned.Sent < 500 || assigned.Received < 1000 {
			t.Errorf("%d bytes up, %d down", assigned.Sent, assigned.Received)
		}
		text, err := os.ReadFile(filepath.Join(g.Store.RuntimeDirectory, "attempts.json"))
		if err != nil || bytes.Contains(text, []byte("SharedAccess")) {
			t.Errorf("%v", err)
		}
	})
}

// clientsVariable makes the test binary ten clients of a socket until its standard input
// ends.
const clientsVariable = "DPSD_TEST_CLIENTS"

func TestMain(m *testing.M) {
	if socket := os.Getenv(clientsVariable); socket != "" {
		actAsClients(socket)
		return
	}
	inmemory.Use()
	os.Exit(m.Run())
}

func actAsClients(socket string) {
	stop := make(chan struct{})
	for i := range 10 {
		go func() {
			for {
				c, err := net.Dial("unix", socket)
				if err != nil {
					time.Sleep(time.Millisecond)
					continue
				}
				switch i % 4 {
				case 0: // never reads
					fmt.Fprint(c, "GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n")
					<-stop
				case 1: // garbage
					_, _ = io.WriteString(c, strings.Repeat("\xff", 1<<14))
				case 2: // sends nothing
					<-stop
				default:
					fmt.Fprint(c, "GET /v1/status HTTP/1.0\r\n\r\n")
					_, _ = io.Copy(io.Discard, c)
				}
				c.Close()
			}
		}()
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// Fifty clients, some of which never read or send garbage, do not affect the supervisor: it
// never waits for them. Other clients are served.
func TestClientsDoNotDelayTheLoop(t *testing.T) {
	g := newGateway(t)
	dir, err := os.MkdirTemp("", "control-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	g.Socket = filepath.Join(dir, "dpsd.sock")
	reload := make(chan os.Signal)
	g.Hangup = reload
	g.Reload = func() (*Settings, error) { return nil, nil }
	g.run()
	eventually(t, "the socket", func() bool { _, err := os.Stat(g.Socket); return err == nil })

	// The loop handles one signal per iteration.
	turns := func() time.Duration {
		const n = 500
		began := time.Now()
		for range n {
			reload <- os.Interrupt
		}
		return time.Since(began) / n
	}
	alone := turns()
	for range 5 {
		program, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		clients := exec.Command(program)
		clients.Env = []string{clientsVariable + "=" + g.Socket}
		in, err := clients.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := clients.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := clients.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			in.Close()
			_ = clients.Wait()
		}()
		if _, err := out.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
	}
	crowded := turns()
	status, err := control.Client{Socket: g.Socket}.Status(context.Background())
	if err != nil || status.PID != os.Getpid() {
		t.Errorf("status: %v", err)
	}
	t.Logf("an iteration of the loop takes %s alone, and %s with fifty clients", alone, crowded)
	g.ends()
}

func eventually(t *testing.T, what string, is func() bool) {
	t.Helper()
	for limit := time.Now().Add(30 * time.Second); !is(); time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}
