package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/simulator"
)

// logged returns an event log and what it logs at level info.
func logged() (*eventLog, *observer.ObservedLogs) {
	core, log := observer.New(zapcore.InfoLevel)
	return newEventLog(zap.New(core)), log
}

func TestARepeatedEventIsLoggedAtIncreasingIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events, log := logged()
		start := time.Now()
		for time.Since(start) < 72*time.Hour {
			events.log(event.Fault, zap.String("fault", "network-unreachable"))
			time.Sleep(10 * time.Second)
		}
		var last time.Duration
		seen := 0
		for i, e := range log.All() {
			at := e.Time.Sub(start)
			if pause := at - last; i > 0 && (pause < 10*time.Second || pause > longestPause+10*time.Second) {
				t.Errorf("entry %d comes after %s", i, pause)
			}
			last = at
			n, _ := e.ContextMap()["repeated"].(int64)
			seen += 1 + int(n)
		}
		// It counts those since the last entry, so the last ones have not been logged yet.
		if all := 72 * 360; seen > all || seen < all-6*360 {
			t.Errorf("of %d faults the entries account for %d", all, seen)
		}
		if n := log.Len(); n < 16 || n > 26 {
			t.Errorf("%d entries in three days", n)
		}
	})
}

func TestAChangedEventIsLoggedImmediately(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events, log := logged()
		times := func(what string, want int, f func()) {
			t.Helper()
			before := log.Len()
			f()
			if got := log.Len() - before; got != want {
				t.Errorf("%s: logged %d times, want %d", what, got, want)
			}
		}
		fault := func(code string, serviceCode int, cause string) func() {
			return func() {
				events.log(event.Fault, zap.String("fault", code), zap.Int("serviceCode", serviceCode), zap.NamedError("cause", errors.New(cause)))
			}
		}
		times("the first one", 1, fault("unauthorized", 401002, "a"))
		times("the same again", 0, fault("unauthorized", 401002, "a"))
		times("the same with another cause: it may hold a time or a port", 0, fault("unauthorized", 401002, "b"))
		times("another code", 1, fault("no-reply", 0, "a"))
		times("another code of the service", 1, fault("unauthorized", 401003, "a"))
		times("the first again, though others came between", 0, fault("unauthorized", 401002, "a"))
		events.faultsResolved()
		times("the same after it was corrected", 1, fault("unauthorized", 401002, "a"))
		times("another event", 1, func() { events.log(event.Reloaded, zap.Bool("changed", false)) })
		time.Sleep(renewed)
		times("the same after a day without it", 1, fault("unauthorized", 401002, "a"))
		time.Sleep(firstPause)
		times("and then a second later, as at first", 1, fault("unauthorized", 401002, "a"))
		times("a debugging entry", 0, func() { events.log(event.Phase) })
	})
}

func TestNoEventIsLoggedIndefinitely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		events, log := logged()
		const days = 3
		for i := range days * 24 * 3600 {
			events.log(event.Fault, zap.Int("serviceCode", i)) // a service with arbitrary error codes
			if i%60 == 0 {
				events.faultsResolved()
			}
			time.Sleep(time.Second)
		}
		if n, most := log.Len(), burst+days*int(24*time.Hour/refill); n > most || n < most-1 {
			t.Errorf("%d entries in %d days, want %d", n, days, most)
		}
		if len(events.kinds) > maxKinds {
			t.Errorf("%d kinds are remembered", len(events.kinds))
		}
		before := log.Len()
		events.log(event.Assigned)
		if log.Len() != before+1 {
			t.Error("the faults have used up the log entries of the assignment")
		}
	})
}

// This is what a gateway writes into its journal in a day: for every retry class and every
// trigger, on the first day and on each following day.
func TestTheJournalOfADayIsBounded(t *testing.T) {
	long(t)
	// The limits are the entries per day at level info, on the first day and on each following day.
	most, mostVaried := [2]int{60, 12}, [2]int{100, 60}
	refused := func(err error) func(*gateway) {
		return func(g *gateway) {
			g.Settings.Dialer.DialContext = func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
			}
		}
	}
	for _, tt := range []struct {
		lane, what string
		varied     bool // every event differs from the previous one
		rules      []simulator.Rule
		set        func(*gateway)
		every      time.Duration // between two calls of do
		do         func(g *triggered, n int)
	}{
		{lane: "offline", what: "no route", set: refused(os.NewSyscallError("connect", syscall.ENETUNREACH))},
		{lane: "transient", what: "connection refused", set: refused(os.NewSyscallError("connect", syscall.ECONNREFUSED))},
		{lane: "transient", what: "CONNACK 3", rules: []simulator.Rule{{On: simulator.OnConnect, Connack: code(3)}}},
		{lane: "transient", what: "everything, at random", varied: true, set: func(g *gateway) {
			if err := g.sim.SetScenario(anything(simulator.Rule{On: simulator.OnPoll, Status: 503, RetryAfter: "none"})); err != nil {
				t.Fatal(err)
			}
		}},
		{lane: "throttled", what: "429", rules: []simulator.Rule{{On: simulator.OnRegister, Status: 429, RetryAfter: "none"}}},
		{lane: "throttled", what: "assigning for ever, Retry-After 600", rules: []simulator.Rule{
			{On: simulator.OnRegister, Status: 202, State: "assigning", RetryAfter: "600"}, {On: simulator.OnPoll, Status: 202, State: "assigning", RetryAfter: "600"}}},
		{lane: "refused", what: "404", rules: []simulator.Rule{{On: simulator.OnRegister, Status: 404, RetryAfter: "none"}}},
		{lane: "next-credential, refused", what: "two wrong keys", set: func(g *gateway) {
			wrong := "d3JvbmcgbWF0ZXJpYWwgd3JvbmcgbWF0ZXJpYWw="
			g.Settings.Credentials = append(g.Settings.Credentials[:0], g.key("a.key", wrong), g.key("b.key", wrong))
		}},
		{lane: "none", what: "assigned, interval 10 min", set: func(g *gateway) { g.Settings.Interval = 10 * time.Minute }},
		{lane: "a trigger", what: "a key that changes every 10 minutes, good", every: 10 * time.Minute, do: func(g *triggered, _ int) { g.changed <- struct{}{} }},
		{lane: "a trigger", what: "a key that changes every 30 s, missing and unusable in turns", every: 30 * time.Second, do: func(g *triggered, n int) {
			if path := filepath.Join(g.dir, "device.key"); n%2 == 0 {
				_ = os.Remove(path)
			} else {
				g.write("device.key", "{}")
			}
			g.changed <- struct{}{}
		}},
		{lane: "a trigger", what: "SIGHUP every 10 minutes", every: 10 * time.Minute, do: func(g *triggered, _ int) { g.hangup <- os.Interrupt }},
		{lane: "a trigger", what: "SIGHUP every 30 s, with another mistake each time", varied: true, every: 30 * time.Second, set: func(g *gateway) {
			n := 0
			g.Reload = func() (*Settings, error) { n++; return nil, fmt.Errorf("dpsd.toml:%d:1: unknown key", n) }
		}, do: func(g *triggered, _ int) { g.hangup <- os.Interrupt }},
		{lane: "a trigger", what: "the clock is set every minute", every: time.Minute, do: func(g *triggered, n int) { g.stepped <- time.Hour }},
		{lane: "a trigger", what: "the state directory is removed every hour", every: time.Hour, do: func(g *triggered, _ int) {
			_ = os.RemoveAll(g.Store.Directory)
			g.hangup <- os.Interrupt
		}},
	} {
		t.Run(tt.lane+": "+tt.what, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				g := &triggered{newGateway(t, tt.rules...), make(chan struct{}), make(chan os.Signal), make(chan time.Duration)}
				core, log := observer.New(zapcore.InfoLevel)
				g.Log = zap.New(core)
				g.Reload = func() (*Settings, error) { return nil, nil }
				g.Hangup, g.ClockStepped = g.hangup, g.stepped
				g.Watch = func(context.Context, ...string) (<-chan struct{}, error) { return g.changed, nil }
				if tt.set != nil {
					tt.set(g.gateway)
				}
				g.run()
				day := func() (n int) {
					before := log.Len()
					if tt.do == nil {
						time.Sleep(24 * time.Hour)
					} else {
						for i := range int(24 * time.Hour / tt.every) {
							tt.do(g, i)
							time.Sleep(tt.every)
						}
					}
					synctest.Wait()
					return log.Len() - before
				}
				one, two := day(), day()
				t.Logf("%d entries on the first day, %d on the second: %v", one, two, counts(log))
				bound := most
				if tt.varied {
					bound = mostVaried
				}
				if one > bound[0] || two > bound[1] {
					t.Errorf("%d entries on the first day, %d on the second; the bounds are %d: %v", one, two, bound, counts(log))
				}
				if one < 3 {
					t.Errorf("%d entries on the first day: nothing happens here", one)
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	page, err := os.ReadFile("../docs/journal.md")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(string(page)), " ")
	for _, want := range []string{
		fmt.Sprintf("limits the log to %d entries on the first day and %d on each further day", most[0], most[1]),
		fmt.Sprintf("or to %d and %d", mostVaried[0], mostVaried[1]),
		fmt.Sprintf("logs it at most %d times in a row, and then once in %.0f minutes", burst, refill.Minutes()),
		fmt.Sprintf("doubles from %.0f second to %.0f hours", firstPause.Seconds(), longestPause.Hours()),
	} {
		if !strings.Contains(text, want) {
			t.Errorf("docs/journal.md does not say %q", want)
		}
	}
}

// triggered is a gateway on which a test activates the triggers.
type triggered struct {
	*gateway
	changed chan struct{}
	hangup  chan os.Signal
	stepped chan time.Duration
}

// counts returns how often each event was logged.
func counts(log *observer.ObservedLogs) map[string]int {
	n := map[string]int{}
	for _, e := range log.All() {
		n[e.Message]++
	}
	return n
}
