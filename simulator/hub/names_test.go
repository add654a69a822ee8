package hub_test

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/simulator/hub"
)

func TestAHubInAzureHasTwoNamesAndAnyOtherHasOne(t *testing.T) {
	both := []string{"a.azure-devices.net", "a.device.azure-devices.net"}
	for name, want := range map[string][]string{
		"a.azure-devices.net": both, "A.Device.azure-devices.net": both, "localhost": {"localhost"}, "Hub.example": {"hub.example"},
		".azure-devices.net": {".azure-devices.net"}, "a.b.azure-devices.net": {"a.b.azure-devices.net"},
		"device.azure-devices.net": {"device.azure-devices.net", "device.device.azure-devices.net"},
	} {
		if got := hub.Names(name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if !hub.Same(both[1], both[0]) || hub.Same("a.example", "b.example") {
		t.Error("Same")
	}
}

func TestTheUserNameAndThenTheServerNameSelectsTheHub(t *testing.T) {
	hubs := []string{"localhost", "hub-a", "b.azure-devices.net"}
	for _, c := range []struct {
		user, serverName string
		want             bool
	}{
		{"0ne1/registrations/x/api-version=2019-03-31", "b.azure-devices.net", false},
		{"0ne1/registrations/x", "", false},
		{"0ne1/registrations/x/?api-version=2019-03-31", "", false},   // the question mark is a mistake
		{"localhost/registrations/?api-version=2021-04-12", "", true}, // a device of this name
		{"unknown.azure-devices.net/x/?api-version=2021-04-12", "localhost", true},
		{"unknown.azure-devices.net/x", "", true},
		{"hub-a/x", "", true},
		{"localhost/x/api-version=2016-11-14", "localhost", true},
		{"hub-c/x", "", false},
		{"", "b.device.azure-devices.net", true},
		{"", "localhost", false}, // DPS has this name, too
		{"", "", false},
	} {
		if got := hub.Addressed(c.user, c.serverName, hubs); got != c.want {
			t.Errorf("%q at %q: %v", c.user, c.serverName, got)
		}
	}
}

// FuzzNames checks that no text of a device makes the parsers panic, and that what they accept
// has all its parts.
func FuzzNames(f *testing.F) {
	f.Add("h/d/?api-version=2021-04-12&a=b", "devices/d/messages/events/a=b", "h/devices/d")
	f.Add("h/d/m/api-version=1", "$iothub/twin/GET/?$rid=1", "h/devices/d/modules/m/messages/events")
	f.Add("h/d/m/?api-version=1", "devices/d/modules/m/messages/events/", "H/devices/d/modules/m")
	f.Add("h/d", "$iothub/twin/PATCH/properties/reported/?$rid=1", "h/devices/d2")
	f.Fuzz(func(t *testing.T, user, topic, target string) {
		u, err := hub.ParseUser(user)
		if err == nil && (u.Hub == "" || u.Device == "") {
			t.Errorf("%q: %+v", user, u)
		}
		p, err := u.ParseTopic(topic)
		if err == nil && p.Kind != hub.Message && p.RequestID == "" {
			t.Errorf("%q: %+v", topic, p)
		}
		if err == nil && p.Kind == hub.Message { // only the client's own topic
			own := "devices/" + u.Device + "/messages/events"
			if u.Module != "" {
				own = "devices/" + u.Device + "/modules/" + u.Module + "/messages/events"
			}
			if topic != own && !strings.HasPrefix(topic, own+"/") {
				t.Errorf("%+v may publish to %q", u, topic)
			}
		}
		if endpoint, err := u.Filter(topic); err == nil && endpoint == "" {
			t.Errorf("%q is for no endpoint", topic)
		}
		r, err := http.NewRequest(http.MethodGet, "https://h/devices/"+url.PathEscape(target)+"/modules/"+url.PathEscape(topic), nil)
		if err != nil {
			return
		}
		if got, action := hub.RequestUser(r); target != "" && topic != "" && (got.Device != target || got.Module != topic || action != "modules") {
			t.Errorf("%q: %+v, %q", r.URL, got, action)
		}
	})
}
