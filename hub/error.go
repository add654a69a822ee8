package hub

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/foreign"
)

// maxRetryAfter limits the wait that a hub asks for, as for DPS.
const maxRetryAfter = 24 * time.Hour

// Error is an answer of a hub over HTTPS that is not a success. Its texts are cleaned and
// bounded.
type Error struct {
	Status     int    // HTTP status
	Code       int    // six digits, such as 404001; 0: the hub did not say
	Message    string // of the hub; it may be ""
	TrackingID string // identifies the request to Microsoft's support; it may be ""
	// RetryAfter is the wait that the hub asks for, at most a day, or 0.
	RetryAfter time.Duration
}

// Error returns the status, the code and the message in one line.
func (e *Error) Error() string {
	s := fmt.Sprintf("the hub answered with status %d", e.Status)
	if e.Code != 0 {
		s += fmt.Sprintf(", errorCode %d", e.Code)
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	if e.TrackingID != "" {
		s += " (tracking ID " + e.TrackingID + ")"
	}
	return s
}

// errorBody has the members of a hub's error. In the older form, the names have upper-case initials,
// and the texts contain the code and the tracking ID. encoding/json ignores case.
type errorBody struct {
	ErrorCode        json.RawMessage `json:"errorCode"`
	Message          string          `json:"message"`
	ErrorMessage     string          `json:"errorMessage"`
	ExceptionMessage string          `json:"exceptionMessage"`
	TrackingID       string          `json:"trackingId"`
}

// Expressions for the texts of a hub. They are compiled when they are used, because errors are rare
// and a compiled expression takes memory.
const (
	inText   = `(?i)tracking ?ID: ?([0-9A-Za-z]{8,64}(?:-G:[0-9]{1,4})?)`
	sixDigit = `\b[45][0-9]{5}\b`
)

// ParseError returns the Error of a response, given its status, the value of its header Retry-After,
// and its body, which need not come from a hub. A wait that is not a number of seconds is ignored.
func ParseError(status int, retryAfter string, body []byte) *Error {
	e := &Error{Status: status}
	if s, err := strconv.ParseUint(strings.TrimSpace(retryAfter), 10, 31); err == nil {
		e.RetryAfter = min(time.Duration(s)*time.Second, maxRetryAfter)
	}
	var b errorBody
	if json.Unmarshal(body, &b) != nil {
		return e
	}
	var nested errorBody // some messages are such a document themselves
	if json.Unmarshal([]byte(b.Message), &nested) == nil && (nested.Message != "" || nested.ErrorCode != nil) {
		b = nested
	}
	e.Code = sixDigits(string(b.ErrorCode), status)
	if e.Code == 0 {
		e.Code = sixDigits(regexp.MustCompile(sixDigit).FindString(b.Message), status)
	}
	e.TrackingID = b.TrackingID
	if found := regexp.MustCompile(inText).FindStringSubmatch(b.ExceptionMessage + " " + b.Message); e.TrackingID == "" && found != nil {
		e.TrackingID = found[1]
	}
	e.TrackingID = foreign.Line(e.TrackingID, 128)
	e.Message = foreign.Line(cmp.Or(b.Message, b.ErrorMessage), foreign.MaxText)
	return e
}

// sixDigits returns the code in a text if it belongs to the status, or 0.
func sixDigits(text string, status int) int {
	code, err := strconv.Atoi(strings.Trim(text, `"`))
	if err != nil || code/1000 != status {
		return 0
	}
	return code
}
