package daemon

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
)

// This file ends waits that the network may have caused, once the network has changed.

// surroundings is the state of the network at the last attempt.
type surroundings struct {
	destinations []netip.Addr // that the last failure named
	state        string       // Network's, when the last attempt began, or since then
	due          time.Time    // of the next check; zero: the network has not caused a wait
}

// noteNetwork notes the state of the network before an attempt uses it, so that a change
// during the attempt is not missed.
func (s *supervisor) noteNetwork() {
	s.network.due = time.Time{}
	if s.Network != nil {
		s.network.state = s.Network(s.network.destinations)
	}
}

// suspectNetwork schedules checks of the network during the wait after fault f, if the
// network may have caused it. err is the error that f names.
func (s *supervisor) suspectNetwork(f fault.Fault, err error, now time.Time) {
	if s.Network == nil || !ofNetwork(f) {
		return
	}
	if to := destinations(err); !slices.Equal(to, s.network.destinations) {
		s.network.destinations, s.network.state = to, s.Network(to)
	}
	s.network.due = now.Add(networkEvery)
}

// checkNetwork ends the wait if the network has changed.
func (s *supervisor) checkNetwork(now time.Time) {
	s.network.due = now.Add(networkEvery)
	state := s.Network(s.network.destinations)
	if state == s.network.state {
		return
	}
	s.network.state = state
	before := s.schedule.due
	s.request(s.schedule.afterChange(now.Add(settle+pace.NetworkChanged(s.random))), "the network has changed")
	if s.schedule.due != before {
		s.log(event.NetworkChanged, zap.Duration("attemptIn", s.schedule.due.Sub(now)))
		s.waiting(now, lastFault(s.failures.last))
	}
}

// ofNetwork reports whether another route, address or resolver may help against f: it
// happened on the way to the service, and the service did not ask for a wait.
func ofNetwork(f fault.Fault) bool {
	if f.RetryAfter > 0 {
		return false
	}
	switch f.Class {
	case fault.Offline, fault.Interception:
		return true
	case fault.Transient:
		switch f.Stage {
		case fault.StageName, fault.StageTCP, fault.StageProxy, fault.StageTLS, fault.StageWebSocket:
			return true
		}
		return f.Code == fault.ConnectionLost || f.Code == fault.NoReply
	}
	return false
}

// destinations are the addresses that err says something about, each once: peers, and
// name servers.
func destinations(err error) []netip.Addr {
	var all []netip.Addr
	add := func(address string) {
		if to, e := netip.ParseAddrPort(address); e == nil {
			addr := to.Addr().Unmap()
			if i, found := slices.BinarySearchFunc(all, addr, netip.Addr.Compare); !found {
				all = slices.Insert(all, i, addr)
			}
		}
	}
	var visit func(error)
	visit = func(err error) {
		switch e := err.(type) { //nolint:errorlint // each error of the tree is visited
		case *net.OpError:
			if e.Addr != nil {
				add(e.Addr.String())
			}
		case *net.DNSError:
			add(e.Server)
		}
		switch e := err.(type) { //nolint:errorlint // likewise
		case interface{ Unwrap() []error }:
			for _, one := range e.Unwrap() {
				visit(one)
			}
		default:
			if one := errors.Unwrap(err); one != nil {
				visit(one)
			}
		}
	}
	visit(err)
	return all
}
