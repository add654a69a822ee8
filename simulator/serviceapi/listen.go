package serviceapi

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"sync"
	"sync/atomic"
)

// Listener returns a listener for HTTP whose connections may use TLS or not: SDKs use TLS
// with the simulator's certificate, and a browser need not trust that certificate.
func Listener(l net.Listener, config *tls.Config) net.Listener { return &listener{l, config} }

type listener struct {
	net.Listener
	config *tls.Config
}

// Accept does not wait for the first byte of the connection, so that a slow client does not
// delay the others.
func (l *listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, config: l.config}, nil
}

// conn finds out at its first byte whether the client uses TLS.
type conn struct {
	net.Conn // the TCP connection
	config   *tls.Config

	once   sync.Once
	err    error                    // of the first byte
	stream atomic.Pointer[net.Conn] // what HTTP uses, once the first byte is known
}

// recordHandshake is the first byte of a TLS connection, RFC 8446 5.1.
const recordHandshake = 22

// open waits for the first byte, and returns what HTTP uses.
func (c *conn) open() (net.Conn, error) {
	c.once.Do(func() {
		first := make([]byte, 1)
		if _, c.err = io.ReadFull(c.Conn, first); c.err != nil {
			return
		}
		var stream net.Conn = &prefixed{c.Conn, io.MultiReader(bytes.NewReader(first), c.Conn)}
		if first[0] == recordHandshake {
			stream = tls.Server(stream, c.config)
		}
		c.stream.Store(&stream)
	})
	if c.err != nil {
		return nil, c.err
	}
	return *c.stream.Load(), nil
}

func (c *conn) Read(p []byte) (int, error) {
	stream, err := c.open()
	if err != nil {
		return 0, err
	}
	return stream.Read(p)
}

func (c *conn) Write(p []byte) (int, error) {
	stream, err := c.open()
	if err != nil {
		return 0, err
	}
	return stream.Write(p)
}

// Close ends TLS, if the client uses it, and closes the TCP connection. It does not wait for
// the first byte.
func (c *conn) Close() error {
	if stream := c.stream.Load(); stream != nil {
		return (*stream).Close()
	}
	return c.Conn.Close()
}

// prefixed is a connection whose first bytes were already read.
type prefixed struct {
	net.Conn
	reader io.Reader
}

func (p *prefixed) Read(b []byte) (int, error) { return p.reader.Read(b) }
