package main

import (
	"net"
	"sync"
	"time"
)

// distant is the service's end of a connection with a simulated round-trip time: sent data
// arrives half of that time later, in both directions, regardless of the amount of data in
// transit. The TCP handshake uses the loopback interface and takes no time. Therefore the
// first bytes arrive a whole round trip later still.
type distant struct {
	net.Conn
	half time.Duration
	up   chan piece
	down chan piece
	sent chan struct{} // closed when all of down has been sent
	rest piece         // of up, being read

	mu     sync.Mutex
	closed bool
}

// piece is data that arrives together.
type piece struct {
	at   time.Time
	data []byte
	err  error
}

// window is the maximum number of pieces in transit; a registration has fewer.
const window = 1024

func newDistant(conn net.Conn, roundTrip time.Duration) *distant {
	d := &distant{Conn: conn, half: roundTrip / 2, up: make(chan piece, window), down: make(chan piece, window), sent: make(chan struct{})}
	connected := time.Now().Add(roundTrip)
	go func() {
		defer close(d.up)
		for {
			data := make([]byte, 4096)
			n, err := conn.Read(data)
			at := time.Now()
			if at.Before(connected) {
				at = connected
			}
			d.up <- piece{at.Add(d.half), data[:n], err}
			if err != nil {
				return
			}
		}
	}()
	go func() {
		defer close(d.sent)
		for p := range d.down {
			time.Sleep(time.Until(p.at))
			if _, err := conn.Write(p.data); err != nil {
				break
			}
		}
		for range d.down { // the peer has gone
		}
	}()
	return d
}

// Read returns data that has arrived.
func (d *distant) Read(p []byte) (int, error) {
	if len(d.rest.data) == 0 && d.rest.err == nil {
		next, more := <-d.up
		if !more {
			return 0, net.ErrClosed
		}
		time.Sleep(time.Until(next.at))
		d.rest = next
	}
	n := copy(p, d.rest.data)
	d.rest.data = d.rest.data[n:]
	if len(d.rest.data) > 0 {
		return n, nil
	}
	return n, d.rest.err
}

// Write sends p.
func (d *distant) Write(p []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return 0, net.ErrClosed
	}
	d.down <- piece{at: time.Now().Add(d.half), data: append([]byte(nil), p...)}
	return len(p), nil
}

// Close ends the connection when all written data has arrived.
func (d *distant) Close() error {
	d.mu.Lock()
	again := d.closed
	d.closed = true
	d.mu.Unlock()
	if again {
		return net.ErrClosed
	}
	close(d.down)
	<-d.sent
	err := d.Conn.Close()
	for range d.up { // until the reader ends
	}
	return err
}
