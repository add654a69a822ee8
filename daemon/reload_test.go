package daemon

import (
	"os"
	"testing"
	"testing/synctest"
	"time"
)

func TestABurstOfSIGHUPsIsTwoReloads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		hangup := make(chan os.Signal, 1)
		g.Hangup = hangup
		var reloads []time.Time
		g.Reload = func() (*Settings, error) {
			reloads = append(reloads, time.Now())
			changed := g.Settings
			return &changed, nil
		}
		g.watching(nil)
		g.run()
		g.until("assigned", 1)
		time.Sleep(time.Hour)
		synctest.Wait()
		watches, began := len(g.inputs), time.Now()
		var last time.Time
		for range 1000 {
			last = time.Now()
			select { // as signal.Notify does it
			case hangup <- os.Interrupt:
			default:
			}
			time.Sleep(200 * time.Microsecond)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if len(reloads) != 2 || !reloads[0].Equal(began) || !reloads[1].Equal(began.Add(reloadGap)) {
			t.Errorf("reloads at %v, want one at %s and one %s later", reloads, began, reloadGap)
		}
		if n := len(g.inputs) - watches; n != len(reloads) {
			t.Errorf("%d watches for %d reloads", n, len(reloads))
		}
		reloading, _ := g.notified("RELOADING=1")
		ready, _ := g.notified("READY=1\nSTATUS=Configuration reloaded")
		if reloading != 2 || ready != 2 {
			t.Errorf("RELOADING=1 %d times, READY=1 %d times, want each twice", reloading, ready)
		}
		if late := reloads[len(reloads)-1].Sub(last); late < 0 || late > time.Second {
			t.Errorf("the last SIGHUP was handled after %s", late)
		}
		// A single signal is handled immediately.
		alone := time.Now()
		hangup <- os.Interrupt
		synctest.Wait()
		if at := reloads[len(reloads)-1]; !at.Equal(alone) {
			t.Errorf("a single SIGHUP was handled at %s, and was sent at %s", at, alone)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
