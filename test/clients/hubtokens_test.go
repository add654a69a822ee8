package clients

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// tokensOfNode prints the tokens of Microsoft's SDK for a list of cases. The SDK has no function for
// tokens that allow only messages, but the function for the other tokens accepts any resource.
const tokensOfNode = `
const { SharedAccessSignature, encodeUriComponentStrict } = require('azure-iot-common');
const { SharedAccessKeyAuthenticationProvider } = require('azure-iot-device');
(async () => {
  const tokens = [];
  for (const { host, device, module, events, key, expiry } of JSON.parse(process.argv[1])) {
    if (events) {
      const resource = encodeUriComponentStrict(host + '/devices/' + device + (module ? '/modules/' + module : '') + '/messages/events');
      tokens.push(SharedAccessSignature.create(resource, null, key, expiry).toString());
      continue;
    }
    Date.now = () => (expiry - 3600) * 1000; // tokens are valid for an hour
    const provider = new SharedAccessKeyAuthenticationProvider({ host, deviceId: device, moduleId: module, sharedAccessKey: key }, 3600, 900);
    tokens.push((await provider.getDeviceCredentials()).sharedAccessSignature);
    provider.stop();
  }
  console.log(JSON.stringify(tokens));
})();`

// oddDevices are device IDs with all characters that IoT Hub permits besides letters and digits, and some
// that it does not permit.
var oddDevices = []string{
	"press-7", "a-b:c.d+e%f_g#h*i?j!k(l)m,n=o@p$q'r", "100%25", "#", "*", "'!()*'", "?a=b&c", "with a space", "Ü-ñ",
}

// tokenCase is the input of a token.
type tokenCase struct {
	Host   string `json:"host"`
	Device string `json:"device"`
	Module string `json:"module,omitempty"`
	Events bool   `json:"events"`
	Key    string `json:"key"`
	Expiry int64  `json:"expiry"`
}

func (c tokenCase) identity() hub.Identity {
	return hub.Identity{Host: c.Host, DeviceID: c.Device, ModuleID: c.Module}
}

// token returns dpsd's token.
func (c tokenCase) token(t *testing.T) string {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(c.Key)
	if err != nil {
		t.Fatal(err)
	}
	resource, expiry := c.identity().Resource(c.Events), time.Unix(c.Expiry, 0)
	return sas.Token(resource, sas.MAC(key, sas.Statement(resource, expiry)), expiry, "")
}

func TestATokenForTheHubIsIdenticalToThatOfMicrosoftsSDKForNode(t *testing.T) {
	want(t)
	expiry := time.Now().Add(time.Hour).Unix()
	var all []tokenCase
	for i, device := range oddDevices {
		for _, module := range []string{"", "meter", "$edgeAgent", "a#b%c*d"} {
			for _, events := range []bool{false, true} {
				key := base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "key %d of %s", i, device))
				all = append(all, tokenCase{"contoso.azure-devices.net", device, module, events, key, expiry + int64(i)})
			}
		}
	}
	input, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command("node", "-e", tokensOfNode, string(input))
	command.Dir = node(t)
	out, err := command.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var tokens []string
	if err := json.Unmarshal(out, &tokens); err != nil {
		t.Fatal(err)
	}
	if len(tokens) != len(all) {
		t.Fatalf("the SDK has made %d tokens for %d cases", len(tokens), len(all))
	}
	for i, c := range all {
		if got := c.token(t); got != tokens[i] {
			t.Errorf("%+v:\n dpsd %s\n SDK  %s", c.identity(), got, tokens[i])
		}
	}
}

func TestTheSimulatedHubAcceptsTheTokenOfEachDeviceID(t *testing.T) {
	var enrollments enroll.Enrollments
	key := base64.StdEncoding.EncodeToString([]byte("a key of at least sixteen bytes"))
	for i, device := range oddDevices {
		enrollments.Individuals = append(enrollments.Individuals, enroll.Individual{
			RegistrationID: "device-" + strconv.Itoa(i), DeviceID: device,
			Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: key},
		})
	}
	s := simulator.Start(t, simulator.Options{Enrollments: &enrollments, DefaultHub: "localhost"})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA())
	client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}}
	t.Cleanup(client.CloseIdleConnections)
	send := func(device, token string) int {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+net.JoinHostPort("localhost", strconv.Itoa(s.WebSocketPort))+
			"/devices/"+url.PathEscape(device)+"/messages/events?api-version="+hub.APIVersion, bytes.NewBufferString("hello"))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Authorization", token)
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
		return response.StatusCode
	}
	for i, device := range oddDevices {
		s.AddDevice("device-" + strconv.Itoa(i))
		for _, events := range []bool{false, true} {
			c := tokenCase{Host: "localhost", Device: device, Events: events, Key: key, Expiry: time.Now().Add(time.Hour).Unix()}
			if status := send(device, c.token(t)); status != http.StatusNoContent {
				t.Errorf("the hub answers the token of %q (only messages: %t) with %d", device, events, status)
			}
			// Negative control: a token for a device whose ID begins with this device ID.
			c.Device += "x"
			if status := send(device, c.token(t)); status != http.StatusUnauthorized {
				t.Errorf("the hub answers the token of %q for %q with %d", c.Device, device, status)
			}
		}
	}
}
