// Package hub is the part of a simulated service to which DPS assigns devices: it checks the
// identity of a device at an IoT hub, and answers its requests. One [Hub] serves all hubs,
// which their host names distinguish.
package hub

import (
	"crypto/tls"
	"crypto/x509"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// The codes with which a hub refuses a device. Over MQTT 3.1.1, the device receives only
// CONNACK 5.
const (
	codeUnauthorized = 401003
	codeNotFound     = 404001
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
}

// Telemetry is a message of a device for the cloud.
type Telemetry struct {
	Time       time.Time
	Hub        string // host name that the device used
	Device     string // device ID
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

	Twins Twins

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

// Key identifies the device among those of all hubs.
func (u User) Key() string { return key(u.Hub, u.Device) }

func refuse(code int, message, reason string) *enroll.Refusal {
	r := &enroll.Refusal{Code: code, Message: message}
	r.Reason = reason
	return r
}

// Authenticate checks the credential of a device: a token, or the certificate of the TLS
// connection. It returns when the token expires; for a certificate that is never, the zero time.
func (h *Hub) Authenticate(u User, token string, state tls.ConnectionState) (expiry time.Time, refusal *enroll.Refusal) {
	known, found := h.Find(u.Hub, u.Device)
	switch {
	case !found:
		return expiry, refuse(codeNotFound, "DeviceNotFound", "DPS has not assigned the device "+strconv.QuoteToGraphic(u.Device)+" to the hub "+strconv.QuoteToGraphic(u.Hub))
	case u.Module != "":
		return expiry, refuse(codeNotFound, "DeviceNotFound", "the device has no modules")
	}
	unauthorized := func(reason string) (time.Time, *enroll.Refusal) {
		return time.Time{}, refuse(codeUnauthorized, "IotHubUnauthorized", reason)
	}
	chain, issued, why := state.PeerCertificates, false, enroll.Explanation{}
	if token == "" && len(chain) > 0 {
		issued, why = h.Issued(known.CertificateID, chain[0])
	}
	switch {
	case token != "" && known.Attestation == ByCertificate:
		return unauthorized("the device registered with a certificate, so it has no key at the hub")
	case token != "":
		var resources []string
		for _, name := range Names(u.Hub) {
			resources = append(resources, name+"/devices/"+u.Device)
		}
		return h.Enrollments().HubToken(resources, known.RegistrationID, token, h.Now())
	case len(chain) == 0:
		return unauthorized("the client sent neither a token nor a certificate")
	case !strings.EqualFold(chain[0].Subject.CommonName, known.RegistrationID):
		return unauthorized("the common name of the certificate is not the registration ID " + strconv.QuoteToGraphic(known.RegistrationID))
	case issued && why.Reason == "":
		return expiry, nil
	case issued:
		return expiry, &enroll.Refusal{Code: codeUnauthorized, Message: "IotHubUnauthorized", Explanation: why}
	case known.Attestation == ByKey:
		return unauthorized("the device registered with a key, and the certificate was not issued for a CSR")
	}
	if _, refused := h.Enrollments().ByCertificate(known.RegistrationID, state, h.Now()); refused != nil {
		refused.Code, refused.Message = codeUnauthorized, "IotHubUnauthorized"
		return expiry, refused
	}
	return expiry, nil
}
