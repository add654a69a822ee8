package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"time"
)

const (
	recorderName = "attempts.json"
	// MaxAttempts is the number of attempts that a Recorder keeps.
	MaxAttempts = 64
	// maxRecorder limits the file, in bytes: if it would be longer, the oldest attempts are
	// dropped. An attempt has about 600 bytes.
	maxRecorder = 64 << 10
	// recorderGap is the minimum time between two copies to the state directory.
	recorderGap = time.Hour
)

// Attempt is the flight recorder's entry for an attempt to register.
type Attempt struct {
	At      time.Time `json:"at"`      // start according to the wall clock, UTC
	Trigger string    `json:"trigger"` // reason for the attempt
	Steps   []Step    `json:"steps"`   // in order
	// Outcome is "assigned", "wait" for a Retry-After, or "fault".
	Outcome string `json:"outcome"`

	Fault       string `json:"fault,omitempty"` // code of the fault
	Stage       string `json:"stage,omitempty"` // stage of the fault
	Cause       string `json:"cause,omitempty"`
	ServiceCode int    `json:"serviceCode,omitempty"`
	TrackingID  string `json:"trackingId,omitempty"`
	RetryIn     int64  `json:"retryInMilliseconds,omitempty"`

	Credential string `json:"credential,omitempty"` // reference of the credential
	Protocol   string `json:"protocol,omitempty"`
	Address    string `json:"address,omitempty"`
	Proxy      string `json:"proxy,omitempty"`
	// Sent and Received are the numbers of bytes over TCP, including TLS.
	Sent     int64 `json:"sentBytes"`
	Received int64 `json:"receivedBytes"`
	// Clock is "implausible" if the wall clock was before the program's build or before an
	// earlier verified handshake, and "plausible" otherwise.
	Clock string `json:"clock"`
}

// Step is a stage of an attempt with its duration.
type Step struct {
	Stage        string `json:"stage"`
	Milliseconds int64  `json:"milliseconds"`
}

// Recorder is the flight recorder. It stores the last MaxAttempts attempts in the runtime
// directory. After faults, it copies them to the state directory, at most once an hour, so
// that they survive a reboot. Its files contain no secrets. copied is zero if no copy was
// made in this run.
type Recorder struct {
	Directory        string // state directory; "" for no copies
	RuntimeDirectory string
	Mode             fs.FileMode // mode of the copy; 0 means 0644

	attempts []Attempt
	loaded   bool
	copied   time.Time // with a monotonic reading
	fresh    bool      // the copy does not contain the last fault yet
}

// Add records a. The error is a *WriteError, in which case the attempt is still kept in
// memory.
func (r *Recorder) Add(a Attempt, now time.Time) error {
	if !r.loaded {
		r.attempts, r.loaded = readAttempts(r.RuntimeDirectory), true
		if r.attempts == nil {
			r.attempts = readAttempts(r.Directory) // of the previous boot
		}
	}
	r.attempts = append(r.attempts, a)
	data := r.encode()
	here := writer{directory: r.RuntimeDirectory, mode: runtimeMode}
	err := here.write(recorderName, data)
	r.fresh = r.fresh || a.Outcome == "fault"
	// An unusable state directory is reported separately, and gets the copy later.
	if r.fresh && r.Directory != "" && CheckDirectory(r.Directory) == nil && (r.copied.IsZero() || now.Sub(r.copied) >= recorderGap) {
		r.copied, r.fresh = now, false
		durable := writer{directory: r.Directory, mode: permissions(r.Mode)}
		err = errors.Join(err, durable.write(recorderName, data))
	}
	return err
}

// encode returns the contents of the file, and drops the attempts that do not fit.
func (r *Recorder) encode() []byte {
	for {
		r.attempts = r.attempts[max(0, len(r.attempts)-MaxAttempts):]
		data, err := json.Marshal(r.attempts)
		if err == nil && (len(data) < maxRecorder || len(r.attempts) == 1) {
			return append(data, '\n')
		}
		r.attempts = r.attempts[1:]
	}
}

// Attempts returns the recorded attempts, latest last, from the runtime directory or
// otherwise from the copy in the state directory. There may be none.
func Attempts(directory, runtimeDirectory string) []Attempt {
	if attempts := readAttempts(runtimeDirectory); attempts != nil {
		return attempts
	}
	return readAttempts(directory)
}

func readAttempts(directory string) []Attempt {
	attempts := load[[]Attempt](directory, recorderName)
	return attempts[max(0, len(attempts)-MaxAttempts):]
}
