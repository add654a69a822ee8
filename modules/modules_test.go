package modules_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
)

var keys = modules.Keys{Root: []byte(strings.Repeat("r", 32)), Device: hub.Identity{Host: "contoso.azure-devices.net", DeviceID: "gw-1"}}

func mac(key, text string) []byte {
	m := hmac.New(sha256.New, []byte(key))
	m.Write([]byte(text))
	return m.Sum(nil)
}

func TestTheKeysOfAModuleAreDerivedFromTheRootAndItsWholeName(t *testing.T) {
	const name = "dpsd module v1\ncontoso.azure-devices.net\ngw-1\ncamera\n"
	primary := mac(string(keys.Root), name+"primary")
	want := modules.Pair{Primary: base64.StdEncoding.EncodeToString(primary), Secondary: base64.StdEncoding.EncodeToString(mac(string(keys.Root), name+"secondary"))}
	if got := keys.Pair("camera"); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := keys.MAC("camera", []byte("statement")); !hmac.Equal(got, mac(string(primary), "statement")) {
		t.Errorf("got %x", got)
	}
	other := keys
	other.Device.Host = "fabrikam.azure-devices.net"
	neighbour := keys
	neighbour.Device.DeviceID = "gw-2"
	root := keys
	root.Root = []byte(strings.Repeat("s", 32))
	seen := map[string]bool{}
	for _, pair := range []modules.Pair{keys.Pair("camera"), keys.Pair("Camera"), other.Pair("camera"), neighbour.Pair("camera"), root.Pair("camera")} {
		for _, key := range []string{pair.Primary, pair.Secondary} {
			if seen[key] {
				t.Error("two keys are the same")
			}
			seen[key] = true
		}
	}
}

func TestThePlan(t *testing.T) {
	own := func(id string) modules.Module {
		return modules.Module{ID: id, ManagedBy: "dpsd", ETag: "e-" + id, Keys: keys.Pair(id)}
	}
	stale := modules.Module{ID: "stale", ManagedBy: "dpsd", Keys: modules.Pair{Primary: "a", Secondary: "b"}}
	taken := modules.Module{ID: "taken", ManagedBy: "IotEdge"}
	unmanaged := modules.Module{ID: "unmanaged"}
	agent, fake := modules.Module{ID: "$edgeAgent", ManagedBy: "dpsd"}, modules.Module{ID: "$edgeHub"}
	for _, tt := range []struct {
		name             string
		wanted, recorded []string
		listed           []modules.Module
		want             modules.Plan
		refused          []string
	}{
		{name: "nothing is wanted, and nothing is recorded", listed: []modules.Module{own("a"), taken, agent}},
		{name: "a new module", wanted: []string{"a"}, want: modules.Plan{Create: []string{"a"}}},
		{name: "a module that exists", wanted: []string{"a"}, recorded: []string{"a"}, listed: []modules.Module{own("a")}, want: modules.Plan{Keep: []string{"a"}}},
		{name: "a recorded module that is gone", wanted: []string{"a"}, recorded: []string{"a"}, want: modules.Plan{Create: []string{"a"}}},
		{name: "other keys", wanted: []string{"stale"}, listed: []modules.Module{stale}, want: modules.Plan{Update: []modules.Module{stale}}},
		{name: "a module of another program", wanted: []string{"taken"}, listed: []modules.Module{taken}, refused: []string{"taken"}},
		{name: "a module of an unknown program", wanted: []string{"unmanaged"}, recorded: []string{"unmanaged"}, listed: []modules.Module{unmanaged}, refused: []string{"unmanaged"}},
		{name: "a module of IoT Edge", wanted: []string{"$edgeAgent"}, refused: []string{"$edgeAgent"}},
		{name: "a module without a consumer", recorded: []string{"a"}, listed: []modules.Module{own("a")}, want: modules.Plan{Delete: []modules.Module{own("a")}}},
		{name: "a module without a consumer that is gone", recorded: []string{"a"}, want: modules.Plan{Gone: []string{"a"}}},
		{name: "a module without a consumer that belongs to another program now", recorded: []string{"taken"}, listed: []modules.Module{taken}, want: modules.Plan{Gone: []string{"taken"}}},
		{name: "a module of dpsd that is not recorded", listed: []modules.Module{own("a")}},
		{name: "a recorded module of IoT Edge", recorded: []string{"$edgeAgent", "$edgeHub"}, listed: []modules.Module{agent, fake}, want: modules.Plan{Gone: []string{"$edgeAgent", "$edgeHub"}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := modules.NewPlan(tt.wanted, tt.recorded, tt.listed, keys)
			var refused []string
			for _, r := range got.Refuse {
				refused = append(refused, r.Module)
			}
			got.Refuse = nil
			if d := cmp.Diff(tt.want, got); d != "" || !slices.Equal(refused, tt.refused) {
				t.Errorf("refused %q: %s", refused, d)
			}
		})
	}
}

// Regardless of what the hub lists, a plan changes only what it may, and the next plan is empty.
func TestAPlanNeverChangesTheModulesOfOthersAndIsCompleteAfterOneStep(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 19))
	names := []string{"a", "b", "c", "$edgeHub", "A"}
	some := func() (all []string) {
		for _, n := range names {
			if random.IntN(2) == 0 {
				all = append(all, n)
			}
		}
		return all
	}
	for range 10_000 {
		wanted, recorded := some(), some()
		var listed []modules.Module
		for _, n := range some() {
			m := modules.Module{ID: n, ManagedBy: []string{"dpsd", "other", ""}[random.IntN(3)]}
			if random.IntN(2) == 0 {
				m.Keys = keys.Pair(n)
			}
			listed = append(listed, m)
		}
		p := modules.NewPlan(wanted, recorded, listed, keys)
		say := fmt.Sprintf("wanted %q, recorded %q, listed %v: %+v", wanted, recorded, listed, p)
		for _, m := range append(slices.Clone(p.Update), p.Delete...) {
			if m.ManagedBy != "dpsd" || strings.HasPrefix(m.ID, "$") {
				t.Fatal(say)
			}
		}
		for _, m := range p.Delete {
			if slices.Contains(wanted, m.ID) || !slices.Contains(recorded, m.ID) {
				t.Fatal(say)
			}
		}
		after := slices.DeleteFunc(listed, func(m modules.Module) bool { return slices.Contains(p.Delete, m) || slices.Contains(p.Update, m) })
		confirmed := slices.Clone(p.Keep)
		for _, id := range p.Create {
			after, confirmed = append(after, modules.Module{ID: id, ManagedBy: "dpsd", Keys: keys.Pair(id)}), append(confirmed, id)
		}
		for _, m := range p.Update {
			after, confirmed = append(after, modules.Module{ID: m.ID, ManagedBy: "dpsd", Keys: keys.Pair(m.ID)}), append(confirmed, m.ID)
		}
		again := modules.NewPlan(wanted, confirmed, after, keys)
		if len(again.Create)+len(again.Update)+len(again.Delete) > 0 {
			t.Fatalf("%s; then %+v", say, again)
		}
		if modules.Needed(wanted, confirmed, confirmed) != (len(p.Refuse) > 0) {
			t.Fatalf("%s: a job is needed although nothing is refused, or the reverse", say)
		}
	}
}

func TestNothingIsNeededIfEachWantedModuleIsConfirmed(t *testing.T) {
	for _, tt := range []struct {
		wanted, recorded, confirmed []string
		want                        bool
	}{
		{nil, nil, nil, false},
		{[]string{"a"}, []string{"a"}, []string{"a"}, false},
		{[]string{"a"}, []string{"a"}, nil, true},
		{[]string{"a"}, nil, nil, true},
		{nil, []string{"a"}, []string{"a"}, true},
		{nil, []string{"a"}, nil, true},
		{[]string{"b"}, []string{"a", "b"}, []string{"a", "b"}, true},
	} {
		if got := modules.Needed(tt.wanted, tt.recorded, tt.confirmed); got != tt.want {
			t.Errorf("wanted %q, recorded %q, confirmed %q: %t", tt.wanted, tt.recorded, tt.confirmed, got)
		}
	}
}
