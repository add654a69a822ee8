package modules

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/sas"
	"github.com/dpsd-project/dpsd/transport"
)

const (
	// apiVersion is the one that Azure IoT Edge uses for the modules of a device.
	apiVersion = "2017-11-08-preview"
	// tokenLifetime is the lifetime of the token of a request, which includes the time to connect.
	// A hub tolerates clocks that are wrong by up to five minutes.
	tokenLifetime = 5 * time.Minute
	// maxListed is the maximum number of modules in a list. A hub allows 50 for a device.
	maxListed = 1000
)

// Client sends the requests of a device about its modules to its hub. They do not affect the MQTT
// connection of the device. Each request has its own connection.
type Client struct {
	Device hub.Identity     // without a module
	Dialer transport.Dialer // as for DPS; its Host is replaced
	// Certificate is the device's, if the device signs in with one; otherwise, MAC returns the
	// HMAC-SHA256 of a statement under the device's key.
	Certificate *tls.Certificate
	MAC         func(ctx context.Context, statement []byte) ([]byte, error)
	Now         func() time.Time // nil means time.Now
}

// Module is the identity of a module at the hub.
type Module struct {
	ID        string
	ManagedBy string // the program that created it, such as Manager; "": unknown
	ETag      string // of this version of the identity; "": unknown
	Keys      Pair   // empty for a module that signs in with a certificate
}

// Pair is the two keys of a module, in base64.
type Pair struct{ Primary, Secondary string }

// module is a Module on the wire.
type module struct {
	ModuleID       string          `json:"moduleId"`
	DeviceID       string          `json:"deviceId"`
	ManagedBy      string          `json:"managedBy,omitempty"`
	ETag           string          `json:"etag,omitempty"`
	Authentication *authentication `json:"authentication,omitempty"`
}

type authentication struct {
	Type         string        `json:"type"`
	SymmetricKey *symmetricKey `json:"symmetricKey,omitempty"`
}

type symmetricKey struct {
	PrimaryKey   string `json:"primaryKey"`
	SecondaryKey string `json:"secondaryKey"`
}

// List returns the modules of the device. It changes nothing at the hub. The error is that of
// transport.Dialer.Do, a *hub.Error, an *AnswerError, or that of MAC.
func (c *Client) List(ctx context.Context) ([]Module, error) {
	answer, err := c.ask(ctx, http.MethodGet, "", "", nil)
	if err != nil {
		return nil, err
	}
	var found []module
	if err := json.Unmarshal(answer.Body, &found); err != nil {
		return nil, &AnswerError{errors.New("the list of modules is not JSON")} // the cause could quote a key
	}
	if len(found) > maxListed {
		return nil, &AnswerError{fmt.Errorf("the list has %d modules", len(found))}
	}
	all := make([]Module, len(found))
	for i, m := range found {
		all[i] = Module{ID: m.ModuleID, ManagedBy: m.ManagedBy, ETag: m.ETag}
		if m.Authentication != nil && m.Authentication.SymmetricKey != nil {
			all[i].Keys = Pair{m.Authentication.SymmetricKey.PrimaryKey, m.Authentication.SymmetricKey.SecondaryKey}
		}
	}
	return all, nil
}

// Create creates a module with two keys. If the module exists, the error is a *RefusedError.
func (c *Client) Create(ctx context.Context, id string, keys Pair) error {
	return c.put(ctx, Module{ID: id}, "", keys)
}

// Update replaces the keys of a module that List has returned. If it has changed since, the error
// is a *RefusedError.
func (c *Client) Update(ctx context.Context, m Module, keys Pair) error {
	return c.put(ctx, m, match(m), keys)
}

// Delete removes a module that List has returned, and ends its connection. It returns no error if
// the module no longer exists.
func (c *Client) Delete(ctx context.Context, m Module) error {
	_, err := c.ask(ctx, http.MethodDelete, m.ID, match(m), nil)
	if said, is := errors.AsType[*hub.Error](err); is && said.Status == http.StatusNotFound && said.Code != deviceNotFound {
		return nil
	}
	return ofModule(m.ID, err)
}

// deviceNotFound is the code of a hub that does not know the device.
const deviceNotFound = 404001

// match returns the value of If-Match: this version of the identity, or any version.
func match(m Module) string {
	if m.ETag == "" {
		return "*"
	}
	return `"` + m.ETag + `"`
}

func (c *Client) put(ctx context.Context, m Module, ifMatch string, keys Pair) error {
	body, err := json.Marshal(module{
		ModuleID: m.ID, DeviceID: c.Device.DeviceID, ManagedBy: Manager,
		Authentication: &authentication{Type: "sas", SymmetricKey: &symmetricKey{keys.Primary, keys.Secondary}},
	})
	if err != nil {
		return err
	}
	_, err = c.ask(ctx, http.MethodPut, m.ID, ifMatch, body)
	return ofModule(m.ID, err)
}

// ofModule returns a *RefusedError if the response concerns the module. Other responses concern the
// device or the hub.
func ofModule(id string, err error) error {
	said, is := errors.AsType[*hub.Error](err)
	if !is {
		return err
	}
	switch said.Status {
	case http.StatusBadRequest, http.StatusConflict, http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge:
		return &RefusedError{Module: id, Err: said}
	}
	return err
}

// ask sends a request about one module, or about all modules, and returns the response if it has a
// success status.
func (c *Client) ask(ctx context.Context, method, id, ifMatch string, body []byte) (*transport.Answer, error) {
	target := "/devices/" + sas.Encode(c.Device.DeviceID) + "/modules"
	if id != "" {
		target += "/" + sas.Encode(id)
	}
	header := http.Header{"Accept": {"application/json"}}
	if body != nil {
		header.Set("Content-Type", "application/json")
	}
	if ifMatch != "" {
		header.Set("If-Match", ifMatch)
	}
	if c.Certificate == nil {
		token, err := c.token(ctx)
		if err != nil {
			return nil, err
		}
		header.Set("Authorization", token)
	}
	dialer := c.Dialer
	dialer.Host = c.Device.Host
	answer, err := dialer.Do(ctx, c.Certificate, transport.Request{
		Method: method, Target: target + "?api-version=" + apiVersion, Header: header, Body: body,
	})
	switch {
	case err != nil:
		return nil, err
	case answer.Status/100 != 2:
		return nil, hub.ParseError(answer.Status, answer.Header.Get("Retry-After"), answer.Body)
	}
	return answer, nil
}

// token returns a token for everything that the device may do, which the hub requires.
func (c *Client) token(ctx context.Context) (string, error) {
	now := time.Now
	if c.Now != nil {
		now = c.Now
	}
	resource, expiry := c.Device.Resource(false), now().Add(tokenLifetime)
	mac, err := c.MAC(ctx, sas.Statement(resource, expiry))
	if err != nil {
		return "", err
	}
	return sas.Token(resource, mac, expiry, ""), nil
}
