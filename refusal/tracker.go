package refusal

import (
	"fmt"
	"time"
)

// The rules. docs/refusals.md explains them.
const (
	// Reports is how many reports of one consumer are necessary.
	Reports = 3
	// Refused is the minimum time between the first and the last report if the hub refuses the
	// identity: for a few minutes, a hub may also refuse a valid identity.
	Refused = 15 * time.Minute
	// Down is the same minimum if the hub is not working: according to Azure's guide for large
	// deployments, clients should first retry the same hub for 15 to 30 min.
	Down = 30 * time.Minute
	// Gap is the minimum time between two checks of the hub because of reports, and between two
	// registrations.
	Gap = time.Hour
	// Quiet is how long after its last report a consumer counts as connected. Even a client that
	// waits up to an hour, with jitter, between two connections reports more often.
	Quiet = 2 * time.Hour
	// Spread is the maximum random delay before a check of the hub: all gateways of a fleet see the
	// same hub fail at the same time. Spread over 15 min, 10,000 gateways stay below the DPS quota
	// of 1,000 registrations a minute.
	Spread = 15 * time.Minute
)

// Tracker counts the reports of all consumers of a gateway and decides what follows from them. The
// zero value is ready to use. All times are readings of one clock that cannot be set, such as
// CLOCK_BOOTTIME.
type Tracker struct {
	// Acted is when dpsd last checked the hub because of reports, or registered after that; 0:
	// never. It must survive a restart of dpsd.
	Acted time.Duration

	verified   time.Duration // when the modules were last verified because of a report; 0: never
	generation uint64
	counts     map[counted]Count
	check      check
	outcome    string // a sentence about the last check; "": none
}

// counted identifies the reports that are counted together.
type counted struct {
	consumer string
	kind     Kind
}

// Count is a series of reports of one consumer.
type Count struct {
	Reports     int
	First, Last time.Duration
}

// check is a check of the hub that is due.
type check struct {
	due     time.Duration // 0: none is due
	running bool
	reason  Reason
}

// Reason is the report that caused a check of the hub.
type Reason struct {
	Consumer string
	Code     Code
}

// Situation is what a decision depends on besides the reports.
type Situation struct {
	Policy      Policy
	Generation  uint64 // of the record; reports about an earlier generation do not count
	Implausible bool   // the wall clock is implausible
	// Spread is the random delay before a check of the hub, from 0 to the constant Spread.
	Spread time.Duration
}

// Decision is what dpsd does because of the reports.
type Decision struct {
	Action  Action
	Because string        // a sentence
	At      time.Duration // when dpsd acts, or the earliest time at which it can; 0: never
	Modules bool          // dpsd verifies the module identities
}

// Answer returns the decision as an answer to a consumer. elapsed and now are the current time of
// the clock of the Tracker and of the wall clock.
func (d Decision) Answer(elapsed time.Duration, now time.Time) Answer {
	a := Answer{Action: d.Action, Because: d.Because}
	if d.At > 0 {
		in := max(0, d.At-elapsed)
		a.At, a.In = now.Add(in).UTC().Round(0).Truncate(time.Millisecond), in.Seconds()
	}
	return a
}

// Report counts a report, and decides what follows from it.
func (t *Tracker) Report(r Reason, s Situation, now time.Duration) Decision {
	if t.generation != s.Generation {
		t.reset(s.Generation)
	}
	kind := r.Code.Kind()
	switch kind {
	case Throttled:
		return Decision{Action: None, Because: "The hub accepts the identity, but limits its requests. A registration would not change the limit; try again later."}
	case Other:
		if r.Code == moduleNotFound && s.Policy != ReportOnly {
			return t.missing(now)
		}
		return Decision{Action: None, Because: "The hub rejects the request, not the identity. A registration would not change this."}
	}
	c := t.count(counted{r.Consumer, kind}, now)
	if s.Policy == ReportOnly {
		return Decision{Action: None, Because: `on_refusal is "report", so dpsd only shows the reports.`}
	}
	if t.check.due > 0 {
		return t.verifying()
	}
	enough, again := c.First+kind.over(), time.Duration(0)
	if t.Acted > 0 {
		again = t.Acted + Gap
	}
	d := Decision{Action: Counting, At: max(enough, again, now)}
	switch {
	case c.Reports < Reports || now < enough:
		limit := ""
		if again > max(enough, now) {
			limit = ", and at most once an hour"
		}
		d.Because = fmt.Sprintf("dpsd acts after %d reports over %s%s; this is report %d.", Reports, minutes(kind.over()), limit, c.Reports)
	case s.Implausible:
		d.At = 0
		d.Because = "The clock of this gateway is implausible, which may be the cause of the refusals. dpsd does not act on reports until the clock is correct."
	case now < again:
		d.Because = t.outcome
		if d.Because == "" {
			d.Because = "dpsd acts at most once an hour, and has already checked the hub within the last hour."
		}
	default:
		t.check = check{due: now + s.Spread, reason: r}
		return t.verifying()
	}
	return d
}

// missing decides after a report that the hub does not know the module.
func (t *Tracker) missing(now time.Duration) Decision {
	if t.verified > 0 && now < t.verified+Gap {
		return Decision{Action: None, Because: "The hub does not know the module. dpsd verifies the module identities at most once an hour because of reports."}
	}
	t.verified = now
	return Decision{Action: None, Because: "The hub does not know the module. dpsd verifies the module identities.", Modules: true}
}

// count counts one more report.
func (t *Tracker) count(of counted, now time.Duration) Count {
	c := t.counts[of]
	if c.Reports == 0 || now-c.Last > Quiet {
		c = Count{First: now}
	}
	c.Reports, c.Last = c.Reports+1, now
	if t.counts == nil {
		t.counts = map[counted]Count{}
	}
	t.counts[of] = c
	return c
}

func (t *Tracker) verifying() Decision {
	return Decision{Action: Verifying, At: t.check.due, Because: "dpsd first checks the hub, without an MQTT connection, and then decides whether to register."}
}

// Due returns when the check of the hub is due; 0: none is due.
func (t *Tracker) Due() time.Duration {
	if t.check.running {
		return 0
	}
	return t.check.due
}

// Begin records that the check of the hub begins, and returns its reason.
func (t *Tracker) Begin() Reason {
	t.check.running = true
	return t.check.reason
}

// Interrupted records that the running check of the hub ended without a result. It is due again.
func (t *Tracker) Interrupted() { t.check.running = false }

// Found decides what follows from the result of the running check. A zero Decision means that the
// result no longer matters because of an assignment in the meantime. If the decision is
// Reprovisioning, the caller registers and calls Scheduled.
func (t *Tracker) Found(f Finding, s Situation, now time.Duration) Decision {
	if !t.check.running {
		return Decision{}
	}
	kind, code := t.check.reason.Code.Kind(), t.check.reason.Code
	t.reset(s.Generation)
	t.Acted = now
	d := Decision{Action: None}
	switch {
	case s.Policy == ReportOnly:
		d.Because = `on_refusal is "report", so dpsd only shows the reports.`
	case s.Implausible:
		d.Because = "The clock of this gateway is implausible, which may be the cause of the refusals."
	default:
		d.Action, d.Because = f.means(kind, code)
	}
	if d.Action == Reprovisioning {
		d.At = now
	}
	t.outcome = "dpsd acts at most once an hour. Its last check: " + d.Because
	return d
}

// Scheduled records when the registration that Found decided on is due.
func (t *Tracker) Scheduled(at time.Duration) { t.Acted = max(t.Acted, at) }

// Forget forgets all reports and a pending check of the hub: DPS has assigned the device since then,
// or the clock was wrong at that time.
func (t *Tracker) Forget() { t.reset(t.generation) }

// Count returns the reports of one kind from a consumer that currently count.
func (t *Tracker) Count(consumer string, k Kind, now time.Duration) Count {
	if c := t.counts[counted{consumer, k}]; now-c.Last <= Quiet {
		return c
	}
	return Count{}
}

func (t *Tracker) reset(generation uint64) {
	t.generation, t.counts, t.check = generation, nil, check{}
}

// over is the minimum time that the reports of a kind must cover.
func (k Kind) over() time.Duration {
	if k == Unavailable {
		return Down
	}
	return Refused
}

func minutes(d time.Duration) string { return fmt.Sprintf("%d min", int(d/time.Minute)) }
