package transport

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"net"
	"sync"
	"time"
)

// closeGrace is how long Close tries to say goodbye. On a live connection that takes
// no time; to a peer that reads nothing any more it would take the five seconds of
// crypto/tls.
const closeGrace = 250 * time.Millisecond

// Conn is an open stream to the service. A deadline that expires ends it: TLS and
// WebSocket cannot go on after half a record.
type Conn struct {
	net.Conn

	Protocol Protocol
	Address  string              // host:port as dialled
	Proxy    string              // host:port of the proxy, without user and password; "" for none
	TLS      tls.ConnectionState // of the finished handshake
	Date     time.Time           // by the server's clock, as its answer to the upgrade said; zero when it did not
	// ProxyDate is by the proxy's clock, as its answer to CONNECT said; zero when it did not.
	ProxyDate time.Time

	raw      net.Conn
	sessions *sessions
	close    sync.Once
	err      error
}

// Issuer is who issued the certificate of the server.
func (c *Conn) Issuer() pkix.Name {
	if len(c.TLS.VerifiedChains) == 0 {
		return pkix.Name{}
	}
	return c.TLS.VerifiedChains[0][0].Issuer
}

// Forget forgets the TLS session of this connection: it will not be resumed.
func (c *Conn) Forget() { c.sessions.forget() }

// Close ends the stream. It never waits for the peer, and never longer than a quarter
// of a second; it may be called more than once and while others read or write.
func (c *Conn) Close() error {
	c.close.Do(func() {
		t := time.AfterFunc(closeGrace, func() { _ = c.raw.Close() })
		defer t.Stop()
		c.err = c.Conn.Close()
		// A WebSocket that is closing already returns before its stream has ended.
		_ = c.raw.Close()
	})
	return c.err
}

// LocalAddr returns the address of this end of the TCP connection.
func (c *Conn) LocalAddr() net.Addr { return c.raw.LocalAddr() }

// RemoteAddr returns the address of the other end of the TCP connection, which is
// the proxy's when there is one.
func (c *Conn) RemoteAddr() net.Addr { return c.raw.RemoteAddr() }
