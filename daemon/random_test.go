package daemon

import (
	"context"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/transport"
)

// anything is a service that returns random faults.
func anything(then ...simulator.Rule) *simulator.Scenario {
	sc := &simulator.Scenario{}
	add := func(chance float64, r simulator.Rule) {
		r.Chance = chance
		sc.Rules = append(sc.Rules, r)
	}
	add(0.04, simulator.Rule{On: simulator.OnAccept, Reset: true})
	add(0.02, simulator.Rule{On: simulator.OnAccept, Silent: true})
	add(0.02, simulator.Rule{On: simulator.OnAccept, Silent: true, AfterDown: 900})
	add(0.02, simulator.Rule{On: simulator.OnAccept, Close: true, AfterUp: 700})
	add(0.02, simulator.Rule{On: simulator.OnAccept, Garbage: "HTTP/1.1 302 Found\r\n\r\n"})
	add(0.02, simulator.Rule{On: simulator.OnTLS, ServerCertificate: "other-ca"})
	add(0.02, simulator.Rule{On: simulator.OnTLS, ServerCertificate: "not-yet-valid"})
	add(0.02, simulator.Rule{On: simulator.OnTLS, Alert: "internal_error"})
	add(0.04, simulator.Rule{On: simulator.OnConnect, Connack: code(3)})
	add(0.02, simulator.Rule{On: simulator.OnConnect, Connack: code(5)})
	add(0.02, simulator.Rule{On: simulator.OnConnect, Silent: true})
	add(0.02, simulator.Rule{On: simulator.OnConnect, Garbage: "\xff"})
	add(0.02, simulator.Rule{On: simulator.OnSubscribe, Close: true})
	add(0.02, simulator.Rule{On: simulator.OnSubscribe, Suback: code(128)})
	for _, stage := range []simulator.Stage{simulator.OnRegister, simulator.OnPoll} {
		for _, retryAfter := range []string{"none", "7", "600", "4000", "soon"} {
			add(0.02, simulator.Rule{On: stage, Status: 429, RetryAfter: retryAfter})
			add(0.02, simulator.Rule{On: stage, Status: 500, RetryAfter: retryAfter})
			add(0.02, simulator.Rule{On: stage, Status: 202, State: "assigning", RetryAfter: retryAfter})
		}
		add(0.02, simulator.Rule{On: stage, Status: 401, RetryAfter: "45"})
		add(0.02, simulator.Rule{On: stage, Status: 404, RetryAfter: "none"})
		add(0.02, simulator.Rule{On: stage, Status: 200, State: "disabled"})
		add(0.02, simulator.Rule{On: stage, Silent: true})
		add(0.02, simulator.Rule{On: stage, Reset: true})
		add(0.02, simulator.Rule{On: stage, Cut: 30})
		add(0.02, simulator.Rule{On: stage, Pad: 3 << 19})
	}
	sc.Rules = append(sc.Rules, then...)
	return sc
}

// retryAfter returns the delay that a reply requests, as the service interprets it.
func retryAfter(topic string) time.Duration {
	_, query, _ := strings.Cut(topic, "?")
	for parameter := range strings.SplitSeq(query, "&") {
		if text, found := strings.CutPrefix(parameter, "retry-after="); found {
			if seconds, err := strconv.ParseUint(text, 10, 32); err == nil {
				return time.Duration(min(seconds, 86_400)) * time.Second
			}
		}
	}
	return 0
}

// A day of random faults: no request arrives before the service permits it, and the traffic of
// the day is bounded.
func TestADayOfRandomFaultsKeepsTheFloorAndTheBudget(t *testing.T) {
	long(t)
	const connections, requests = 600, 600 // a day
	most := simulator.Summary{}
	mostRequests := 0
	for seed := range uint64(8) {
		synctest.Test(t, func(t *testing.T) {
			never := simulator.Rule{On: simulator.OnPoll, Status: 503, RetryAfter: "none"}
			g := newGatewayAt(t, simulator.Options{Seed: seed, Scenario: anything(never)})
			g.Rand = seeded(seed)
			g.Settings.Credentials = append(g.Settings.Credentials, g.key("second.key", g.sim.DeviceKey(device)))
			if seed%2 == 1 {
				g.Settings.Dialer.Protocols = []transport.Protocol{transport.WebSocket, transport.MQTT}
			}
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) { return nil, nil }
			g.run()
			for range 24 { // and a registration is requested every hour
				time.Sleep(time.Hour)
				reload <- os.Interrupt
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
			var floor time.Time
			stalled := 0
			for _, e := range g.sim.Log() {
				switch {
				case e.Packet == "STALL":
					stalled = e.Connection
				case e.Packet != "PUBLISH":
				case e.Direction == "down":
					if e.Connection == stalled || e.Size > session.MaxPacket {
						continue // it never arrived, or was refused before it was read
					}
					if until := e.Time.Add(retryAfter(e.Topic)); until.After(floor) {
						floor = until
					}
				default:
					if early := floor.Sub(e.Time); early > 0 {
						t.Errorf("seed %d: at %s a request came %s too early", seed, e.Time.Sub(g.start), early)
					}
				}
			}
			sum := simulator.Summarize(g.sim.Log())
			n := len(sum.Registers) + len(sum.Polls)
			if sum.Connections > connections || n > requests {
				t.Errorf("seed %d: %d connections and %d requests in a day", seed, sum.Connections, n)
			}
			if sum.Connections > most.Connections {
				most = sum
			}
			mostRequests = max(mostRequests, n)
			if len(g.faults()) < 30 || g.log.FilterMessage("assigned").Len() > 0 || g.log.FilterMessage("hung").Len() > 0 {
				t.Errorf("seed %d: faults %v", seed, g.faults())
			}
			for _, e := range g.log.FilterMessage("fault").FilterField(zap.String("fault", string(fault.Internal))).All() {
				t.Errorf("seed %d: an unknown fault in stage %v: %v", seed, e.ContextMap()["stage"], e.ContextMap()["cause"])
			}
			if len(sum.Violations) > 0 {
				t.Errorf("seed %d: dpsd violates a rule: %q", seed, sum.Violations)
			}
		})
	}
	t.Logf("at most %d connections, %d requests, %d bytes up and %d down in a day of faults; the bound is %d and %d",
		most.Connections, mostRequests, most.BytesUp, most.BytesDown, connections, requests)
}

// However long a fault has lasted, the gateway is assigned within the longest delay of its retry
// class after the cause is removed.
func TestEveryRetryClassRecoversWhenTheCauseIsRemoved(t *testing.T) {
	wrong := "d3JvbmcgbWF0ZXJpYWwgd3JvbmcgbWF0ZXJpYWw="
	for _, tt := range []struct {
		lane   pace.Lane
		name   string
		rule   simulator.Rule
		set    func(*gateway) (correct func())
		within time.Duration
	}{
		{lane: pace.LaneOffline, name: "no route", within: 10 * time.Second, set: func(g *gateway) func() {
			var up atomic.Bool
			dial := g.Settings.Dialer.DialContext
			g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				if up.Load() {
					return dial(ctx, network, address)
				}
				return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
			}
			return func() { up.Store(true) }
		}},
		{lane: pace.LaneTransient, name: "CONNACK 3", within: 5 * time.Minute, rule: simulator.Rule{On: simulator.OnConnect, Connack: code(3)}},
		{lane: pace.LaneTransient, name: "500 with Retry-After", within: 25 * time.Minute, rule: simulator.Rule{On: simulator.OnRegister, Status: 500, RetryAfter: "1200"}},
		{lane: pace.LaneThrottled, name: "429", within: 61 * time.Minute, rule: simulator.Rule{On: simulator.OnRegister, Status: 429, RetryAfter: "none"}},
		{lane: pace.LaneThrottled, name: "429 with Retry-After", within: 2 * time.Hour, rule: simulator.Rule{On: simulator.OnRegister, Status: 429, RetryAfter: "3600"}},
		{lane: pace.LaneRefused, name: "404", within: 75 * time.Minute, rule: simulator.Rule{On: simulator.OnRegister, Status: 404, RetryAfter: "none"}},
		{lane: pace.LaneRefused, name: "a wrong key", within: 75 * time.Minute, set: func(g *gateway) func() {
			g.write("device.key", wrong)
			return func() { g.write("device.key", g.sim.DeviceKey(device)) }
		}},
		{lane: pace.LaneRefused, name: "two wrong keys, the second corrected", within: 75 * time.Minute, set: func(g *gateway) func() {
			g.Settings.Credentials = []attest.Credential{g.key("a.key", wrong), g.key("b.key", wrong)}
			return func() { g.write("b.key", g.sim.DeviceKey(device)) }
		}},
		{lane: pace.LaneRefused, name: "a payload that is missing", within: 75 * time.Minute, set: func(g *gateway) func() {
			g.Settings.PayloadFile = g.dir + "/payload.json"
			return func() { g.write("payload.json", "{}") }
		}},
	} {
		t.Run(string(tt.lane)+": "+tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var rules []simulator.Rule
				if tt.rule.On != "" {
					rules = append(rules, tt.rule)
				}
				g := newGateway(t, rules...)
				correct := func() {
					if err := g.sim.SetScenario(nil); err != nil {
						t.Fatal(err)
					}
				}
				if tt.set != nil {
					correct = tt.set(g)
				}
				g.run()
				g.eventually("fault", 20) // by now the delay has its maximum
				last := g.log.FilterMessage("fault").All()
				if got := last[len(last)-1].ContextMap()["lane"]; got != string(tt.lane) && tt.name != "two wrong keys, the second corrected" {
					t.Errorf("the lane is %s", got)
				}
				before := time.Since(g.start)
				correct()
				if took := g.eventually("assigned", 1) - before; took > tt.within+6*time.Second {
					t.Errorf("assigned %s after the correction, want at most %s and the 6 s of a registration", took, tt.within)
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// eventually is until for events that take days.
func (g *gateway) eventually(event string, n int) time.Duration {
	for range 30 * 24 * 60 {
		if found := g.log.FilterMessage(event).All(); len(found) >= n {
			return found[n-1].Time.Sub(g.start)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
	}
	g.t.Fatalf("%q was not logged %d times within 30 days", event, n)
	return 0
}

// memory returns the size of the heap without unused objects.
func memory() uint64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
	}
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// A month of random faults leaves memory and goroutines as they were. The test does not run in
// parallel with other tests, whose goroutines would be counted.
func TestPromise5FailuresNeverEndTheProcess(t *testing.T) {
	long(t)
	const margin = 64 << 10
	synctest.Test(t, func(t *testing.T) {
		g := newGatewayAt(t, simulator.Options{Seed: 3, DiscardLog: true})
		var assigned, faults, logged atomic.Int64
		counting := zapcore.NewCore(zapcore.NewJSONEncoder(zap.NewProductionEncoderConfig()), zapcore.AddSync(io.Discard), zapcore.DebugLevel)
		g.Log = zap.New(counting, zap.Hooks(func(e zapcore.Entry) error {
			logged.Add(1)
			switch e.Message {
			case "assigned":
				assigned.Add(1)
			case "fault":
				faults.Add(1)
			}
			return nil
		}))
		g.Notify = func(string) error { return nil }
		g.Watchdog = 30 * time.Minute // fewer watchdog messages to simulate
		g.Settings.Interval = 90 * time.Minute
		g.Settings.Dialer.Protocols = []transport.Protocol{transport.MQTT, transport.WebSocket}
		g.run()
		// measure waits for a registration without faults and for the idle time after it.
		measure := func() (heap uint64, goroutines int) {
			if err := g.sim.SetScenario(nil); err != nil {
				t.Fatal(err)
			}
			for n := assigned.Load(); assigned.Load() == n; {
				time.Sleep(time.Minute)
			}
			time.Sleep(20 * time.Minute)
			synctest.Wait()
			return memory(), runtime.NumGoroutine()
		}
		failures := func(days int) {
			if err := g.sim.SetScenario(anything()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(days) * 24 * time.Hour)
		}
		failures(1) // after that, one-time allocations have been made
		heap, goroutines := measure()
		failures(30)
		heapAfter, goroutinesAfter := measure()
		t.Logf("30 days: %d registrations, %d faults, %d log entries; heap %d → %d bytes, goroutines %d → %d",
			assigned.Load(), faults.Load(), logged.Load(), heap, heapAfter, goroutines, goroutinesAfter)
		if heapAfter > heap+margin {
			t.Errorf("the heap grew from %d to %d bytes", heap, heapAfter)
		}
		if goroutinesAfter != goroutines {
			stacks := make([]byte, 1<<20)
			t.Errorf("%d goroutines became %d:\n%s", goroutines, goroutinesAfter, stacks[:runtime.Stack(stacks, true)])
		}
		if assigned.Load() < 100 || faults.Load() < 200 {
			t.Error("there were too few faults")
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
