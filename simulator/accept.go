package simulator

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"
)

func (s *Server) accept(l net.Listener, protocol string) error {
	mine := &listener{l, protocol}
	defer func() { _ = mine.Close() }()
	s.mu.Lock()
	if s.ended() {
		s.mu.Unlock()
		return nil
	}
	s.listeners = append(s.listeners, mine)
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	for reported := false; ; {
		conn, err := mine.Accept()
		switch {
		case err == nil:
			s.wg.Go(func() { s.serve(conn, protocol) })
		case s.ended():
			return nil
		case s.Refuses(protocol):
			if err := s.reopen(mine); err != nil {
				return err
			}
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
			if !reported { // report it once, not for every device
				s.onError(fmt.Errorf("cannot accept more connections: %w; raise the limit with ulimit -n or LimitNOFILE=", err))
			}
			reported = true
			pause(50*time.Millisecond, s.done) // descriptors become free when devices disconnect
		case errors.Is(err, syscall.ECONNABORTED): // aborted before it was accepted
		default:
			return err
		}
	}
}

// listener is a listener that a rule with Refuse can close for some time.
type listener struct {
	net.Listener
	protocol string
}

// refuse closes the listeners of a protocol for some time.
func (s *Server) refuse(protocol string, d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.refused[protocol] = time.Now().Add(d)
	for _, l := range s.listeners {
		if l.protocol == protocol {
			_ = l.Close()
		}
	}
}

// Refuses reports whether a rule with Refuse currently keeps the listener of a protocol
// ("mqtt" or "websocket") closed. It is for callers that connect without a listener:
// ServeMQTT and ServeWebSocket drop such a connection without logging it.
func (s *Server) Refuses(protocol string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusing(protocol) > 0
}

// refusing returns how much longer a protocol is refused. The caller holds s.mu.
func (s *Server) refusing(protocol string) time.Duration {
	return time.Until(s.refused[protocol])
}

// reopen listens again at the same address when the time has passed.
func (s *Server) reopen(l *listener) error {
	s.mu.Lock()
	left := s.refusing(l.protocol)
	s.mu.Unlock()
	pause(left, s.done)
	for !s.ended() {
		again, err := net.Listen(l.Addr().Network(), l.Addr().String())
		if err == nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.ended() {
				return again.Close()
			}
			l.Listener = again
			return nil
		}
		if !errors.Is(err, syscall.EADDRINUSE) {
			return err
		}
		pause(50*time.Millisecond, s.done)
	}
	return nil
}
