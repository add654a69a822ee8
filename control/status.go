// Package control is the daemon's door on its own machine: HTTP over a Unix
// socket, for "dpsd status" and its like, for other services, and for whoever
// has curl.
//
//	GET  /v1/status       what the daemon is, does and waits for: a Status
//	GET  /v1/events       the same as a stream of JSON lines, one for each change
//	POST /v1/reprovision  asks for a registration; root and the service's group
//	GET  /metrics         Prometheus text
//
// The supervisor publishes a Status on a Board and never waits for a client;
// every client is served from the Board by goroutines of its own. docs/control.openapi.json
// describes the interface for other languages.
package control

import (
	"time"

	"github.com/dpsd-project/dpsd/foreign"
)

// Health says in one word how a gateway stands.
type Health string

// The healths, from good to bad.
const (
	OK            Health = "ok"            // DPS confirmed the published identity in this run, and nothing is wrong
	Cached        Health = "cached"        // an identity is published; DPS has not been asked, or not answered, in this run
	Degraded      Health = "degraded"      // an identity is published, but something keeps going wrong
	Unprovisioned Health = "unprovisioned" // no identity is published
)

// Status is everything that can be known of a daemon. It holds no secret, and
// but for the faults nothing that the state file does not. Times are wall-clock
// UTC; what waits is given in seconds too, which no step of the clock changes.
type Status struct {
	Version   string    `json:"version"`   // of the program
	PID       int       `json:"pid"`       // of the process
	StartedAt time.Time `json:"startedAt"` // of this run
	Now       time.Time `json:"now"`       // when this was made; set by the Board

	Health Health `json:"health"`
	Ready  bool   `json:"ready"` // systemd was told READY=1
	// Text is what systemctl status shows: what goes on, why, and what comes next.
	Text string `json:"text"`

	Configuration *Configuration `json:"configuration"` // null: not known
	Identity      *Identity      `json:"identity"`      // as published; null: none
	Confirmed     *time.Time     `json:"confirmed"`     // when DPS last confirmed it in this run; null: not yet
	Confirmations int            `json:"confirmations"` // how often it did, in this run
	Phase         Phase          `json:"phase"`
	Next          *Next          `json:"next"`        // null: an attempt runs, or nothing is due by itself
	Faults        []Fault        `json:"faults"`      // the last ones of this run, the latest first; at most MaxFaults
	Certificate   *Certificate   `json:"certificate"` // the device's; null: none was read
	Connection    *Connection    `json:"connection"`  // the last that was made in this run
	Attempts      AttemptsCount  `json:"attempts"`
}

// Configuration is what the daemon works with.
type Configuration struct {
	File string `json:"file"` // an absolute path
	// Fingerprint changes with the meaning of the file, and with the version of dpsd.
	Fingerprint string `json:"fingerprint"`
	// Refused says why the present content of the file was refused, so that the one before it
	// is in effect; "": it was not.
	Refused string `json:"refused,omitempty"`
}

const (
	// MaxFaults bounds Status.Faults.
	MaxFaults = 8
	// MaxText bounds Status.Text, in bytes.
	MaxText = 1 << 10
	// MaxCause bounds what Status.Text says of a fault, in bytes.
	MaxCause = foreign.MaxText
)

// Identity is the record that other services read.
type Identity struct {
	AssignedHub       string    `json:"assignedHub"`
	DeviceID          string    `json:"deviceId"`
	RegistrationID    string    `json:"registrationId"`
	IDScope           string    `json:"idScope"`
	Endpoint          string    `json:"endpoint"`
	ConnectionProfile string    `json:"connectionProfile,omitempty"`
	Generation        uint64    `json:"generation"`
	ProvisionedAt     time.Time `json:"provisionedAt"` // the last write
	// Durable: it would survive a power cut. While it is not, it is published under
	// the runtime directory.
	Durable bool `json:"durable"`
	// Foreign: it belongs to another configuration than the present one.
	Foreign bool `json:"foreign"`
}

// Phase is what the daemon does now.
type Phase struct {
	// Name is the stage of the running attempt, as in a fault ("tcp", "connect", …);
	// "waiting" for a due time; "idle" when nothing is due by itself.
	Name  string    `json:"name"`
	Since time.Time `json:"since"`
}

// The phases beside the stages of an attempt.
const (
	PhaseWaiting = "waiting"
	PhaseIdle    = "idle"
)

// Next is the next attempt.
type Next struct {
	At  time.Time `json:"at"`  // by the wall clock, as it is now
	In  float64   `json:"in"`  // seconds from now; set by the Board
	Why string    `json:"why"` // e.g. "after a fault", "interval"
	// Lane is the pace at which faults are retried; "" when it is not because of one.
	Lane string `json:"lane,omitempty"`

	due time.Time // monotonic
}

// Due returns a Next that is due at a time with a monotonic reading.
func Due(at time.Time, why, lane string) *Next { return &Next{Why: why, Lane: lane, due: at} }

// Fault is a failure, by its code in the catalogue. The same one again in a row
// counts up.
type Fault struct {
	Code        string    `json:"code"`
	Class       string    `json:"class"`
	Stage       string    `json:"stage"`
	Summary     string    `json:"summary"`
	Cause       string    `json:"cause"`
	Advice      string    `json:"advice"`
	Credential  string    `json:"credential,omitempty"` // its reference
	ServiceCode int       `json:"serviceCode,omitempty"`
	TrackingID  string    `json:"trackingId,omitempty"`
	First       time.Time `json:"first"`
	Last        time.Time `json:"last"`
	Count       int       `json:"count"`
	// Standing: nothing has worked since.
	Standing bool `json:"standing"`
}

// Certificate is the device's certificate, as far as it matters.
type Certificate struct {
	NotAfter time.Time `json:"notAfter"` // of it, or of the first certificate of its chain to expire
}

// Connection is how the service was reached.
type Connection struct {
	Protocol string    `json:"protocol"` // "mqtt" or "websocket"
	Address  string    `json:"address"`  // host:port
	Proxy    string    `json:"proxy,omitempty"`
	At       time.Time `json:"at"`
}

// AttemptsCount counts the attempts of this run.
type AttemptsCount struct {
	Started  int `json:"started"`
	Failed   int `json:"failed"`
	Assigned int `json:"assigned"`
}

// Reprovision answers a request to register again.
type Reprovision struct {
	// StartedAt is that of Status at the time: another one is another run.
	StartedAt time.Time `json:"startedAt"`
	// Due is when it will be done, In the same in seconds: forced registrations are
	// at least a minute apart.
	Due time.Time `json:"due"`
	In  float64   `json:"in"`
	// Confirmations is that of Status at the time: once it has grown, the
	// registration that was asked for has succeeded.
	Confirmations int `json:"confirmations"`
	// Failed is that of Status.Attempts at the time.
	Failed int `json:"failed"`
}

// Problem is the body of an answer that is an error.
type Problem struct {
	Error  string `json:"error"`
	Advice string `json:"advice,omitempty"`
}
