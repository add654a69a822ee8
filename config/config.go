// Package config parses dpsd.toml into typed values.
//
// It is strict: an unknown key, an invalid value or a secret in the file is an error that
// names the position and the correction. All errors of a file are reported together. The
// package checks only the text. The files that the configuration names are read later, by
// the packages that need them.
package config

import (
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/pace"
)

//go:embed dpsd.toml
var annotated string

// Reference returns the annotated dpsd.toml, which describes every key and its default.
func Reference() string { return annotated }

// Config is a complete configuration. Parse sets every field. The zero value is invalid.
type Config struct {
	DPS          DPS
	Credentials  []attest.Credential // at least one; dpsd tries them in this order
	Transport    Transport
	Provisioning Provisioning
	Retry        pace.Retry // Initial is at most Max, and RefusedInitial at most RefusedMax
	State        State
	Control      Control
	Certificate  Certificate
	TPM          TPM
	Consumers    []Consumer // with different names, in the order of the file
	Log          Log
}

// DPS is the table [dps]: the service and the identity of the gateway.
type DPS struct {
	IDScope        string
	RegistrationID attest.RegistrationID
	Endpoint       string // host name, without scheme and port
	APIVersion     string // version of the device protocol, such as "2019-03-31"; its default depends on Certificate
	PayloadFile    string // absolute path of a JSON object to send, or ""
}

// Transport is the table [transport]: the connection to the service.
type Transport struct {
	Protocols               []string // "mqtt" and "websocket", each at most once, in the order of the attempts
	MQTTPort, WebSocketPort int

	// Proxy is "environment" (HTTPS_PROXY and NO_PROXY), "none", or an address,
	// "http://host:port" or "https://host:port".
	Proxy string
	// ProxyUser is sent to the proxy with the contents of ProxyPassword. They override the
	// credentials in HTTPS_PROXY. If ProxyUser is "", no user is sent; if ProxyPassword is
	// zero, the password is empty.
	ProxyUser     string
	ProxyPassword attest.Reference

	// CAFile and ProxyCAFile are absolute paths of PEM certificates to trust in addition
	// to those of the system, for the service and for an https:// proxy, or "".
	CAFile, ProxyCAFile string

	ConnectTimeout  time.Duration // for name resolution, TCP, proxy, TLS and upgrade together
	ResponseTimeout time.Duration // for each answer
	KeepAlive       time.Duration // whole seconds, at most maxKeepAlive; 0 disables it
}

// Provisioning is the table [provisioning]: the times at which the gateway registers.
type Provisioning struct {
	OnBoot       string        // "always", "verify" or "if-needed"
	BootDelayMax time.Duration // maximum random delay before the first connection
	Interval     time.Duration // between periodic registrations; 0 disables them
	OnRefusal    string        // "reprovision" or "report": the effect of reports that the hub refuses services
	HubCheck     string        // "off" or "https": whether dpsd sends a request to the hub before such a registration
}

// State is the table [state]: the location of the published record.
type State struct {
	Directory string      // absolute path
	Mode      fs.FileMode // of the state files: 0644 or 0640
}

// Control is the table [control]: the interfaces of the running service.
type Control struct {
	// Socket is the absolute path of the control socket. Its directory is the runtime
	// directory, which is not the state directory.
	Socket string
	// MetricsFile is the absolute path of a file for the textfile collector of
	// node_exporter, or "".
	MetricsFile string
}

// Certificate is the table [certificate]: the certificate that DPS issues with the
// assignment. The zero value means that the table is absent and no certificate is requested.
type Certificate struct {
	Request  string // "required" or "when-offered"; "" without the table
	KeyType  string // "ec-p256", "ec-p384" or "rsa-2048"
	KeyStore string // "file" or "tpm"
	RenewAt  int    // percentage of the lifetime after which dpsd requests the next certificate; 10 to 95
	Group    string // name of the group that may read the key and the chain
}

// TPM is the table [tpm].
type TPM struct {
	Device string // absolute path
}

// CertificateGroup is the default of Certificate.Group. The package creates this group.
const CertificateGroup = "dpsd-certificate"

// Consumer is a [[consumer]]: a local service that uses the hub, and what it may do there.
type Consumer struct {
	Name        string        // of its socket unit, dpsd-hub@NAME.socket
	Scope       string        // "device", "device/messages/events", or "module:" and a module ID
	Lifetime    time.Duration // of a token, in whole seconds
	Certificate bool          // it may ask for the paths of the certificate; only with scope "device"
}

// Module returns the module ID in the scope, or "" if the scope is not a module.
func (c Consumer) Module() string {
	_, id, _ := strings.Cut(c.Scope, modulePrefix)
	return id
}

// Log is the table [log].
type Log struct {
	Level string // "debug", "info", "warn" or "error"
}

// Default returns a Config in which every key has its default.
func Default() Config {
	var c Config
	for _, t := range tables(&c, attest.Types()) {
		if !t.optional {
			t.reset()
		}
	}
	return c
}

// Error is one error in a configuration.
type Error = document.Error

// Errors contains all errors in a configuration.
type Errors = document.Errors

// Read reads the text of a configuration from r for Parse, without a byte order mark. The
// error is an Errors if the text is UTF-16 or too long for a configuration.
func Read(name string, r io.Reader) ([]byte, error) { return document.Read(name, r) }

// Parse reads a configuration of at most 1 MiB. name is the file's name in messages.
//
// If the text is invalid, the error is an Errors with all errors in the text; a TOML syntax
// error hides the errors that follow it. Any other error wraps an error of r.
func Parse(name string, r io.Reader) (*Config, error) {
	c, _, err := ParseSettings(name, r)
	return c, err
}

// ParseSettings is like Parse and also lists every key, in the order of the reference. The
// settings with a value, written one after the other, give the same configuration.
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
	return &c, settings(doc, all, &c), nil
}

// Fingerprint returns a text that is equal for two configurations if and only if they have
// the same meaning for this version of dpsd. Comments, the order of keys, and keys that have
// their default do not affect it.
func (c Config) Fingerprint() string {
	c.DPS.RegistrationID.FromCertificate = nil // a pointer to the first credential
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", c))
	return "sha256:" + hex.EncodeToString(sum[:])
}
