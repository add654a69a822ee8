// Package event names everything that dpsd tells its log. Each event has a
// stable name; the catalogue gives its priority, the sentence that people read
// and the text of journalctl -x. Those who log give a name and fields, and no
// prose.
package event

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
)

// The events, in the order of a life of dpsd. Names are never changed: people
// search journals by them.
const (
	Started         = "started"
	ClockNotWatched = "clock-not-watched"
	WatchFailed     = "watch-failed"
	NotifyFailed    = "notify-failed"
	StateNotice     = "state-notice"
	ControlFailed   = "control-failed"

	ConfigurationDoubtful = "configuration-doubtful"

	Published                    = "published"
	RecordOfAnotherConfiguration = "record-of-another-configuration"

	Phase                  = "phase"
	CertificateNotValidNow = "certificate-not-valid-now"
	Connected              = "connected"
	ResumptionFailed       = "resumption-failed"
	Waiting                = "waiting"
	FloorNotKept           = "floor-not-kept"
	Fault                  = "fault"
	Assigned               = "assigned"
	ConfirmationNotKept    = "confirmation-not-kept"
	TransportNotKept       = "transport-not-kept"
	AttemptNotRecorded     = "attempt-not-recorded"
	MetricsNotWritten      = "metrics-not-written"

	FilesChanged       = "files-changed"
	ClockStepped       = "clock-stepped"
	NetworkChanged     = "network-changed"
	AskedFor           = "asked-for"
	Reloaded           = "reloaded"
	ReloadRefused      = "reload-refused"
	CertificateExpires = "certificate-expires"
	CertificateExpired = "certificate-expired"
	StateRestored      = "state-restored"

	Hung        = "hung"
	LogLost     = "log-lost"
	Stopping    = "stopping"
	StoppedLate = "stopped-late"
)

// Priority is that of syslog, as the journal has it.
type Priority int

// The priorities that dpsd uses.
const (
	Error   Priority = 3 // a person has to act, or dpsd is defective
	Warning Priority = 4 // something fails; dpsd goes on by itself
	Notice  Priority = 5 // the milestones of a gateway
	Info    Priority = 6 // what else is worth a line
	Debug   Priority = 7 // the steps of an attempt, and what was told already
)

func (p Priority) String() string {
	return map[Priority]string{Error: "err", Warning: "warning", Notice: "notice", Info: "info", Debug: "debug"}[p]
}

// Entry describes an event.
type Entry struct {
	Name     string
	Priority Priority
	// Sentence is the MESSAGE: {field} stands for a value, and what is in [ ]
	// is left out when a value in it is empty or zero.
	Sentence string
	// Meaning explains the event to an operator, in one line.
	Meaning string
	// Same are the fields that tell one thing from another: entries that agree
	// in them repeat each other.
	Same []string
}

// Catalogue returns every event, in the order of a life of dpsd.
func Catalogue() []Entry { return slices.Clone(catalogue) }

// Describe returns the entry of an event, and whether there is one.
func Describe(name string) (Entry, bool) {
	for _, e := range catalogue {
		if e.Name == name {
			return e, true
		}
	}
	return Entry{}, false
}

// MessageID is the MESSAGE_ID of the event's journal entries, 32 hexadecimal
// digits: the first half of SHA-256 over "dpsd event " and the name. An entry
// that tells a fault has that of the fault's code instead, fault.Code.MessageID.
func MessageID(name string) string {
	sum := sha256.Sum256([]byte("dpsd event " + name))
	return hex.EncodeToString(sum[:16])
}
