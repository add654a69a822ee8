// Package aisapi answers two read-only requests of the Azure IoT Identity Service, so that
// programs that were written for it can still learn the hub and the device ID of the gateway:
//
//	GET /identities/identity      the IoT hub and the device ID
//	GET /identities/provisioning  how the gateway registers with DPS
//
// The answers match the OpenAPI documents of aziot-identityd (testdata/README.md). They
// contain no credential: dpsd issues credentials over the sockets of package consumer, one for each
// service. docs/migration.md describes the differences.
package aisapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
)

// Listener is the name of the listener on which the daemon serves a Handler. No [[consumer]]
// can have this name.
const Listener = "aziot-identity"

// Scope takes the place of the scope of a consumer in the status of the socket.
const Scope = "identity"

// RetryAfter is how long a program should wait before it repeats a request that dpsd cannot answer
// yet.
const RetryAfter = 10 * time.Second

// Handler answers the requests.
type Handler struct {
	// State returns what the daemon knows about the hub.
	State func() consumer.State
	// Provisioning returns how the gateway registers with DPS; nil: this is not known, because
	// the registration ID or the payload cannot be determined.
	Provisioning func() *Provisioning
}

// Provisioning describes how the gateway registers with DPS according to the current
// configuration.
type Provisioning struct {
	// Credential is the type of the current credential, as in a [[credential]]:
	// "symmetric-key" or "x509".
	Credential     string
	Endpoint       string          // host name of the provisioning service
	IDScope        string          // of the provisioning service
	RegistrationID string          // as resolved
	Payload        json.RawMessage // a JSON object that dpsd sends to DPS; nil: none
}

// versions are the versions of the interface, the oldest first.
var versions = []string{"2020-09-01", "2021-12-01", "2022-08-01"}

// provisioningSince is the first version with GET /identities/provisioning.
const provisioningSince = "2021-12-01"

// identity is the schema AziotIdentityResponse.
type identity struct {
	Type string `json:"type"`
	Spec spec   `json:"spec"`
}

// spec is the schema AziotIdentitySpec. Its optional member auth is absent: it names a key of
// the key service, which dpsd does not have.
type spec struct {
	HubName     string `json:"hubName"`
	GatewayHost string `json:"gatewayHost"` // equals HubName unless the gateway has a parent
	DeviceID    string `json:"deviceId"`
}

// provisioning is the schema ProvisioningInfo.
type provisioning struct {
	Source         string          `json:"source"`
	Auth           string          `json:"auth"`
	Endpoint       string          `json:"endpoint"`
	IDScope        string          `json:"scope_id"`
	RegistrationID string          `json:"registration_id"`
	Payload        json.RawMessage `json:"payload"`
}

// problem is an error answer: a status code and the schema ErrorResponse.
type problem struct {
	Code    int    `json:"-"`
	Message string `json:"message"`
}

// page refers the readers of the messages to the documentation.
const page = "see docs/migration.md"

// elsewhere are the requests of the Identity Service, its key service, its certificate service
// and its TPM service that dpsd does not answer, and what a program can use instead. A path includes
// the paths below it.
var elsewhere = []struct{ path, instead string }{
	{"/identities/device/reprovision", `run "dpsd reprovision", or report the refusal with POST /v1/refused on the socket of the service`},
	{"/identities/device", "use GET /identities/identity"},
	{"/identities/modules", `a [[consumer]] in dpsd.toml with scope = "module:NAME" gives a service a module identity and a socket of its own`},
	{"/trust-bundle", "GET /v1/hub on the socket of the service returns the path of the file with the root certificates"},
	{"/sign", "dpsd has no key service; POST /v1/token on the socket of the service returns a complete token"},
	{"/key", "dpsd has no key service"},
	{"/keypair", "dpsd has no key service"},
	{"/parameters", "dpsd has no key service"},
	{"/encrypt", "dpsd has no key service"},
	{"/decrypt", "dpsd has no key service"},
	{"/certificates", "dpsd has no certificate service; GET /v1/certificate on the socket of the service returns the paths of the gateway's certificate"},
	{"/get_tpm_keys", "dpsd has no TPM service"},
	{"/import_auth_key", "dpsd has no TPM service"},
	{"/sign_with_auth_key", "dpsd has no TPM service"},
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, wrong := h.answer(r)
	w.Header().Set("Content-Type", "application/json")
	if wrong == nil {
		_ = json.NewEncoder(w).Encode(body) // the client may have closed the connection
		return
	}
	if wrong.Code == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", strconv.Itoa(int(RetryAfter/time.Second)))
	}
	w.WriteHeader(wrong.Code)
	_ = json.NewEncoder(w).Encode(wrong)
}

// answer returns the body of the answer. The status codes and the order of the checks are those
// of the Identity Service, except that a path that dpsd does not serve is reported for every
// version.
func (h *Handler) answer(r *http.Request) (body any, wrong *problem) {
	for _, e := range elsewhere {
		if r.URL.Path == e.path || strings.HasPrefix(r.URL.Path, e.path+"/") {
			return nil, &problem{http.StatusNotFound, fmt.Sprintf("dpsd does not provide %s: %s; %s", e.path, e.instead, page)}
		}
	}
	version, wrong := versionOf(r.URL)
	if wrong != nil {
		return nil, wrong
	}
	var read func() (any, *problem)
	switch {
	case r.URL.Path == "/identities/identity":
		read = h.identity
	case r.URL.Path == "/identities/provisioning" && version >= provisioningSince:
		read = h.provisioning
	default:
		return nil, &problem{http.StatusNotFound, "not found: this socket provides GET /identities/identity and, since api-version " +
			provisioningSince + ", GET /identities/provisioning; " + page}
	}
	if r.Method != http.MethodGet {
		return nil, &problem{http.StatusBadRequest, "method not allowed: this socket is read-only and accepts only GET; " + page}
	}
	return read()
}

// versionOf returns the api-version of a request. If there are several, the last one counts, as
// with the Identity Service.
func versionOf(u *url.URL) (string, *problem) {
	given := u.Query()["api-version"]
	if len(given) == 0 {
		return "", &problem{http.StatusBadRequest, "api-version not specified: append ?api-version=" + versions[len(versions)-1]}
	}
	version := given[len(given)-1]
	if !slices.Contains(versions, version) {
		return "", &problem{http.StatusBadRequest, "invalid api-version: the versions are " + strings.Join(versions, ", ")}
	}
	return version, nil
}

// identity answers GET /identities/identity. An implausible clock does not prevent the answer,
// which contains no credential.
func (h *Handler) identity() (any, *problem) {
	switch s := h.State(); {
	case s.Withheld == consumer.OtherConfiguration:
		return nil, &problem{http.StatusServiceUnavailable, "device identity not found: DPS has not confirmed it for the current configuration yet; try again later"}
	case s.Hub.Host == "":
		return nil, &problem{http.StatusServiceUnavailable, "device identity not found: DPS has not assigned this gateway to an IoT hub yet; try again later"}
	default:
		return identity{"aziot", spec{s.Hub.Host, s.Hub.Host, s.Hub.DeviceID}}, nil
	}
}

// provisioning answers GET /identities/provisioning.
func (h *Handler) provisioning() (any, *problem) {
	p := h.Provisioning()
	if p == nil {
		return nil, &problem{http.StatusServiceUnavailable, "the registration ID or the payload is not known yet; run \"dpsd status\", or try again later"}
	}
	answer := provisioning{
		Source: "dps", Auth: strings.ReplaceAll(p.Credential, "-", "_"), Endpoint: "https://" + p.Endpoint + "/",
		IDScope: p.IDScope, RegistrationID: p.RegistrationID, Payload: p.Payload,
	}
	if answer.Payload == nil {
		// The schema requires an object. The Identity Service itself sends null without a
		// payload, which the schema forbids.
		answer.Payload = json.RawMessage("{}")
	}
	return answer, nil
}
