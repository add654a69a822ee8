package hub

import (
	"cmp"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // the hub identifies certificates by this thumbprint
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// MaxModules is the maximum number of module identities of a device.
const MaxModules = 50

// The types of the authentication of a module.
const (
	AuthenticationSAS        = "sas"
	AuthenticationSelfSigned = "selfSigned"
	AuthenticationNone       = "none"
)

// Module is the identity of a module at a hub, as the registry of the hub returns it.
type Module struct {
	ModuleID       string         `json:"moduleId"`
	ManagedBy      *string        `json:"managedBy"` // nil if it is not set
	DeviceID       string         `json:"deviceId"`
	GenerationID   string         `json:"generationId"`
	ETag           string         `json:"etag"`
	Authentication Authentication `json:"authentication"`
}

// Authentication is how a module authenticates.
type Authentication struct {
	Type           string       `json:"type"`
	SymmetricKey   SymmetricKey `json:"symmetricKey"`
	X509Thumbprint Thumbprint   `json:"x509Thumbprint"`
}

// SymmetricKey contains the keys of a module in base64. Both are nil unless its type is "sas".
type SymmetricKey struct {
	PrimaryKey   *string `json:"primaryKey"`
	SecondaryKey *string `json:"secondaryKey"`
}

// Thumbprint identifies the certificates of a module by SHA-1 or SHA-256, in hexadecimal. Both are
// nil unless its type is "selfSigned".
type Thumbprint struct {
	PrimaryThumbprint   *string `json:"primaryThumbprint"`
	SecondaryThumbprint *string `json:"secondaryThumbprint"`
}

// keys returns the decoded keys of a module.
func (a Authentication) keys() [][]byte {
	var keys [][]byte
	for _, text := range []*string{a.SymmetricKey.PrimaryKey, a.SymmetricKey.SecondaryKey} {
		if text == nil {
			continue
		}
		if key, err := base64.StdEncoding.DecodeString(*text); err == nil { // complete has checked it
			keys = append(keys, key)
		}
	}
	return keys
}

// accepts reports whether a certificate has a thumbprint of the module.
func (a Authentication) accepts(c *x509.Certificate) bool {
	short, long := sha1.Sum(c.Raw), sha256.Sum256(c.Raw) //nolint:gosec // see the import
	return slices.ContainsFunc([]*string{a.X509Thumbprint.PrimaryThumbprint, a.X509Thumbprint.SecondaryThumbprint}, func(t *string) bool {
		return t != nil && (strings.EqualFold(*t, hex.EncodeToString(short[:])) || strings.EqualFold(*t, hex.EncodeToString(long[:])))
	})
}

var thumbprint = regexp.MustCompile(`^([0-9A-Fa-f]{40}|[0-9A-Fa-f]{64})$`)

// complete checks the authentication that a client requests, and generates keys if it contains none.
func (a Authentication) complete() (Authentication, error) {
	a.Type = cmp.Or(a.Type, AuthenticationSAS)
	k, t := &a.SymmetricKey, &a.X509Thumbprint
	switch {
	case !slices.Contains([]string{AuthenticationSAS, AuthenticationSelfSigned, AuthenticationNone}, a.Type):
		return a, fmt.Errorf("authentication.type %q is not one of sas, selfSigned and none", a.Type)
	case a.Type != AuthenticationSAS && *k != SymmetricKey{}:
		return a, fmt.Errorf("authentication.symmetricKey does not apply to the type %s", a.Type)
	case a.Type != AuthenticationSelfSigned && *t != Thumbprint{}:
		return a, fmt.Errorf("authentication.x509Thumbprint does not apply to the type %s", a.Type)
	case (k.PrimaryKey == nil) != (k.SecondaryKey == nil):
		return a, errors.New("authentication.symmetricKey has only one of primaryKey and secondaryKey")
	case a.Type == AuthenticationSelfSigned && t.PrimaryThumbprint == nil:
		return a, errors.New("authentication.x509Thumbprint has no primaryThumbprint")
	case a.Type == AuthenticationSAS && k.PrimaryKey == nil:
		*k = SymmetricKey{PrimaryKey: new(newKey()), SecondaryKey: new(newKey())}
	}
	for _, text := range []*string{k.PrimaryKey, k.SecondaryKey} {
		if text == nil {
			continue
		}
		if key, err := base64.StdEncoding.DecodeString(*text); err != nil || len(key) < 16 || len(key) > 64 {
			return a, errors.New("a key in authentication.symmetricKey is not the base64 encoding of 16 to 64 bytes")
		}
	}
	for _, text := range []*string{t.PrimaryThumbprint, t.SecondaryThumbprint} {
		if text != nil && !thumbprint.MatchString(*text) {
			return a, errors.New("a thumbprint in authentication.x509Thumbprint has neither 40 nor 64 hexadecimal digits")
		}
	}
	return a, nil
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never returns an error
	return b
}

func newKey() string  { return base64.StdEncoding.EncodeToString(random(32)) }
func newETag() string { return base64.StdEncoding.EncodeToString(random(8)) }

// newGeneration returns an ID of 18 digits, as in the service.
func newGeneration() string {
	return fmt.Sprintf("%018d", binary.BigEndian.Uint64(random(8))%1e18)
}

// moduleID allows what a device ID may contain. Only the service creates names that begin with a
// dollar sign, for IoT Edge.
var moduleID = regexp.MustCompile(`^[-A-Za-z0-9:.+%_#*?!(),=@;']([-A-Za-z0-9:.+%_#*?!(),=@;$']{0,127})$`)

// Modules holds the module identities of all devices. The zero value has none. Its methods are
// safe for concurrent use.
type Modules struct {
	// Changed, if not nil, is called after each change.
	Changed func()

	mu  sync.Mutex
	all map[string]map[string]Module // by User.DeviceKey and module ID
}

// Stored is a module identity with its hub, for a file.
type Stored struct {
	Hub string `json:"hub"`
	Module
}

// Load replaces all module identities.
func (m *Modules) Load(list []Stored) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = map[string]map[string]Module{}
	for _, s := range list {
		if _, err := s.Authentication.complete(); err != nil || s.Hub == "" || s.DeviceID == "" || !moduleID.MatchString(s.ModuleID) {
			return fmt.Errorf("the entry of module %q of device %q is invalid", s.ModuleID, s.DeviceID)
		}
		m.set(User{Hub: s.Hub, Device: s.DeviceID, Module: s.ModuleID}, s.Module)
	}
	return nil
}

// Stored returns all module identities, in the order of their hubs, devices and module IDs.
func (m *Modules) Stored() []Stored {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := []Stored{}
	for _, device := range slices.Sorted(maps.Keys(m.all)) {
		name, _, _ := strings.Cut(device, "/")
		for _, one := range sorted(m.all[device]) {
			list = append(list, Stored{name, one})
		}
	}
	return list
}

func sorted(of map[string]Module) []Module {
	return slices.SortedFunc(maps.Values(of), func(a, b Module) int { return strings.Compare(a.ModuleID, b.ModuleID) })
}

// List returns the module identities of a device, in the order of their IDs.
func (m *Modules) List(hub, deviceID string) []Module {
	m.mu.Lock()
	defer m.mu.Unlock()
	return sorted(m.all[key(hub, deviceID)])
}

func (m *Modules) get(u User) (Module, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	one, found := m.all[u.DeviceKey()][u.Module]
	return one, found
}

// set stores an identity. The caller holds m.mu.
func (m *Modules) set(u User, one Module) {
	if m.all == nil {
		m.all = map[string]map[string]Module{}
	}
	if m.all[u.DeviceKey()] == nil {
		m.all[u.DeviceKey()] = map[string]Module{}
	}
	m.all[u.DeviceKey()][u.Module] = one
}

func (m *Modules) changed() {
	if m.Changed != nil {
		m.Changed()
	}
}

// change calls f with a copy of the identities of a device, under the lock. If f returns true, the copy
// replaces the identities, and change calls Changed.
func (m *Modules) change(u User, f func(device map[string]Module) bool) {
	m.mu.Lock()
	device := maps.Clone(m.all[u.DeviceKey()])
	if device == nil {
		device = map[string]Module{}
	}
	done := f(device)
	if done {
		if m.all == nil {
			m.all = map[string]map[string]Module{}
		}
		if m.all[u.DeviceKey()] = device; len(device) == 0 {
			delete(m.all, u.DeviceKey())
		}
	}
	m.mu.Unlock()
	if done {
		m.changed()
	}
}

// Forget removes everything that belongs to a device that no longer exists at a hub: its module
// identities, all twins, and the cloud-to-device messages.
func (h *Hub) Forget(hub, deviceID string) {
	u := User{Hub: hub, Device: deviceID}
	h.Twins.forget(u)
	h.Messages.forget(u)
	h.Modules.change(u, func(device map[string]Module) bool {
		some := len(device) > 0
		for u.Module = range device {
			h.Twins.forget(u)
		}
		clear(device)
		return some
	})
}
