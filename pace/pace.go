// Package pace is the one place that computes how long dpsd waits before it asks the
// service: after a fault, after a boot, after a change of the network, and between regular
// registrations. The protocol's own waits (Retry-After between polls, the response
// time-out) are deadlines of dps.Registration.
//
// It is pure: what happened, what was counted and the random source are arguments.
// So the daemon and the rehearsal of a whole fleet (package fleet) wait by the same
// code.
package pace

import (
	"cmp"
	"math/rand/v2"
	"time"

	"github.com/dpsd-project/dpsd/fault"
)

// Retry holds the delays of the [retry] table. The zero value of a field
// stands for the documented default.
type Retry struct {
	Initial        time.Duration // first transient delay; default 1 s
	Max            time.Duration // longest transient delay; default 5 min
	OfflineMax     time.Duration // longest delay while there is no route; default 10 s
	RefusedInitial time.Duration // first delay after a refusal; default 30 s
	RefusedMax     time.Duration // longest delay after refusals; default 1 h

	// Spread bounds the jitter after a 429: it is multiplied by the number of those in
	// a row, up to SpreadMax. Who is throttled cannot know how many others are; how often
	// it was turned away is the only measure of it. The defaults, 30 s and an hour, were
	// chosen by rehearsal, see docs/performance.md; dpsd.toml has no keys for them.
	Spread, SpreadMax time.Duration

	// While the transient waits add up to less than Early, EarlyMax bounds those after a
	// failed connection: nothing reached the service. While the refused waits add up to
	// less than RefusedEarly, RefusedEarlyMax bounds them. Neither makes a wait shorter
	// than Initial or RefusedInitial. The defaults, 20 s in the first 2 min and 90 s in the
	// first 10 min, were chosen by rehearsal too.
	Early, EarlyMax, RefusedEarly, RefusedEarlyMax time.Duration
}

// Lane is the pace at which dpsd tries again.
type Lane string

// The lanes.
const (
	LaneNext      Lane = "next-credential" // at once, with the next credential
	LaneOffline   Lane = "offline"         // quick: such an attempt sends nothing
	LaneTransient Lane = "transient"       // doubling from Initial to Max
	LaneThrottled Lane = "throttled"       // as the service asks, and spread
	LaneRefused   Lane = "refused"         // slow: a person has to change something
)

// withDefaults returns r with the default of each field that is not set.
func (r Retry) withDefaults() Retry {
	return Retry{
		Initial:         cmp.Or(r.Initial, time.Second),
		Max:             cmp.Or(r.Max, 5*time.Minute),
		OfflineMax:      cmp.Or(r.OfflineMax, 10*time.Second),
		RefusedInitial:  cmp.Or(r.RefusedInitial, 30*time.Second),
		RefusedMax:      cmp.Or(r.RefusedMax, time.Hour),
		Spread:          cmp.Or(r.Spread, 30*time.Second),
		SpreadMax:       cmp.Or(r.SpreadMax, time.Hour),
		Early:           cmp.Or(r.Early, 2*time.Minute),
		EarlyMax:        cmp.Or(r.EarlyMax, 20*time.Second),
		RefusedEarly:    cmp.Or(r.RefusedEarly, 10*time.Minute),
		RefusedEarlyMax: cmp.Or(r.RefusedEarlyMax, 90*time.Second),
	}
}

// History counts the faults of each lane since the last success. A fault of
// one lane leaves the others as they are: hours without a route must not make
// the first attempt after them slow.
type History struct {
	offline, transient, throttled, refused uint32        // a century of attempts
	transientFor, refusedFor               time.Duration // the waits so far; above Early and RefusedEarly only the last
}

// After returns the wait after fault f and its lane, and counts f. more says
// that another credential of this round is left. The service's Retry-After is
// a floor in every lane, and jitter only adds to it.
func (r Retry) After(f fault.Fault, more bool, h *History, random *rand.Rand) (time.Duration, Lane) {
	r = r.withDefaults()
	var wait, jitter time.Duration
	var lane Lane
	switch f.Class {
	case fault.Credential, fault.Input:
		if more && (f.Class == fault.Credential || f.Stage == fault.StageCredential) {
			return f.RetryAfter, LaneNext
		}
		wait, lane = r.refused(h, random), LaneRefused
	case fault.Enrollment, fault.Clock, fault.Configuration:
		wait, lane = r.refused(h, random), LaneRefused
	case fault.Offline:
		d := doubled(r.Initial, r.OfflineMax, &h.offline)
		wait, lane = upperHalf(d, random), LaneOffline
	case fault.Throttling:
		h.throttled++
		spread := min(r.Spread*time.Duration(h.throttled), r.SpreadMax)
		wait, jitter, lane = r.Initial, upTo(spread, random), LaneThrottled
	default:
		d := r.transient(f, h)
		wait, lane = upperHalf(d, random), LaneTransient
		h.transientFor = min(h.transientFor, r.Early) + wait
		if f.RetryAfter > 0 {
			jitter = upTo(d, random)
		}
	}
	return max(wait, f.RetryAfter) + jitter, lane
}

// transient is exponential. At first it stays short after a failed connection.
func (r Retry) transient(f fault.Fault, h *History) time.Duration {
	if unconnected(f) && h.transientFor < r.Early {
		return early(r.Initial, min(r.Max, r.EarlyMax), &h.transient)
	}
	return doubled(r.Initial, r.Max, &h.transient)
}

// unconnected reports whether an attempt ended before anything reached the service.
func unconnected(f fault.Fault) bool {
	return f.Class == fault.Transient &&
		(f.Stage == fault.StageName || f.Stage == fault.StageTCP || f.Code == fault.ProxyUnreachable)
}

// refused is exponential with a quarter of jitter to either side. At first it stays
// short: people correct what they have just set up.
func (r Retry) refused(h *History, random *rand.Rand) time.Duration {
	var d time.Duration
	if h.refusedFor < r.RefusedEarly {
		d = early(r.RefusedInitial, min(r.RefusedMax, r.RefusedEarlyMax), &h.refused)
	} else {
		d = doubled(r.RefusedInitial, r.RefusedMax, &h.refused)
	}
	wait := d*3/4 + upTo(d/2, random)
	h.refusedFor = min(h.refusedFor, r.RefusedEarly) + wait
	return wait
}

// early is doubled, but does not count a delay that the limit has cut: the doubling
// goes on from there later. The limit never makes the first delay shorter.
func early(first, limit time.Duration, n *uint32) time.Duration {
	limit = max(first, limit)
	before := *n
	d := doubled(first, limit, n)
	if d == limit {
		*n = before
	}
	return d
}

// Boot is the delay before the first contact, of [provisioning] boot_delay_max.
func Boot(limit time.Duration, random *rand.Rand) time.Duration { return upTo(limit, random) }

// Regular is the time until the next registration of [provisioning] interval:
// up to a tenth early, so that a fleet does not keep the step of its start.
func Regular(interval time.Duration, random *rand.Rand) time.Duration {
	return interval - upTo(interval/10, random)
}

// NetworkChanged is the delay after a change of the network. Gateways behind one switch
// see the same change.
func NetworkChanged(random *rand.Rand) time.Duration { return upTo(2*time.Second, random) }

// doubled returns first doubled *n times, at most limit, and counts.
func doubled(first, limit time.Duration, n *uint32) time.Duration {
	d := min(first, limit)
	for range *n {
		if d == limit {
			break
		}
		d = min(2*d, limit)
	}
	*n++
	return d
}

// upperHalf draws from [d/2, d].
func upperHalf(d time.Duration, random *rand.Rand) time.Duration {
	return d/2 + upTo(d-d/2, random)
}

// upTo draws from [0, d]. For 0 it draws nothing.
func upTo(d time.Duration, random *rand.Rand) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(random.Int64N(int64(d) + 1))
}
