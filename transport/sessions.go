package transport

import (
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"sync"
)

// sessions are what one connection sees of a cache. Those of one device certificate are
// kept apart from those of others: a resumed session is that of the certificate which
// was shown when it began. A nil *sessions is that of a Dialer without a cache.
type sessions struct {
	cache  tls.ClientSessionCache
	prefix string
	afresh bool // a session that is there is forgotten, not resumed

	mu        sync.Mutex
	keys      []string // of the sessions offered or remembered
	offered   bool
	forgotten bool
}

func newSessions(cache tls.ClientSessionCache, afresh bool, certificate *tls.Certificate, address string) *sessions {
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
	return &sessions{cache: cache, prefix: prefix, afresh: afresh}
}

// Get implements tls.ClientSessionCache.
func (s *sessions) Get(key string) (*tls.ClientSessionState, bool) {
	key = s.prefix + key
	if s.afresh {
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

// Put implements tls.ClientSessionCache. Under TLS 1.3 a session arrives at any time
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

// doubtful reports whether err, with which a dial ended, may come of a session that was
// offered. A server that has answered the upgrade understands the session.
func (s *sessions) doubtful(err error) bool {
	if s == nil || errors.As(err, new(*UpgradeError)) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.offered
}

// forget takes this connection's sessions out of the cache, and lets no more into it.
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
