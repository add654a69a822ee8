package transport_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/transport"
)

func TestMain(m *testing.M) {
	if target := os.Getenv(targetVariable); target != "" {
		printProxy(target)
		return
	}
	goleak.VerifyTestMain(m)
}

const host = "service.test"

// authority is a certificate authority that uses the clock of the test, in or outside a
// bubble.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	chain       [][]byte // the certificates after a leaf: intermediates, not the root
}

func newAuthority(t testing.TB, parent *authority) *authority {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "test authority " + rand.Text()}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	a := &authority{}
	if parent != nil {
		a.chain = append(a.chain, nil)
	}
	var der []byte
	a.key, der = sign(t, template, parent)
	if parent != nil {
		a.chain[0] = der
	}
	a.certificate = parse(t, der)
	return a
}

func sign(t testing.TB, template *x509.Certificate, by *authority) (*ecdsa.PrivateKey, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	issuer, signer := template, key
	if by != nil {
		issuer, signer = by.certificate, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	return key, der
}

func parse(t testing.TB, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// issue returns a certificate for the host or a device; edit may change it.
func (a *authority) issue(t testing.TB, name string, edit func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	if edit != nil {
		edit(template)
	}
	key, der := sign(t, template, a)
	return tls.Certificate{Certificate: append([][]byte{der}, a.chain...), PrivateKey: key, Leaf: parse(t, der)}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.certificate)
	return pool
}

func (a *authority) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

func write(t testing.TB, name string, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// network connects a Dialer to handlers by the dialled address.
type network struct {
	t        testing.TB
	pipe     bool // use net.Pipe instead of loopback, for a bubble
	handlers map[string]func(net.Conn)

	mu     sync.Mutex
	dialed []string
	conns  []net.Conn
	wg     sync.WaitGroup
}

// newNetwork returns a network. It ends every connection at the end of the test and waits
// for the handlers.
func newNetwork(t testing.TB, pipe bool, handlers map[string]func(net.Conn)) *network {
	n := &network{t: t, pipe: pipe, handlers: handlers}
	t.Cleanup(n.close)
	return n
}

func (n *network) close() {
	n.mu.Lock()
	for _, c := range n.conns {
		c.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

func (n *network) DialContext(ctx context.Context, kind, address string) (net.Conn, error) {
	n.mu.Lock()
	n.dialed = append(n.dialed, address)
	n.mu.Unlock()
	handle := n.handlers[address]
	if handle == nil {
		// A port of loopback on which nothing listens.
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		l.Close()
		return (&net.Dialer{}).DialContext(ctx, kind, l.Addr().String())
	}
	var client, server net.Conn
	if n.pipe {
		client, server = net.Pipe()
	} else {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		defer l.Close()
		if client, err = (&net.Dialer{}).DialContext(ctx, kind, l.Addr().String()); err != nil {
			return nil, err
		}
		if server, err = l.Accept(); err != nil {
			return nil, err
		}
	}
	n.mu.Lock()
	n.conns = append(n.conns, server)
	n.mu.Unlock()
	n.wg.Go(func() {
		defer server.Close()
		handle(server)
	})
	return client, nil
}

func (n *network) addresses() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.dialed...)
}

// secure runs a handler behind TLS.
func secure(config *tls.Config, handle func(*tls.Conn)) func(net.Conn) {
	return func(c net.Conn) {
		s := tls.Server(c, config)
		defer s.Close()
		if s.Handshake() == nil {
			handle(s)
		}
	}
}

func echo(c *tls.Conn) { io.Copy(c, c) }

// hold reads until the peer closes the connection.
func hold[C net.Conn](c C) { io.Copy(io.Discard, c) }

// once is a listener with one connection, for http.Server.
type once struct {
	conn  chan net.Conn
	done  chan struct{}
	close sync.Once
	addr  net.Addr
}

func (l *once) Accept() (net.Conn, error) {
	select {
	case c := <-l.conn:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *once) Close() error   { l.close.Do(func() { close(l.done) }); return nil }
func (l *once) Addr() net.Addr { return l.addr }

// upgraded serves one WebSocket with another library than the tested code.
func upgraded(subprotocols []string, handle func(*websocket.Conn, *http.Request)) func(*tls.Conn) {
	return func(c *tls.Conn) {
		l := &once{conn: make(chan net.Conn, 1), done: make(chan struct{}), addr: c.LocalAddr()}
		l.conn <- c
		server := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				defer l.Close()
				u := websocket.Upgrader{Subprotocols: subprotocols, EnableCompression: true}
				ws, err := u.Upgrade(w, r, nil)
				if err != nil {
					return
				}
				defer ws.Close()
				handle(ws, r)
			}),
			ConnState: func(_ net.Conn, s http.ConnState) {
				if s == http.StateClosed {
					l.Close()
				}
			},
		}
		server.Serve(l)
		server.Close()
	}
}

func echoMessages(ws *websocket.Conn, _ *http.Request) {
	for {
		kind, message, err := ws.ReadMessage()
		if err != nil || ws.WriteMessage(kind, message) != nil {
			return
		}
	}
}

func only(p transport.Protocol) []transport.Protocol { return []transport.Protocol{p} }

// failure expects a Dial with one protocol to fail, and returns its failure.
func failure(t *testing.T, d *transport.Dialer, certificate *tls.Certificate) *transport.Error {
	t.Helper()
	c, err := d.Dial(t.Context(), certificate)
	if err == nil {
		c.Close()
		t.Fatal("the dial succeeded")
	}
	var all transport.Errors
	if !errors.As(err, &all) || len(all) != 1 {
		t.Fatalf("got %v", err)
	}
	return all[0]
}

func dial(t *testing.T, d *transport.Dialer, certificate *tls.Certificate) *transport.Conn {
	t.Helper()
	c, err := d.Dial(t.Context(), certificate)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// exchange dials, sends a byte, receives its echo and closes the connection. A TLS 1.3
// session ticket arrives with the first byte.
func exchange(t *testing.T, d *transport.Dialer, certificate *tls.Certificate) *transport.Conn {
	t.Helper()
	c := dial(t, d, certificate)
	if _, err := c.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	return c
}

// isTimeout reports whether the attempt timed out.
func isTimeout(err error) bool {
	var timeout interface{ Timeout() bool }
	return errors.As(err, new(*transport.TimeoutError)) || errors.As(err, &timeout) && timeout.Timeout()
}
