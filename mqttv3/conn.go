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
	firstBytes = 512         // kept from a peer that does not speak MQTT
	finalRead  = time.Second // time limit for reading after a write of CONNECT failed
)

// Conn is a net.Conn that speaks MQTT 5 to its user, paho, and MQTT 3.1.1 to the server.
// Conn sends every packet that paho writes, in however many pieces, with one Write of the
// underlying connection: one TLS record, one WebSocket message.
//
// Like paho, a user holds the lock while writing a packet. The first error ends the
// connection; Err returns it.
type Conn struct {
	net.Conn

	maxPacket    int
	writeTimeout time.Duration

	// Used only by the reader.
	r    *bufio.Reader
	body []byte // body of the server's packet
	up   []byte // the packet for paho
	rest []byte // the part of up that paho has not read yet

	// lock is held by paho while it writes a packet. It is a channel because the synthetic
	// clock of testing/synctest does not advance while a goroutine waits for a mutex.
	lock chan struct{}
	// Guarded by lock.
	pieces []byte // the bytes of paho's packet so far
	wire   []byte // the packet for the server

	mu    sync.Mutex // guards the following fields
	t     transcoder
	quiet chan struct{} // closed when no PUBACK is pending; nil without a waiter
	err   error
	done  chan struct{}

	// closed is not a sync.Once: a second caller does not wait while the first closes the
	// connection to a peer that may be dead.
	closed atomic.Bool
}

// NewConn returns a Conn over inner. It rejects packets of more than maxPacket bytes in
// either direction. A packet that cannot be written within writeTimeout ends the
// connection.
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

// Err returns why the connection ended, or nil while it is open.
func (c *Conn) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Close ends the connection immediately, without DISCONNECT. It may be called more than
// once.
func (c *Conn) Close() error {
	_ = c.fail(ErrClosed)
	return nil
}

// fail ends the connection and returns the reason, which is err unless the connection had
// already ended.
func (c *Conn) fail(err error) error {
	err = c.end(err)
	if c.closed.CompareAndSwap(false, true) {
		_ = c.Conn.Close()
	}
	return err
}

// end is fail without closing: pending calls end, but a DISCONNECT can still be written.
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

// fill reads a packet of the server and transcodes it.
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

// expectConnack checks the first two bytes, which distinguish a CONNACK from every other
// protocol, before the rest is parsed.
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
			_ = c.SetReadDeadline(time.Now().Add(finalRead))
			b, _ = c.r.Peek(firstBytes) // as many as there are, despite an error
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

// midPacket converts an EOF within a packet.
func midPacket(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Write writes bytes of MQTT 5. The caller holds the lock for a whole packet.
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

// send transcodes a packet and writes it with one Write.
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
			err = c.finalError(err)
		}
		return err
	}
	return nil
}

// finalError reads the server's last bytes after writing CONNECT failed. With TLS 1.3, a
// rejected client certificate is visible only there, as an alert.
func (c *Conn) finalError(writeErr error) error {
	_ = c.SetReadDeadline(time.Now().Add(finalRead))
	err := c.fill()
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return writeErr
	}
	return fmt.Errorf("%w, after %w", err, writeErr)
}

// flush waits until all received messages have been acknowledged.
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

// returnCode returns the code of a CONNACK that refused the connection, or 0.
func (c *Conn) returnCode() byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t.refused
}
