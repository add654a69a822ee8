// Package hub is the part of a simulated service to which DPS assigns devices: it checks the
// identity of a device at an IoT hub, and answers its requests. One [Hub] serves all hubs,
// which their host names distinguish.
package hub

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// The codes with which a hub refuses a device. Over MQTT 3.1.1, the device receives only
// CONNACK 5.
const (
	codeUnauthorized   = 401003
	codeDisabled       = 403012
	codeNotFound       = 404001
	codeModuleNotFound = 404010
)

// The ways in which a device has registered.
const (
	ByKey         = "symmetric-key"
	ByCertificate = "x509"
)

// Device is the identity of a device at a hub. DPS creates it when it assigns the device.
type Device struct {
	RegistrationID string
	// Attestation is how the device has registered and must therefore connect: ByKey or
	// ByCertificate. If it is empty, the device may use either.
	Attestation string
	// CertificateID is the identifier in the certificates that are issued for the CSRs of the
	// device. The hub refuses those with a different identifier.
	CertificateID string
	// Disabled means that the hub refuses the device and its modules.
	Disabled bool
}

// Telemetry is a message of a device for the cloud.
type Telemetry struct {
	Time       time.Time
	Hub        string // host name that the device used
	Device     string // device ID
	Module     string // module ID, or "" for the device itself
	Protocol   string // "mqtt", "websocket" or "https"
	Properties string // as received: {name}={value}&…, percent-encoded
	Payload    []byte
}

// Hub answers devices. All fields with functions are required.
type Hub struct {
	// Assigned returns the identity that DPS has created for a device at a hub.
	Assigned func(hub, deviceID string) (Device, bool)
	// Enrollments returns the enrollments, which contain the keys of the devices.
	Enrollments func() enroll.Entries
	// Issued checks a certificate that was issued for a CSR, and explains why it must be refused;
	// the zero value accepts it. id is the CertificateID of the device. issued is false for
	// any other certificate.
	Issued func(id string, c *x509.Certificate) (issued bool, why enroll.Explanation)
	// Now is the clock of the service.
	Now func() time.Time
	// Telemetry receives the messages of the devices.
	Telemetry func(Telemetry)

	// Connected reports whether a client is connected as a device or module.
	Connected func(User) bool
	// Disconnect ends the connection of a device or module, if there is one.
	Disconnect func(u User, reason string)

	Twins    Twins
	Modules  Modules
	Messages Messages

	mu    sync.Mutex
	added map[string]Device // by hub and device ID
}

// Add creates the identity of a device that DPS has not assigned to the hub.
func (h *Hub) Add(hub, deviceID string, d Device) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.added == nil {
		h.added = map[string]Device{}
	}
	h.added[key(hub, deviceID)] = d
}

// Find returns the identity of a device at a hub.
func (h *Hub) Find(hub, deviceID string) (Device, bool) {
	if d, found := h.Assigned(hub, deviceID); found {
		return d, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	d, found := h.added[key(hub, deviceID)]
	return d, found
}

// key identifies a device among those of all hubs. The case of its device ID matters.
func key(hub, deviceID string) string { return Names(hub)[0] + "/" + deviceID }

// DeviceKey identifies the device among the devices of all hubs.
func (u User) DeviceKey() string { return key(u.Hub, u.Device) }

// Key identifies the device or module among all hubs. A device and its modules have
// different keys, so they do not end each other's connections.
func (u User) Key() string {
	if u.Module == "" {
		return u.DeviceKey()
	}
	return u.DeviceKey() + "/" + u.Module
}

// ClientID returns the client identifier with which the device or module connects.
func (u User) ClientID() string {
	if u.Module == "" {
		return u.Device
	}
	return u.Device + "/" + u.Module
}

// path returns the path of the device or module below the host name of the hub.
func (u User) path() string {
	if u.Module == "" {
		return "/devices/" + u.Device
	}
	return "/devices/" + u.Device + "/modules/" + u.Module
}

// resources returns the resources of tokens for the device or module, one for each name of the hub.
func (u User) resources() []string {
	all := Names(u.Hub)
	for i := range all {
		all[i] += u.path()
	}
	return all
}

func refuse(code int, message, reason string) *enroll.Refusal {
	r := &enroll.Refusal{Code: code, Message: message}
	r.Reason = reason
	return r
}

// The endpoints of a device or module, below its resource. A token whose resource is longer than
// that of the identity is valid only for endpoints of whose path the resource is a prefix, segment by
// segment.
const (
	EndpointEvents      = "messages/events"
	EndpointDeviceBound = "messages/devicebound"
	EndpointTwin        = "twin"
	EndpointMethods     = "methods"
	endpointModules     = "modules"
)

// Grant is what a credential allows. The zero value allows everything forever.
type Grant struct {
	Expiry time.Time // zero for a certificate
	below  string    // see enroll.HubGrant
}

// Allows reports whether the credential is valid for an endpoint.
func (g Grant) Allows(endpoint string) bool {
	below := g.below
	if messages := len(EndpointDeviceBound); len(below) <= messages && strings.EqualFold(below, EndpointDeviceBound[:len(below)]) {
		below = strings.ToLower(below) // the documentation also writes deviceBound
	}
	return below == "" || below == endpoint || strings.HasPrefix(endpoint, below+"/")
}

// Connects reports whether the credential is valid for an endpoint that is available over MQTT.
func (g Grant) Connects() bool {
	return slices.ContainsFunc([]string{EndpointEvents, EndpointDeviceBound, EndpointTwin, EndpointMethods}, g.Allows)
}

// Refuse returns the refusal of a request for an endpoint that the credential does not allow.
func (g Grant) Refuse(endpoint string) *enroll.Refusal {
	return &enroll.Refusal{Code: codeUnauthorized, Message: "IotHubUnauthorized", Explanation: enroll.Explanation{
		Reason:   "the token is valid only for a part of the identity",
		Expected: "a token whose resource is that of the identity, or " + strconv.Quote("…/"+endpoint),
		Given:    "…/" + enroll.Quote(g.below),
	}}
}

// Authenticate checks the credential of a device or module: a token, or the certificate of the TLS
// connection.
func (h *Hub) Authenticate(u User, token string, state tls.ConnectionState) (Grant, *enroll.Refusal) {
	known, found := h.Find(u.Hub, u.Device)
	if !found {
		return Grant{}, refuse(codeNotFound, "DeviceNotFound", "DPS has not assigned the device "+strconv.QuoteToGraphic(u.Device)+" to the hub "+strconv.QuoteToGraphic(u.Hub))
	}
	check := h.authenticateDevice
	if u.Module != "" {
		check = h.authenticateModule
	}
	grant, refused := check(u, known, token, state)
	if refused == nil && known.Disabled {
		refused = refuse(codeDisabled, "DeviceDisabled", "the device has been disabled at the hub")
	}
	return grant, refused
}

// authenticateDevice does what Authenticate does for a device that exists.
func (h *Hub) authenticateDevice(u User, known Device, token string, state tls.ConnectionState) (Grant, *enroll.Refusal) {
	unauthorized := func(reason string) (Grant, *enroll.Refusal) {
		return Grant{}, refuse(codeUnauthorized, "IotHubUnauthorized", reason)
	}
	chain, issued, why := state.PeerCertificates, false, enroll.Explanation{}
	if token == "" && len(chain) > 0 {
		issued, why = h.Issued(known.CertificateID, chain[0])
	}
	switch {
	case token != "" && known.Attestation == ByCertificate:
		return unauthorized("the device registered with a certificate, so it has no key at the hub")
	case token != "":
		grant, refused := h.Enrollments().HubToken(u.resources(), known.RegistrationID, token, h.Now())
		return Grant{Expiry: grant.Expiry, below: grant.Below}, refused
	case len(chain) == 0:
		return unauthorized("the client sent neither a token nor a certificate")
	case !strings.EqualFold(chain[0].Subject.CommonName, known.RegistrationID):
		return unauthorized("the common name of the certificate is not the registration ID " + strconv.QuoteToGraphic(known.RegistrationID))
	case issued && why.Reason == "":
		return Grant{}, nil
	case issued:
		return Grant{}, &enroll.Refusal{Code: codeUnauthorized, Message: "IotHubUnauthorized", Explanation: why}
	case known.Attestation == ByKey:
		return unauthorized("the device registered with a key, and the certificate was not issued for a CSR")
	}
	if _, refused := h.Enrollments().ByCertificate(known.RegistrationID, state, h.Now()); refused != nil {
		refused.Code, refused.Message = codeUnauthorized, "IotHubUnauthorized"
		return Grant{}, refused
	}
	return Grant{}, nil
}

// authenticateModule does what Authenticate does for a module of a device that exists.
func (h *Hub) authenticateModule(u User, _ Device, token string, state tls.ConnectionState) (Grant, *enroll.Refusal) {
	m, found := h.Modules.get(u)
	chain := state.PeerCertificates
	switch {
	case !found:
		return Grant{}, refuse(codeModuleNotFound, "ModuleNotFound", "the device has no module "+strconv.QuoteToGraphic(u.Module))
	case token != "" && m.Authentication.Type != AuthenticationSAS:
		return Grant{}, refuse(codeUnauthorized, "IotHubUnauthorized", "the module has no keys: its type of authentication is "+m.Authentication.Type)
	case token != "":
		grant, refused := enroll.ModuleToken(u.resources(), m.Authentication.keys(), token, h.Now())
		return Grant{Expiry: grant.Expiry, below: grant.Below}, refused
	case len(chain) == 0:
		return Grant{}, refuse(codeUnauthorized, "IotHubUnauthorized", "the module sent neither a token nor a certificate")
	case !m.Authentication.accepts(chain[0]):
		return Grant{}, refuse(codeUnauthorized, "IotHubUnauthorized", "the certificate has neither thumbprint of the module's identity")
	}
	return Grant{}, nil
}
