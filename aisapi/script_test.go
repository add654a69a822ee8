package aisapi_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The first step of "Creating an IoT agent" of the Identity Service (docs/develop-an-agent.md
// there), without sudo.
const agent = `
identity="$(curl --silent --show-error --unix-socket "$SOCKET" 'http://identityd.sock/identities/identity?api-version=2020-09-01')"
hub_name="$(<<< "$identity" jq -r '.spec.hubName')"
gateway_host="$(<<< "$identity" jq -r '.spec.gatewayHost')"
device_id="$(<<< "$identity" jq -r '.spec.deviceId')"
module_id="$(<<< "$identity" jq -r '.spec.moduleId // ""')"
resource_uri="$(printf '%s/devices/%s' "$hub_name" "$device_id" | jq -sRr @uri)"
if [ "$hub_name" = "$gateway_host" ]; then
    echo "HostName=$hub_name;DeviceId=$device_id;ModuleId=$module_id $resource_uri"
fi
`

func TestTheAgentOfTheIdentityServicesDocumentationGetsItsIdentity(t *testing.T) {
	for _, tool := range []string{"bash", "curl", "jq"} {
		if _, err := exec.LookPath(tool); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatal(err)
			}
			t.Skip(err)
		}
	}
	c := exec.Command("bash", "-euc", agent)
	c.Env = append(c.Environ(), "SOCKET="+listen(t, assigned()))
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const want = "HostName=hub-1.azure-devices.net;DeviceId=gw-1;ModuleId= hub-1.azure-devices.net%2Fdevices%2Fgw-1"
	if got := strings.TrimSpace(string(out)); got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The client of the Identity Service for Rust, see testdata/README.md.
func TestTheRustClientOfTheIdentityServiceUnderstandsTheAnswers(t *testing.T) {
	program := os.Getenv("DPSD_AZIOT_CLIENT")
	if program == "" {
		t.Skip("no DPSD_AZIOT_CLIENT: testdata/README.md says how to build it")
	}
	out, err := exec.Command(program, listen(t, assigned())).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const (
		identity = ` identity Ok(Aziot(AzureIoTSpec { hub_name: "hub-1.azure-devices.net", gateway_host: "hub-1.azure-devices.net", ` +
			`device_id: DeviceId("gw-1"), module_id: None, gen_id: None, auth: None }))`
		provisioning = ` provisioning Ok(Dps { auth: "symmetric_key", endpoint: "https://global.azure-devices-provisioning.net/", ` +
			`scope_id: "0ne00A1B2C3", registration_id: "gw-1", payload: Some(Object {"site": String("plant 7")}) })`
		none    = ` provisioning Err(Custom { kind: Other, error: "not found: `
		modules = ` modules Err(Custom { kind: Other, error: "dpsd does not provide /identities/modules: a [[consumer]] in dpsd.toml `
	)
	want := []string{
		"2020-09-01" + identity, "2020-09-01" + none, "2020-09-01" + modules,
		"2021-12-01" + identity, "2021-12-01" + provisioning, "2021-12-01" + modules,
		"2022-08-01" + identity, "2022-08-01" + provisioning, "2022-08-01" + modules,
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if len(lines) != len(want) {
		t.Fatalf("%s", out)
	}
	for i, line := range lines {
		if !strings.HasPrefix(line, want[i]) {
			t.Errorf("%s\nwant\n%s", line, want[i])
		}
	}
}
