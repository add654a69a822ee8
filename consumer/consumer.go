// Package consumer serves the local services that connect to the IoT hub. Each service has its own
// socket, whose file permissions authorize it, and gets short-lived credentials that allow exactly
// what the configuration permits. docs/hub.openapi.json describes the interface.
package consumer

import (
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/hub"
)

// Scope is what a consumer may do at the hub. The zero value is the whole device.
type Scope struct {
	// Events limits the scope to sending the device's messages.
	Events bool
	// Module is the ID of the module whose identity the consumer has; "": that of the device.
	Module string
}

// The scopes as the configuration contains them.
const (
	deviceScope  = "device"
	eventsScope  = "device/messages/events"
	modulePrefix = "module:"
)

// ParseScope returns the scope that the configuration contains as text: "device",
// "device/messages/events" or "module:" and a module ID. ok reports whether it is one of them.
func ParseScope(text string) (scope Scope, ok bool) {
	module, isModule := strings.CutPrefix(text, modulePrefix)
	switch {
	case text == deviceScope:
		return Scope{}, true
	case text == eventsScope:
		return Scope{Events: true}, true
	case isModule && module != "":
		return Scope{Module: module}, true
	}
	return Scope{}, false
}

// String returns the scope as the configuration contains it.
func (s Scope) String() string {
	switch {
	case s.Module != "":
		return modulePrefix + s.Module
	case s.Events:
		return eventsScope
	}
	return deviceScope
}

// identity returns the identity that the scope gives at the hub of a device.
func (s Scope) identity(device hub.Identity) hub.Identity {
	device.ModuleID = s.Module
	return device
}

// Consumer is a [[consumer]] of the configuration.
type Consumer struct {
	Name        string // also the name of its listener
	Scope       Scope
	Lifetime    time.Duration // of a token, unless the request contains one; 0 means DefaultLifetime
	Certificate bool          // the consumer may ask for the paths of the certificate
}

// The lifetimes of tokens.
const (
	MinLifetime     = time.Minute
	DefaultLifetime = 15 * time.Minute
	MaxLifetime     = time.Hour
)

// State is what the daemon knows about the hub. The daemon posts it to a Board whenever it
// changes.
type State struct {
	Hub        hub.Identity // of the device; the zero value: DPS has not assigned it yet
	Generation uint64       // of the record
	Profile    string       // connection profile of the hub: "" or "classic", "mqttV5", …
	RootsFile  string       // PEM file with the roots to trust; "": there is none

	// Withheld is why no credentials are issued; "": they are issued.
	Withheld Reason
	// Tokens reports whether the device has a symmetric key, so that dpsd can make tokens for it.
	Tokens bool
	// Certificate is the certificate with which the device signs in; nil: none.
	Certificate *Files
	// Modules are the module identities that exist at the hub, by ID. A module without an
	// entry does not exist yet.
	Modules map[string]Module
}

// Reason is the stable code of the reason why dpsd issues no credentials.
type Reason string

// The reasons of State.Withheld.
const (
	NotAssigned        Reason = "not-assigned"
	OtherConfiguration Reason = "other-configuration" // the record belongs to another configuration
	ClockImplausible   Reason = "clock-implausible"
)

// Files are the files of a certificate. PrivateKey may also be a TSS2 file.
type Files struct {
	Certificate string    // path of the chain, leaf first
	PrivateKey  string    // path of the private key
	NotAfter    time.Time // the earliest expiry in the chain
}

// Module is the state of a module identity.
type Module struct {
	Ready bool   // it exists at the hub with the key of this gateway
	Fault string // code of the fault that prevents this; "": none
}
