package dps

import (
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// ErrNoReply is matched by the error of a request that received no reply within the
// response time-out.
var ErrNoReply = errors.New("dps: no reply")

// ErrNotReply is returned for a message whose topic is not a reply topic of the service.
var ErrNotReply = errors.New("dps: not a reply from DPS")

// ErrPayload is matched by the error for a request payload that is not a JSON object or is
// too large for the service.
var ErrPayload = errors.New("dps: unusable payload")

// MalformedError describes a reply that cannot be used: its JSON is truncated or ambiguous,
// a required member is missing, or a member has a value that must not be published.
type MalformedError struct {
	Request    string        // the request it answers; "" when ParseReply was called directly
	Reason     string        // a short description of the problem
	Topic      string        // as received
	RetryAfter time.Duration // the topic's retry-after; 0 when absent or unreadable
}

// Error returns the reason and the topic, which is made safe to print.
func (e *MalformedError) Error() string {
	request := "reply"
	if e.Request != "" {
		request = "reply to the " + e.Request + " request"
	}
	return fmt.Sprintf("dps: malformed %s: %s (topic %q)", request, e.Reason, clean(e.Topic, 256))
}

// ServiceError is a rejection by the service: an error reply, or an operation that ended
// without an assignment.
type ServiceError struct {
	Request    string // RequestRegister or RequestPoll
	Status     int    // the number in the topic, 100..599
	Code       int    // errorCode of the body, e.g. 401002; 0 when absent
	TrackingID string // identifies the request to Microsoft's support
	Message    string // the service's message, at most 1 KiB and without control characters
	// RegistrationStatus is "failed", "disabled" or "unassigned" when the operation ended
	// with that status, and "" for an error reply. In the first case, Code and Message
	// describe the operation and may come from a hub or from a custom allocation function:
	// they say nothing about the credential of the device.
	RegistrationStatus string
	RetryAfter         time.Duration // the requested delay, at most a day; 0 when absent or unreadable
}

// Error returns what an operator needs: the request, status, code, message and tracking ID.
func (e *ServiceError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "DPS answered the %s request with %d", e.Request, e.Status)
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

// Throttled reports whether the service asks for fewer requests (status 429).
func (e *ServiceError) Throttled() bool { return e.rejected() && e.Status == 429 }

// Temporary reports whether the same request may succeed later without intervention: the
// request was throttled, or the service failed (500 and above).
func (e *ServiceError) Temporary() bool {
	return e.rejected() && (e.Status == 429 || e.Status >= 500)
}

// Unauthorized reports whether the service rejected the credential (status 401).
func (e *ServiceError) Unauthorized() bool {
	return e.rejected() && e.Status == 401 && !e.OperationLost()
}

// NotFound reports whether the service has no enrollment for this device: a register
// request was answered with status 404.
func (e *ServiceError) NotFound() bool {
	return e.rejected() && e.Status == 404 && e.Request != RequestPoll
}

// OperationLost reports whether the service does not know the polled operation: the poll
// was answered with status 404, or with an errorCode of that kind (404203 has been observed
// with another status). This says nothing about the enrollment; the next register request
// starts a new operation.
func (e *ServiceError) OperationLost() bool {
	return e.rejected() && e.Request == RequestPoll &&
		(e.Status == 404 || e.Status < 500 && e.Code/1000 == 404)
}

// Disabled reports whether the enrollment is disabled.
func (e *ServiceError) Disabled() bool { return e.RegistrationStatus == statusDisabled }

// AllocationFailed reports whether the service accepted the device but did not assign a
// hub: the operation ended as failed or unassigned.
func (e *ServiceError) AllocationFailed() bool {
	return e.RegistrationStatus == statusFailed || e.RegistrationStatus == statusUnassigned
}

// rejected reports whether the service rejected the request itself, so that the topic's
// status is the result.
func (e *ServiceError) rejected() bool { return e.RegistrationStatus == "" }

// clean makes external text safe for a log line: valid UTF-8 without control characters,
// truncated to limit bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = strings.ToValidUTF8(s[:limit], "") + "…" // removes a truncated character
	}
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Zl, unicode.Zp) {
			return ' '
		}
		return r
	}, s)
}
