package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/test/sdk"
)

// sdkTest is one of Microsoft's device SDKs, unchanged.
type sdkTest struct {
	sdk.SDK
	// refusals maps the name of a refusal to the SDK's report of it.
	refusals map[string]sdkError
}

// sdkError is how an SDK reports a refusal. The cause must contain the given text.
type sdkError struct{ class, message, cause string }

// TestNodeSDK runs Microsoft's SDK for Node, unchanged, through exec. It and TestPythonSDK
// install packages from the registries, so they run only in CI and on demand.
func TestNodeSDK(t *testing.T) {
	sdkTest{
		SDK: sdk.Node(),
		// In dps-errors of the SDK, 401 is UnauthorizedError, 404 is DeviceNotFoundError, and
		// an unknown status is SyntaxError.
		refusals: map[string]sdkError{
			"unauthorized": {"UnauthorizedError", "", `"errorCode":401000`},
			"certificate":  {"UnauthorizedError", "", `"errorCode":401002`},
			"unknown":      {"DeviceNotFoundError", "", `"errorCode":404201`},
			"disabled":     {"SyntaxError", "status is disabled", `"status":"disabled"`},
			"early":        {"Error", "Connection refused: Not authorized", ""},
		},
	}.test(t)
}

// TestPythonSDK runs Microsoft's SDK for Python, unchanged, through exec.
func TestPythonSDK(t *testing.T) {
	serviceError := func(text string) sdkError {
		return sdkError{"ClientError", "Unexpected failure", "ServiceError('" + text + "')"}
	}
	sdkTest{
		SDK: sdk.Python(),
		// The SDK reports only the status of an error.
		refusals: map[string]sdkError{
			"unauthorized": serviceError("register request returned a service error status code 401"),
			"certificate":  serviceError("register request returned a service error status code 401"),
			"unknown":      serviceError("register request returned a service error status code 404"),
			"disabled":     serviceError("Query Status Operation encountered an invalid registration status disabled with a status code of 200"),
			"early":        {"CredentialError", "Credentials invalid, could not connect", "UnauthorizedError"},
		},
	}.test(t)
}

// sdkCase is a device and the expected report of its SDK. The SDK receives the embedded part.
type sdkCase struct {
	sdk.Case

	sentence string

	device  string // the expected device ID
	returns map[string]any
	refusal string // or a key of sdk.refusals
}

func (k sdkTest) test(t *testing.T) {
	switch {
	case os.Getenv("DPSD_SDKS") == "0":
		t.Skip("DPSD_SDKS=0: Microsoft's SDKs are left to a run of their own")
	case os.Getenv("CI") != "true" && os.Getenv("DPSD_SDKS") != "1":
		t.Skip("DPSD_SDKS=1 is not set: Microsoft's SDKs are neither installed nor tried")
	}
	if what := k.Missing(); what != "" {
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is needed for Microsoft's SDK for %s", what, k.Name)
		}
		t.Skipf("%s is missing: Microsoft's SDK for %s is not tried", what, k.Name)
	}
	t.Parallel()
	dir := t.TempDir()
	if err := k.Install(t.Context(), "../..", dir); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("go", "build", "-buildvcs=false", "-o", filepath.Join(dir, "dpsd-sim"), ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, r := range []struct {
		name, scenario string
		fill           func(*enrolled)
	}{
		{"registers", "", (*enrolled).assigned},
		{"reports a refusal as from the service", "", (*enrolled).refused},
		{"reports a refusal that comes with the CONNACK", "[settings]\nrefuse = \"early\"\n", (*enrolled).refusedEarly},
	} {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			e := &enrolled{t: t, dir: filepath.Join(dir, strings.ReplaceAll(r.name, " ", "-"))}
			if err := os.Mkdir(e.dir, 0o700); err != nil {
				t.Fatal(err)
			}
			r.fill(e)
			e.write("enrollments.toml", e.toml.String())
			e.write("scenario.toml", r.scenario)
			k.run(t, dir, e)
		})
	}
}

// run registers all devices in one process of the SDK.
func (k sdkTest) run(t *testing.T, dir string, e *enrolled) {
	text, err := json.Marshal(e.cases)
	if err != nil {
		t.Fatal(err)
	}
	cases := e.write("cases.json", string(text))
	log := filepath.Join(e.dir, "packets.jsonl")
	proxy := portProxy(t, filepath.Join(e.dir, endpointFile))
	run := exec.CommandContext(t.Context(), filepath.Join(dir, "dpsd-sim"), append([]string{"exec", "--dir", e.dir, "--registration-id", e.cases[0].RegistrationID,
		"--packet-log", log, "--scenario", filepath.Join(e.dir, "scenario.toml"), "--"}, k.Command(cases, proxy)...)...)
	run.Dir = dir
	// The program ends its command, and then itself, when it receives the signal.
	run.Cancel = func() error { return run.Process.Signal(os.Interrupt) }
	run.WaitDelay = 5 * time.Second
	stop := time.AfterFunc(sdk.Limit, func() { _ = run.Cancel() })
	defer stop.Stop()
	var stderr bytes.Buffer
	run.Stderr = &stderr
	out, err := run.Output()
	if err != nil {
		t.Errorf("%v", err)
	}
	lines := map[string]sdk.Line{}
	for in := json.NewDecoder(bytes.NewReader(out)); ; {
		var l sdk.Line
		err := in.Decode(&l)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Errorf("%v in\n%s", err, out)
			break
		}
		lines[l.RegistrationID] = l
	}
	for _, c := range e.cases {
		t.Run(c.sentence, func(t *testing.T) {
			got, there := lines[c.RegistrationID]
			if !there {
				t.Fatal("the SDK reports nothing for this device")
			}
			if c.refusal == "" {
				want := sdk.Line{RegistrationID: c.RegistrationID, Status: "assigned", Hub: "hub-a.azure-devices.net", Device: c.device, Payload: c.returns}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Error(diff)
				}
				t.Logf("%s %s %s", got.Status, got.Hub, got.Device)
				return
			}
			want := k.refusals[c.refusal]
			if got.Error != want.class || want.message != "" && got.Message != want.message || !strings.Contains(got.Cause, want.cause) {
				t.Errorf("%+v\nis not %+v", got, want)
			}
			t.Logf("%s %q %s", got.Error, got.Message, got.Cause)
		})
	}
	packets, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	entries, err := simulator.ReadLog(bytes.NewReader(packets))
	if err != nil {
		t.Fatal(err)
	}
	if s := simulator.Summarize(entries); len(s.Violations) > 0 {
		t.Errorf("the SDK violated the rules: %q", s.Violations)
	}
	if t.Failed() {
		t.Logf("%s\n%s\n%s", out, &stderr, packets)
	}
}

// enrolled holds the devices of one run and their enrollments.
type enrolled struct {
	t     *testing.T
	dir   string
	toml  strings.Builder
	cases []*sdkCase
}

func (e *enrolled) write(name, text string) string {
	path := filepath.Join(e.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		e.t.Fatal(err)
	}
	return path
}

// add adds a device and returns it for completion.
func (e *enrolled) add(id, protocol, sentence string) *sdkCase {
	c := &sdkCase{Case: sdk.Case{RegistrationID: id, Protocol: protocol}, sentence: sentence, device: id}
	e.cases = append(e.cases, c)
	return c
}

// enroll adds a table to the enrollments file.
func (e *enrolled) enroll(table string, lines ...string) {
	fmt.Fprintf(&e.toml, "[[%s]]\n%s\n\n", table, strings.Join(lines, "\n"))
}

// present adds certificate files to a case: the device's certificate and the intermediates.
func (e *enrolled) present(c *sdkCase, chain ...*identity) {
	var certificates strings.Builder
	for _, i := range chain {
		certificates.WriteString(i.pem())
	}
	der, err := x509.MarshalPKCS8PrivateKey(chain[0].key)
	if err != nil {
		e.t.Fatal(err)
	}
	c.CertificateFile = e.write(c.RegistrationID+".pem", certificates.String())
	c.PrivateKeyFile = e.write(c.RegistrationID+"-key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
}

// assigned adds all ways to be provisioned, and a payload in both directions.
func (e *enrolled) assigned() {
	groupKey, otherKey := randomKey(), randomKey()
	root := newIdentity(e.t, "root", nil, true)
	intermediate := newIdentity(e.t, "intermediate", root, true)
	e.enroll("hub", `name = "hub-a.azure-devices.net"`)
	// A function of the owner returns data from the device's request.
	custom := []string{`allocation = "custom"`, `custom = [{ payload = '{"site":"${payload.site}","list":[1,true,null]}' }]`}
	e.enroll("group", append(custom, `name = "keys"`, `type = "symmetric-key"`, "primary_key = "+strconv.Quote(encode(groupKey)))...)
	e.enroll("group", append(custom, `name = "certificates"`, `type = "x509"`, `ca_file = "root.pem"`)...)
	e.write("root.pem", root.pem())
	sent := map[string]any{"site": "roof"}
	received := map[string]any{"site": "roof", "list": []any{1.0, true, nil}}

	for _, protocol := range []string{"mqtt", "websocket"} {
		name := map[string]string{"mqtt": "over MQTT", "websocket": "over WebSocket"}[protocol]

		c := e.add(protocol+"-individual-key", protocol, "with the key of an individual enrollment "+name)
		primary, secondary := encode(randomKey()), encode(randomKey())
		c.Key = map[string]string{"mqtt": primary, "websocket": secondary}[protocol]
		c.device, c.returns = "Press-"+protocol, map[string]any{"building": "12"}
		e.enroll("individual", "registration_id = "+strconv.Quote(c.RegistrationID), `type = "symmetric-key"`, "primary_key = "+strconv.Quote(primary),
			"secondary_key = "+strconv.Quote(secondary), "device_id = "+strconv.Quote(c.device), `payload = '{"building":"12"}'`)

		c = e.add(protocol+"-group-key", protocol, "with a key derived from that of a group "+name)
		c.Key, c.Payload, c.returns = encode(derive(groupKey, c.RegistrationID)), sent, received

		c = e.add(protocol+"-individual-x509", protocol, "with the certificate of an individual enrollment "+name)
		c.device, c.returns = "Camera-"+protocol, map[string]any{"building": "13"}
		lines := []string{"registration_id = " + strconv.Quote(c.RegistrationID), `type = "x509"`, "device_id = " + strconv.Quote(c.device), `payload = '{"building":"13"}'`}
		if protocol == "mqtt" { // by thumbprint, self-signed
			self := newIdentity(e.t, c.RegistrationID, nil, false)
			e.present(c, self)
			lines = append(lines, "thumbprint = "+strconv.Quote(self.thumbprint()))
		} else {
			own := newIdentity(e.t, "its own root", nil, true)
			e.present(c, newIdentity(e.t, c.RegistrationID, own, false))
			lines = append(lines, "ca_file = "+strconv.Quote(e.write("own-root.pem", own.pem())))
		}
		e.enroll("individual", lines...)

		c = e.add(protocol+"-group-x509", protocol, "with a certificate of a group "+name)
		c.Payload, c.returns = sent, received
		if protocol == "mqtt" {
			e.present(c, newIdentity(e.t, c.RegistrationID, root, false))
		} else { // the service knows the root, so the device sends the intermediates
			e.present(c, newIdentity(e.t, c.RegistrationID, intermediate, false), intermediate)
		}
	}
	c := e.add("key-of-no-group", "mqtt", "but not with a key that is of no group")
	c.Key, c.refusal = encode(derive(otherKey, c.RegistrationID)), "unauthorized"
}

// refused adds credentials that the service refuses in the answer to the register request,
// after a successful CONNACK.
func (e *enrolled) refused() {
	for _, protocol := range []string{"mqtt", "websocket"} {
		name := map[string]string{"mqtt": "over MQTT", "websocket": "over WebSocket"}[protocol]

		c := e.add(protocol+"-wrong-key", protocol, "of a wrong key "+name)
		c.Key, c.refusal = encode(randomKey()), "unauthorized"
		e.enroll("individual", "registration_id = "+strconv.Quote(c.RegistrationID), `type = "symmetric-key"`, "primary_key = "+strconv.Quote(encode(randomKey())))

		c = e.add(protocol+"-disabled", protocol, "of a disabled enrollment "+name)
		c.Key, c.refusal = encode(randomKey()), "disabled"
		e.enroll("individual", "registration_id = "+strconv.Quote(c.RegistrationID), `type = "symmetric-key"`, "primary_key = "+strconv.Quote(c.Key), "disabled = true")

		c = e.add(protocol+"-unknown", protocol, "of a device that is not enrolled "+name)
		c.Key, c.refusal = encode(randomKey()), "unknown"

		c = e.add(protocol+"-disabled-x509", protocol, "of a disabled enrollment with a certificate "+name)
		self := newIdentity(e.t, c.RegistrationID, nil, false)
		e.present(c, self)
		c.refusal = "disabled"
		e.enroll("individual", "registration_id = "+strconv.Quote(c.RegistrationID), `type = "x509"`, "thumbprint = "+strconv.Quote(self.thumbprint()), "disabled = true")

		c = e.add(protocol+"-wrong-x509", protocol, "of a wrong certificate "+name)
		e.present(c, newIdentity(e.t, c.RegistrationID, nil, false))
		c.refusal = "certificate"
		e.enroll("individual", "registration_id = "+strconv.Quote(c.RegistrationID), `type = "x509"`, "thumbprint = "+strconv.Quote(self.thumbprint()))

		c = e.add(protocol+"-unknown-x509", protocol, "of a certificate that is not enrolled "+name)
		e.present(c, newIdentity(e.t, c.RegistrationID, nil, false))
		c.refusal = "certificate"
	}
}

// refusedEarly adds credentials that the service refuses with CONNACK 5.
func (e *enrolled) refusedEarly() {
	for _, protocol := range []string{"mqtt", "websocket"} {
		name := map[string]string{"mqtt": "over MQTT", "websocket": "over WebSocket"}[protocol]
		c := e.add(protocol+"-wrong-key", protocol, "of a wrong key "+name)
		c.Key, c.refusal = encode(randomKey()), "early"
		e.enroll("individual", "registration_id = "+strconv.Quote(c.RegistrationID), `type = "symmetric-key"`, "primary_key = "+strconv.Quote(encode(randomKey())))
	}
}

func encode(key []byte) string { return base64.StdEncoding.EncodeToString(key) }

func randomKey() []byte {
	b := make([]byte, 64)
	_, _ = rand.Read(b)
	return b
}

// derive derives a device's key from a group's key, as in the service's documentation.
func derive(groupKey []byte, registrationID string) []byte {
	mac := hmac.New(sha256.New, groupKey)
	mac.Write([]byte(registrationID))
	return mac.Sum(nil)
}

// identity is a certificate and its key.
type identity struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// newIdentity creates a certificate that is signed by its parent, or self-signed.
func newIdentity(t *testing.T, name string, parent *identity, authority bool) *identity {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: authority, BasicConstraintsValid: true,
	}
	signer := &identity{template, key}
	if parent != nil {
		signer = parent
	}
	der, err := x509.CreateCertificate(rand.Reader, template, signer.certificate, key.Public(), signer.key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &identity{certificate, key}
}

func (i *identity) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.certificate.Raw}))
}

func (i *identity) thumbprint() string {
	sum := sha1.Sum(i.certificate.Raw)
	return hex.EncodeToString(sum[:])
}

// portProxy connects the SDK to the simulator of the endpoint file. It returns its port.
func portProxy(t *testing.T, endpointFile string) int {
	at := func(address func(endpoint) string) func() (string, error) {
		return func() (string, error) {
			text, err := os.ReadFile(endpointFile)
			if err != nil {
				return "", err
			}
			var e endpoint
			err = json.Unmarshal(text, &e)
			return address(e), err
		}
	}
	p, err := sdk.Listen(at(func(e endpoint) string { return e.MQTT }), at(func(e endpoint) string { return e.WebSocket }), func(err error) { t.Log(err) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p.Port()
}
