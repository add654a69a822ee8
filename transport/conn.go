package transport

import (
	"crypto/tls"
	"crypto/x509/pkix"
	"net"
	"sync"
	"time"
)

// closeGrace is how long Close tries to send close_notify. On a live connection, this takes
// no time; with a peer that no longer reads, crypto/tls would wait five seconds.
const closeGrace = 250 * time.Millisecond

// Conn is an open stream to the service. An expired deadline ends the stream: TLS and
// WebSocket cannot continue after a partial record.
type Conn struct {
	net.Conn

	Protocol Protocol
	Address  string              // host:port as dialled
	Proxy    string              // host:port of the proxy, without user name and password; "" for none
	TLS      tls.ConnectionState // of the finished handshake
	Date     time.Time           // Date header of the server's reply to the upgrade; zero if there was none
	// ProxyDate is the Date header of the proxy's reply to CONNECT; zero if there was none.
	ProxyDate time.Time

	raw      net.Conn
	sessions *sessions
	close    sync.Once
	err      error
}

// Issuer returns the issuer of the server's certificate.
func (c *Conn) Issuer() pkix.Name {
	if len(c.TLS.VerifiedChains) == 0 {
		return pkix.Name{}
	}
	return c.TLS.VerifiedChains[0][0].Issuer
}

// Forget removes the TLS session of this connection from the cache, so that it is not
// resumed.
func (c *Conn) Forget() { c.sessions.forget() }

// Close ends the stream. It does not wait for the peer and takes at most a quarter of a
// second. It may be called more than once, and concurrently with reads and writes.
func (c *Conn) Close() error {
	c.close.Do(func() {
		t := time.AfterFunc(closeGrace, func() { _ = c.raw.Close() })
		defer t.Stop()
		c.err = c.Conn.Close()
		// Closing a WebSocket a second time returns before its stream has ended.
		_ = c.raw.Close()
	})
	return c.err
}
