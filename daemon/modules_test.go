package daemon

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// withModules configures a consumer for each module, with the same name.
func withModules(s Settings, ids ...string) Settings {
	s.Consumers = nil
	for _, id := range ids {
		s.Consumers = append(s.Consumers, consumer.Consumer{Name: id, Scope: consumer.Scope{Module: id}})
	}
	return s
}

// modular returns a gateway with a consumer for each module.
func modular(t *testing.T, ids []string, rules ...simulator.Rule) *gateway {
	t.Helper()
	g := newGateway(t, rules...)
	g.Settings = withModules(g.Settings, ids...)
	return g
}

// created returns a gateway whose last run has created these modules.
func created(t *testing.T, ids ...string) *gateway {
	t.Helper()
	g := modular(t, ids)
	g.run()
	g.within(time.Minute, "module-created", len(ids))
	g.finished(t)
	return g
}

// having returns a gateway that has been assigned, and whose device has a module with other keys.
func having(t *testing.T, id, managedBy string) *gateway {
	t.Helper()
	g := newGateway(t)
	g.run()
	g.until("assigned", 1)
	g.put(t, id, managedBy, otherKey)
	g.finished(t)
	return g
}

// asked returns the requests for the modules at the hub, without the query.
func (g *gateway) asked() (all []string) {
	for _, e := range g.sim.Log() {
		if e.Service == "hub" && e.Packet == "REQUEST" {
			request, _, _ := strings.Cut(e.Topic, "?")
			all = append(all, strings.Replace(request, "/devices/"+device+"/modules", "", 1))
		}
	}
	return all
}

func (g *gateway) wantAsked(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	if got := g.asked(); !slices.Equal(got, want) {
		t.Errorf("the requests to the hub were %q, want %q", got, want)
	}
}

// wantModules fails unless the modules of dpsd at the hub are exactly these, with its keys.
func (g *gateway) wantModules(t *testing.T, want ...string) {
	t.Helper()
	stored := g.modulesFile(t)
	keys := modules.Keys{Root: stored.Root, Device: deviceOf(g.wantAssigned())}
	var got []string
	for _, m := range g.sim.Modules(device) {
		if m.ManagedBy == nil || *m.ManagedBy != "dpsd" {
			continue
		}
		got = append(got, m.ModuleID)
		if pair := keys.Pair(m.ModuleID); *m.Authentication.SymmetricKey.PrimaryKey != pair.Primary || *m.Authentication.SymmetricKey.SecondaryKey != pair.Secondary {
			t.Errorf("module %s has other keys at the hub", m.ModuleID)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("dpsd's modules at the hub are %q, want %q", got, want)
	}
	_, confirmed := recorded(stored, keys.Device)
	if !slices.Equal(confirmed, want) {
		t.Errorf("modules.json has %q, want %q", confirmed, want)
	}
}

func (g *gateway) modulesFile(t *testing.T) store.Modules {
	t.Helper()
	var m struct {
		Root    []byte
		Modules []store.ModuleIdentity
	}
	data, err := os.ReadFile(g.modulesPath())
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		t.Fatal(err)
	}
	return store.Modules{Root: m.Root, Identities: m.Modules}
}

// rewrite replaces a text in modules.json. It returns the file before and after.
func (g *gateway) rewrite(t *testing.T, text, by string) (before, after []byte) {
	t.Helper()
	before, err := os.ReadFile(g.modulesPath())
	if err != nil {
		t.Fatal(err)
	}
	after = bytes.Replace(before, []byte(text), []byte(by), 1)
	if bytes.Equal(before, after) {
		t.Fatalf("modules.json does not contain %q: %s", text, before)
	}
	g.restore(t, after)
	return before, after
}

// restore writes modules.json.
func (g *gateway) restore(t *testing.T, data []byte) {
	t.Helper()
	if err := os.WriteFile(g.modulesPath(), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func (g *gateway) modulesPath() string { return filepath.Join(g.Store.Directory, "modules.json") }

// finished ends the daemon but not the simulator.
func (g *gateway) finished(t *testing.T) {
	t.Helper()
	g.stop()
	if err := <-g.done; err != nil {
		t.Error(err)
	}
}

// put creates or changes a module at the hub, like another program with the device's key.
func (g *gateway) put(t *testing.T, id, managedBy, key string) {
	t.Helper()
	rec := g.wantAssigned()
	device := deviceOf(rec)
	text, err := base64.StdEncoding.DecodeString(g.sim.DeviceKey(rec.DeviceID))
	if err != nil {
		t.Fatal(err)
	}
	expiry := time.Now().Add(time.Hour)
	header := http.Header{"Authorization": {sas.Token(device.Resource(false), sas.MAC(text, sas.Statement(device.Resource(false), expiry)), expiry, "")}}
	dialer := *g.Settings.Dialer
	dialer.Host = device.Host
	body, _ := json.Marshal(map[string]any{"moduleId": id, "deviceId": device.DeviceID, "managedBy": managedBy,
		"authentication": map[string]any{"type": "sas", "symmetricKey": map[string]any{"primaryKey": key, "secondaryKey": key}}})
	answer, err := dialer.Do(t.Context(), nil, transport.Request{Method: http.MethodPut, Target: "/devices/" + device.DeviceID + "/modules/" + id + "?api-version=2021-04-12", Header: header, Body: body})
	if err != nil || answer.Status != http.StatusOK {
		t.Fatal(answer, err)
	}
}

// remove deletes a module at the hub, like another program with the device's key.
func (g *gateway) remove(t *testing.T, id string) {
	t.Helper()
	rec := g.wantAssigned()
	key, err := base64.StdEncoding.DecodeString(g.sim.DeviceKey(rec.DeviceID))
	if err != nil {
		t.Fatal(err)
	}
	client := modules.Client{Device: deviceOf(rec), Dialer: *g.Settings.Dialer, MAC: func(_ context.Context, statement []byte) ([]byte, error) {
		return sas.MAC(key, statement), nil
	}}
	if err := client.Delete(t.Context(), modules.Module{ID: id}); err != nil {
		t.Fatal(err)
	}
}

var otherKey = base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("x"), 32))

func TestModulesExistAfterTheAssignmentAndARestartDoesNotContactTheHub(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := created(t, "camera", "broker")
		g.wantModules(t, "broker", "camera")
		g.wantAsked(t, "GET ", "PUT /broker", "PUT /camera")
		info, err := os.Stat(g.modulesPath())
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info.Mode(), err)
		}

		for _, policy := range []Policy{PolicyAlways, PolicyVerify, PolicyIfNeeded} {
			g.Settings.OnBoot = policy
			g.run()
			time.Sleep(24 * time.Hour)
			g.finished(t)
		}
		g.wantAsked(t, "GET ", "PUT /broker", "PUT /camera")
		g.wantFaults()
		g.sim.Close()
	})
}

func TestModulesAreCreatedAndRemovedWithTheirConsumers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a", "b"})
		hangup, file := g.reloads()
		g.run()
		g.within(time.Minute, "module-created", 2)
		g.put(t, "foreign", "factory", otherKey)
		reload := func(ids ...string) {
			changed := withModules(g.Settings, ids...)
			file.contains(&changed)
			hangup <- os.Interrupt
		}
		reload("b", "c")
		g.within(time.Minute, "module-removed", 1)
		g.within(time.Minute, "module-created", 3)
		time.Sleep(time.Minute)
		g.wantModules(t, "b", "c")
		reload()
		g.within(time.Minute, "module-removed", 3)
		time.Sleep(time.Minute)
		g.wantModules(t)
		if all := g.sim.Modules(device); len(all) != 1 || all[0].ModuleID != "foreign" {
			t.Errorf("the module of another program was touched: %+v", all)
		}
		g.wantFaults()
		g.ends()
	})
}

// When dpsd starts again, the configuration no longer contains the consumer.
func TestAModuleIsRemovedAfterARestartWithoutItsConsumer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := created(t, "a")
		g.Settings = withModules(g.Settings)
		g.Settings.OnBoot = PolicyIfNeeded
		g.run()
		g.within(time.Minute, "module-removed", 1)
		synctest.Wait()
		g.wantModules(t)
		g.ends()
	})
}

func TestAModuleOfAnotherProgramIsNotChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := having(t, "taken", "factory")
		g.Settings = withModules(g.Settings, "taken", "free")
		g.run()
		g.within(time.Minute, "module-created", 1)
		g.within(time.Minute, "fault", 1)
		g.wantFaults(fault.ModuleRefused)
		fields := g.log.FilterMessage("fault").All()[0].ContextMap()
		if cause := fields["cause"].(string); !strings.Contains(cause, `module "taken"`) || !strings.Contains(cause, `managed by "factory"`) {
			t.Error(cause)
		}
		for _, m := range g.sim.Modules(device) {
			if m.ModuleID == "taken" && (*m.ManagedBy != "factory" || *m.Authentication.SymmetricKey.PrimaryKey != otherKey) {
				t.Errorf("the module was changed: %+v", m)
			}
		}
		g.ends()
	})
}

// For example, the state directory was lost: dpsd created the module with another root.
func TestAModuleWithOtherKeysGetsThoseOfThisGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := having(t, "a", "dpsd")
		g.Settings = withModules(g.Settings, "a")
		g.run()
		g.within(time.Minute, "module-created", 1)
		synctest.Wait()
		g.wantModules(t, "a")
		g.wantFaults()
		g.ends()
	})
}

func TestAHubThatFailsDoesNotDelayReadyAndIsAskedAgainLater(t *testing.T) {
	atHub := func(r simulator.Rule) simulator.Rule {
		r.On, r.Times = simulator.OnHubRequest, 2
		return r
	}
	for _, test := range []struct {
		says  string
		rule  simulator.Rule
		code  fault.Code
		least time.Duration // between the first and the third request
		most  time.Duration
	}{
		{"429 with Retry-After", atHub(simulator.Rule{Status: 429, RetryAfter: "600"}), fault.HubThrottled, 20 * time.Minute, 22 * time.Minute},
		{"503", atHub(simulator.Rule{Status: 503}), fault.HubUnavailable, time.Second, 5 * time.Second},
		{"401", atHub(simulator.Rule{Status: 401}), fault.HubRefused, 40 * time.Second, 3 * time.Minute},
		{"no answer", atHub(simulator.Rule{Silent: true}), fault.HubUnavailable, time.Minute, 70 * time.Second},
	} {
		t.Run(test.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := modular(t, []string{"a"}, test.rule)
				g.run()
				took := g.until("module-created", 1)
				if took < test.least || took > test.most+time.Minute {
					t.Errorf("the module exists after %s", took)
				}
				g.wantFaults(test.code, test.code)
				g.wantAsked(t, "GET ", "GET ", "GET ", "PUT /a")
				if _, ready := g.notified("READY=1"); ready.Sub(g.start) > time.Minute {
					t.Errorf("READY after %s", ready.Sub(g.start))
				}
				g.wantModules(t, "a")
				if n := g.registers(); n != 1 {
					t.Errorf("%d registrations", n)
				}
				g.ends()
			})
		})
	}
}

func TestTheHubsRetryAfterHoldsAcrossARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := modular(t, []string{"a"}, simulator.Rule{On: simulator.OnHubRequest, Times: 1, Status: 429, RetryAfter: "600"})
		g.run()
		g.until("fault", 1)
		g.finished(t)
		g.run()
		if took := g.until("module-created", 1); took < 10*time.Minute {
			t.Errorf("the hub was asked again after %s", took)
		}
		g.ends()
	})
}

// A hub refuses the token of a gateway whose clock is wrong.
func TestAClockThatIsSetEndsTheWaitAfterARefusalButNotTheRetryAfterOfTheHub(t *testing.T) {
	for status, least := range map[int]time.Duration{401: 0, 429: 9 * time.Minute} {
		t.Run(strconv.Itoa(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				rule := simulator.Rule{On: simulator.OnHubRequest, Times: 1, Status: status}
				if status == 429 {
					rule.RetryAfter = "600"
				}
				g := modular(t, []string{"a"}, rule)
				g.Settings.Retry.RefusedInitial = time.Hour
				steps := make(chan time.Duration)
				g.ClockStepped = steps
				g.run()
				g.until("fault", 1)
				time.Sleep(time.Minute)
				set := time.Since(g.start)
				steps <- -24 * time.Hour
				if took := g.until("module-created", 1) - set; took < least || took > least+time.Minute {
					t.Errorf("the module exists %s after the clock was set", took)
				}
				g.ends()
			})
		})
	}
}
