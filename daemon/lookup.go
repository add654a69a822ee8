package daemon

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/store"
)

// lookup is the first attempt after a start whose policy accepts a published record. It
// only compares the record with the configuration, and sends nothing.
type lookup struct {
	reporter
	identification
	store      *store.Store
	credential string // the one that the next registration uses
}

type lookupOutcome struct {
	progress
	credential  string
	fingerprint string // of the configuration; "": it could not be made
	published   bool   // the durable record belongs to the configuration
	err         error  // a *classify.StageError
}

func (l *lookup) run(ctx context.Context) outcome {
	l.enter(ctx, fault.StageIdentity, overdue, identifying)
	err := classify.At(fault.StageIdentity, l.identify(l.now()))
	rec, found := l.store.Current()
	o := lookupOutcome{progress: l.progress, credential: l.credential, fingerprint: l.fingerprint(), err: err}
	o.published = err == nil && found && l.store.Durable() && rec.ConfigFingerprint == o.fingerprint
	return o
}

func (o lookupOutcome) learn(s *supervisor) { s.recognized(o.fingerprint) }

func (o lookupOutcome) finish(s *supervisor, now time.Time) error {
	s.progress = o.progress
	if o.err != nil {
		_, err := s.failed(classify.Circumstances{Implausible: s.implausible(now)}.Classify(o.err), o.err, o.credential, now)
		return err
	}
	s.lookup, s.failures.history, s.failures.last = false, pace.History{}, fault.Fault{}
	s.schedule.set(s.boot(now), "boot delay")
	s.schedule.lane = ""
	if !o.published || !s.certified(now) {
		if !o.published {
			s.log(event.RecordOfAnotherConfiguration)
		}
		if s.schedule.due.After(now) {
			s.waiting(now, bootDelay)
		}
		return nil
	}
	rec, _ := s.store.Current()
	s.log(event.Published, zap.String("assignedHub", rec.AssignedHub), zap.String("deviceId", rec.DeviceID),
		zap.Uint64("generation", rec.Generation), zap.String("policy", string(s.settings.OnBoot)))
	s.systemd.ready = true
	switch {
	case !s.settings.OnBoot.Asks(o.published):
		s.issuance.next = s.schedule.due // after a power failure, a fleet must not renew at the same time
		s.nextRegular(now)
		s.systemd.announceReady(s.assignment(now))
	case s.schedule.due.After(now):
		lead, text := s.upcoming("attempt", now, s.schedule.due, bootDelay)
		s.systemd.announceReady(lead + text)
	default:
		s.systemd.announceReady(s.assignment(now))
	}
	return nil
}
