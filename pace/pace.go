// Package pace computes how long dpsd waits before it contacts the service: after a fault,
// after a boot, after a network change, and between regular registrations. The delays of
// the protocol (Retry-After between polls, the response time-out) are deadlines of
// dps.Registration.
//
// The package is pure: the fault, the history and the random source are arguments. The
// daemon and the simulation of a whole fleet (package fleet) therefore share its code.
package pace

import (
	"cmp"
	"math/rand/v2"
	"time"

	"github.com/dpsd-project/dpsd/fault"
)

// Retry holds the delays of the [retry] table. A zero field means the documented default.
type Retry struct {
	Initial        time.Duration // first transient delay; default 1 s
	Max            time.Duration // longest transient delay; default 5 min
	OfflineMax     time.Duration // longest delay while there is no route; default 10 s
	RefusedInitial time.Duration // first delay after a refusal; default 30 s
	RefusedMax     time.Duration // longest delay after refusals; default 1 h

	// Spread limits the jitter after a 429: it is multiplied by the number of 429s since
	// the last success, up to SpreadMax. A throttled gateway does not know how many others
	// are throttled; the number of 429s is its only measure. The defaults, 30 s and 1 h,
	// result from simulations, see docs/performance.md; dpsd.toml has no keys for them.
	Spread, SpreadMax time.Duration

	// While the sum of the transient waits is less than Early, EarlyMax limits the waits
	// after a failed connection, since nothing reached the service. While the sum of the
	// refused waits is less than RefusedEarly, RefusedEarlyMax limits them. Neither makes a
	// wait shorter than Initial or RefusedInitial. The defaults, 20 s in the first 2 min
	// and 90 s in the first 10 min, also result from simulations.
	Early, EarlyMax, RefusedEarly, RefusedEarlyMax time.Duration
}

// Lane is a retry class: it determines how soon dpsd tries again.
type Lane string

// The retry classes.
const (
	LaneNext      Lane = "next-credential" // immediately, with the next credential
	LaneOffline   Lane = "offline"         // short delays: such an attempt sends nothing
	LaneTransient Lane = "transient"       // doubling from Initial to Max
	LaneThrottled Lane = "throttled"       // the service's Retry-After, with jitter
	LaneRefused   Lane = "refused"         // long delays: the operator must change something
)

// withDefaults returns r with defaults for the fields that are not set.
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

// History counts the faults of each retry class since the last success. A fault of one
// class does not affect the others: after hours without a route, the first retry is not
// delayed.
type History struct {
	offline, transient, throttled, refused uint32        // enough for a century of attempts
	transientFor, refusedFor               time.Duration // sum of the waits; once above Early or RefusedEarly, no longer exact
	hardwareFor                            time.Duration // sum of the waits for a TPM or a signer; once above HardwareGrace, no longer exact
}

// HardwareGrace is how long dpsd waits for a TPM or a signer that is not available before it uses
// the next credential. At a boot, most of them appear earlier.
const HardwareGrace = 30 * time.Second

// After returns the wait after fault f and its retry class, and counts f. more reports that
// this cycle has another credential. The service's Retry-After is the minimum in every
// class, and jitter only adds to it.
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
		if more && Hardware(f) && h.hardwareFor >= HardwareGrace {
			return f.RetryAfter, LaneNext
		}
		d := r.transient(f, h)
		wait, lane = upperHalf(d, random), LaneTransient
		if Hardware(f) {
			h.hardwareFor = min(h.hardwareFor, HardwareGrace) + wait
		}
		h.transientFor = min(h.transientFor, r.Early) + wait
		if f.RetryAfter > 0 {
			jitter = upTo(d, random)
		}
	}
	return max(wait, f.RetryAfter) + jitter, lane
}

// Hardware reports whether f means that the TPM or the signer that holds the key of a credential is
// not available.
func Hardware(f fault.Fault) bool {
	return f.Stage != fault.StageCertificate && (f.Code == fault.TPMUnavailable || f.Code == fault.SignerFailed)
}

// transient returns an exponential delay. After a failed connection, it is limited at
// first.
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

// refused returns an exponential delay with a jitter of a quarter in both directions. The
// delay is limited at first, while users correct a new installation.
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

// early is like doubled, but does not count a delay that the limit reduced, so that
// doubling continues from there later. The limit never reduces the first delay.
func early(first, limit time.Duration, n *uint32) time.Duration {
	limit = max(first, limit)
	before := *n
	d := doubled(first, limit, n)
	if d == limit {
		*n = before
	}
	return d
}

// RequestGap is the minimum time between two certificate requests, each of which makes the
// service issue a certificate, unless the first one failed and no certificate is valid.
const RequestGap = time.Hour

// Renewal returns the minimum delay after a failed renewal of a certificate that remains valid
// for the time left: RequestGap, or less if the certificate expires before.
func Renewal(left time.Duration) time.Duration { return min(RequestGap, max(0, left)) }

// WithoutRequest returns the delay of a registration without a certificate request after the
// service has refused one with it: the shortest one, or the service's Retry-After.
func (r Retry) WithoutRequest(f fault.Fault) time.Duration {
	return max(r.withDefaults().Initial, f.RetryAfter)
}

// Unanswered returns the delay of the next certificate request after the service has answered
// none of several: that of a refusal. The registration before it, which contains no request,
// is due after the given time.
func (r Retry) Unanswered(registration time.Duration, h *History, random *rand.Rand) time.Duration {
	return max(r.withDefaults().refused(h, random), registration+time.Second)
}

// Boot returns the delay before the first contact, up to [provisioning] boot_delay_max.
func Boot(limit time.Duration, random *rand.Rand) time.Duration { return upTo(limit, random) }

// HubCheck returns the random delay of a check of the hub, up to refusal.Spread: all gateways of a
// fleet see the same hub fail at the same time.
func HubCheck(limit time.Duration, random *rand.Rand) time.Duration { return upTo(limit, random) }

// Regular returns the time until the next regular registration: [provisioning] interval
// minus up to a tenth, so that the gateways of a fleet do not stay synchronized.
func Regular(interval time.Duration, random *rand.Rand) time.Duration {
	return interval - upTo(interval/10, random)
}

// NetworkChanged returns the delay after a network change. It spreads gateways behind one
// switch, which see the same change.
func NetworkChanged(random *rand.Rand) time.Duration { return upTo(2*time.Second, random) }

// doubled returns first doubled *n times, at most limit, and increments *n.
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

// upperHalf returns a random duration in [d/2, d].
func upperHalf(d time.Duration, random *rand.Rand) time.Duration {
	return d/2 + upTo(d-d/2, random)
}

// upTo returns a random duration in [0, d]. It does not use the random source if d is 0.
func upTo(d time.Duration, random *rand.Rand) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(random.Int64N(int64(d) + 1))
}
