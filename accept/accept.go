// Package accept lets servers continue after errors of accept(2), such as EMFILE: this process
// has no free file descriptor.
package accept

import (
	"errors"
	"net"
	"sync"
	"time"
)

// Without a connection, the wait after an error doubles from firstWait to longestWait.
const (
	firstWait   = 100 * time.Millisecond
	longestWait = 10 * time.Second
)

// Listener is a net.Listener whose Accept waits and tries again after an error, until the
// Listener is closed.
type Listener struct {
	net.Listener
	failed  func(error)
	closing sync.Once
	closed  chan struct{}
}

// New returns a Listener for l. It calls failed, which may be nil, with an error of Accept, and not
// again until a connection has been accepted.
func New(l net.Listener, failed func(error)) *Listener {
	return &Listener{Listener: l, failed: failed, closed: make(chan struct{})}
}

// Accept implements net.Listener. Its error is always that of a closed listener, net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	for wait := firstWait; ; wait = min(2*wait, longestWait) {
		c, err := l.Listener.Accept()
		if err == nil || errors.Is(err, net.ErrClosed) {
			return c, err
		}
		if wait == firstWait && l.failed != nil {
			l.failed(err)
		}
		select {
		case <-time.After(wait):
		case <-l.closed:
			return nil, net.ErrClosed
		}
	}
}

// Close implements net.Listener. It also ends the wait of Accept.
func (l *Listener) Close() error {
	l.closing.Do(func() { close(l.closed) })
	return l.Listener.Close()
}
