package daemon

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/simulator"
)

// restarted is a gateway that was provisioned in an earlier run.
func restarted(t *testing.T, rules ...simulator.Rule) *gateway {
	t.Helper()
	g := newGateway(t, rules...)
	g.run()
	g.until("assigned", 1)
	g.stop()
	if err := <-g.done; err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Hour)
	g.log.TakeAll()
	g.notes, g.dials, g.start = nil, 0, time.Now()
	return g
}

// registers returns the number of register requests since the restart.
func (g *gateway) registers() (n int) {
	for _, at := range simulator.Summarize(g.sim.Log()).Registers {
		if !at.Before(g.start) {
			n++
		}
	}
	return n
}

func TestPolicies(t *testing.T) {
	t.Run("always: READY is sent after the answer, not because of a published record", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := restarted(t)
			g.run()
			g.until("assigned", 1)
			synctest.Wait()
			if _, at := g.notified("READY=1"); at.Sub(g.start) != 6*time.Second {
				t.Errorf("READY after %s", at.Sub(g.start))
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("verify: READY is sent immediately, and the service is asked after the boot delay", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := restarted(t)
			g.Settings.OnBoot, g.Settings.BootDelayMax = PolicyVerify, time.Hour
			g.Rand = seeded(7)
			g.run()
			if took := g.until("assigned", 1); took != pace.Boot(time.Hour, seeded(7))+6*time.Second {
				t.Errorf("asked after %s", took)
			}
			n, at := g.notified("READY=1\nSTATUS=Next attempt at ")
			if cached, _ := g.notified("Waiting for the boot delay; assigned to dpsd-sim.azure-devices.net as gw-1 (cached"); n != 1 || cached != 1 || at.Sub(g.start) != 0 {
				t.Errorf("READY %d times, after %s: %v", n, at.Sub(g.start), g.notes)
			}
			synctest.Wait()
			if last := g.notes[len(g.notes)-1].state; last != "STATUS=Assigned to dpsd-sim.azure-devices.net as gw-1" {
				t.Errorf("after the confirmation: %q", last)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("verify: a refusal does not withdraw the published record", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := restarted(t)
			g.Settings.OnBoot = PolicyVerify
			before := snapshot(t, g.Store.Directory)
			if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnRegister, State: "disabled"}}}); err != nil {
				t.Fatal(err)
			}
			g.run()
			g.until("fault", 3)
			if after := snapshot(t, g.Store.Directory); after != before {
				t.Errorf("the record changed:\n%s", after)
			}
			if n, _ := g.notified("READY=1"); n != 1 {
				t.Errorf("READY %d times", n)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
			g.wantFaults(fault.EnrollmentDisabled, fault.EnrollmentDisabled, fault.EnrollmentDisabled)
		})
	})
	t.Run("if-needed: READY is sent immediately, and the service is not asked", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := restarted(t)
			g.Settings.OnBoot = PolicyIfNeeded
			reload := make(chan os.Signal, 1)
			g.Hangup = reload
			g.Reload = func() (*Settings, error) { return nil, nil }
			g.run()
			time.Sleep(30 * 24 * time.Hour)
			if n, at := g.notified("READY=1"); n != 1 || at.Sub(g.start) != 0 {
				t.Errorf("READY %d times, after %s", n, at.Sub(g.start))
			}
			if g.dials != 0 {
				t.Errorf("%d connections in a month", g.dials)
			}
			reload <- os.Interrupt // until a registration is requested
			g.until("assigned", 1)
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	for _, tt := range []struct {
		name   string
		change func(*gateway)
	}{
		{"another ID scope", func(g *gateway) { g.Settings.IDScope = "0ne00000001" }},
		{"another endpoint", func(g *gateway) { g.Settings.Dialer.Host = global }},
		{"a payload", func(g *gateway) { g.write("p.json", `{"a":1}`); g.Settings.PayloadFile = g.dir + "/p.json" }},
		{"another registration ID", func(g *gateway) {
			g.Settings.RegistrationID = attest.RegistrationID{Template: "gw-2"}
			g.Settings.Credentials = []attest.Credential{g.key("2.key", g.sim.DeviceKey("gw-2"))}
		}},
	} {
		t.Run("if-needed: a record of another configuration stays published but does not cause READY: "+tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := restarted(t)
				tt.change(g)
				g.Settings.OnBoot = PolicyIfNeeded
				g.run()
				g.until("record-of-another-configuration", 1)
				g.wantAssigned()
				if n, _ := g.notified("READY=1"); n != 0 {
					t.Error("READY for a record of another configuration")
				}
				if tt.name == "another ID scope" { // the service knows only one
					g.until("fault", 1)
				} else {
					g.until("assigned", 1)
					synctest.Wait()
					if n, _ := g.notified("READY=1"); n != 1 {
						t.Errorf("READY %d times after the assignment", n)
					}
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
	t.Run("if-needed: a gateway that was never assigned registers", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			g.Settings.OnBoot = PolicyIfNeeded
			g.run()
			if took := g.until("assigned", 1); took != 6*time.Second {
				t.Errorf("took %s", took)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("--once registers regardless of the policy", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := restarted(t)
			g.Settings.OnBoot, g.Once = PolicyIfNeeded, true
			g.run()
			if err := <-g.done; err != nil {
				t.Error(err)
			}
			if n := g.registers(); n != 1 {
				t.Errorf("%d registers", n)
			}
			g.sim.Close()
		})
	})
}

func TestTheIntervalRegistersAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Settings.Interval = 24 * time.Hour
		g.run()
		time.Sleep(30 * 24 * time.Hour)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults()
		if n := g.registers(); n < 30 || n > 33 {
			t.Errorf("%d registers in 30 days", n)
		}
		if n, _ := g.notified("READY=1"); n != 1 {
			t.Errorf("READY %d times", n)
		}
	})
}

func TestAFaultInBetweenKeepsTheRecordAndTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Skip: 1, Times: 3, Status: 500, RetryAfter: "none"})
		g.Settings.Interval = time.Hour
		g.run()
		g.until("assigned", 3)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults(fault.ServiceError, fault.ServiceError, fault.ServiceError)
		if rec := g.wantAssigned(); rec.Generation != 1 {
			t.Errorf("generation %d", rec.Generation)
		}
	})
}

func TestForcedRegistrationsAreOneAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		reload := make(chan os.Signal, 1)
		g.Hangup = reload
		g.Reload = func() (*Settings, error) { return nil, nil }
		g.run()
		g.until("assigned", 1)
		for range 1200 { // ten minutes
			reload <- os.Interrupt
			time.Sleep(500 * time.Millisecond)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if n := g.registers(); n < 10 || n > 12 {
			t.Errorf("%d registers in ten minutes of SIGHUP", n)
		}
	})
}

func TestAnExpiringCertificateIsAnnounced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Settings.Credentials = []attest.Credential{g.certificate(device)}
		g.run()
		g.until("assigned", 1)
		proof, err := g.Settings.Credentials[0].Prove(context.Background(), attest.Subject{RegistrationID: device}, attest.Secrets{}, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Until(proof.Expires.Add(time.Hour)))
		synctest.Wait()
		var got []int64
		for _, e := range g.log.FilterMessage("certificate-expires").All() {
			days := e.ContextMap()["withinDays"].(int64)
			if left := proof.Expires.Sub(e.Time); left > time.Duration(days)*24*time.Hour || left < time.Duration(days-1)*24*time.Hour {
				t.Errorf("%d days were announced %s before", days, left)
			}
			got = append(got, days)
		}
		if len(got) != 3 || got[0] != 30 || got[1] != 7 || got[2] != 1 {
			t.Errorf("announced %v days before, want 30, 7 and 1, once each", got)
		}
		ended := g.log.FilterMessage("certificate-expired")
		if ended.Len() != 1 || ended.All()[0].Time.Before(proof.Expires) {
			t.Errorf("the expiry was logged %v, want once, at %s", ended.All(), proof.Expires)
		}
		for _, verb := range []string{"expires", "expired"} {
			if n, _ := g.notified("; the device certificate " + verb + " on " + proof.Expires.UTC().Format(time.DateOnly)); n == 0 {
				t.Errorf("STATUS= does not say that it %s", verb)
			}
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestARecordFromTheFutureDoesNotPreventRegistrations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		s := g.supervisor()
		defer s.close()
		if err := s.open(time.Now()); err != nil {
			t.Fatal(err)
		}
		// The record was saved when the clock showed 2099; now the clock is right.
		s.verified = time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
		refusal := registered{err: classify.At(fault.StageRegister, unauthorized), verified: time.Now().Round(0), recording: &recording{}}
		if f := s.classify(refusal, time.Now()); f.Code != fault.ClockImplausible {
			t.Errorf("the first 401 is explained by the clock, got %s", f.Code)
		}
		s.running.cancel = func() {}
		if err := s.finish(t.Context(), refusal, time.Now()); err != nil {
			t.Fatal(err)
		}
		if f := s.classify(refusal, time.Now()); f.Code != fault.Unauthorized {
			t.Errorf("after a verified handshake the next is the credential's, got %s", f.Code)
		}
		g.sim.Close()
	})
}

// The next action is in the part of the line that a terminal shows, regardless of the length of
// the names and the cause.
func TestStatusShowsTheNextAttemptWithinItsFirst80Columns(t *testing.T) {
	long := strings.Repeat("n", 120)
	hub := strings.Repeat("h", 50) + "." + strings.Repeat("d", 60) + ".azure-devices.net"
	next := regexp.MustCompile(`^STATUS=(Next attempt (to save )?at (\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d UTC\. (Last fault: [a-z-]+|Waiting for the boot delay))`)
	within80 := func(t *testing.T, line string, want ...string) {
		t.Helper()
		begin := next.FindString(line)
		if begin == "" || len(begin)-len("STATUS=") > 80 || strings.Count(line, "\n") != 0 {
			t.Errorf("the next attempt is not within 80 columns: %q", line)
		}
		for _, text := range want {
			if !strings.Contains(line, text) {
				t.Errorf("the line does not contain %q: %q", text, line)
			}
		}
	}
	assigned := simulator.Rule{On: simulator.OnRegister, State: "assigned", AssignedHub: hub, DeviceID: long, Times: 1}
	t.Run("before READY", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 404, ErrorMessage: long})
			g.run()
			g.until("fault", 1)
			synctest.Wait()
			within80(t, g.lastNote(), "UTC. Last fault: enrollment-not-found: ", long)
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("after READY, followed by the identity", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t, assigned, simulator.Rule{On: simulator.OnRegister, Status: 401, ErrorMessage: long})
			g.Settings.Interval = time.Hour
			g.run()
			g.until("fault", 1)
			synctest.Wait()
			within80(t, g.lastNote(), "UTC. Last fault: unauthorized: ", "; assigned to "+hub+" as "+long)
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("while a record waits for its confirmation", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := restarted(t, assigned)
			g.Settings.OnBoot, g.Settings.BootDelayMax = PolicyVerify, 12*time.Hour
			g.run()
			synctest.Wait()
			within80(t, "STATUS="+strings.TrimPrefix(g.lastNote(), "READY=1\nSTATUS="), "UTC. Waiting for the boot delay; assigned to "+hub+" as "+long+" (cached")
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
	t.Run("while DPS is assigning", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			g := newGateway(t)
			g.run()
			g.until("assigned", 1)
			if n, _ := g.notified("STATUS=DPS is assigning gw-1; checking again in 3s"); n == 0 {
				t.Errorf("the line does not begin with the next question: %v", g.notes)
			}
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	})
}

func TestASteppedClockEndsTheWaitsItMayHaveCaused(t *testing.T) {
	for _, tt := range []struct {
		name string
		rule simulator.Rule
		took time.Duration // from the step to the assignment; 0: the wait continues
	}{
		{"a refused credential", simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none", Times: 1}, 6 * time.Second},
		{"but never the floor", simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "1800", Times: 1}, 1806*time.Second - time.Minute},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGateway(t, tt.rule)
				g.Settings.Retry.RefusedInitial = 5 * time.Minute
				steps := make(chan time.Duration, 1)
				g.ClockStepped = steps
				g.run()
				g.until("fault", 1)
				time.Sleep(time.Minute - time.Since(g.start))
				steps <- 365 * 24 * time.Hour
				if took := g.until("assigned", 1) - time.Minute; took != tt.took {
					t.Errorf("assigned %s after the step, want %s", took, tt.took)
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}
