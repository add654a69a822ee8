package daemon

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/refusal"
)

func TestAHubThatRefusesForADayCausesAtMostOneRegistrationAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, nil)
		defer r.finish()
		r.reportFor(24*time.Hour, "5")
		all := r.registered()
		if len(all) < 18 || len(all) > 24 {
			t.Errorf("%d registrations in a day", len(all))
		}
		for i := range all[1:] {
			if gap := all[i+1] - all[i]; gap < time.Hour {
				t.Errorf("two registrations within %s", gap)
			}
		}
	})
}

func TestARestartOfDpsdDoesNotShortenTheHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, nil)
		r.reportFor(40*time.Minute, "5")
		before := r.registered()
		if len(before) != 1 {
			t.Fatalf("%d registrations before the restart", len(before))
		}
		r.sockets()
		r.stop()
		if err := <-r.done; err != nil {
			t.Fatal(err)
		}
		r.Settings.OnBoot = PolicyIfNeeded
		r.client = r.serves("edge")["edge"].client()
		r.s = r.supervised()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r.sockets = r.s.serveConsumers(ctx)
		defer r.finish()
		r.s.wantWithheld(t, "")
		r.reportFor(time.Hour, "5")
		if all := r.registered(); len(all) != 2 || all[1]-all[0] < time.Hour {
			t.Errorf("registrations after %v", all)
		}
	})
}

func TestAHubCheckThatAReloadInterruptsIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reload := make(chan os.Signal, 1)
		r := newReporting(t, func(g *gateway) {
			g.Hangup = reload
			g.Reload = func() (*Settings, error) {
				s := g.Settings
				s.Interval = 300 * time.Hour
				return &s, nil
			}
		})
		defer r.finish()
		r.hub.Store(silent)
		r.reportFor(15*time.Minute, "5")
		time.Sleep(time.Until(r.report("5").At) + 10*time.Second)
		synctest.Wait()
		if phase := r.s.statusDocument().Phase.Name; phase != "hub" {
			t.Fatalf("the phase is %s", phase)
		}
		reload <- os.Interrupt
		r.until("assigned", 2) // after a reload, dpsd registers anyway
		time.Sleep(time.Hour)
		if found := r.findings(); len(found) != 0 {
			t.Errorf("the check has found %v, although DPS has confirmed the assignment", found)
		}
		if a := r.report("5"); a.Action != refusal.Counting {
			t.Errorf("%+v", a)
		}
	})
}

// A hub that does not respond must not delay a registration that an administrator requests.
func TestARegistrationInterruptsACheckOfTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, func(g *gateway) { g.Settings.HubCheck = true })
		defer r.finish()
		r.hub.Store(silent)
		r.reportFor(15*time.Minute, "5")
		time.Sleep(time.Until(r.report("5").At) + time.Second)
		synctest.Wait()
		if phase := r.s.statusDocument().Phase.Name; phase != "hub" {
			t.Fatalf("the phase is %s", phase)
		}
		asked := time.Now()
		if _, err := r.s.ask(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		r.until("assigned", 2)
		if took := time.Since(asked); took > 10*time.Second {
			t.Errorf("the registration took %s", took)
		}
		time.Sleep(time.Hour)
		if found := r.findings(); len(found) != 0 {
			t.Errorf("the check has found %v, although DPS has confirmed the assignment", found)
		}
	})
}

func TestARegistrationBecauseOfReportsRespectsRetryAfter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, nil)
		defer r.finish()
		key := floorKey(r.Settings.Dialer.Host, device)
		if err := r.s.floors.runtime.SaveFloor(key, r.BootTime()+3*time.Hour); err != nil {
			t.Fatal(err)
		}
		r.s.floors.until = nil
		last := r.reportFor(70*time.Minute, "5")
		if all := r.registered(); len(all) != 0 {
			t.Errorf("registrations after %v", all)
		}
		if last.Action != refusal.Counting || last.In < 3600 {
			t.Errorf("the answer is %+v", last)
		}
		r.reportFor(2*time.Hour, "5")
		if all := r.registered(); len(all) != 1 || all[0] < 179*time.Minute {
			t.Errorf("registrations after %v", all)
		}
	})
}

// dpsd.toml also determines the roots for the hub.
func TestTheCheckOfTheHubVerifiesItsCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, nil)
		defer r.finish()
		r.Settings.Dialer.Roots = x509.NewCertPool()
		r.reportFor(40*time.Minute, "5")
		entries := r.log.FilterMessage("hub-checked").All()
		if len(entries) != 1 || entries[0].ContextMap()["finding"] != string(refusal.Unverified) || !strings.Contains(fmt.Sprint(entries[0].ContextMap()["error"]), "certificate") {
			t.Errorf("%v", entries)
		}
		if n := r.registers(); n != 0 {
			t.Errorf("%d registrations", n)
		}
	})
}
