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
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.listeners = append(s.listeners, mine)
	s.wg.Add(1)
	s.mu.Unlock()
	defer s.wg.Done()
	for told := false; ; {
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
			if !told { // at the limit it would be said for every device
				s.onError(fmt.Errorf("cannot accept more connections: %w: see ulimit -n, LimitNOFILE=", err))
			}
			told = true
			pause(50*time.Millisecond, s.done) // descriptors come free when devices leave
		case errors.Is(err, syscall.ECONNABORTED): // gone before it was taken
		default:
			return err
		}
	}
}

// listener is one that a rule with Refuse can close for a while.
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

// Refuses tells whether a rule with Refuse keeps the listener of a protocol
// ("mqtt" or "websocket") closed at the moment. It is for who connects without
// a listener: ServeMQTT and ServeWebSocket drop such a connection unseen.
func (s *Server) Refuses(protocol string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusing(protocol) > 0
}

// refusing is how long a protocol is still refused; s.mu is held.
func (s *Server) refusing(protocol string) time.Duration {
	return time.Until(s.refused[protocol])
}

// reopen listens again at the same address when the time has come.
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
			if s.closed {
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
