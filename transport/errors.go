package transport

import (
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/foreign"
)

// The bounds of what others have written in a message, in bytes: a text of a peer, of
// which a message holds a few, and a host name of 253 with its port.
const (
	maxText    = 200
	maxAddress = 300
)

// Stage is how far an attempt came before it failed.
type Stage string

// The stages, in the order they are passed.
const (
	StageCA        Stage = "ca"        // reading the configured roots
	StageName      Stage = "name"      // resolving the service's name; *net.DNSError is in the chain
	StageTCP       Stage = "tcp"       // connecting; syscall.Errno is in the chain
	StageProxy     Stage = "proxy"     // finding, reaching or passing the proxy, its own TLS too; maybe *ProxyError
	StageTLS       Stage = "tls"       // the handshake; *CertificateError, *NotTLSError or an alert are in the chain
	StageWebSocket Stage = "websocket" // the upgrade; maybe *UpgradeError
)

// Error is one protocol that led to no stream.
type Error struct {
	Protocol Protocol // "" with stage "ca", which all protocols share
	Stage    Stage
	Address  string // what was dialled, or the file of stage "ca"
	Proxy    string // host:port of the proxy, "" for none
	// Remote is the address that Address has led to, when it was dialled; nil with a proxy.
	Remote net.Addr
	Err    error
}

// Error says what was tried, where it ended and why.
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

// Timeout reports whether the attempt ended because something did not answer in
// time.
func (e *Error) Timeout() bool {
	var t interface{ Timeout() bool }
	return errors.As(e.Err, &t) && t.Timeout()
}

// Errors are the failures of all protocols tried, in order. There is at least one.
type Errors []*Error

// Error joins the failures with "; ".
func (e Errors) Error() string {
	var b strings.Builder
	for i, err := range e {
		if i > 0 {
			b.WriteString("; ")
		}
		b.WriteString(err.Error())
	}
	return b.String()
}

// Unwrap lets errors.Is and errors.As look into each failure.
func (e Errors) Unwrap() []error {
	errs := make([]error, len(e))
	for i := range e {
		errs[i] = e[i]
	}
	return errs
}

// TimeoutError is an attempt that its Timeout ended. Err is what was under way.
type TimeoutError struct {
	After time.Duration
	Err   error
}

// Error says how long was waited.
func (e *TimeoutError) Error() string {
	return fmt.Sprintf("no success within %v (%v)", e.After, e.Err)
}

// Unwrap returns what was under way when the time was over.
func (e *TimeoutError) Unwrap() error { return e.Err }

// Is makes every time-out match context.DeadlineExceeded, whatever was under way.
func (e *TimeoutError) Is(target error) bool { return target == context.DeadlineExceeded }

// Timeout returns true.
func (e *TimeoutError) Timeout() bool { return true }

// ErrProxyWantsTLS is matched when the proxy of an http:// address answered in TLS, or said
// that it expects TLS.
var ErrProxyWantsTLS = errors.New("the proxy expects TLS, but its address begins with http://")

// ProxyError is a proxy that answered CONNECT, but not with success.
type ProxyError struct {
	Status   int      // HTTP status, e.g. 407
	Reason   string   // the proxy's words for it
	Schemes  []string // what it accepts as authentication, e.g. "Basic"
	Location string   // where it redirects to; a portal does
}

// Error gives the status and what the proxy would accept as authentication.
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

// UpgradeError is a server that answered the WebSocket upgrade, but not with an MQTT
// WebSocket.
type UpgradeError struct {
	Status      int    // HTTP status; 101 when the upgrade itself was wrong
	Location    string // where it redirects to
	ContentType string // what came in place of the upgrade, e.g. "text/html; charset=utf-8"
	Reason      string // what was wrong with a 101
}

// Error gives the status, what came with it and the redirection.
func (e *UpgradeError) Error() string {
	s := fmt.Sprintf("the WebSocket upgrade was answered %d", e.Status)
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.ContentType != "" {
		s += " with " + foreign.Line(e.ContentType, maxText)
	}
	if e.Location != "" {
		s += ", redirecting to " + foreign.Line(e.Location, maxText)
	}
	return s
}

// HTML reports whether a page for people came in place of the upgrade.
func (e *UpgradeError) HTML() bool {
	kind, _, _ := strings.Cut(e.ContentType, ";")
	return strings.EqualFold(strings.TrimSpace(kind), "text/html")
}

// FrameError is a server that breaks the rules of WebSocket (RFC 6455) after the upgrade.
// The stream has ended then.
type FrameError struct {
	Problem string // what is wrong with the frame
}

// Error says what is wrong.
func (e *FrameError) Error() string {
	return "WebSocket protocol violation: " + foreign.Line(e.Problem, maxText)
}

// CertificateError is a peer whose certificate could not be verified. The reason, an
// error of crypto/x509, is in its chain.
type CertificateError struct {
	Certificate *x509.Certificate // the peer's own; nobody vouches for what it says
	Host        string            // whose it should have been
	Err         error
}

// Error gives the reason, and who the peer is by its own account.
func (e *CertificateError) Error() string {
	return fmt.Sprintf(`%v; it is for "%s" and issued by "%s"`, // already escaped
		e.Err, foreign.Line(e.Certificate.Subject.String(), maxText), foreign.Line(e.Certificate.Issuer.String(), maxText))
}

// Unwrap returns the error of crypto/tls.
func (e *CertificateError) Unwrap() error { return e.Err }

// RefusedError is a handshake that failed after the server's certificate was
// verified, or an alert that a verified server sent later.
type RefusedError struct {
	Issuer pkix.Name // of the server's certificate
	Host   string    // whose the certificate is
	// Certificate tells that the server had asked for the device certificate in this
	// handshake and was shown it. Without that, an alert says nothing about it.
	Certificate bool
	// Missing tells that the server had asked for a certificate and was shown none.
	Missing bool
	Err     error
}

// Error gives the reason.
func (e *RefusedError) Error() string { return e.Err.Error() }

// Unwrap returns the error of crypto/tls.
func (e *RefusedError) Unwrap() error { return e.Err }

// Named reports whether the certificate is for the host that was asked for, so that
// only its issuer is in doubt.
func (e *CertificateError) Named() bool { return e.Certificate.VerifyHostname(e.Host) == nil }

// NotTLSError is a peer whose first bytes are no TLS record. tls.RecordHeaderError
// is in its chain.
type NotTLSError struct {
	First []byte // what it sent first, up to 256 bytes
	Err   error
}

// Error shows how the answer begins.
func (e *NotTLSError) Error() string {
	return fmt.Sprintf("the peer does not speak TLS, its answer begins %q", e.First[:min(len(e.First), 32)])
}

// Unwrap returns the error of crypto/tls.
func (e *NotTLSError) Unwrap() error { return e.Err }

// HTTP reports whether the peer answered in HTTP, as a captive portal does. Some send
// the page alone.
func (e *NotTLSError) HTTP() bool {
	first := strings.ToLower(strings.TrimSpace(string(e.First)))
	for _, begin := range []string{"http/", "<!doctype html", "<html"} {
		if strings.HasPrefix(first, begin) {
			return true
		}
	}
	return false
}

// RemoteAlert finds a TLS alert sent by the server in err, and returns its words,
// e.g. "tls: bad certificate". crypto/tls has no exported type for it. It also works
// on the error of a later read: under TLS 1.3 a refused client certificate shows
// only there.
func RemoteAlert(err error) (description string, ok bool) {
	var op *net.OpError
	if errors.As(err, &op) && op.Op == "remote error" && op.Err != nil {
		return op.Err.Error(), true
	}
	return "", false
}
