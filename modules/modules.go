// Package modules manages the identities of a device's modules at its IoT hub, as Azure IoT
// Edge does: over HTTPS, with the credential of the device. The keys of the modules are derived
// on the gateway from a root that never leaves it.
package modules

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
)

// Manager is the value of managedBy of the modules that dpsd creates.
const Manager = "dpsd"

// maxID is the longest ID of a device or a module, in characters (Azure page "Understand the
// identity registry in your IoT hub").
const maxID = 128

// Keys derives the keys of the modules of a device. They depend on the hub and the device ID.
type Keys struct {
	Root   []byte       // secret and random
	Device hub.Identity // without a module
}

// Pair returns both keys of a module, for the hub.
func (k Keys) Pair(module string) Pair {
	return Pair{
		Primary:   base64.StdEncoding.EncodeToString(k.key(module, "primary")),
		Secondary: base64.StdEncoding.EncodeToString(k.key(module, "secondary")),
	}
}

// MAC returns the HMAC-SHA256 of a statement under the primary key of a module.
func (k Keys) MAC(module string, statement []byte) []byte {
	return sas.MAC(k.key(module, "primary"), statement)
}

// key returns a key. No ID contains a line break.
func (k Keys) key(module, which string) []byte {
	return sas.MAC(k.Root, []byte("dpsd module v1\n"+k.Device.Host+"\n"+k.Device.DeviceID+"\n"+module+"\n"+which))
}

// Plan contains the changes that make the modules at the hub the wanted ones.
type Plan struct {
	Create []string
	Update []Module // dpsd has created them, but with other keys
	Delete []Module
	Keep   []string        // wanted, and with the right keys
	Gone   []string        // recorded but not wanted, and there is nothing to delete at the hub
	Refuse []*RefusedError // dpsd must not change these wanted modules
}

// Needed reports whether dpsd must contact the hub, given the modules that are wanted, those that
// dpsd has recorded as its own, and those of the latter that the hub has confirmed.
func Needed(wanted, recorded, confirmed []string) bool {
	missing := func(in []string) func(string) bool {
		return func(id string) bool { return !slices.Contains(in, id) }
	}
	return slices.ContainsFunc(wanted, missing(confirmed)) || slices.ContainsFunc(recorded, missing(wanted))
}

// NewPlan compares the modules that are wanted with those at the hub. dpsd deletes only modules
// that it has recorded as its own. It never changes or deletes a module that another program manages,
// or a module of IoT Edge, whose name begins with a dollar sign.
func NewPlan(wanted, recorded []string, listed []Module, keys Keys) Plan {
	var p Plan
	find := func(id string) (Module, bool) {
		i := slices.IndexFunc(listed, func(m Module) bool { return m.ID == id })
		if i < 0 {
			return Module{}, false
		}
		return listed[i], true
	}
	for _, id := range wanted {
		m, found := find(id)
		switch {
		case strings.HasPrefix(id, "$"):
			p.Refuse = append(p.Refuse, &RefusedError{Module: id, Reason: "names that begin with $ belong to Azure IoT Edge"})
		case !found:
			p.Create = append(p.Create, id)
		case m.ManagedBy != Manager:
			p.Refuse = append(p.Refuse, &RefusedError{Module: id, Reason: "the hub already has a module with this name that dpsd did not create" + manager(m)})
		case m.Keys != keys.Pair(id):
			p.Update = append(p.Update, m)
		default:
			p.Keep = append(p.Keep, id)
		}
	}
	for _, id := range recorded {
		m, found := find(id)
		switch {
		case slices.Contains(wanted, id):
		case found && m.ManagedBy == Manager && !strings.HasPrefix(id, "$"):
			p.Delete = append(p.Delete, m)
		default:
			p.Gone = append(p.Gone, id)
		}
	}
	return p
}
