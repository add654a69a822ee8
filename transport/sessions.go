package transport

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"sync"
)

// sessions is the view that one connection has of a session cache. The sessions of
// different device certificates are separate, because a resumed session authenticates with
// the certificate of its first handshake. A nil *sessions belongs to a Dialer without a
// cache.
type sessions struct {
	cache  tls.ClientSessionCache
	prefix string
	full   bool // cached sessions are removed, not resumed

	mu        sync.Mutex
	keys      []string // keys of the sessions that were offered or stored
	offered   bool
	forgotten bool
}

func newSessions(cache tls.ClientSessionCache, full bool, certificate *tls.Certificate, address string) *sessions {
	if cache == nil {
		return nil
	}
	prefix := address + " "
	if certificate != nil {
		for _, der := range certificate.Certificate {
			sum := sha256.Sum256(der)
			prefix += string(sum[:])
		}
	}
	return &sessions{cache: cache, prefix: prefix, full: full}
}

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) {
	key = s.prefix + key
	if s.full {
		s.cache.Put(key, nil)
		return nil, false
	}
	state, found := s.cache.Get(key)
	if found {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.keys, s.offered = append(s.keys, key), true
	}
	return state, found
}

// Put implements tls.ClientSessionCache. With TLS 1.3, a session may arrive at any time
// after the handshake.
func (s *sessions) Put(key string, state *tls.ClientSessionState) {
	key = s.prefix + key
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.forgotten {
		s.keys = append(s.keys, key)
		s.cache.Put(key, state)
	}
}

// doubtful reports whether an offered session may have caused err, the error of a dial. A
// server that replied to the upgrade has accepted the session.
func (s *sessions) doubtful(err error) bool {
	if s == nil || errors.As(err, new(*UpgradeError)) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offered
}

// forget removes this connection's sessions from the cache and stores no more.
func (s *sessions) forget() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forgotten = true
	for _, key := range s.keys {
		s.cache.Put(key, nil)
	}
}
