package daemon

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/simulator"
)

// A registration is more urgent than module identities, which may take long if the hub does not respond.
func TestARegistrationInterruptsAJobForModules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"}, simulator.Rule{On: simulator.OnHubRequest, Times: 1, Silent: true})
		s := g.supervised()
		g.until("assigned", 1)
		time.Sleep(2 * time.Second)
		g.wantAsked(t, "GET ")
		before := time.Now()
		if _, err := s.ask(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		g.until("assigned", 2)
		if took := time.Since(before); took > 7*time.Second {
			t.Errorf("the registration took %s", took)
		}
		g.within(time.Minute, "module-created", 1)
		g.wantFaults()
		g.ends()
	})
}

func TestAReloadDuringAJobForModulesAppliesTheNewConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"}, simulator.Rule{On: simulator.OnHubRequest, Skip: 1, Times: 1, Silent: true})
		hangup, file := g.reloads()
		g.run()
		g.until("assigned", 1)
		time.Sleep(2 * time.Second)
		g.wantAsked(t, "GET ", "PUT /a")
		changed := withModules(g.Settings, "b")
		file.contains(&changed)
		hangup <- os.Interrupt
		g.within(10*time.Minute, "module-created", 1)
		time.Sleep(time.Minute)
		g.wantModules(t, "b")
		g.ends()
	})
}

// The power fails after modules.json was written, before or after the hub has received the request.
func TestAModuleIsRecordedBeforeItsRequestLeaves(t *testing.T) {
	for _, arrived := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			g := modular(t, []string{"a"}, simulator.Rule{On: simulator.OnHubRequest, Skip: 1, Times: 1, Silent: true})
			g.run()
			g.until("assigned", 1)
			time.Sleep(2 * time.Second)
			g.wantAsked(t, "GET ", "PUT /a")
			stored := g.modulesFile(t)
			if len(stored.Root) != 32 || len(stored.Identities) != 1 || stored.Identities[0].ModuleID != "a" || stored.Identities[0].Created {
				t.Errorf("during the request, modules.json has %+v", stored.Identities)
			}
			g.finished(t)
			if arrived {
				g.put(t, "a", "dpsd", modules.Keys{Root: stored.Root, Device: deviceOf(g.wantAssigned())}.Pair("a").Primary)
			}
			// Without its consumer, the module would have to be removed.
			g.Settings = withModules(g.Settings)
			g.run()
			time.Sleep(time.Minute)
			synctest.Wait()
			if left := g.sim.Modules(device); len(left) > 0 {
				t.Errorf("left at the hub: %+v", left)
			}
			if again := g.modulesFile(t); !bytes.Equal(again.Root, stored.Root) || len(again.Identities) > 0 {
				t.Errorf("modules.json has %+v", again.Identities)
			}
			g.Settings = withModules(g.Settings, "a")
			g.finished(t)
			g.run()
			g.within(time.Minute, "module-created", 1)
			synctest.Wait()
			g.wantModules(t, "a")
			g.ends()
		})
	}
}

// The gateway repairs itself: the modules at the hub get new keys.
func TestADamagedModulesFileIsKeptAndTheModulesGetNewKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := created(t, "a", "b")
		before := g.modulesFile(t)
		_, damaged := g.rewrite(t, `"created": true`, `"created": none`)
		g.Settings = withModules(g.Settings, "a")
		g.Settings.OnBoot = PolicyIfNeeded
		g.run()
		g.within(time.Minute, "module-created", 3)
		synctest.Wait()
		if after := g.modulesFile(t); len(after.Identities) != 1 || bytes.Equal(after.Root, before.Root) {
			t.Errorf("modules.json has %+v", after)
		}
		g.wantAsked(t, "GET ", "PUT /a", "PUT /b", "GET ", "PUT /a")
		g.wantFaults()
		// dpsd no longer knows that it has created the module of the service that is gone.
		if left := g.sim.Modules(device); len(left) != 2 {
			t.Errorf("the hub has %+v", left)
		}
		kept, err := filepath.Glob(g.modulesPath() + ".corrupt-*")
		if err != nil || len(kept) != 1 {
			t.Fatal(kept, err)
		}
		if text, err := os.ReadFile(kept[0]); err != nil || !bytes.Equal(text, damaged) {
			t.Errorf("the damaged file is %q (%v)", text, err)
		}
		notices := ""
		for _, e := range g.log.FilterMessage("state-notice").All() {
			notices += fmt.Sprintln(e.ContextMap()["notice"])
		}
		if !strings.Contains(notices, kept[0]) || strings.Contains(notices, base64.StdEncoding.EncodeToString(before.Root)) {
			t.Errorf("the notices are %s", notices)
		}
		g.ends()
	})
}

func TestADeviceWithACertificateManagesModules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"})
		g.Settings.Credentials = []attest.Credential{g.certificate(device)}
		g.run()
		g.within(time.Minute, "module-created", 1)
		synctest.Wait()
		g.wantModules(t, "a")
		g.wantFaults()
		g.ends()
	})
}

func TestAHubWithAnotherProfileIsNotAskedForModules(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		s := g.supervisor()
		if err := s.open(time.Now()); err != nil {
			t.Fatal(err)
		}
		defer s.close()
		rec, _ := s.store.Current()
		rec.ConnectionProfile = "mqttV5"
		before := g.dials
		go func() {
			for range s.running.phases {
			}
		}()
		job := &moduleJob{reporter: reporter{s.eventLog, s.running.phases, nil, s.now}, hubAccess: hubAccess{s.settings, s.Secrets, rec, s.hubCredential()},
			store: s.store, goal: moduleGoal{deviceOf(rec), []string{"a"}}}
		s.running.cancel = func() {}
		o := job.run(t.Context()).(modulesOutcome)
		if err := o.finish(s, time.Now()); err != nil {
			t.Fatal(err)
		}
		g.wantFaults(fault.ModuleRefused)
		if g.dials != before {
			t.Error("the hub was contacted")
		}
		close(s.running.phases)
		g.sim.Close()
	})
}

func TestModulesWaitForAPlausibleClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		g.Settings = withModules(g.Settings, "a")
		g.Settings.OnBoot = PolicyIfNeeded
		g.BuiltAt = time.Now().Add(30 * time.Second)
		g.run()
		time.Sleep(29 * time.Second)
		g.wantAsked(t)
		g.within(time.Minute, "module-created", 1)
		g.ends()
	})
}

// DPS assigns a device that was deleted at the hub to the same hub, but without its modules.
func TestAModuleThatWasDeletedAtTheHubExistsAgainAfterARequestedRegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"})
		s := g.supervised()
		g.within(time.Minute, "module-created", 1)
		g.remove(t, "a")
		if _, err := s.ask(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		g.within(time.Minute, "module-created", 2)
		g.wantModules(t, "a")
		g.wantAsked(t, "GET ", "PUT /a", "DELETE /a", "GET ", "PUT /a")
		time.Sleep(50 * time.Hour) // in which there are regular registrations
		g.wantAsked(t, "GET ", "PUT /a", "DELETE /a", "GET ", "PUT /a")
		g.wantFaults()
		g.ends()
	})
}

func TestAModuleThatWasDeletedAtTheHubExistsAgainAfterReports(t *testing.T) {
	for _, tt := range []struct {
		name   string
		asks   bool // hub_check = "https"
		device bool // the device was deleted, and not only the module
	}{
		{name: "the module, hub_check off"},
		{name: "the module, hub_check https", asks: true},
		{name: "the device, hub_check off", device: true},
		{name: "the device, hub_check https", asks: true, device: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReporting(t, func(g *gateway) {
					g.Settings.HubCheck = tt.asks
					g.Settings.Consumers = append(g.Settings.Consumers, consumer.Consumer{Name: "m", Scope: consumer.Scope{Module: "a"}})
				})
				defer r.finish()
				r.within(time.Minute, "module-created", 1)
				if tt.device {
					r.sim.DeleteDevice(device)
				} else {
					r.remove(t, "a")
				}
				r.reportFor(20*time.Minute, "5")
				r.within(time.Hour, "module-created", 2)
				r.wantModules(t, "a")
				r.wantFaults()
			})
		})
	}
}

func TestAModuleThatTheHubDoesNotKnowExistsAgainWithoutARegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, func(g *gateway) {
			g.Settings.Consumers = append(g.Settings.Consumers, consumer.Consumer{Name: "m", Scope: consumer.Scope{Module: "a"}})
		})
		defer r.finish()
		r.within(time.Minute, "module-created", 1)
		r.remove(t, "a")
		if a := r.report("404010"); a.Action != refusal.None {
			t.Errorf("%+v", a)
		}
		r.within(time.Minute, "module-created", 2)
		r.wantModules(t, "a")
		if all := r.registered(); len(all) > 0 {
			t.Errorf("registrations after %v", all)
		}
	})
}

// No request reaches the other hub, so modules.json still has the module of the first one.
func TestTheModulesAreVerifiedWhenDPSAssignsAnotherHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"}, simulator.Rule{On: simulator.OnRegister, Skip: 1, Times: 1, Status: 200, Body: assignedWith(`,"deviceId":"gw-1"`)})
		g.Settings.Interval = time.Hour
		g.run()
		g.within(time.Minute, "module-created", 1)
		g.remove(t, "a")
		g.until("assigned", 2)
		g.until("fault", 1)
		g.until("assigned", 3)
		g.within(time.Minute, "module-created", 2)
		g.wantModules(t, "a")
		g.ends()
	})
}

func TestAModulesFileThatCouldNotBeWrittenAfterARequestIsWrittenLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"}, simulator.Rule{On: simulator.OnHubRequest, Skip: 1, Times: 1, Delay: 10 * time.Second})
		g.run()
		g.until("assigned", 1)
		time.Sleep(2 * time.Second)
		g.wantAsked(t, "GET ", "PUT /a")
		// dpsd does not replace a file of a newer version.
		whole, _ := g.rewrite(t, `"schema": 1`, `"schema": 2`)
		g.until("module-created", 1)
		g.within(time.Second, "fault", 1)
		g.restore(t, whole)
		time.Sleep(10 * time.Minute)
		g.wantModules(t, "a")
		g.wantFaults(fault.ModulesUnreadable)
		g.ends()
	})
}

// The configuration no longer has the consumer, so that only the file says that there is a module.
func TestAModulesFileThatCannotBeReadIsReportedWithoutConsumers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := created(t, "a")
		whole, _ := g.rewrite(t, `"schema": 1`, `"schema": 2`)
		g.Settings = withModules(g.Settings)
		g.run()
		g.within(time.Minute, "fault", 1)
		g.restore(t, whole)
		g.within(time.Minute, "module-removed", 1)
		g.wantModules(t)
		g.ends()
	})
}
