package store

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"time"
)

const (
	recorderName = "attempts.json"
	// MaxAttempts is how many attempts a Recorder keeps.
	MaxAttempts = 64
	// maxRecorder bounds the file, in bytes: what is too long for it is forgotten
	// from the front. An attempt has some 600 bytes.
	maxRecorder = 64 << 10
	// recorderGap is the least time between two copies to the state directory.
	recorderGap = time.Hour
)

// Attempt is one way to the service, as the flight recorder keeps it.
type Attempt struct {
	At      time.Time `json:"at"`      // the begin, by the wall clock, UTC
	Trigger string    `json:"trigger"` // why it was made
	Steps   []Step    `json:"steps"`   // in their order
	// Outcome is "assigned", "wait" for a Retry-After, or "fault".
	Outcome string `json:"outcome"`

	Fault       string `json:"fault,omitempty"` // its code
	Stage       string `json:"stage,omitempty"` // where it ended
	Cause       string `json:"cause,omitempty"`
	ServiceCode int    `json:"serviceCode,omitempty"`
	TrackingID  string `json:"trackingId,omitempty"`
	RetryIn     int64  `json:"retryInMilliseconds,omitempty"`

	Credential string `json:"credential,omitempty"` // its reference
	Protocol   string `json:"protocol,omitempty"`
	Address    string `json:"address,omitempty"`
	Proxy      string `json:"proxy,omitempty"`
	// Sent and Received are bytes above TCP, TLS and all.
	Sent     int64 `json:"sentBytes"`
	Received int64 `json:"receivedBytes"`
	// Clock is "implausible" when the wall clock was before the program's build, or
	// before an earlier verified handshake; else "plausible".
	Clock string `json:"clock"`
}

// Step is how long an attempt was in one stage.
type Step struct {
	Stage        string `json:"stage"`
	Milliseconds int64  `json:"milliseconds"`
}

// Recorder is the flight recorder: the last MaxAttempts attempts, in the runtime
// directory, and copied to the state directory after faults, at most once an
// hour, so that a reboot does not forget why it was made. Its files hold no
// secret. The zero value of copied says that none was made in this run.
type Recorder struct {
	Directory        string // of the state; "": no copies
	RuntimeDirectory string
	Mode             fs.FileMode // of the copy; 0 is 0644

	attempts []Attempt
	loaded   bool
	copied   time.Time // monotonic
	fresh    bool      // a fault is not in the copy yet
}

// Add keeps a. The error is a *WriteError; the attempt is kept in memory all the
// same.
func (r *Recorder) Add(a Attempt, now time.Time) error {
	if !r.loaded {
		r.attempts, r.loaded = readAttempts(r.RuntimeDirectory), true
		if r.attempts == nil {
			r.attempts = readAttempts(r.Directory) // of the boot before
		}
	}
	r.attempts = append(r.attempts, a)
	data := r.encode()
	err := save(writer{directory: r.RuntimeDirectory, mode: runtimeMode}, data)
	r.fresh = r.fresh || a.Outcome == "fault"
	// A state directory of no use is a fault of its own, and gets the copy later.
	if r.fresh && r.Directory != "" && CheckDirectory(r.Directory) == nil && (r.copied.IsZero() || now.Sub(r.copied) >= recorderGap) {
		r.copied, r.fresh = now, false
		mode := r.Mode.Perm()
		if mode == 0 {
			mode = 0o644
		}
		err = errors.Join(err, save(writer{directory: r.Directory, mode: mode}, data))
	}
	return err
}

func save(w writer, data []byte) error {
	if err := w.replace(recorderName, data); err != nil {
		return writeError(w.path(recorderName), err)
	}
	return nil
}

// encode makes the file of what is kept, and forgets what does not fit.
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

// Attempts returns what a Recorder has kept, the latest last: of the runtime
// directory, or else of the state directory's copy. None is no error.
func Attempts(directory, runtimeDirectory string) []Attempt {
	if attempts := readAttempts(runtimeDirectory); attempts != nil {
		return attempts
	}
	return readAttempts(directory)
}

func readAttempts(directory string) []Attempt {
	data, err := readFile(filepath.Join(directory, recorderName))
	var attempts []Attempt
	if err != nil || json.Unmarshal(data, &attempts) != nil {
		return nil
	}
	return attempts[max(0, len(attempts)-MaxAttempts):]
}
