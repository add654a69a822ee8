package transport

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/foreign"
)

// The limits for external text in an error message, in bytes: for a text of a peer, of
// which a message contains a few, and for a host name of 253 bytes with its port.
const (
	maxText    = 200
	maxAddress = 300
)

// Stage is the step of an attempt in which it failed.
type Stage string

// The stages, in their order.
const (
	StageCA        Stage = "ca"        // reading the configured roots
	StageName      Stage = "name"      // resolving the service's name; *net.DNSError is in the chain
	StageTCP       Stage = "tcp"       // connecting; syscall.Errno is in the chain
	StageProxy     Stage = "proxy"     // resolving, connecting to or using the proxy, including its TLS; a *ProxyError may be in the chain
	StageTLS       Stage = "tls"       // the handshake; *CertificateError, *NotTLSError or an alert are in the chain
	StageWebSocket Stage = "websocket" // the upgrade; an *UpgradeError may be in the chain
	StageHTTP      Stage = "http"      // sending a request over HTTPS, and reading the answer
)

// Error is the failure of one protocol.
type Error struct {
	Protocol Protocol // "" for stage "ca", which all protocols share
	Stage    Stage
	Address  string // the dialled address, or the file for stage "ca"
	Proxy    string // host:port of the proxy, "" for none
	// Remote is the dialled IP address; nil with a proxy or before dialling.
	Remote net.Addr
	Err    error
}

// Error returns the protocol, the stage, the address and the cause.
func (e *Error) Error() string {
	what := fmt.Sprintf("%s %s", e.Stage, foreign.Line(e.Address, maxAddress))
	if e.Protocol != "" {
		what = string(e.Protocol) + ": " + what
	}
	if e.Proxy != "" && e.Proxy != e.Address {
		what += " through proxy " + foreign.Line(e.Proxy, maxAddress)
	}
	return what + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errors are the failures of all protocols that were tried, in order. There is at least
// one.
type Errors []*Error

// Error joins the failures with "; ".
func (e Errors) Error() string {
	texts := make([]string, len(e))
	for i, err := range e {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap returns the failures, for errors.Is and errors.As.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i, err := range e {
		errs[i] = err
	}
	return errs
}

// TimeoutError is an attempt that exceeded its Timeout. Err is the error of the interrupted
// operation.
type TimeoutError struct {
	After time.Duration
	Err   error
}

// Error includes the time-out.
func (e *TimeoutError) Error() string {
	return fmt.Sprintf("timed out after %v (%v)", e.After, e.Err)
}

// Unwrap returns the error of the interrupted operation.
func (e *TimeoutError) Unwrap() error { return e.Err }

// Is makes every time-out match context.DeadlineExceeded, whatever the interrupted
// operation.
func (e *TimeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// ErrProxyExpectsTLS is matched if the proxy of an http:// address replied with TLS or with a
// message that it expects TLS.
var ErrProxyExpectsTLS = errors.New("the proxy expects TLS, but its address begins with http://")

// ProxyError is an unsuccessful reply of a proxy to CONNECT.
type ProxyError struct {
	Status   int      // HTTP status, e.g. 407
	Reason   string   // the proxy's reason phrase
	Schemes  []string // accepted authentication schemes, e.g. "Basic"
	Location string   // target of a redirection, e.g. to a captive portal
}

// Error includes the status and the accepted authentication schemes.
func (e *ProxyError) Error() string {
	s := fmt.Sprintf("the proxy answered %d %s", e.Status, foreign.Line(e.Reason, maxText))
	if len(e.Schemes) > 0 {
		s += " (it accepts " + foreign.Line(strings.Join(e.Schemes, ", "), maxText) + ")"
	}
	if e.Location != "" {
		s += " and redirects to " + foreign.Line(e.Location, maxText)
	}
	return s
}

// UpgradeError is a reply to the WebSocket upgrade that does not open an MQTT WebSocket.
type UpgradeError struct {
	Status      int    // HTTP status; 101 if the upgrade itself was invalid
	Location    string // target of a redirection
	ContentType string // type of the reply, e.g. "text/html; charset=utf-8"
	Reason      string // the problem of a 101
}

// Error includes the status, the content type and the redirection.
func (e *UpgradeError) Error() string {
	s := fmt.Sprintf("the server answered the WebSocket upgrade with status %d", e.Status)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.ContentType != "" {
		s += ", content type " + foreign.Line(e.ContentType, maxText)
	}
	if e.Location != "" {
		s += ", redirection to " + foreign.Line(e.Location, maxText)
	}
	return s
}

// HTML reports whether the reply is an HTML page.
func (e *UpgradeError) HTML() bool {
	kind, _, _ := strings.Cut(e.ContentType, ";")
	return strings.EqualFold(strings.TrimSpace(kind), "text/html")
}

// FrameError is a violation of the WebSocket protocol (RFC 6455) by the server after the
// upgrade. It ends the stream.
type FrameError struct {
	Problem string // the violation
}

// Error includes the violation.
func (e *FrameError) Error() string {
	return "WebSocket protocol violation: " + foreign.Line(e.Problem, maxText)
}

// CertificateError is a failed verification of a peer's certificate. The error of
// crypto/x509 is in its chain.
type CertificateError struct {
	Certificate *x509.Certificate // the peer's unverified certificate
	Host        string            // the expected host
	Err         error
}

// Error includes the reason and the subject and issuer that the certificate states.
func (e *CertificateError) Error() string {
	return fmt.Sprintf(`%v; the certificate is for "%s" and issued by "%s"`, // already escaped
		e.Err, foreign.Line(e.Certificate.Subject.String(), maxText), foreign.Line(e.Certificate.Issuer.String(), maxText))
}

// Unwrap returns the error of crypto/tls.
func (e *CertificateError) Unwrap() error { return e.Err }

// RefusedError is a failure of the handshake after the server's certificate was verified,
// or a later alert of a verified server.
type RefusedError struct {
	Issuer pkix.Name // issuer of the server's certificate
	Host   string    // host of the server's certificate
	// Certificate reports whether the server requested the device certificate in this
	// handshake and received it. Otherwise, an alert says nothing about the certificate.
	Certificate bool
	// Missing reports whether the server requested a certificate and received none.
	Missing bool
	Err     error
}

// Error returns the text of the reason.
func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns the error of crypto/tls.
func (e *RefusedError) Unwrap() error { return e.Err }

// Named reports whether the certificate is for the expected host, so that only its issuer
// is in doubt.
func (e *CertificateError) Named() bool { return e.Certificate.VerifyHostname(e.Host) == nil }

// NotTLSError is a reply that does not begin with a TLS record.
type NotTLSError struct {
	First []byte // up to 256 of the peer's first bytes
	Err   error
}

// Error includes the beginning of the reply.
func (e *NotTLSError) Error() string {
	return fmt.Sprintf("the peer does not speak TLS; its reply begins with %q", e.First[:min(len(e.First), 32)])
}

// Unwrap returns the error of the handshake.
func (e *NotTLSError) Unwrap() error { return e.Err }

// HTTP reports whether the peer replied with HTTP, as captive portals do. Some send only
// the page.
func (e *NotTLSError) HTTP() bool {
	first := strings.ToLower(strings.TrimSpace(string(e.First)))
	return slices.ContainsFunc([]string{"http/", "<!doctype html", "<html"}, func(begin string) bool { return strings.HasPrefix(first, begin) })
}

// RemoteAlert finds a TLS alert of the server in err and returns its description, e.g.
// "tls: bad certificate". crypto/tls has no exported type for it. RemoteAlert also works on
// the error of a later read: with TLS 1.3, the rejection of a client certificate appears
// only there.
func RemoteAlert(err error) (description string, ok bool) {
	if op, is := errors.AsType[*net.OpError](err); is && op.Op == "remote error" && op.Err != nil {
		return op.Err.Error(), true
	}
	return "", false
}
