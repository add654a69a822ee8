package aisapi_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
)

var versions = []string{"2020-09-01", "2021-12-01", "2022-08-01"}

// gateway is the state of dpsd in a test.
type gateway struct {
	state        consumer.State
	provisioning *aisapi.Provisioning
}

// assigned is a gateway that DPS has assigned.
func assigned() *gateway {
	return &gateway{
		consumer.State{Hub: hub.Identity{Host: "hub-1.azure-devices.net", DeviceID: "gw-1"}, Generation: 1, Tokens: true},
		&aisapi.Provisioning{
			Credential: "symmetric-key", Endpoint: "global.azure-devices-provisioning.net", IDScope: "0ne00A1B2C3", RegistrationID: "gw-1",
			Payload: json.RawMessage(`{"site":"plant 7"}`),
		},
	}
}

func (g *gateway) handler() *aisapi.Handler {
	return &aisapi.Handler{State: func() consumer.State { return g.state }, Provisioning: func() *aisapi.Provisioning { return g.provisioning }}
}

// request sends a request to the handler without a network.
func (g *gateway) request(method, target string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	g.handler().ServeHTTP(w, httptest.NewRequest(method, "http://identityd.sock"+target, http.NoBody))
	return w
}

// message returns the message of an error answer, after it has validated the answer.
func message(t *testing.T, w *httptest.ResponseRecorder) string {
	t.Helper()
	published(t, versions[len(versions)-1]).check(t, "#/components/schemas/ErrorResponse", w.Body.Bytes())
	var body struct{ Message string }
	if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
		t.Fatal(err)
	}
	return body.Message
}

// document is an OpenAPI document of aziot-identityd.
type document struct {
	compiler *jsonschema.Compiler
	name     string
	paths    map[string]struct {
		Get struct {
			Responses map[string]struct {
				Content map[string]struct {
					Schema struct {
						Ref string `json:"$ref"`
					}
				}
			}
		}
	}
}

// published reads the OpenAPI document of a version.
func published(t *testing.T, version string) document {
	t.Helper()
	d := document{compiler: jsonschema.NewCompiler(), name: "identityd-" + version + ".json"}
	text, err := os.ReadFile(filepath.Join("testdata", d.name))
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	d.compiler.DefaultDraft(jsonschema.Draft4) // the schemas of OpenAPI 3.0 are an extended subset of it
	if err := d.compiler.AddResource(d.name, value); err != nil {
		t.Fatal(err)
	}
	paths := struct{ Paths any }{&d.paths}
	if err := json.Unmarshal(text, &paths); err != nil {
		t.Fatal(err)
	}
	return d
}

// schemaOf returns the reference of the schema of an answer; "" if the document does not have the
// path.
func (d document) schemaOf(target, status string) string {
	return d.paths[target].Get.Responses[status].Content["application/json"].Schema.Ref
}

func (d document) violation(t *testing.T, reference string, body []byte) error {
	t.Helper()
	schema, err := d.compiler.Compile(d.name + reference)
	if err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return schema.Validate(value)
}

func (d document) check(t *testing.T, reference string, body []byte) {
	t.Helper()
	if err := d.violation(t, reference, body); err != nil {
		t.Errorf("%v\n%s", err, body)
	}
}

// now is the time on the gateway. It stands still, so every request counts towards the limits.
var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// listen serves the gateway on a Unix socket as the daemon does, and returns the path.
func listen(t *testing.T, g *gateway) string {
	t.Helper()
	return serve(t, g.handler())
}

func serve(t *testing.T, handler *aisapi.Handler) string {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "identityd.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := consumer.Server{Handler: handler, Now: func() time.Time { return now }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return socket
}

// client sends requests to a socket, each on a connection of its own.
func client(socket string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", socket)
	}}}
}

// get sends a request, and returns the answer with its body.
func get(t *testing.T, c *http.Client, target string) (*http.Response, []byte) {
	t.Helper()
	response, err := c.Get("http://identityd.sock" + target)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, body
}

func TestTheAnswersMatchThePublishedInterface(t *testing.T) {
	whole, bare := assigned(), assigned()
	bare.provisioning.Payload, bare.provisioning.Credential = nil, "x509"
	for name, g := range map[string]*gateway{"with a payload": whole, "without a payload": bare} {
		client := client(listen(t, g))
		for _, version := range versions {
			d := published(t, version)
			for _, path := range []string{"/identities/identity", "/identities/provisioning"} {
				t.Run(name+" "+version+path, func(t *testing.T) {
					target := path + "?api-version=" + version
					reference := d.schemaOf(target, "200")
					response, body := get(t, client, target)
					if got := response.Header.Get("Content-Type"); got != "application/json" {
						t.Errorf("Content-Type %q", got)
					}
					if reference == "" { // the version does not have the path
						if response.StatusCode != http.StatusNotFound {
							t.Errorf("status %d for a path that the version does not have", response.StatusCode)
						}
						d.check(t, "#/components/schemas/ErrorResponse", body)
						return
					}
					if response.StatusCode != http.StatusOK {
						t.Fatalf("status %d: %s", response.StatusCode, body)
					}
					d.check(t, reference, body)
				})
			}
		}
	}
}

func TestTheValidationFindsInvalidAnswers(t *testing.T) {
	d := published(t, "2022-08-01")
	for _, g := range []struct{ reference, body string }{
		{"#/components/schemas/AziotIdentityResponse", `{"type":"aziot","spec":{"hubName":"h","deviceId":"d"}}`},
		{"#/components/schemas/AziotIdentityResponse", `{"type":"local","spec":{"hubName":"h","gatewayHost":"h","deviceId":"d"}}`},
		{"#/components/schemas/ProvisioningInfo", `{"source":"dps","auth":"symmetric-key","endpoint":"e","scope_id":"s","registration_id":"r","payload":{}}`},
		{"#/components/schemas/ProvisioningInfo", `{"source":"dps","auth":"x509","endpoint":"e","scope_id":"s","registration_id":"r","payload":null}`},
		{"#/components/schemas/ErrorResponse", `{"error":"e"}`},
	} {
		if d.violation(t, g.reference, []byte(g.body)) == nil {
			t.Errorf("%s accepts %s", g.reference, g.body)
		}
	}
}

func TestTheAnswersContainWhatDpsdKnows(t *testing.T) {
	g := assigned()
	for _, tt := range []struct{ path, want string }{
		{"/identities/identity", `{"type":"aziot","spec":{"hubName":"hub-1.azure-devices.net","gatewayHost":"hub-1.azure-devices.net","deviceId":"gw-1"}}`},
		{"/identities/provisioning", `{"source":"dps","auth":"symmetric_key","endpoint":"https://global.azure-devices-provisioning.net/",` +
			`"scope_id":"0ne00A1B2C3","registration_id":"gw-1","payload":{"site":"plant 7"}}`},
	} {
		if got := strings.TrimSpace(g.request(http.MethodGet, tt.path+"?api-version=2022-08-01").Body.String()); got != tt.want {
			t.Errorf("%s:\n%s\nwant\n%s", tt.path, got, tt.want)
		}
	}
}

func TestNoConsumerCanHaveTheNameOfTheSocket(t *testing.T) {
	if config.Check("consumer.name", aisapi.Listener) == nil {
		t.Errorf("a [[consumer]] can be called %s", aisapi.Listener)
	}
	if wrong := config.Check("consumer.name", "telemetry"); wrong != nil {
		t.Error(wrong)
	}
}

func TestEveryTypeOfCredentialIsOneOfThePublishedInterface(t *testing.T) {
	d := published(t, "2022-08-01")
	for _, kind := range attest.Types() {
		g := assigned()
		g.provisioning.Credential = kind.Name
		d.check(t, "#/components/schemas/ProvisioningInfo", g.request(http.MethodGet, "/identities/provisioning?api-version=2022-08-01").Body.Bytes())
	}
}

func TestAResponseContainsRetryAfterWhileTheAnswerIsUnknown(t *testing.T) {
	for name, tt := range map[string]struct {
		path   string
		change func(*gateway)
		code   int
	}{
		"not assigned": {"/identities/identity", func(g *gateway) { g.state = consumer.State{Withheld: consumer.NotAssigned} }, http.StatusServiceUnavailable},
		"no state":     {"/identities/identity", func(g *gateway) { g.state = consumer.State{} }, http.StatusServiceUnavailable},
		"the record of another configuration": {"/identities/identity", func(g *gateway) { g.state.Withheld = consumer.OtherConfiguration },
			http.StatusServiceUnavailable},
		"an implausible clock, because the answer contains no credential": {"/identities/identity",
			func(g *gateway) { g.state.Withheld = consumer.ClockImplausible }, http.StatusOK},
		"no registration ID": {"/identities/provisioning", func(g *gateway) { g.provisioning = nil }, http.StatusServiceUnavailable},
		"provisioning does not need an assignment": {"/identities/provisioning", func(g *gateway) { g.state = consumer.State{Withheld: consumer.NotAssigned} },
			http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			g := assigned()
			tt.change(g)
			w := g.request(http.MethodGet, tt.path+"?api-version=2022-08-01")
			if w.Code != tt.code {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
			if w.Code == http.StatusServiceUnavailable {
				if got := w.Header().Get("Retry-After"); got != "10" {
					t.Errorf("Retry-After %q", got)
				}
				if got := message(t, w); !strings.Contains(got, "try again later") {
					t.Error(got)
				}
			}
		})
	}
}

// The messages begin like those of aziot-identityd.
func TestARequestThatTheIdentityServiceRefusesIsRefusedInTheSameWay(t *testing.T) {
	for _, tt := range []struct {
		method, target string
		code           int
		message        string
	}{
		{"GET", "/identities/identity", 400, "api-version not specified"},
		{"GET", "/identities/identity?api-version=2019-01-01", 400, "invalid api-version"},
		{"GET", "/identities/identity?api-version=2020-09-01-preview", 400, "invalid api-version"},
		{"GET", "/identities/identity?api-version=2022-08-01&api-version=x", 400, "invalid api-version"},
		{"GET", "/identities/identity/?api-version=2022-08-01", 404, "not found"},
		{"GET", "/identities/../identities/identity?api-version=2022-08-01", 404, "not found"},
		{"GET", "/?api-version=2022-08-01", 404, "not found"},
		{"GET", "/v1/token?api-version=2022-08-01", 404, "not found"},
		{"POST", "/identities/identity?api-version=2022-08-01", 400, "method not allowed"},
		{"PUT", "/identities/identity?api-version=2022-08-01", 400, "method not allowed"},
		{"DELETE", "/identities/provisioning?api-version=2022-08-01", 400, "method not allowed"},
		{"POST", "/identities/provisioning?api-version=2022-08-01", 400, "method not allowed"},
	} {
		w := assigned().request(tt.method, tt.target)
		if got := message(t, w); w.Code != tt.code || !strings.HasPrefix(got, tt.message) {
			t.Errorf("%s %s: %d %s", tt.method, tt.target, w.Code, got)
		}
	}
}

func TestEveryOtherRequestNamesWhatToUseInstead(t *testing.T) {
	for _, tt := range []struct{ method, target, instead string }{
		{"POST", "/identities/device?api-version=2022-08-01", "GET /identities/identity"},
		{"POST", "/identities/device/reprovision?api-version=2022-08-01", "dpsd reprovision"},
		{"GET", "/identities/modules?api-version=2022-08-01&type=aziot", "[[consumer]]"},
		{"POST", "/identities/modules?api-version=2022-08-01", "[[consumer]]"},
		{"GET", "/identities/modules/module01?api-version=2022-08-01&type=aziot", "[[consumer]]"},
		{"PUT", "/identities/modules/module01?api-version=2022-08-01", "[[consumer]]"},
		{"DELETE", "/identities/modules/module01?api-version=2022-08-01&type=aziot", "[[consumer]]"},
		{"GET", "/trust-bundle?api-version=2022-08-01", "GET /v1/hub"},
		{"POST", "/sign?api-version=2021-05-01", "POST /v1/token"},
		{"POST", "/key?api-version=2021-05-01", "no key service"},
		{"GET", "/key/device-id?api-version=2021-05-01", "no key service"},
		{"POST", "/keypair?api-version=2021-05-01", "no key service"},
		{"POST", "/parameters/algorithm?api-version=2021-05-01", "no key service"},
		{"POST", "/encrypt?api-version=2021-05-01", "no key service"},
		{"POST", "/decrypt?api-version=2021-05-01", "no key service"},
		{"POST", "/certificates?api-version=2020-09-01", "GET /v1/certificate"},
		{"GET", "/certificates/device-id?api-version=2020-09-01", "GET /v1/certificate"},
		{"GET", "/get_tpm_keys", "no TPM service"},
		{"POST", "/import_auth_key", "no TPM service"},
		{"POST", "/sign_with_auth_key", "no TPM service"},
	} {
		w := assigned().request(tt.method, tt.target)
		if got := message(t, w); w.Code != http.StatusNotFound || !strings.Contains(got, tt.instead) || !strings.Contains(got, "docs/migration.md") {
			t.Errorf("%s %s: %d %s", tt.method, tt.target, w.Code, got)
		}
	}
}

// No request may change anything or obtain a credential: only the two GET requests get the status
// 200.
func TestNothingButTheTwoRequestsSucceeds(t *testing.T) {
	methods := []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get", "FROB"}
	paths := []string{
		"/", "/identities", "/identities/", "/identities/identity", "/identities/provisioning", "/identities/Identity", "//identities/identity",
		"/identities/identity/x", "/identities/device", "/identities/modules", "/sign", "/v1/token", "/v1/hub", "/v1/refused", "/metrics",
	}
	for _, method := range methods {
		for _, path := range paths {
			for _, version := range append([]string{"", "x"}, versions...) {
				w := assigned().request(method, path+"?api-version="+version)
				served := method == "GET" && (path == "/identities/identity" && version > "2" && version < "3" ||
					path == "/identities/provisioning" && version > "2021" && version < "3")
				if (w.Code == http.StatusOK) != served {
					t.Errorf("%s %s %s: %d", method, path, version, w.Code)
				}
			}
		}
	}
}
