// Package fault defines the failures that can prevent a gateway's assignment. Each failure
// has a stable code; the catalogue contains the code's class, a one-line summary and a line
// of advice. The log, STATUS=, the commands and the manual use these texts.
//
// Only package classify creates faults; the packages below it return their own typed
// errors.
package fault

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"time"
)

// Code is the short, stable name of a failure. Codes never change.
type Code string

// The codes, in the order of the stages they belong to.
const (
	ConfigurationInvalid Code = "configuration-invalid"

	InputUnreadable      Code = "input-unreadable"
	InputInvalid         Code = "input-invalid"
	CredentialUnreadable Code = "credential-unreadable"
	CredentialEncrypted  Code = "credential-encrypted"
	CredentialInvalid    Code = "credential-invalid"
	CertificateExpired   Code = "certificate-expired"
	TPMKeyUnusable       Code = "tpm-key-unusable"
	TPMUnavailable       Code = "tpm-unavailable"
	TPMLockedOut         Code = "tpm-locked-out"
	SignerFailed         Code = "signer-failed"
	SignerRefused        Code = "signer-refused"

	NetworkUnreachable   Code = "network-unreachable"
	ResolverMissing      Code = "resolver-missing"
	DNSFailed            Code = "dns-failed"
	DNSBlocked           Code = "dns-blocked"
	TCPRefused           Code = "tcp-refused"
	ConnectTimeout       Code = "connect-timeout"
	ConnectionLost       Code = "connection-lost"
	ProxyAddress         Code = "proxy-address"
	ProxyUnreachable     Code = "proxy-unreachable"
	ProxyUntrusted       Code = "proxy-untrusted"
	ProxyScheme          Code = "proxy-scheme"
	ProxyAuth            Code = "proxy-auth"
	ProxyAuthUnsupported Code = "proxy-auth-unsupported"
	ProxyUpstream        Code = "proxy-upstream"
	ProxyRefused         Code = "proxy-refused"

	CAUnreadable     Code = "ca-unreadable"
	TLSUntrusted     Code = "tls-untrusted"
	TLSIntercepted   Code = "tls-intercepted"
	TLSWrongHost     Code = "tls-wrong-host"
	TLSExpired       Code = "tls-expired"
	TLSVersion       Code = "tls-version"
	TLSFailed        Code = "tls-failed"
	NotTLS           Code = "not-tls"
	CaptivePortal    Code = "captive-portal"
	WebSocketRefused Code = "websocket-refused"
	ClockImplausible Code = "clock-implausible"

	CertificateRefused Code = "certificate-refused"
	NotMQTT            Code = "not-mqtt"
	ConnackRefused     Code = "connack-refused"
	ConnackUnavailable Code = "connack-unavailable"
	ConnackRejected    Code = "connack-rejected"
	NotDPS             Code = "not-dps"
	ProtocolViolation  Code = "protocol-violation"

	Unauthorized       Code = "unauthorized"
	EnrollmentNotFound Code = "enrollment-not-found"
	EnrollmentDisabled Code = "enrollment-disabled"
	AllocationFailed   Code = "allocation-failed"
	RequestRefused     Code = "request-refused"
	Throttled          Code = "throttled"
	ServiceError       Code = "service-error"
	OperationLost      Code = "operation-lost"
	NoReply            Code = "no-reply"
	MalformedReply     Code = "malformed-reply"

	CertificateNotIssued  Code = "certificate-not-issued"
	CertificateRejected   Code = "certificate-rejected"
	CertificateUnreadable Code = "certificate-unreadable"

	HubRefused        Code = "hub-refused"
	HubThrottled      Code = "hub-throttled"
	HubUnavailable    Code = "hub-unavailable"
	ModuleRefused     Code = "module-refused"
	ModulesUnreadable Code = "modules-unreadable"

	StateUnwritable  Code = "state-unwritable"
	StateNewerSchema Code = "state-newer-schema"
	StateLocked      Code = "state-locked"

	Internal Code = "internal"
)

// MessageID returns the MESSAGE_ID of the code's journal entries, 32 hexadecimal digits:
// the first half of SHA-256 over "dpsd fault " and the code. With it, journalctl -x finds
// the text in the journal's catalogue.
func (c Code) MessageID() string {
	sum := sha256.Sum256([]byte("dpsd fault " + string(c)))
	return hex.EncodeToString(sum[:16])
}

// Class is the kind of failure that a code describes. It determines the retry class.
type Class string

// The classes.
const (
	Offline       Class = "offline"       // no route, no resolver, interface down
	Transient     Class = "transient"     // temporary failure of the network, the service, a TPM or a signer
	Throttling    Class = "throttled"     // 429
	Credential    Class = "credential"    // this credential was refused; another may work
	Input         Class = "input"         // a file or a key on this gateway is missing or unusable
	Enrollment    Class = "enrollment"    // requires a change at the service
	Interception  Class = "interception"  // something other than DPS answered
	Clock         Class = "clock"         // this gateway's clock explains the failure
	Storage       Class = "storage"       // the state directory
	Configuration Class = "configuration" // dpsd.toml is invalid or does not work
)

// Classes returns every class.
func Classes() []Class {
	return []Class{Offline, Transient, Throttling, Credential, Input, Enrollment, Interception, Clock, Storage, Configuration}
}

// Next returns how dpsd continues after a fault of the class.
func (c Class) Next() string {
	switch c {
	case Offline:
		return "Nothing was sent. dpsd retries every few seconds, at least every offline_max."
	case Transient:
		return "dpsd retries, at first after a second, and later at least every max."
	case Throttling:
		return "dpsd waits as long as DPS or the hub asks, at least a second, plus a random time of up to half a minute for each 429 in a row, so that a fleet does not return at the same time."
	case Credential:
		return "dpsd tries the next credential immediately. After all were refused, it retries after refused_initial, later at least every refused_max, and immediately when a credential file changes."
	case Input:
		return "dpsd checks its inputs every 10 seconds, without contacting DPS or using a TPM or a signer, and retries as soon as one has changed. Otherwise it retries as after a refusal."
	case Enrollment:
		return "dpsd retries after refused_initial, and later at least every refused_max. Until DPS has assigned the gateway, it also retries within 10 seconds after a new host name or serial number has changed the registration ID."
	case Interception:
		return "dpsd retries as after a transient fault. The fault does not count against a credential."
	case Clock:
		return "dpsd retries when the clock changes, and otherwise as after a refusal."
	case Storage:
		return "dpsd retries as after a transient fault. The published record stays in place."
	case Configuration:
		return "At the start, dpsd exits with 78. At a reload, the previous configuration stays in effect."
	}
	return ""
}

// Stage is the step of an attempt in which a failure occurred.
type Stage string

// The stages, in the order in which an attempt passes them.
const (
	StageConfiguration Stage = "configuration"
	StageIdentity      Stage = "identity" // registration ID and payload
	StageCredential    Stage = "credential"
	StageName          Stage = "name"
	StageTCP           Stage = "tcp"
	StageProxy         Stage = "proxy"
	StageTLS           Stage = "tls"
	StageWebSocket     Stage = "websocket"
	StageConnect       Stage = "connect" // CONNECT to CONNACK
	StageSubscribe     Stage = "subscribe"
	StageRegister      Stage = "register"
	StagePoll          Stage = "poll"
	StageCertificate   Stage = "certificate" // the issued one: key, request, chain, files
	StageState         Stage = "state"
	StageHub           Stage = "hub" // managing module identities, or checking the hub
)

// Doing describes the activity of the stage in words that follow "while". All texts about
// stages use it.
func (s Stage) Doing() string {
	if doing, known := doing[s]; known {
		return doing
	}
	return string(s)
}

// doing does not change after start-up.
var doing = map[Stage]string{
	StageConfiguration: "reading the configuration",
	StageIdentity:      "reading the registration ID and the payload",
	StageCredential:    "reading the credential",
	StageName:          "resolving the endpoint's name",
	StageTCP:           "connecting",
	StageProxy:         "connecting through the proxy",
	StageTLS:           "setting up TLS",
	StageWebSocket:     "switching to WebSocket",
	StageConnect:       "signing in",
	StageSubscribe:     "subscribing",
	StageRegister:      "registering",
	StagePoll:          "waiting for the assignment",
	StageCertificate:   "obtaining a certificate",
	StageState:         "saving the assignment",
	StageHub:           "contacting the hub",
}

// Fault is a classified failure. The zero value means no fault.
type Fault struct {
	Code  Code
	Stage Stage
	Class Class
	// ServiceCode is the errorCode of DPS, such as 401002, or 0.
	ServiceCode int
	// TrackingID identifies the request to Microsoft's support; it may be "".
	TrackingID string
	// RetryAfter is the delay that the service requested, or 0.
	RetryAfter time.Duration
	// Circumstance is a fact that changes the advice, or "".
	Circumstance Circumstance
	// Err is the cause.
	Err error
}

// New returns the fault of a code, with its class from the catalogue.
func New(code Code, stage Stage, err error) Fault {
	return Fault{Code: code, Stage: stage, Class: Describe(code).Class, Err: err}
}

// Error returns the code and the cause in one line. The cause includes the service's
// errorCode and trackingId.
func (f Fault) Error() string {
	if f.Err == nil {
		return string(f.Code)
	}
	return string(f.Code) + ": " + f.Err.Error()
}

// Unwrap returns the cause.
func (f Fault) Unwrap() error { return f.Err }

// Advice describes the remedy in one line. The remedy of a cause takes precedence over the
// catalogue's.
func (f Fault) Advice() string {
	var known interface{ Remedy() string }
	if errors.As(f.Err, &known) {
		if remedy := known.Remedy(); remedy != "" {
			return remedy
		}
	}
	return Describe(f.Code).AdviceWhen(f.Circumstance)
}
