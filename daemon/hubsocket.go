package daemon

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
)

// HubSocket is the listening socket of a local service, such as a *net.UnixListener.
type HubSocket interface {
	net.Listener
	SetDeadline(t time.Time) error
}

// hubSocket is the socket of a local service, with a server for its consumer.
type hubSocket struct {
	HubSocket
	name  string
	usage consumer.Usage

	mu       sync.Mutex
	consumer *consumer.Consumer // nil: the configuration has none with this name
	replace  context.CancelFunc // ends the server; nil: there is none
}

func newHubSockets(listeners map[string]HubSocket) []*hubSocket {
	all := make([]*hubSocket, 0, len(listeners))
	for name, l := range listeners {
		all = append(all, &hubSocket{HubSocket: l, name: name})
	}
	slices.SortFunc(all, func(a, b *hubSocket) int { return strings.Compare(a.name, b.name) })
	return all
}

// configure replaces the server if the consumer has changed. Connected clients must then connect
// again.
func (h *hubSocket) configure(c *consumer.Consumer) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.consumer == c || h.consumer != nil && c != nil && *h.consumer == *c {
		return
	}
	h.consumer = c
	if h.replace != nil {
		h.replace()
	}
}

// next returns the consumer for the next server, and the context of that server.
func (h *hubSocket) next(ctx context.Context) (*consumer.Consumer, context.Context, context.CancelFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	ctx, h.replace = context.WithCancel(ctx)
	return h.consumer, ctx, h.replace
}

// serve runs one server after the other until ctx ends. Then it closes the socket. It calls failed
// with each error of the socket. After an error of accept(2), the server tries again.
func (h *hubSocket) serve(ctx context.Context, server func(*hubSocket, *consumer.Consumer) *consumer.Server, failed func(error)) {
	defer func() { _ = h.Close() }() // systemd keeps the socket open
	for ctx.Err() == nil {
		c, serving, cancel := h.next(ctx)
		s := server(h, c)
		s.Failed = failed
		l := &lease{HubSocket: h.HubSocket}
		err := s.Serve(serving, l)
		_ = l.Close() // a later call has no effect on the next lease
		cancel()
		if err == nil {
			err = h.SetDeadline(time.Time{})
		}
		if err != nil {
			failed(err)
			return
		}
	}
}

// lease is a socket for one server: closing it ends Accept, but the socket stays open for the
// next server.
type lease struct {
	HubSocket
	closing sync.Once
	closed  error
}

func (l *lease) Accept() (net.Conn, error) {
	c, err := l.HubSocket.Accept()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed
	}
	return c, err
}

func (l *lease) Close() error {
	l.closing.Do(func() { l.closed = l.SetDeadline(time.Unix(1, 0)) })
	return l.closed
}
