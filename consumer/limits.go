package consumer

import (
	"net"
	"sync"
	"time"
)

// The limits of a listener. A consumer can exhaust only its own.
const (
	maxConnections = 32
	maxRunning     = 4 // requests at a time
	maxStreams     = 8
	// burst requests are possible immediately, and then one per interval: at most 30 in any minute.
	burst    = 10
	interval = 3 * time.Second
)

// bucket limits the rate of requests. Its zero value is full.
type bucket struct {
	mu sync.Mutex
	// full is when the bucket will be full again.
	full time.Time
}

// take takes a token from the bucket and returns 0, or returns how long the caller must wait
// for one.
func (b *bucket) take(now time.Time) (wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if empty := now.Add(burst * interval); b.full.After(empty) {
		b.full = empty // the clock has been set back
	}
	missing := max(0, b.full.Sub(now))
	if wait = missing - (burst-1)*interval; wait > 0 {
		return wait
	}
	b.full = now.Add(missing + interval)
	return 0
}

// listener limits the number of connections.
type listener struct {
	net.Listener
	// refuse responds to a connection beyond the limit, and closes it.
	refuse func(net.Conn)
	slots  chan struct{} // contains an element for each connection
	open   sync.WaitGroup
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.slots <- struct{}{}:
			l.open.Add(1)
			return &connection{Conn: c, listener: l}, nil
		default:
			l.refuse(c)
		}
	}
}

// connection occupies a slot of its listener until it is closed.
type connection struct {
	net.Conn
	listener *listener
	once     sync.Once
}

// Close implements net.Conn.
func (c *connection) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() {
		<-c.listener.slots
		c.listener.open.Done()
	})
	return err
}
