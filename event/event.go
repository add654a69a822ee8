// Package event defines the events that dpsd logs. Each event has a stable name; the
// catalogue defines its priority, its message and its text for journalctl -x. Callers log a
// name and fields, but no text.
package event

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
)

// The events, in the order in which they occur. Names never change, since users search
// journals for them.
const (
	Started         = "started"
	ClockNotWatched = "clock-not-watched"
	WatchFailed     = "watch-failed"
	NotifyFailed    = "notify-failed"
	StateNotice     = "state-notice"
	ControlFailed   = "control-failed"

	ConfigurationDoubtful = "configuration-doubtful"

	ConsumerWithoutSocket = "consumer-without-socket"
	ConsumerNotConfigured = "consumer-not-configured"
	ConsumerFailed        = "consumer-failed"
	ConsumerKeyFailed     = "consumer-key-failed"
	ModuleCreated         = "module-created"
	ModuleRemoved         = "module-removed"

	Published                    = "published"
	RecordOfAnotherConfiguration = "record-of-another-configuration"

	Phase                  = "phase"
	CertificateNotValidNow = "certificate-not-valid-now"
	Connected              = "connected"
	ResumptionFailed       = "resumption-failed"
	Waiting                = "waiting"
	FloorNotKept           = "floor-not-kept"
	Fault                  = "fault"
	CertificateRequested   = "certificate-requested"
	CertificateIssued      = "certificate-issued"
	Assigned               = "assigned"
	ConfirmationNotKept    = "confirmation-not-kept"
	TransportNotKept       = "transport-not-kept"
	AttemptNotRecorded     = "attempt-not-recorded"
	MetricsNotWritten      = "metrics-not-written"

	FilesChanged       = "files-changed"
	ClockStepped       = "clock-stepped"
	NetworkChanged     = "network-changed"
	AskedFor           = "asked-for"
	HubRefuses         = "hub-refuses"
	HubChecked         = "hub-checked"
	RefusalsNotKept    = "refusals-not-kept"
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

// Priority is a syslog priority, as in the journal.
type Priority int

// The priorities that dpsd uses.
const (
	Error   Priority = 3 // the operator must act, or dpsd is defective
	Warning Priority = 4 // an operation failed; dpsd continues automatically
	Notice  Priority = 5 // milestones of a gateway
	Info    Priority = 6 // other information
	Debug   Priority = 7 // steps of an attempt, and repeated entries
)

func (p Priority) String() string {
	return map[Priority]string{Error: "err", Warning: "warning", Notice: "notice", Info: "info", Debug: "debug"}[p]
}

// Entry describes an event.
type Entry struct {
	Name     string
	Priority Priority
	// Sentence is the template of MESSAGE. {field} is replaced by a value. A part in square
	// brackets is omitted if a value in it is empty or zero, so the sentence cannot contain
	// the name of a TOML table.
	Sentence string
	// Meaning explains the event to an operator, in one line.
	Meaning string
	// Same lists the fields that identify a repetition: an entry with the same values
	// repeats an earlier one.
	Same []string
}

// Catalogue returns every event, in the order in which they occur.
func Catalogue() []Entry { return slices.Clone(catalogue) }

// Describe returns the entry of an event, and whether there is one.
func Describe(name string) (Entry, bool) {
	if i := slices.IndexFunc(catalogue, func(e Entry) bool { return e.Name == name }); i >= 0 {
		return catalogue[i], true
	}
	return Entry{}, false
}

// MessageID returns the MESSAGE_ID of the event's journal entries, 32 hexadecimal digits:
// the first half of SHA-256 over "dpsd event " and the name. An entry about a fault has the
// ID of the fault's code instead, see fault.Code.MessageID.
func MessageID(name string) string {
	sum := sha256.Sum256([]byte("dpsd event " + name))
	return hex.EncodeToString(sum[:16])
}
