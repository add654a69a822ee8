package hub_test

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
)

func TestTokensEqualThoseOfMicrosoftsSDKForNode(t *testing.T) {
	// The tokens are those that SharedAccessSignature.create of azure-iot-common 1.13.3 returns
	// for encodeUriComponentStrict of the resource, as azure-iot-device calls it. The test
	// TestTokensEqualThoseOfTheInstalledSDKForNode of test/clients calls the SDK.
	key := []byte("0123456789abcdef0123456789abcdef")
	for _, c := range []struct {
		hub.Identity
		events bool
		sr     string
		sig    string
	}{
		{hub.Identity{Host: "hub.azure-devices.net", DeviceID: "gw-1"}, false, "hub.azure-devices.net%2Fdevices%2Fgw-1", "FeZuU021HIwxDmA19zjL6HwbJnhTo0pA6pmG0K4it7k%3D"},
		{hub.Identity{Host: "Hub.device.azure-devices.net", DeviceID: "gw-1"}, true, "Hub.device.azure-devices.net%2Fdevices%2Fgw-1%2Fmessages%2Fevents", "m31ifFYuwc1cddpPvVx6bfm6MzygjrwV7vRoJSX34q8%3D"},
		{hub.Identity{Host: "hub.azure-devices.net", DeviceID: "gw-1", ModuleID: "updater"}, false, "hub.azure-devices.net%2Fdevices%2Fgw-1%2Fmodules%2Fupdater", "k5LzXVQCSjpKqHrWzJRlftjn%2FMKdcTjsW%2Fkg3%2F9a4zs%3D"},
		{hub.Identity{Host: "hub.azure-devices.net", DeviceID: "a#b%25 c'd"}, false, "hub.azure-devices.net%2Fdevices%2Fa%23b%2525%20c%27d", "BJEBVClLKlh%2FPiTxKcahz90rg6TutqHetcoNhbsrTCs%3D"},
		// All characters of a device ID that are neither letters nor digits, and more.
		{hub.Identity{Host: "hub.azure-devices.net", DeviceID: "-.%_#*?!(),:=@$'+", ModuleID: "m*(1)"}, false,
			"hub.azure-devices.net%2Fdevices%2F-.%25_%23%2a%3F%21%28%29%2C%3A%3D%40%24%27%2B%2Fmodules%2Fm%2a%281%29", "IjPxo%2FQLAiOVFrqewe5Tznwu5R7hGkL9k906%2BjVZyfg%3D"},
		{hub.Identity{Host: "hub.azure-devices.net", DeviceID: "GW~1/ü"}, true, "hub.azure-devices.net%2Fdevices%2FGW~1%2F%C3%BC%2Fmessages%2Fevents", "MjyauZ4SQbs4FhoqWXDmf%2Fr3GlcYb1cnMBfNa%2BUEdlQ%3D"},
	} {
		expiry := time.Unix(1800000000, 0)
		resource := c.Resource(c.events)
		got := sas.Token(resource, sas.MAC(key, sas.Statement(resource, expiry)), expiry, "")
		if want := "SharedAccessSignature sr=" + c.sr + "&sig=" + c.sig + "&se=1800000000"; got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestTheNamesOfAnMQTTConnectionAreNotEncoded(t *testing.T) {
	for _, c := range []struct {
		hub.Identity
		clientID, userName string
	}{
		{hub.Identity{Host: "h", DeviceID: "gw-1"}, "gw-1", "h/gw-1/?api-version=2021-04-12"},
		{hub.Identity{Host: "h", DeviceID: "gw-1", ModuleID: "m"}, "gw-1/m", "h/gw-1/m/?api-version=2021-04-12"},
		{hub.Identity{Host: "h", DeviceID: "a#b%25*"}, "a#b%25*", "h/a#b%25*/?api-version=2021-04-12"},
	} {
		if got := c.ClientID(); got != c.clientID {
			t.Errorf("the client ID is %q, not %q", got, c.clientID)
		}
		if got := c.UserName(); got != c.userName {
			t.Errorf("the user name is %q, not %q", got, c.userName)
		}
	}
}

func TestAHubHasThePortsOfItsProfile(t *testing.T) {
	for name, want := range map[string]hub.Ports{
		"":        {MQTT: 8883, WebSocket: 443, AMQP: 5671, HTTPS: 443},
		"classic": {MQTT: 8883, WebSocket: 443, AMQP: 5671, HTTPS: 443},
		"mqttV5":  {MQTT: 8883, WebSocket: 443},
		"mqttV9":  {},
	} {
		if got := hub.Named(name).Ports(); got != want {
			t.Errorf("%q: got %+v", name, got)
		}
	}
}
