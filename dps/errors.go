package dps

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// ErrNoReply is matched by the error of a request that went unanswered for the
// response time-out.
var ErrNoReply = errors.New("dps: no reply")

// ErrNotReply is returned for a message whose topic is none of the service's
// replies.
var ErrNotReply = errors.New("dps: not a reply of the service")

// ErrPayload is matched by the error for a request payload that is no JSON object,
// or one too large for the service.
var ErrPayload = errors.New("dps: unusable payload")

// MalformedError is a reply that cannot be used: its JSON is cut or ambiguous, it
// lacks what it must hold, or it holds what must not be published.
type MalformedError struct {
	Request    string        // the request it answers; "" when ParseReply stands alone
	Reason     string        // what is wrong, in a few words
	Topic      string        // as received
	RetryAfter time.Duration // what the topic asked for; 0 when absent or unreadable
}

// Error gives the reason, and the topic made safe to print.
func (e *MalformedError) Error() string {
	request := "reply"
	if e.Request != "" {
		request = "reply to the " + e.Request + " request"
	}
	return fmt.Sprintf("dps: malformed %s: %s (topic %q)", request, e.Reason, clean(e.Topic, 256))
}

// ServiceError is the service saying no, either by an error reply or by an
// operation that ended without an assignment.
type ServiceError struct {
	Request    string // RequestRegister or RequestPoll
	Status     int    // the number in the topic, 100..599
	Code       int    // errorCode of the body, e.g. 401002; 0 when absent
	TrackingID string // what the service's support asks for
	Message    string // the service's words, cut to 1 KiB and without control characters
	// RegistrationStatus is "failed", "disabled" or "unassigned" when the operation
	// ended so, and "" for an error reply. Then Code and Message are those of the
	// operation, which may be the words of a hub or of a custom allocation function:
	// they say nothing about the credential of the device.
	RegistrationStatus string
	RetryAfter         time.Duration // what the service asked for, up to a day; 0 when absent or unreadable
}

// Error gives what an operator needs: request, status, code, words, tracking ID.
func (e *ServiceError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "dps: the %s request was answered %d", e.Request, e.Status)
	if e.RegistrationStatus != "" {
		b.WriteString(" " + e.RegistrationStatus)
	}
	if e.Code != 0 {
		fmt.Fprintf(&b, ", error %d", e.Code)
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %s", clean(e.Message, 300)) // with the rest, within 512 bytes
	}
	if e.TrackingID != "" {
		fmt.Fprintf(&b, " (tracking ID %s)", clean(e.TrackingID, 128))
	}
	return b.String()
}

// Throttled reports that the service asks for fewer requests: status 429.
func (e *ServiceError) Throttled() bool { return e.rejected() && e.Status == 429 }

// Temporary reports that the same request may succeed later without anybody's
// help: throttled, or trouble on the service's side (500 and above).
func (e *ServiceError) Temporary() bool {
	return e.rejected() && (e.Status == 429 || e.Status >= 500)
}

// Unauthorized reports that the credential was refused: status 401.
func (e *ServiceError) Unauthorized() bool {
	return e.rejected() && e.Status == 401 && !e.OperationLost()
}

// NotFound reports that the service knows no enrollment for this device: a
// register request answered 404.
func (e *ServiceError) NotFound() bool {
	return e.rejected() && e.Status == 404 && e.Request != RequestPoll
}

// OperationLost reports that the service does not know the operation asked about:
// a poll answered 404, or answered with an errorCode of that kind (404203 has been
// seen under another status). It says nothing about the enrollment; registering
// again starts over.
func (e *ServiceError) OperationLost() bool {
	return e.rejected() && e.Request == RequestPoll &&
		(e.Status == 404 || e.Status < 500 && e.Code/1000 == 404)
}

// Disabled reports that the enrollment is switched off.
func (e *ServiceError) Disabled() bool { return e.RegistrationStatus == statusDisabled }

// AllocationFailed reports that the service accepted the device and then gave it
// no hub: the operation ended as failed or unassigned.
func (e *ServiceError) AllocationFailed() bool {
	return e.RegistrationStatus == statusFailed || e.RegistrationStatus == statusUnassigned
}

// rejected reports that the topic's number is the verdict, not an operation's end.
func (e *ServiceError) rejected() bool { return e.RegistrationStatus == "" }

// clean makes foreign text fit for a log line: no control characters, valid UTF-8, cut
// to limit bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…" // without half a character
	}
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) {
			return ' '
		}
		return r
	}, s)
}
