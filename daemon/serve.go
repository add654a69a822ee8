package daemon

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/store"
)

// request is a registration that a client of the control socket asks for.
type request struct {
	answer chan<- answer // has room for it
	renew  bool          // with a new certificate
}

// answer is the answer to a request.
type answer struct {
	control.Reprovision
	err error
}

var errBusy = errors.New("dpsd is stopping")

// serve opens the control socket, and returns a function that closes it and waits until
// that is done. Provisioning does not depend on the socket.
func (s *supervisor) serve(ctx context.Context) (stop func()) {
	if s.Socket == "" {
		return func() {}
	}
	err := s.floors.runtime.Create()
	var l *net.UnixListener
	if err == nil {
		l, err = control.Listen(s.Socket)
	}
	if err != nil {
		s.log(event.ControlFailed, zap.Error(err))
		return func() {}
	}
	server := control.Server{
		Board:            &s.board,
		Reprovision:      func(asking context.Context) (control.Reprovision, error) { return s.ask(asking, false) },
		RenewCertificate: func(asking context.Context) (control.Reprovision, error) { return s.ask(asking, true) },
		Metrics:          s.measures.write,
		Failed:           func(err error) { s.log(event.ControlFailed, zap.Error(err)) },
	}
	ctx, cancel := context.WithCancel(ctx)
	var ended sync.WaitGroup
	ended.Go(func() {
		if err := server.Serve(ctx, l); err != nil {
			s.log(event.ControlFailed, zap.Error(err))
		}
	})
	return func() {
		cancel()
		ended.Wait()
	}
}

// ask passes a request of a client to the loop.
func (s *supervisor) ask(asking context.Context, renew bool) (control.Reprovision, error) {
	answers := make(chan answer, 1)
	select {
	case s.requests <- request{answers, renew}:
		a := <-answers
		return a.Reprovision, a.err
	case <-asking.Done():
		return control.Reprovision{}, errBusy
	}
}

// answer schedules what a client has requested.
func (s *supervisor) answer(r request, now time.Time) answer {
	switch {
	case !r.renew:
		return answer{s.reprovision(now), nil}
	case s.settings.Certificate == nil:
		return answer{err: control.ErrNotConfigured}
	}
	return answer{s.renew(now), nil}
}

// reprovision schedules a registration that a client of the control socket asks for. A
// registration that is already running is the one.
func (s *supervisor) reprovision(now time.Time) control.Reprovision {
	if s.running.active() && s.running.registers {
		return s.scheduled(now, now)
	}
	s.renames = true
	return s.asked(s.schedule.force(now), now)
}

// asked schedules a registration that a client has requested.
func (s *supervisor) asked(due, now time.Time) control.Reprovision {
	return s.scheduled(s.demand(due, now, whyRequested), now)
}

// demand requests a registration, and returns when it starts, which is not before the end of a wait
// that DPS has asked for.
func (s *supervisor) demand(due, now time.Time, why string) time.Time {
	s.request(due, why)
	if id := s.progress.registrationID; !s.running.active() && id != "" {
		due = later(due, now.Add(s.floors.remaining(floorKey(s.settings.Dialer.Host, id))))
	}
	return due
}

// scheduled tells a client when the registration starts.
func (s *supervisor) scheduled(due, now time.Time) control.Reprovision {
	wait := max(0, due.Sub(now))
	s.log(event.AskedFor, zap.Duration("attemptIn", wait.Round(time.Second)))
	return control.Reprovision{
		StartedAt: s.history.started, Due: stamp(now.Add(wait)), In: wait.Seconds(),
		Confirmations: s.history.confirmations, Failed: s.history.attempts.Failed,
	}
}

// record hands a finished registration to the flight recorder and the metrics. failed is
// the failure that has ended it, if r.err is not nil.
func (s *supervisor) record(r registered, failed failure, now time.Time) {
	rec := r.recording
	a := store.Attempt{
		At: stamp(rec.began), Trigger: rec.trigger, Steps: rec.steps, Outcome: "assigned",
		Credential: r.credential, Sent: rec.sent.Load(), Received: rec.received.Load(), Clock: "plausible",
	}
	if c := r.connection; c != nil {
		a.Protocol, a.Address, a.Proxy = c.Protocol, c.Address, c.Proxy
	}
	if s.implausible(now) {
		a.Clock = "implausible"
	}
	switch {
	case r.err != nil:
		f := failed.Fault
		a.Outcome, a.Fault, a.Stage, a.ServiceCode, a.TrackingID = "fault", string(f.Code), string(f.Stage), f.ServiceCode, f.TrackingID
		a.Cause, a.RetryIn = f.Err.Error(), failed.Wait.Milliseconds()
	case r.wait > 0:
		a.Outcome, a.RetryIn = "wait", r.wait.Milliseconds()
	}
	foreign.Strings(&a, foreign.MaxText)
	s.measures.add(a)
	if r.clockOffset != nil {
		s.measures.clock(*r.clockOffset)
	}
	s.recorder.add(a)
}
