package daemon

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestRest(t *testing.T) {
	for _, test := range []struct {
		says     string
		rules    []simulator.Rule
		interval time.Duration
		rests    int // an hour after the start
	}{
		{"a gateway that is assigned rests, once", nil, 0, 1},
		{"and after each registration of its interval", nil, 25 * time.Minute, 3},
		{"one that tries again in a moment does not", []simulator.Rule{{On: simulator.OnRegister, Status: 500, RetryAfter: "10"}}, 0, 0},
	} {
		t.Run(test.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, test.rules...)
				g.Settings.Interval, g.Settings.Retry.Max = test.interval, 30*time.Second
				rests := 0
				g.Rest = func() { rests++ }
				g.run()
				time.Sleep(time.Hour)
				if err := g.end(); err != nil {
					t.Error(err)
				}
				if rests != test.rests {
					t.Errorf("it rested %d times, want %d", rests, test.rests)
				}
			})
		})
	}
	t.Run("one whose published record will do rests too", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := restarted(t)
			g.Settings.OnBoot = PolicyIfNeeded
			rested := time.Duration(0)
			g.Rest = func() { rested = time.Since(g.start) }
			g.run()
			time.Sleep(time.Hour)
			if err := g.end(); err != nil {
				t.Error(err)
			}
			if rested != restAfter {
				t.Errorf("it rested after %s, want %s", rested, restAfter)
			}
		})
	})
}
