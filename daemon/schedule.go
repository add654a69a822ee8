package daemon

import (
	"time"

	"github.com/dpsd-project/dpsd/pace"
)

// whyRequested is the reason for a registration that a client of the control socket requests.
const whyRequested = "requested"

// schedule says when the next attempt is due, and why.
type schedule struct {
	due    time.Time // zero: nothing asks for an attempt
	why    string    // the reason for due, or for wanted
	lane   pace.Lane // the retry class of the fault that caused the wait; "": no fault did
	wanted time.Time // what was asked for while an attempt was running

	// forced is when the last registration that a person or a program asked for was, or is,
	// due.
	forced time.Time
	// reached is when the last attempt began that did not end at a file of this gateway.
	reached time.Time
}

// set replaces what is due.
func (s *schedule) set(due time.Time, why string) { s.due, s.why = due, why }

// request asks for an attempt at the given time, unless an earlier one is due. While an
// attempt is running, the request waits for its end. The attempt keeps the minimum that
// Retry-After sets, whatever asked for it.
func (s *schedule) request(at time.Time, why string, running bool) {
	next := &s.due
	if running {
		next = &s.wanted
	}
	if next.IsZero() || at.Before(*next) {
		*next, s.why = at, why
	}
}

// requested takes over what was asked for while the last attempt was running.
func (s *schedule) requested() {
	if !s.wanted.IsZero() {
		s.request(s.afterChange(s.wanted), s.why, false)
	}
}

// force returns when a registration requested now may start: requests within
// forcedGap become one.
func (s *schedule) force(now time.Time) time.Time {
	if !s.forced.After(now) {
		at := now
		if !s.forced.IsZero() {
			at = later(now, s.forced.Add(forcedGap))
		}
		s.forced = at
	}
	return s.forced
}

// restart schedules the first attempt with new settings, after the attempt with the old
// ones has ended.
func (s *schedule) restart(now time.Time) {
	at := s.wanted
	if !at.Equal(s.forced) { // a changed file asks for it, and not a person
		at = s.afterChange(at)
	}
	s.due = later(now, at)
}

// afterChange is the earliest time, from at on, for an attempt because of a changed file or
// network.
func (s *schedule) afterChange(at time.Time) time.Time { return later(at, s.reached.Add(changeGap)) }

// isDue reports whether something is due; the zero time is not.
func isDue(due, now time.Time) bool { return !due.IsZero() && !due.After(now) }

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
