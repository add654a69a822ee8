package classify

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/transport"
)

func TestAFailureThatTwoProtocolsShareAppearsOnce(t *testing.T) {
	addr := func(s string) *net.TCPAddr { a, _ := net.ResolveTCPAddr("tcp", s); return a }
	refused := func(to string) error {
		return &net.OpError{Op: "dial", Net: "tcp", Addr: addr(to), Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	reset := func(from, to string) error {
		return &net.OpError{Op: "read", Net: "tcp", Source: addr(from), Addr: addr(to), Err: os.NewSyscallError("read", syscall.ECONNRESET)}
	}
	portal := &transport.NotTLSError{First: []byte("HTTP/1.1 302 Found\r\n"), Err: io.EOF}
	early := func(now string) error {
		return x509.CertificateInvalidError{Reason: x509.Expired, Detail: "current time 2026-03-01T" + now + "Z is before 2026-03-02T00:00:00Z"}
	}
	mqtt := func(stage transport.Stage, address string, err error) *transport.Error {
		return &transport.Error{Protocol: transport.MQTT, Stage: stage, Address: address, Err: err}
	}
	websocket := func(stage transport.Stage, address string, err error) *transport.Error {
		return &transport.Error{Protocol: transport.WebSocket, Stage: stage, Address: address, Err: err}
	}
	for _, tt := range []struct {
		name string
		err  transport.Errors
		want string
	}{
		{"one protocol is not shortened",
			transport.Errors{mqtt(transport.StageTCP, "h:8883", refused("192.0.2.7:8883"))},
			"mqtt: tcp h:8883: dial tcp 192.0.2.7:8883: connect: connection refused"},
		{"the same refusal at two ports",
			transport.Errors{mqtt(transport.StageTCP, "h:8883", refused("192.0.2.7:8883")), websocket(transport.StageTCP, "h:443", refused("192.0.2.7:443"))},
			"mqtt: tcp h:8883: dial tcp 192.0.2.7:8883: connect: connection refused; websocket: same error on port 443"},
		{"two addresses of the name are both kept",
			transport.Errors{mqtt(transport.StageTCP, "h:8883", refused("192.0.2.7:8883")), websocket(transport.StageTCP, "h:443", refused("192.0.2.8:443"))},
			"mqtt: tcp h:8883: dial tcp 192.0.2.7:8883: connect: connection refused; websocket: tcp h:443: dial tcp 192.0.2.8:443: connect: connection refused"},
		{"the local port is ignored",
			transport.Errors{
				mqtt(transport.StageTLS, "h:8883", reset("10.0.0.5:40001", "192.0.2.7:8883")),
				websocket(transport.StageTLS, "h:443", reset("10.0.0.5:44312", "192.0.2.7:443"))},
			"mqtt: tls h:8883: read tcp 10.0.0.5:40001->192.0.2.7:8883: read: connection reset by peer; websocket: same error on port 443"},
		{"the local address is not ignored, since it identifies the interface",
			transport.Errors{
				mqtt(transport.StageTLS, "h:8883", reset("10.0.0.5:40001", "192.0.2.7:8883")),
				websocket(transport.StageTLS, "h:443", reset("10.1.0.5:40001", "192.0.2.7:443"))},
			"mqtt: tls h:8883: read tcp 10.0.0.5:40001->192.0.2.7:8883: read: connection reset by peer; websocket: tls h:443: read tcp 10.1.0.5:40001->192.0.2.7:443: read: connection reset by peer"},
		{"the current time is ignored",
			transport.Errors{mqtt(transport.StageTLS, "h:8883", early("07:15:00")), websocket(transport.StageTLS, "h:443", early("07:15:01"))},
			"mqtt: tls h:8883: x509: certificate has expired or is not yet valid: current time 2026-03-01T07:15:00Z is before 2026-03-02T00:00:00Z; websocket: same error on port 443"},
		{"a proxy that does not answer either",
			transport.Errors{mqtt(transport.StageProxy, "p:3128", io.EOF), websocket(transport.StageProxy, "p:3128", io.EOF)},
			"mqtt: proxy p:3128: EOF; websocket: same error"},
		{"a portal on an IPv6 address",
			transport.Errors{mqtt(transport.StageTLS, "[2001:db8::7]:8883", portal), websocket(transport.StageTLS, "[2001:db8::7]:443", portal)},
			`mqtt: tls [2001:db8::7]:8883: the peer does not speak TLS; its reply begins with "HTTP/1.1 302 Found\r\n"; websocket: same error on port 443`},
		{"another stage is another failure",
			transport.Errors{mqtt(transport.StageTCP, "h:8883", io.EOF), websocket(transport.StageTLS, "h:443", io.EOF)},
			"mqtt: tcp h:8883: EOF; websocket: tls h:443: EOF"},
		{"an address without a port equals no other",
			transport.Errors{mqtt(transport.StageTLS, "h", io.EOF), websocket(transport.StageTLS, "h:443", io.EOF)},
			"mqtt: tls h: EOF; websocket: tls h:443: EOF"},
		{"another cause is another failure",
			transport.Errors{mqtt(transport.StageTLS, "h:8883", io.EOF), websocket(transport.StageTLS, "h:443", portal)},
			`mqtt: tls h:8883: EOF; websocket: tls h:443: the peer does not speak TLS; its reply begins with "HTTP/1.1 302 Found\r\n"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := Classify(tt.err)
			if got := f.Err.Error(); got != tt.want {
				t.Errorf("the cause is\n%s\nwant\n%s", got, tt.want)
			}
			if several := transport.Errors(nil); !errors.As(f.Err, &several) || len(several) != len(tt.err) {
				t.Error("the errors themselves are lost")
			}
		})
	}
}

// ended wraps another error or nil.
type ended struct{ why error }

func (e *ended) Error() string { return fmt.Sprintf("it ended: %v", e.why) }
func (e *ended) Unwrap() error { return e.why }

func TestExternalTextIsTruncatedButNotTheTextOfDpsdAroundIt(t *testing.T) {
	text := strings.Repeat("a", 600)
	cut := strings.Repeat("a", 497) + "… (600 bytes)" // 512 bytes
	long := errors.New(text)
	for _, tt := range []struct {
		name string
		err  error
		want string
	}{
		{"a text of 512 bytes is kept", fmt.Errorf("%w, issued by ACME", errors.New(text[:512])), text[:512] + ", issued by ACME"},
		{"a longer one is truncated", fmt.Errorf("%w, issued by ACME", long), cut + ", issued by ACME"},
		{"each of several is truncated", fmt.Errorf("%w, then %w, issued by ACME", long, fmt.Errorf("x%w", long)), cut + ", then x" + cut + ", issued by ACME"},
		{"all of them together have at most 1,536 bytes", fmt.Errorf("%w %w %w %w", long, long, long, long), strings.Repeat(cut+" ", 2) + strings.Repeat("a", 494) + "… (2051 bytes)"},
		{"an error that can wrap another, but does not", &ended{}, "it ended: <nil>"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := Classify(tt.err)
			if got := f.Err.Error(); got != tt.want {
				t.Errorf("the cause is %d bytes:\n%s\nwant\n%s", len(got), got, tt.want)
			}
			if !errors.Is(f.Err, tt.err) {
				t.Error("the error itself is lost")
			}
		})
	}
}

func TestATrackingIDHasAtMost128Bytes(t *testing.T) {
	text := strings.Repeat("4c7e", 50)
	for id, want := range map[string]string{text[:128]: text[:128], text: text[:113] + "… (200 bytes)"} {
		if f := Classify(&dps.ServiceError{Status: 500, TrackingID: id}); f.TrackingID != want {
			t.Errorf("%q has become %q", id, f.TrackingID)
		}
	}
}
