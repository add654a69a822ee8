package daemon

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/refusal"
)

// This file acts on reports from local services that the hub refuses them or is not working. Package
// refusal decides what to do, and docs/refusals.md contains the rules. Without reports, it does nothing.

// whyRefusals is the reason for a registration because of reports.
const whyRefusals = "the hub refuses the device or is not working"

// refusals are the reports of local services in this run.
type refusals struct {
	tracker refusal.Tracker
	reports chan report
	last    map[string]control.ConsumerReport // by name of the service
}

// report is a report of a local service.
type report struct {
	refusal.Reason
	answer chan<- refusal.Answer // has room for the answer
}

// openRefusals reads when dpsd last acted on reports. A time in the future, which belongs to another
// boot or to a registration that DPS delayed, counts as now.
func (s *supervisor) openRefusals() {
	s.refusals.tracker.Acted = min(s.floors.runtime.LoadRefusals(), s.floors.now())
}

// refused passes a report to the loop. The servers of the services call it.
func (s *supervisor) refused(ctx context.Context, consumer string, code refusal.Code) (refusal.Answer, error) {
	answers := make(chan refusal.Answer, 1)
	select {
	case s.refusals.reports <- report{refusal.Reason{Consumer: consumer, Code: code}, answers}:
		return <-answers, nil
	case <-ctx.Done():
		return refusal.Answer{}, errBusy
	}
}

// reported decides what follows from a report.
func (s *supervisor) reported(r refusal.Reason, now time.Time) refusal.Answer {
	elapsed := s.floors.now()
	d := refusal.Decision{Action: refusal.None, Because: "DPS has not assigned a hub yet."}
	if s.consumers.found {
		d = s.refusals.tracker.Report(r, s.situation(now), elapsed)
	}
	if d.Modules {
		s.modules.verify = true
	}
	if d.Action != refusal.None {
		switch {
		case s.running.active() && s.running.registers:
			d = refusal.Decision{Action: refusal.Reprovisioning, Because: "dpsd is registering.", At: elapsed}
		case s.schedule.why == whyRefusals && !s.schedule.due.IsZero():
			d = refusal.Decision{Action: refusal.Reprovisioning, Because: "A registration because of earlier reports is due.", At: elapsed + s.schedule.due.Sub(now)}
		}
	}
	a := d.Answer(elapsed, now)
	s.log(event.HubRefuses, zap.String("consumer", r.Consumer), zap.Stringer("code", r.Code),
		zap.String("action", string(a.Action)), zap.String("because", a.Because))
	counted := s.refusals.tracker.Count(r.Consumer, r.Code.Kind(), elapsed)
	s.refusals.note(r, a, counted.Reports, now)
	return a
}

// tolerance is how far a device's clock may be wrong (Azure page "Troubleshooting Azure IoT Hub error
// codes").
const tolerance = 5 * time.Minute

// clockSet forgets the reports if the hub had to refuse every token before the clock was set.
func (f *refusals) clockSet(step time.Duration) {
	if step.Abs() > tolerance {
		f.tracker.Forget()
	}
}

// note records the last report of a service for the status.
func (f *refusals) note(r refusal.Reason, a refusal.Answer, counted int, now time.Time) {
	if f.last == nil {
		f.last = map[string]control.ConsumerReport{}
	}
	last := control.ConsumerReport{Code: r.Code.String(), At: stamp(now), Counted: counted, Action: string(a.Action), Because: a.Because}
	if !a.At.IsZero() {
		last.Due = &a.At
	}
	f.last[r.Consumer] = last
}

// status adds the last reports to the services.
func (f *refusals) status(all []control.Consumer) []control.Consumer {
	for i := range all {
		if last, found := f.last[all[i].Name]; found {
			all[i].Report = &last
		}
	}
	return all
}

func (s *supervisor) situation(now time.Time) refusal.Situation {
	return refusal.Situation{
		Policy: s.settings.OnRefusal, Generation: s.consumers.record.Generation, Implausible: s.implausible(now),
		Spread: pace.HubCheck(refusal.Spread, s.random),
	}
}

// hubCheckDue returns when the check of the hub is due; zero: none is due.
func (s *supervisor) hubCheckDue(now time.Time) time.Time {
	due := s.refusals.tracker.Due()
	if due == 0 {
		return time.Time{}
	}
	return now.Add(due - s.floors.now())
}

// checkHub begins the check of the hub.
func (s *supervisor) checkHub(ctx context.Context, now time.Time) {
	s.launch(ctx, now, &hubCheck{
		reporter:  reporter{s.eventLog, s.running.phases, nil, s.now},
		hubAccess: hubAccess{s.settings, s.Secrets, s.consumers.record, s.hubCredential()},
		reason:    s.refusals.tracker.Begin(),
	})
}

func (o hubChecked) learn(s *supervisor) {
	if s.running.replaced || o.interrupted {
		s.refusals.tracker.Interrupted()
	}
}

// finish acts on the result of a check of the hub.
func (o hubChecked) finish(s *supervisor, now time.Time) error {
	elapsed := s.floors.now()
	d := s.refusals.tracker.Found(o.finding, s.situation(now), elapsed)
	if d.Action == "" {
		return nil
	}
	if o.finding == refusal.Accepted {
		s.modules.verify = true
	}
	fields := []zap.Field{
		zap.String("hub", o.host), zap.String("consumer", o.reason.Consumer), zap.String("finding", string(o.finding)),
		zap.NamedError("error", o.err), zap.String("action", string(d.Action)), zap.String("because", d.Because),
	}
	if d.Action == refusal.Reprovisioning {
		due := s.demand(s.schedule.force(now), now, whyRefusals)
		d.At = elapsed + due.Sub(now)
		s.refusals.tracker.Scheduled(d.At)
		fields = append(fields, zap.Duration("attemptIn", due.Sub(now).Round(time.Second)))
	}
	s.log(event.HubChecked, fields...)
	s.measures.hubCheck(o.finding).Inc()
	s.refusals.note(o.reason, d.Answer(elapsed, now), s.refusals.last[o.reason.Consumer].Counted, now)
	if err := s.floors.runtime.SaveRefusals(s.refusals.tracker.Acted); err != nil {
		s.log(event.RefusalsNotKept, zap.Error(err))
	}
	return nil
}
