package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/modules"
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
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAReloadDuringAJobForModulesAppliesTheNewConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"}, simulator.Rule{On: simulator.OnHubRequest, Skip: 1, Times: 1, Silent: true})
		hangup, file := make(chan os.Signal, 1), &configuration{}
		g.Hangup, g.Reload = hangup, file.read
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
		if err := g.end(); err != nil {
			t.Error(err)
		}
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
			if err := g.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestADamagedModulesFileIsAFaultAndIsNotOverwritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"})
		g.run()
		g.within(time.Minute, "module-created", 1)
		g.finished(t)
		path := filepath.Join(g.Store.Directory, "modules.json")
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := bytes.Replace(whole, []byte(`"created": true`), []byte(`"created": none`), 1)
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		before := len(g.asked())
		g.run()
		g.within(time.Minute, "fault", 1)
		g.wantFaults(fault.ModulesUnreadable)
		if now, _ := os.ReadFile(path); !bytes.Equal(now, damaged) {
			t.Errorf("the file was changed: %s", now)
		}
		if n := len(g.asked()); n != before {
			t.Errorf("%d requests to the hub", n-before)
		}
		// dpsd reads the file again until it is valid.
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Minute)
		seen := len(g.faults())
		time.Sleep(24 * time.Hour)
		if n := len(g.faults()); n != seen || len(g.asked()) != before {
			t.Errorf("%d faults and %d requests after the correction", n-seen, len(g.asked())-before)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
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
		if err := g.end(); err != nil {
			t.Error(err)
		}
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
			store: s.store, wanted: []string{"a"}}
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
		if err := g.end(); err != nil {
			t.Error(err)
		}
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
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAModuleThatWasDeletedAtTheHubExistsAgainAfterReports(t *testing.T) {
	for name, asks := range map[string]bool{"hub_check off": false, "hub_check https": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReporting(t, func(g *gateway) {
					g.Settings.HubCheck = asks
					g.Settings.Consumers = append(g.Settings.Consumers, consumer.Consumer{Name: "m", Scope: consumer.Scope{Module: "a"}})
				})
				defer r.finish()
				r.within(time.Minute, "module-created", 1)
				r.remove(t, "a")
				r.reportFor(20*time.Minute, "5")
				r.within(time.Hour, "module-created", 2)
				r.wantModules(t, "a")
			})
		})
	}
}
