// Package control implements the daemon's local interface: HTTP over a Unix socket, for
// dpsd's commands, other services, and tools such as curl.
//
//	GET  /v1/status             what the daemon is, does and waits for: a Status
//	GET  /v1/events             the same as a stream of JSON lines, one for each change
//	POST /v1/reprovision        asks for a registration; root and the service's group
//	POST /v1/certificate/renew  asks for a registration with a certificate request; likewise
//	GET  /metrics               Prometheus text
//
// The supervisor posts a Status to a Board and never waits for a client; separate
// goroutines serve every client from the Board. docs/control.openapi.json describes the
// interface for other languages.
package control

import (
	"time"

	"github.com/dpsd-project/dpsd/foreign"
)

// Health is the state of a gateway in one word.
type Health string

// The health values, from best to worst.
const (
	OK            Health = "ok"            // DPS confirmed the published identity in this run, and there is no failure
	Cached        Health = "cached"        // an identity is published; DPS has not confirmed it in this run
	Degraded      Health = "degraded"      // an identity is published, but there are repeated failures
	Unprovisioned Health = "unprovisioned" // no identity is published
)

// Status is the status of a daemon. It contains no secrets and, except for the faults, no
// data that the state file does not contain. Times are wall-clock UTC. Remaining times are
// also given in seconds, which steps of the clock do not change.
type Status struct {
	Version   string    `json:"version"`   // version of the program
	PID       int       `json:"pid"`       // ID of the process
	StartedAt time.Time `json:"startedAt"` // start of this run
	Now       time.Time `json:"now"`       // the time of this status; set by the Board

	Health Health `json:"health"`
	Ready  bool   `json:"ready"` // READY=1 was sent to the service manager, if there is one
	// Text is the status text that systemctl status shows: the current activity, its
	// reason, and the next action.
	Text string `json:"text"`

	// ServiceManager describes the features of the service manager that the daemon uses; null if unknown.
	ServiceManager *ServiceManager `json:"serviceManager"`

	Configuration *Configuration `json:"configuration"` // null if unknown
	Identity      *Identity      `json:"identity"`      // the published identity; null if there is none
	Confirmed     *time.Time     `json:"confirmed"`     // the last confirmation by DPS in this run; null if there was none
	Confirmations int            `json:"confirmations"` // number of confirmations in this run
	Phase         Phase          `json:"phase"`
	Next          *Next          `json:"next"`        // null if an attempt is running or no attempt is scheduled
	Faults        []Fault        `json:"faults"`      // the last faults of this run, latest first; at most MaxFaults
	Certificate   *Certificate   `json:"certificate"` // the device certificate; null if none was read
	Connection    *Connection    `json:"connection"`  // the last connection of this run

	// IssuedCertificate is the issued certificate; null if none is configured and none is
	// published.
	IssuedCertificate *IssuedCertificate `json:"issuedCertificate"`

	Attempts AttemptsCount `json:"attempts"`

	Consumers []Consumer `json:"consumers"` // the local services that use the hub, by name
}

// ServiceManager describes the features of the service manager that a daemon uses. All are optional.
type ServiceManager struct {
	Notification bool    `json:"notification"`          // there is a socket for READY=1 and STATUS=
	Watchdog     float64 `json:"watchdog"`              // interval of the watchdog, in seconds; 0 for none
	Credentials  string  `json:"credentials,omitempty"` // directory of the credentials; "" for none
	Log          string  `json:"log"`                   // "journal", "syslog", "terminal", "text" or "json"
}

// Configuration describes the daemon's configuration.
type Configuration struct {
	File string `json:"file"` // an absolute path
	// Fingerprint changes with the effective contents of the file and with the version of
	// dpsd.
	Fingerprint string `json:"fingerprint"`
	// Refused is the reason why the current contents of the file were rejected and the
	// previous configuration is in effect. It is "" if they were not rejected.
	Refused string `json:"refused,omitempty"`
}

const (
	// MaxFaults limits the length of Status.Faults.
	MaxFaults = 8
	// MaxText limits Status.Text, in bytes.
	MaxText = 1 << 10
	// MaxCause limits the cause of a fault in Status.Text, in bytes.
	MaxCause = foreign.MaxText
)

// Identity is the published record that other services read.
type Identity struct {
	AssignedHub       string    `json:"assignedHub"`
	DeviceID          string    `json:"deviceId"`
	RegistrationID    string    `json:"registrationId"`
	IDScope           string    `json:"idScope"`
	Endpoint          string    `json:"endpoint"`
	ConnectionProfile string    `json:"connectionProfile,omitempty"`
	Generation        uint64    `json:"generation"`
	ProvisionedAt     time.Time `json:"provisionedAt"` // time of the last write
	// Durable reports whether the record would survive a power failure. While it would not,
	// it is published in the runtime directory.
	Durable bool `json:"durable"`
	// Foreign reports whether the record belongs to a different configuration than the
	// current one.
	Foreign bool `json:"foreign"`
}

// Phase is the current activity of the daemon.
type Phase struct {
	// Name is the stage of the running attempt, as in a fault ("tcp", "connect", …);
	// "waiting" before a scheduled attempt; "idle" if none is scheduled.
	Name  string    `json:"name"`
	Since time.Time `json:"since"`
}

// The phases besides the stages of an attempt.
const (
	PhaseWaiting = "waiting"
	PhaseIdle    = "idle"
)

// Next is the next attempt.
type Next struct {
	At  time.Time `json:"at"`  // according to the current wall clock
	In  float64   `json:"in"`  // seconds from now; set by the Board
	Why string    `json:"why"` // e.g. "after a fault", "interval"
	// Lane is the retry class after a fault; "" for other reasons.
	Lane string `json:"lane,omitempty"`

	due time.Time // monotonic
}

// Due returns a Next for a time with a monotonic reading.
func Due(at time.Time, why, lane string) *Next { return &Next{Why: why, Lane: lane, due: at} }

// Fault is a failure with a code of the catalogue. Count includes its consecutive
// repetitions.
type Fault struct {
	Code        string    `json:"code"`
	Class       string    `json:"class"`
	Stage       string    `json:"stage"`
	Summary     string    `json:"summary"`
	Cause       string    `json:"cause"`
	Advice      string    `json:"advice"`
	Credential  string    `json:"credential,omitempty"` // its reference in the configuration
	ServiceCode int       `json:"serviceCode,omitempty"`
	TrackingID  string    `json:"trackingId,omitempty"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	Count       int       `json:"count"`
	// Unresolved reports whether no attempt has succeeded since.
	Unresolved bool `json:"standing"`
}

// Certificate describes the device certificate.
type Certificate struct {
	NotAfter time.Time `json:"notAfter"` // the earliest expiry time of the certificate and its chain
}

// The states of an issued certificate.
const (
	CertificateValid      = "valid"
	CertificateExpired    = "expired"
	CertificateMissing    = "missing"    // there is none
	CertificateUnreadable = "unreadable" // its files cannot be read
	CertificateForeign    = "foreign"    // it is for a different registration ID, device ID or hub
)

// IssuedCertificate describes the certificate that DPS issues with the assignment.
type IssuedCertificate struct {
	// State is "valid", "expired", "missing" (there is none), "unreadable" (its files cannot be
	// read) or "foreign" (it is for a different registration ID, device ID or hub).
	State   string `json:"state"`
	Request string `json:"request"` // [certificate] request; "" without the table: dpsd does not renew it

	// The following members are absent if State is "missing" or "unreadable".
	NotBefore *time.Time `json:"notBefore,omitempty"`
	NotAfter  *time.Time `json:"notAfter,omitempty"` // the earliest NotAfter in the chain
	RenewAt   *time.Time `json:"renewAt,omitempty"`  // when dpsd requests the next one
	Serial    string     `json:"serial,omitempty"`
	SHA256    string     `json:"sha256,omitempty"`
	Issuer    string     `json:"issuer,omitempty"`

	// Due is the reason why dpsd requests a certificate, or "" if none is due.
	Due string `json:"due,omitempty"`
	// NotBeforeNextRequest is the time before which dpsd sends no further request; absent if
	// it may send one now.
	NotBeforeNextRequest *time.Time `json:"notBeforeNextRequest,omitempty"`
	Issued               int        `json:"issued"` // certificates received in this run
	Failed               int        `json:"failed"` // failed requests in this run
}

// Consumer describes a local service that uses the hub: a [[consumer]] of the configuration, a
// socket without one, or both.
type Consumer struct {
	Name string `json:"name"`
	// Scope is the scope in the configuration, or "identity" for the socket for programs of the
	// Azure IoT Identity Service. It is "" if the configuration does not contain the service.
	Scope string `json:"scope,omitempty"`
	// Listening reports whether dpsd has received the socket from systemd, which happens only
	// at a start.
	Listening bool `json:"listening"`
	// Module is the state of the module identity in the scope: ModuleReady, ModulePending, or
	// the code of the fault that prevents it; "" if the scope has none.
	Module string `json:"module,omitempty"`
	ConsumerUse
	// Report is the last report that the hub refuses the service or is not working; absent if
	// there was none in this run.
	Report *ConsumerReport `json:"report,omitempty"`
}

// The states of the module of a Consumer.
const (
	ModuleReady   = "ready"   // it exists at the hub with the keys of this gateway
	ModulePending = "pending" // dpsd has not created it yet
)

// ConsumerReport is a report of a local service about the hub, and its consequences.
type ConsumerReport struct {
	Code    string     `json:"code"` // as reported: "CONNACK 5", "401003", "unreachable", …
	At      time.Time  `json:"at"`
	Counted int        `json:"counted"`       // consecutive reports that count, including this one
	Action  string     `json:"action"`        // "none", "counting", "verifying" or "reprovisioning"
	Because string     `json:"because"`       // a sentence
	Due     *time.Time `json:"due,omitempty"` // when dpsd acts, or the earliest time at which it can
}

// ConsumerUse is what a local service has done in this run.
type ConsumerUse struct {
	Requests    uint64     `json:"requests"`              // all requests, including those that were refused
	Tokens      uint64     `json:"tokens"`                // tokens issued
	LastToken   *time.Time `json:"lastToken,omitempty"`   // when the last token was issued; absent if none was
	TokenExpiry *time.Time `json:"tokenExpiry,omitempty"` // when it expires
	Limited     uint64     `json:"limited"`               // requests that were refused because there were too many
	Refusals    uint64     `json:"refusals"`              // reports that the hub refuses the service
}

// Connection describes a connection to the service.
type Connection struct {
	Protocol string    `json:"protocol"` // "mqtt" or "websocket"
	Address  string    `json:"address"`  // host:port
	Proxy    string    `json:"proxy,omitempty"`
	At       time.Time `json:"at"`
}

// AttemptsCount contains the numbers of attempts of this run.
type AttemptsCount struct {
	Started  int `json:"started"`
	Failed   int `json:"failed"`
	Assigned int `json:"assigned"`
}

// Reprovision is the response to a request to register again.
type Reprovision struct {
	// StartedAt is Status.StartedAt at the time of the request. It identifies the run.
	StartedAt time.Time `json:"startedAt"`
	// Due is the time of the registration, and In is the remaining time in seconds:
	// requested registrations are at least a minute apart.
	Due time.Time `json:"due"`
	In  float64   `json:"in"`
	// Confirmations is Status.Confirmations at the time of the request. The requested
	// registration has succeeded when that number has increased.
	Confirmations int `json:"confirmations"`
	// Failed is Status.Attempts.Failed at the time of the request.
	Failed int `json:"failed"`
}

// Problem is the body of an error response.
type Problem struct {
	Error  string `json:"error"`
	Advice string `json:"advice,omitempty"`
}
