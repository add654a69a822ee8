package consumer

import (
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"
)

// Problem is the body of an answer that is not a success.
type Problem struct {
	Code   Code    `json:"code"`
	Error  string  `json:"error"`             // a sentence
	Advice string  `json:"advice,omitempty"`  // what the consumer or its administrator can do
	In     float64 `json:"retryIn,omitempty"` // seconds after which the request may succeed
	// Message repeats Error on the socket of a Server with a Handler, for programs that were
	// written for another interface; "" on the others.
	Message string `json:"message,omitempty"`
}

// Code is the stable code of a Problem. A Reason is also a Code.
type Code string

// The codes, apart from the reasons of State.Withheld.
const (
	BadRequest            Code = "bad-request" // the HTTP request or its body is malformed
	LifetimeOutOfRange    Code = "lifetime-out-of-range"
	CodeUnknown           Code = "code-unknown" // the code of a report does not exist
	CertificateNotAllowed Code = "certificate-not-allowed"
	UnknownPath           Code = "unknown-path"
	WrongMethod           Code = "wrong-method"
	NoSymmetricKey        Code = "no-symmetric-key"
	NoCertificate         Code = "no-certificate"
	ProfileWithoutTokens  Code = "profile-without-tokens"
	BodyTooLarge          Code = "body-too-large"
	TooManyRequests       Code = "too-many-requests" // too high a rate
	TooManyAtOnce         Code = "too-many-at-once"  // concurrent requests, streams or connections
	ModuleNotReady        Code = "module-not-ready"
	KeyUnavailable        Code = "key-unavailable"
	ReportsUnavailable    Code = "reports-unavailable"
	NotConfigured         Code = "not-configured"
)

// problem is a Problem with its HTTP status and the time to wait.
type problem struct {
	Problem
	status int
	wait   time.Duration // 0: the consumer must not repeat the request
}

// badRequest returns a problem with the request itself.
func badRequest(text, advice string) *problem {
	return &problem{Problem: Problem{Code: BadRequest, Error: text, Advice: advice}, status: http.StatusBadRequest}
}

// notYet returns a temporary problem.
func notYet(code Code, text, advice string) *problem {
	return &problem{Problem: Problem{Code: code, Error: text, Advice: advice}, status: http.StatusServiceUnavailable, wait: soon}
}

// soon is how long a consumer should wait before it repeats a request that cannot succeed yet. A
// consumer that follows GET /v1/events need not wait that long.
const soon = 10 * time.Second

// limit returns the problem of a request that exceeds a limit.
func limit(code Code, text string, wait time.Duration) *problem {
	return &problem{Problem: Problem{Code: code, Error: text}, status: http.StatusTooManyRequests, wait: wait}
}

// notConfigured is the answer to each request on a socket without a consumer.
var notConfigured = &problem{Problem: Problem{
	Code: NotConfigured, Error: "dpsd.toml has no [[consumer]] for this socket",
	Advice: "add one with the name of the socket, and run: systemctl reload dpsd",
}, status: http.StatusForbidden}

// withheld returns the problem for a value of State.Withheld, or nil for "".
func withheld(reason Reason) *problem {
	switch reason {
	case "":
		return nil
	case NotAssigned:
		return notYet(Code(reason), "DPS has not assigned this device to a hub yet", "wait until GET /v1/events sends the event available; for the cause, run: dpsd status")
	case OtherConfiguration:
		return notYet(Code(reason), "DPS has not confirmed the assignment for the current configuration of dpsd yet",
			"wait until GET /v1/events sends the event available; for the cause, run: dpsd status")
	case ClockImplausible:
		return notYet(Code(reason), "the clock of this device is implausible, so the hub would reject a token", "set the clock, or wait until it is synchronized")
	}
	return notYet(Code(reason), "dpsd currently issues no credentials", "run: dpsd status")
}

// send sends the answer to a request.
func send(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // a token contains ampersands
	_ = encoder.Encode(body)     // the client may have closed the connection
}

// send sends the problem.
func (p *problem) send(w http.ResponseWriter) {
	body := p.Problem
	if p.wait > 0 {
		body.In = math.Ceil(p.wait.Seconds())
		w.Header().Set("Retry-After", strconv.FormatFloat(body.In, 'f', 0, 64))
	}
	send(w, p.status, body)
}

// raw returns the problem as a complete HTTP response, which announces the end of the connection.
func (p *problem) raw() []byte {
	p.In = math.Ceil(p.wait.Seconds())
	body, _ := json.Marshal(p.Problem) // cannot fail
	return fmt.Appendf(nil, "HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nConnection: close\r\nRetry-After: %.0f\r\nContent-Length: %d\r\n\r\n%s",
		p.status, http.StatusText(p.status), math.Ceil(p.wait.Seconds()), len(body), body)
}
