// Package config turns dpsd.toml into typed values.
//
// It is strict: a key it does not know, a value that cannot work, or a secret written
// into the file is an error that names the place and the way out, and all errors of a
// file are reported together. It judges the text alone. Files that the configuration
// names are read later, by those who need them.
package config

import (
	_ "embed"
	"io"
	"io/fs"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/pace"
)

//go:embed dpsd.toml
var annotated string

// Reference returns the annotated dpsd.toml: every key with its default and what it does.
func Reference() string { return annotated }

// Config is a whole configuration. Parse fills every field; its zero value is of no use.
type Config struct {
	// DPS says where to register, and as whom.
	DPS DPS
	// Credentials prove the identity; at least one, tried in this order.
	Credentials []attest.Credential
	// Transport says how the service is reached.
	Transport Transport
	// Provisioning says when the gateway registers.
	Provisioning Provisioning
	// Retry holds the delays between attempts. Initial is not above Max, and
	// RefusedInitial not above RefusedMax.
	Retry pace.Retry
	// State says where the result is kept.
	State State
	// Control says where the running service is asked.
	Control Control
	// Log says how much is told.
	Log Log
}

// DPS is the table [dps].
type DPS struct {
	// IDScope is the ID scope of the provisioning service, such as "0ne00000000".
	IDScope string
	// RegistrationID tells how the registration ID is found.
	RegistrationID attest.RegistrationID
	// Endpoint is a host name, without scheme and port.
	Endpoint string
	// APIVersion is the version of the device protocol, such as "2019-03-31".
	APIVersion string
	// PayloadFile is the absolute path of a JSON object to send; "" for none.
	PayloadFile string
}

// Transport is the table [transport].
type Transport struct {
	// Protocols are "mqtt" and "websocket", each at most once, in the order to try.
	Protocols []string
	// MQTTPort and WebSocketPort are TCP ports, 1 to 65535.
	MQTTPort, WebSocketPort int
	// Proxy is "environment" (HTTPS_PROXY and NO_PROXY), "none", or an address,
	// "http://host:port" or "https://host:port".
	Proxy string
	// ProxyUser is sent to the proxy with the contents of ProxyPassword, in place of what
	// HTTPS_PROXY says. "" is nobody, a zero ProxyPassword an empty one.
	ProxyUser     string
	ProxyPassword attest.Reference
	// ProxyCAFile is the absolute path of PEM certificates to trust besides the system's
	// when an https:// proxy shows its own; "" for none.
	ProxyCAFile string
	// CAFile is the absolute path of PEM certificates to trust besides the system's;
	// "" for none.
	CAFile string
	// ConnectTimeout bounds name, TCP, proxy, TLS and upgrade together.
	ConnectTimeout time.Duration
	// ResponseTimeout bounds each wait for an answer.
	ResponseTimeout time.Duration
	// KeepAlive is the MQTT keep alive in whole seconds, at most 1177 s; 0 for none.
	KeepAlive time.Duration
}

// Provisioning is the table [provisioning].
type Provisioning struct {
	// OnBoot is the policy at start: "always", "verify" or "if-needed".
	OnBoot string
	// BootDelayMax bounds a random delay before the first contact; 0 for none.
	BootDelayMax time.Duration
	// Interval is the time between registrations without a cause, at least 10 min; 0 for never.
	Interval time.Duration
}

// State is the table [state].
type State struct {
	// Directory is the absolute path of the state directory.
	Directory string
	// Mode is that of the state files: 0644 or 0640.
	Mode fs.FileMode
}

// Control is the table [control].
type Control struct {
	// Socket is the absolute path of the control socket. Its directory, which is not
	// the state directory, is the runtime directory.
	Socket string
	// MetricsFile is the absolute path of a file for the textfile collector of
	// node_exporter; "" for none.
	MetricsFile string
}

// Log is the table [log].
type Log struct {
	// Level is "debug", "info", "warn" or "error".
	Level string
}

// Default returns what holds for the keys that are left out.
func Default() Config {
	var c Config
	for _, t := range tables(&c, attest.Types()) {
		for _, k := range t.keys {
			k.reset()
		}
	}
	return c
}

// Error is one thing that is wrong with a configuration.
type Error = document.Error

// Errors is everything that is wrong with a configuration.
type Errors = document.Errors

// Read returns the whole of r, the text of a configuration, for Parse, without a byte
// order mark. The error is an Errors if it is UTF-16 or longer than a configuration may be.
func Read(name string, r io.Reader) ([]byte, error) { return document.Read(name, r) }

// Parse reads a configuration of at most 1 MiB. name stands for the file in messages.
//
// The error is Errors when the text itself is at fault, and then holds all that is wrong
// with it, except that a TOML syntax error hides what follows. Any other error is one of
// r, wrapped.
func Parse(name string, r io.Reader) (*Config, error) {
	c, _, err := ParseSettings(name, r)
	return c, err
}

// ParseSettings is Parse, and lists every key there is, in the order of the reference.
// Written one after the other, those with a value are the same configuration again.
func ParseSettings(name string, r io.Reader) (*Config, []Setting, error) {
	return parse(name, r, attest.Types())
}

func parse(name string, r io.Reader, types []attest.Type) (*Config, []Setting, error) {
	data, err := document.Read(name, r)
	if err != nil {
		return nil, nil, err
	}
	c := Default()
	all := tables(&c, types)
	known := all.names()
	doc, problem := document.Parse(name, data, known)
	if problem != nil {
		return nil, nil, Errors{problem}
	}
	check := checker{Checker: document.NewChecker(doc), types: types, tables: all, known: known, meant: map[document.Path]bool{}}
	check.config(&c)
	if err := check.Err(); err != nil {
		return nil, nil, err
	}
	return &c, settings(doc, all, c.Credentials), nil
}
