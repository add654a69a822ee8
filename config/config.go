// Package config turns dpsd.toml into typed values.
//
// It is strict: a key it does not know, a value that cannot work, or a secret written
// into the file is an error that names the place and the way out, and all errors of a
// file are reported together. It judges the text alone. Files that the configuration
// names are read later, by those who need them.
package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
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
	DPS          DPS
	Credentials  []attest.Credential // at least one; dpsd tries them in this order
	Transport    Transport
	Provisioning Provisioning
	Retry        pace.Retry // Initial is not above Max, and RefusedInitial not above RefusedMax
	State        State
	Control      Control
	Log          Log
}

// DPS is the table [dps]: where to register, and as whom.
type DPS struct {
	IDScope        string
	RegistrationID attest.RegistrationID
	Endpoint       string // a host name, without scheme and port
	APIVersion     string // of the device protocol, such as "2019-03-31"
	PayloadFile    string // the absolute path of a JSON object to send; "" for none
}

// Transport is the table [transport]: how dpsd reaches the service.
type Transport struct {
	Protocols               []string // "mqtt" and "websocket", each at most once, in the order to try
	MQTTPort, WebSocketPort int

	// Proxy is "environment" (HTTPS_PROXY and NO_PROXY), "none", or an address,
	// "http://host:port" or "https://host:port".
	Proxy string
	// ProxyUser is sent to the proxy with the contents of ProxyPassword, in place of what
	// HTTPS_PROXY says. "" is no user, and a zero ProxyPassword an empty password.
	ProxyUser     string
	ProxyPassword attest.Reference

	// CAFile and ProxyCAFile are absolute paths of PEM certificates to trust besides the
	// system's, for the service and for an https:// proxy; "" for none.
	CAFile, ProxyCAFile string

	ConnectTimeout  time.Duration // for name, TCP, proxy, TLS and upgrade together
	ResponseTimeout time.Duration // for each answer
	KeepAlive       time.Duration // whole seconds, at most maxKeepAlive; 0 for none
}

// Provisioning is the table [provisioning]: when the gateway registers.
type Provisioning struct {
	OnBoot       string        // "always", "verify" or "if-needed"
	BootDelayMax time.Duration // the longest random delay before the first contact
	Interval     time.Duration // between registrations without a cause; 0 for never
}

// State is the table [state]: where the result is kept.
type State struct {
	Directory string      // an absolute path
	Mode      fs.FileMode // of the state files: 0644 or 0640
}

// Control is the table [control]: where the running service can be asked.
type Control struct {
	// Socket is the absolute path of the control socket. Its directory, which is not
	// the state directory, is the runtime directory.
	Socket string
	// MetricsFile is the absolute path of a file for the textfile collector of
	// node_exporter; "" for none.
	MetricsFile string
}

// Log is the table [log]: how much is logged.
type Log struct {
	Level string // "debug", "info", "warn" or "error"
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

// Fingerprint is the same for two configurations exactly when they mean the same to this
// version of dpsd: comments, order and keys that have their default make no difference.
func (c Config) Fingerprint() string {
	c.DPS.RegistrationID.FromCertificate = nil // an address, of the first of the credentials
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", c))
	return "sha256:" + hex.EncodeToString(sum[:])
}
