package mqttv3

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	firstBytes = 512         // kept of a peer that does not speak MQTT
	lastWords  = time.Second // how long a peer that broke off is listened to
)

// Conn is a net.Conn that speaks MQTT 5 to its user, paho, and MQTT 3.1.1 to the
// server. Every packet of paho, however many pieces it comes in, becomes one
// Write of the connection below: one TLS record, one WebSocket message.
//
// As paho does, a user holds the lock while writing one packet. The first error
// ends the connection; Err keeps it.
type Conn struct {
	net.Conn

	maxPacket    int
	writeTimeout time.Duration

	// Owned by the reader.
	r    *bufio.Reader
	body []byte // of the server's packet
	up   []byte // the packet for paho …
	rest []byte // … and what is still to be read of it

	// lock is held by paho while it writes a packet. It is no mutex because a
	// synthetic clock (testing/synctest) stands still while one is waited for.
	lock chan struct{}
	// Guarded by lock.
	pieces []byte // of paho's packet
	wire   []byte // the packet for the server

	mu    sync.Mutex // guards what follows
	t     transcoder
	quiet chan struct{} // closed when no PUBACK is owed; nil while nobody waits
	err   error
	done  chan struct{}

	// closed is no sync.Once: the second to find an error need not wait until
	// the first has said goodbye to a peer that may be dead.
	closed atomic.Bool
}

// NewConn returns a Conn over inner. A packet above maxPacket bytes in either direction
// is refused; a packet that cannot be written within writeTimeout ends the connection.
func NewConn(inner net.Conn, maxPacket int, writeTimeout time.Duration) *Conn {
	return &Conn{
		Conn:         inner,
		maxPacket:    maxPacket,
		writeTimeout: writeTimeout,
		r:            bufio.NewReader(inner),
		lock:         make(chan struct{}, 1),
		done:         make(chan struct{}),
	}
}

// Lock begins a packet.
func (c *Conn) Lock() { c.lock <- struct{}{} }

// Unlock ends a packet.
func (c *Conn) Unlock() { <-c.lock }

// Done is closed when the connection has ended.
func (c *Conn) Done() <-chan struct{} { return c.done }

// Err returns why the connection ended, nil while it has not.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection at once, without DISCONNECT. It may be called often.
func (c *Conn) Close() error {
	_ = c.fail(ErrClosed)
	return nil
}

// fail ends the connection and returns the reason for it, which is err if
// nothing happened before.
func (c *Conn) fail(err error) error {
	err = c.end(err)
	if c.closed.CompareAndSwap(false, true) {
		_ = c.Conn.Close()
	}
	return err
}

// end is fail without closing: from here on nobody waits for this connection,
// but a DISCONNECT can still be written.
func (c *Conn) end(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
		close(c.done)
	}
	return c.err
}

// Read returns bytes of MQTT 5.
func (c *Conn) Read(b []byte) (int, error) {
	if len(c.rest) == 0 {
		if err := c.fill(); err != nil {
			return 0, c.fail(err)
		}
	}
	n := copy(b, c.rest)
	c.rest = c.rest[n:]
	return n, nil
}

// fill reads one packet of the server and transcodes it.
func (c *Conn) fill() error {
	c.mu.Lock()
	connecting := c.t.phase == phaseConnecting
	c.mu.Unlock()
	if connecting {
		if err := c.expectConnack(); err != nil {
			return err
		}
	}
	first, err := c.r.ReadByte()
	if err != nil {
		return err
	}
	length, err := c.readLength()
	if err != nil {
		return err
	}
	if length > c.maxPacket {
		return fmt.Errorf("%s of %d bytes from the server: %w", kind(first>>4), length, ErrPacketTooLarge)
	}
	c.body = slices.Grow(c.body[:0], length)[:length]
	if _, err := io.ReadFull(c.r, c.body); err != nil {
		return midPacket(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.up, err = c.t.up(c.up[:0], first, c.body)
	c.rest = c.up
	return err
}

// expectConnack looks at the first two bytes before anything is believed about
// what follows: they tell a CONNACK from every other protocol.
func (c *Conn) expectConnack() error {
	for i, ok := range []func(byte) bool{
		func(b byte) bool { return kind(b>>4) == kindConnack },
		func(b byte) bool { return b == 2 },
	} {
		b, err := c.r.Peek(i + 1)
		if err != nil && i > 0 {
			return midPacket(err)
		} else if err != nil {
			return err
		}
		if !ok(b[i]) {
			_ = c.SetReadDeadline(time.Now().Add(lastWords))
			b, _ = c.r.Peek(firstBytes) // what there is; the error does not matter
			return &NotMQTTError{First: bytes.Clone(b)}
		}
	}
	return nil
}

func (c *Conn) readLength() (int, error) {
	b := make([]byte, 0, maxHeader)
	for {
		next, err := c.r.ReadByte()
		if err != nil {
			return 0, midPacket(err)
		}
		b = append(b, next)
		if length, n, err := remainingLength(b); n > 0 {
			return length, err
		}
	}
}

// midPacket names an end that is not between two packets.
func midPacket(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write takes bytes of MQTT 5. The caller holds the lock for a whole packet.
func (c *Conn) Write(b []byte) (int, error) {
	c.pieces = append(c.pieces, b...)
	for len(c.pieces) > 0 {
		length, n, err := remainingLength(c.pieces[1:])
		if err != nil {
			return 0, c.fail(err)
		}
		if n == 0 || len(c.pieces) < 1+n+length {
			break
		}
		if err := c.send(c.pieces[0], c.pieces[1+n:1+n+length]); err != nil {
			return 0, c.fail(err)
		}
		c.pieces = slices.Delete(c.pieces, 0, 1+n+length)
	}
	return len(b), nil
}

// send transcodes one packet and writes it in one piece.
func (c *Conn) send(first byte, body []byte) error {
	c.mu.Lock()
	var err error
	connecting := c.t.phase == phaseNew
	c.wire, err = c.t.down(c.wire[:0], first, body)
	if c.t.owed == 0 && c.quiet != nil {
		close(c.quiet)
		c.quiet = nil
	}
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if len(c.wire) > c.maxPacket {
		return fmt.Errorf("%s of %d bytes: %w", kind(first>>4), len(c.wire), ErrPacketTooLarge)
	}
	_ = c.SetWriteDeadline(time.Now().Add(c.writeTimeout))
	if _, err := c.Conn.Write(c.wire); err != nil {
		if connecting {
			err = c.lastWords(err)
		}
		return err
	}
	return nil
}

// lastWords reads what the server said before it made our CONNECT fail. With TLS
// 1.3 a refused client certificate shows only there, as an alert.
func (c *Conn) lastWords(writeErr error) error {
	_ = c.SetReadDeadline(time.Now().Add(lastWords))
	err := c.fill()
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return writeErr
	}
	return fmt.Errorf("%w, after %w", err, writeErr)
}

// flush waits until every message read has been acknowledged.
func (c *Conn) flush(ctx context.Context) {
	c.mu.Lock()
	if c.t.owed == 0 {
		c.mu.Unlock()
		return
	}
	if c.quiet == nil {
		c.quiet = make(chan struct{})
	}
	quiet := c.quiet
	c.mu.Unlock()
	select {
	case <-quiet:
	case <-ctx.Done():
	case <-c.done:
	}
}

// returnCode is that of a CONNACK that refused the connection, else 0.
func (c *Conn) returnCode() byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t.refused
}
