package transport_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/transport"
)

// asked serves one request with the answer, and returns the request's bytes on the channel.
func asked(answer string) (func(*tls.Conn), <-chan string) {
	received := make(chan string, 1)
	return func(c *tls.Conn) {
		var text strings.Builder
		r, err := http.ReadRequest(bufio.NewReader(io.TeeReader(c, &text)))
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
		received <- text.String()
		_, _ = io.WriteString(c, answer)
	}, received
}

func TestARequestOverHTTPSIsSentOnAVerifiedConnectionOfItsOwn(t *testing.T) {
	root, devices := newAuthority(t, nil), newAuthority(t, nil)
	certificate := devices.issue(t, "device", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		handle, received := asked("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Y: z\r\n\r\n2\r\n[]\r\n0\r\n\r\n")
		config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, MinVersion: version, MaxVersion: version,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: devices.pool(), NextProtos: []string{"h2", "http/1.1"}}
		protocol := ""
		n := newNetwork(t, false, map[string]func(net.Conn){
			webAddress: secure(config, func(c *tls.Conn) { protocol = c.ConnectionState().NegotiatedProtocol; handle(c) }),
		})
		// The ports and protocols are those of DPS, and do not concern the hub.
		d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), WebSocketPort: 8443, Roots: root.pool(), DialContext: n.DialContext}
		answer, err := d.Do(t.Context(), &certificate, transport.Request{
			Method: http.MethodPut, Target: "/devices/a%24b/modules/m?api-version=1", Header: http.Header{"Authorization": {"token"}}, Body: []byte(`{"a":1}`),
		})
		if err != nil {
			t.Fatal(err)
		}
		if answer.Status != 200 || string(answer.Body) != "[]" || answer.Header.Get("X-Y") != "z" {
			t.Errorf("got %+v", answer)
		}
		want := "PUT /devices/a%24b/modules/m?api-version=1 HTTP/1.1\r\nHost: " + host + "\r\nUser-Agent: dpsd\r\nConnection: close\r\n" +
			"Content-Length: 7\r\nAuthorization: token\r\n\r\n" + `{"a":1}`
		if got := <-received; got != want {
			t.Errorf("%s: sent %q, want %q", tls.VersionName(version), got, want)
		}
		if protocol != "" {
			t.Errorf("negotiated %q", protocol)
		}
		if _, err := d.Do(t.Context(), nil, transport.Request{Method: http.MethodGet, Target: "/"}); err == nil {
			t.Error("the server requires the certificate")
		}
		distrusting := *d
		distrusting.Roots = devices.pool()
		var e *transport.Error
		if _, err := distrusting.Do(t.Context(), &certificate, transport.Request{Method: http.MethodGet, Target: "/"}); !errors.As(err, &e) || e.Stage != transport.StageTLS {
			t.Errorf("the authority is not trusted: %v", err)
		}
	}
}

func TestARequestOverHTTPSUsesTheProxyOfTheDialer(t *testing.T) {
	root := newAuthority(t, nil)
	handle, received := asked("HTTP/1.1 204 No Content\r\n\r\n")
	n := newNetwork(t, false, nil)
	n.handlers = map[string]func(net.Conn){
		webAddress:   secure(&tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}, handle),
		proxyAddress: proxy(n, nil, "HTTP/1.1 200 OK\r\n\r\n"),
	}
	d := &transport.Dialer{Host: host, Roots: root.pool(), DialContext: n.DialContext, Proxy: through("http://" + proxyAddress)}
	answer, err := d.Do(t.Context(), nil, transport.Request{Method: http.MethodDelete, Target: "/x"})
	if err != nil || answer.Status != 204 {
		t.Fatalf("got %v, %v", answer, err)
	}
	if got := <-received; strings.Contains(got, "Content-Length") {
		t.Errorf("a request without a body has no length: %q", got)
	}
	if n.addresses()[0] != proxyAddress {
		t.Errorf("dialled %q", n.addresses())
	}
}

func TestABadAnswerOverHTTPSIsAnErrorOfTheStageHTTP(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	for _, tt := range []struct{ name, answer, text string }{
		{"another protocol", "\x20\x02\x00\x05\r\n\r\n", "malformed HTTP"},
		{"the end of the connection", "", "EOF"},
		{"a truncated body", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n[", "unexpected EOF"},
		{"a body without end", "HTTP/1.1 200 OK\r\n\r\n" + strings.Repeat("x", 300<<10), "more than 262144 bytes"},
		{"a header without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 100), "more than 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			handle, _ := asked(tt.answer)
			n := newNetwork(t, false, map[string]func(net.Conn){webAddress: secure(config, handle)})
			d := &transport.Dialer{Host: host, Roots: root.pool(), DialContext: n.DialContext}
			_, err := d.Do(t.Context(), nil, transport.Request{Method: http.MethodGet, Target: "/"})
			var all transport.Errors
			if !errors.As(err, &all) || all[0].Stage != transport.StageHTTP || all[0].Protocol != transport.HTTPS || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("a redirection is not followed", func(t *testing.T) {
		handle, _ := asked("HTTP/1.1 302 Found\r\nLocation: https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n")
		n := newNetwork(t, false, map[string]func(net.Conn){webAddress: secure(config, handle)})
		d := &transport.Dialer{Host: host, Roots: root.pool(), DialContext: n.DialContext}
		answer, err := d.Do(t.Context(), nil, transport.Request{Method: http.MethodGet, Target: "/"})
		if err != nil || answer.Status != 302 || len(n.addresses()) != 1 {
			t.Errorf("got %v, %v, dialled %q", answer, err, n.addresses())
		}
	})
	t.Run("a target that is not one", func(t *testing.T) {
		d := &transport.Dialer{Host: host}
		for _, target := range []string{"", "x", "/\r\nX: y"} {
			if _, err := d.Do(t.Context(), nil, transport.Request{Method: http.MethodGet, Target: target}); err == nil {
				t.Errorf("%q was sent", target)
			}
		}
	})
}

func TestASilentServerEndsARequestOverHTTPSAfterTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		root := newAuthority(t, nil)
		n := newNetwork(t, true, map[string]func(net.Conn){
			webAddress: secure(&tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}, hold),
		})
		d := &transport.Dialer{Host: host, Roots: root.pool(), DialContext: n.DialContext, Timeout: 7 * time.Second}
		began := time.Now()
		_, err := d.Do(t.Context(), nil, transport.Request{Method: http.MethodGet, Target: "/"})
		if took := time.Since(began); !isTimeout(err) || took != 7*time.Second {
			t.Errorf("after %v: %v", took, err)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(os.ErrProcessDone) })
		if _, err := d.Do(ctx, nil, transport.Request{Method: http.MethodGet, Target: "/"}); !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("got %v", err)
		}
		n.close()
	})
}

func TestDialWithTheProtocolHTTPSMakesOnlyTheHandshake(t *testing.T) {
	root := newAuthority(t, nil)
	first := make(chan int, 1)
	n := newNetwork(t, false, map[string]func(net.Conn){
		webAddress: secure(&tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}, func(c *tls.Conn) {
			read, _ := c.Read(make([]byte, 1))
			first <- read
		}),
	})
	d := &transport.Dialer{Host: host, Protocols: only(transport.HTTPS), Roots: root.pool(), DialContext: n.DialContext}
	dial(t, d, nil).Close()
	if read := <-first; read != 0 {
		t.Errorf("%d bytes were sent after the handshake", read)
	}
}
