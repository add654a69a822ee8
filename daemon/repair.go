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

// repair restores what others have removed or changed in the state directory. It sends
// nothing.
type repair struct {
	reporter
	store *store.Store
}

type repairOutcome struct {
	saved store.Result
	err   error // a *classify.StageError
}

// repairs says when the state directory is repaired.
type repairs struct {
	touched <-chan struct{} // from Watch: a file in the state directory has changed; nil: they are not watched
	due     time.Time       // zero: nothing has changed
	last    time.Time       // when the last one began
	history pace.History    // of the failures in a row
	failed  bool            // the last one has failed
}

// fileTouched schedules a repair: what changes all the time is repaired every changeGap.
func (r *repairs) fileTouched(now time.Time) {
	r.due = later(now.Add(settle), r.last.Add(changeGap))
}

func (r *repair) run(ctx context.Context) outcome {
	r.enter(ctx, fault.StageState, saveLimit, "")
	saved, err := r.store.Repair(r.now())
	return repairOutcome{saved, classify.At(fault.StageState, err)}
}

func (o repairOutcome) learn(s *supervisor) {
	if s.running.replaced {
		s.repairs.due = s.repairs.last // again, because the new settings may have ended it
	}
}

func (o repairOutcome) finish(s *supervisor, now time.Time) error {
	if o.err != nil {
		o.failed(s, now)
	} else {
		o.succeeded(s, now)
	}
	return nil
}

func (o repairOutcome) failed(s *supervisor, now time.Time) {
	f := failure{Fault: classify.Classify(o.err)}
	f.Advice = f.Fault.Advice()
	f.Wait, f.Lane = s.settings.Retry.After(f.Fault, false, &s.repairs.history, s.random)
	s.repairs.due, s.repairs.failed = now.Add(f.Wait), true
	s.history.failed(f, now)
	s.logFailure(f)
	s.systemd.setWaiting(s.upcoming("attempt to save", now, s.repairs.due, lastFault(f.Fault)))
}

func (o repairOutcome) succeeded(s *supervisor, now time.Time) {
	if o.saved != store.Unchanged {
		rec, _ := s.store.Current()
		s.log(event.StateRestored, zap.String("directory", s.Store.Directory), zap.Uint64("generation", rec.Generation))
	}
	if s.repairs.failed {
		s.faultsResolved()
		s.history.resolved(ofRepaired)
		if s.systemd.ready && s.failures.last.Code == "" {
			s.systemd.setStatus(s.assignment(now))
		}
	}
	s.repairs.history, s.repairs.failed = pace.History{}, false
}
