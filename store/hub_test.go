package store_test

import (
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

func TestTheClassicNameAndTheDeviceNameAreOneHub(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"contoso.azure-devices.net", "contoso.device.azure-devices.net", true},
		{"contoso.device.azure-devices.net", "contoso.azure-devices.net", true},
		{"Contoso.azure-devices.net", "contoso.Device.Azure-Devices.net", true},
		{"contoso.azure-devices.cn", "contoso.device.azure-devices.cn", true},
		{"contoso.azure-devices.us", "contoso.device.azure-devices.us", true},
		{"contoso.azure-devices.net", "contoso.azure-devices.net", true},
		{"contoso.azure-devices.net", "fabrikam.device.azure-devices.net", false},
		{"contoso.azure-devices.net", "contoso.device.azure-devices.cn", false},
		{"contoso.example.net", "contoso.device.example.net", false},
		{"device.azure-devices.net", "device.device.azure-devices.net", true}, // a hub with the name device
		{"device.azure-devices.net", "azure-devices.net", false},
	} {
		if got := store.SameHub(c.a, c.b); got != c.same {
			t.Errorf("%s and %s: %t, want %t", c.a, c.b, got, c.same)
		}
	}
}

// Consumers connect by name: for them, another name is another hub.
func TestTheOtherNameOfTheSameHubIsANewIdentity(t *testing.T) {
	s := mustOpen(t, store.Options{Directory: t.TempDir()})
	rec := numbered(1)
	rec.RegistrationState = nil
	for i, hub := range []string{"contoso.azure-devices.net", "contoso.device.azure-devices.net", "contoso.azure-devices.net"} {
		rec.AssignedHub = hub
		if saved := mustSave(t, s, rec, store.Written); saved.Generation != uint64(i+1) || saved.AssignedHub != hub {
			t.Errorf("%s is generation %d, want %d", saved.AssignedHub, saved.Generation, i+1)
		}
		mustSave(t, s, rec, store.Unchanged)
	}
}
