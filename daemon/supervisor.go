package daemon

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/store"
)

// supervisor is the state of a running daemon. Only the goroutine of run touches it; an
// attempt gets a copy of what it needs and hands back an outcome.
type supervisor struct {
	*Daemon
	*eventLog
	settings Settings // the current ones; Daemon.Settings are the first
	store    *store.Store
	noticed  int // how many of the store's notices were logged
	random   *rand.Rand

	progress    progress
	renames     bool // the next attempt resolves the registration ID although DPS has assigned it
	credentials credentials
	certificate expiry   // of the device certificate
	issuance    issuance // of the issued certificate
	failures    failures
	assigned    bool      // DPS has assigned this gateway in this run
	pending     time.Time // when the first registration began of those without an assignment yet; zero: none
	verified    time.Time // wall clock at the last verified handshake: an earlier time is implausible
	lookup      bool      // the next attempt is a lookup

	schedule schedule
	running  running
	repairs  repairs
	file     configurationFile
	inputs   inputs
	network  surroundings
	floors   floors

	consumers consumers
	modules   moduleIdentities
	refusals  refusals

	systemd  notifier
	history  statusHistory
	board    control.Board
	measures *measures
	recorder *recorder
	requests chan request // from the control socket
}

// running is the attempt that is running, if there is one, and the channels to it.
type running struct {
	cancel    context.CancelFunc // nil: none is running
	registers bool               // it is a registration
	yields    bool               // a registration that becomes due cancels it
	renews    bool               // only the issued certificate requires it
	replaced  bool               // the settings were replaced while it was running
	began     time.Time          // when the last attempt but for repairs began
	phase     phase
	phases    chan phase
	outcomes  chan outcome
}

func (r *running) active() bool { return r.cancel != nil }

func (d *Daemon) supervisor() *supervisor {
	s := &supervisor{Daemon: d, eventLog: newEventLog(d.Log), settings: d.Settings, random: d.Rand}
	if s.random == nil {
		s.random = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) //nolint:gosec // jitter needs no secrecy
	}
	s.systemd = notifier{send: d.Notify, eventLog: s.eventLog}
	s.floors = floors{runtime: store.Runtime{Directory: d.Store.RuntimeDirectory}, bootTime: d.BootTime}
	s.running.phases = make(chan phase)
	s.running.outcomes = make(chan outcome, 1) // an attempt that outlives run can still end
	s.requests = make(chan request)
	s.refusals.reports = make(chan report)
	s.inputs.found = make(chan findings, 1) // a check that outlives run can still end
	s.measures = newMeasures(&s.board)
	s.measures.asksEvery(s.settings.Interval)
	s.recorder = newRecorder(d, s.eventLog, s.measures)
	return s
}

// open takes the lock and reads the last record. Only a second instance is an error;
// anything else that is wrong with the directory fails again, and is reported, at the save.
func (s *supervisor) open(now time.Time) error {
	var err error
	if s.store, err = store.Open(s.Store, now); err != nil {
		return err
	}
	s.logNotices()
	rec, found := s.store.Current()
	fields := []zap.Field{zap.String("endpoint", s.settings.Dialer.Host), zap.String("idScope", s.settings.IDScope)}
	if found {
		fields = append(fields, zap.String("publishedHub", rec.AssignedHub), zap.Uint64("generation", rec.Generation))
	}
	s.log(event.Started, append(fields, zap.String("version", s.Version))...)
	s.logDoubts()
	if found {
		s.verified = rec.ProvisionedAt
		// With --once, a registration is what the user asks for.
		s.lookup = s.settings.OnBoot != PolicyAlways && s.settings.OnBoot != "" && !s.Once
	}
	s.issuance.look(s.store)
	s.schedule.set(now, "start")
	s.history.started = stamp(now)
	if !s.lookup {
		s.schedule.due = s.boot(now)
	}
	s.openConsumers(now)
	s.openRefusals()
	return nil
}

// boot is when dpsd first contacts the service after its start.
func (s *supervisor) boot(now time.Time) time.Time {
	return now.Add(pace.Boot(s.settings.BootDelayMax, s.random))
}

// logNotices logs what the store has found and repaired since the last call.
func (s *supervisor) logNotices() {
	all := s.store.Notices()
	for _, n := range all[s.noticed:] {
		s.log(event.StateNotice, zap.Stringer("notice", n))
	}
	s.noticed = len(all)
}

func (s *supervisor) close() {
	if s.store != nil {
		_ = s.store.Close() // the lock ends with the process anyway
	}
}

// run is the loop: one goroutine and one select. The clock is read once per iteration, after
// the select.
func (s *supervisor) run(ctx context.Context) error {
	now := s.now()
	s.watchInputs(ctx)
	defer func() { s.inputs.unwatch(); s.inputs.hardware.leave() }()
	s.watchState(ctx)
	s.watchConfiguration(ctx, now)
	defer func() { s.file.leave() }()
	var limit <-chan time.Time
	if s.Once && s.Timeout > 0 {
		limit = time.After(s.Timeout)
	}
	beat := s.newBeat()
	defer beat.Stop()
	if s.schedule.due.After(now) {
		s.waiting(now, bootDelay)
	}
	for {
		if s.systemd.ready {
			s.file.leave()
		}
		s.inputs.hardware.follow(ctx, s.watchFiles)
		s.planCertificate(now)
		s.announceExpiry(now)
		s.board.Post(s.status(now))
		s.postConsumers(now)
		s.systemd.sendReady()
		s.planModules(now)
		wake := time.NewTimer(s.sleep(now))
		var err error
		act := func(time.Time) {}
		select {
		case <-ctx.Done():
			wake.Stop()
			s.stop()
			if s.Once {
				return ErrStopped
			}
			return nil
		case <-limit:
			s.stop()
			if s.failures.last.Code != "" {
				return fmt.Errorf("%w: %w", ErrTimeout, s.failures.last)
			}
			return ErrTimeout
		case <-wake.C:
			act = func(now time.Time) { s.actOnTime(ctx, now) }
		case p := <-s.running.phases:
			s.running.phase = p
			if p.status != "" {
				s.systemd.setStatus(p.status)
			}
		case o := <-s.running.outcomes:
			act = func(now time.Time) { err = s.finish(ctx, o, now) }
		case <-s.Hangup:
			act = s.file.hangup
		case <-s.inputs.changes:
			act = s.inputsChanged
		case <-s.inputs.hardware.changes:
			act = s.hardwareChanged
		case found := <-s.inputs.found:
			act = func(now time.Time) { s.foundInputs(found, now) }
		case <-s.file.changes:
			act = s.file.changed
		case <-s.repairs.touched:
			act = s.repairs.fileTouched
		case step := <-s.ClockStepped:
			act = func(now time.Time) { s.clockStepped(step, now) }
		case r := <-s.requests:
			act = func(now time.Time) { r.answer <- s.answer(r, now) }
		case r := <-s.refusals.reports:
			act = func(now time.Time) { r.answer <- s.reported(r.Reason, now) }
		case <-beat.C:
			act = func(now time.Time) {
				if s.beat(now) {
					beat.Stop()
				}
			}
		}
		wake.Stop()
		now = s.now()
		act(now)
		if err != nil || s.Once && s.systemd.ready {
			s.systemd.sendReady()
			return err
		}
	}
}

// sleep is how long the loop may wait if nothing happens.
func (s *supervisor) sleep(now time.Time) time.Duration {
	due := []time.Time{s.file.hangupDue, s.file.due, s.consumersDue(now)}
	if !s.running.active() {
		due = append(due, s.schedule.due, s.consumers.due, s.repairs.due, s.network.due, s.inputs.due, s.renewalDue(now), s.issuance.publication, s.modules.next, s.hubCheckDue(now))
	} else if s.running.yields {
		due = append(due, s.schedule.due)
	}
	wait := idle
	for _, at := range due {
		if !at.IsZero() {
			wait = min(wait, max(0, at.Sub(now)))
		}
	}
	return wait
}

// actOnTime does one thing that is due.
func (s *supervisor) actOnTime(ctx context.Context, now time.Time) {
	switch {
	case isDue(s.file.hangupDue, now):
		s.reload(ctx, now)
	case isDue(s.file.due, now):
		s.readConfiguration(ctx, now)
	case s.running.yields && isDue(s.schedule.due, now):
		s.running.yields = false
		s.running.cancel()
	case s.running.active():
	case isDue(s.consumers.due, now):
		s.consumers.due = time.Time{}
		s.launch(ctx, now, &recognition{reporter{s.eventLog, s.running.phases, nil, s.now}, identification{s.progress, s.settings, s.Secrets, s.Host, s.Version}})
	case isDue(s.schedule.due, now):
		s.begin(ctx, now)
	case isDue(s.hubCheckDue(now), now):
		s.checkHub(ctx, now)
	case isDue(s.issuance.publication, now):
		s.issuance.publication = time.Time{}
		s.launch(ctx, now, &publication{reporter{s.eventLog, s.running.phases, nil, s.now}, s.store, s.progress.issued})
	case isDue(s.modules.next, now):
		s.manageModules(ctx, now)
	case isDue(s.repairs.due, now):
		s.repairs.last, s.repairs.due = now, time.Time{}
		s.launch(ctx, now, &repair{reporter{s.eventLog, s.running.phases, nil, s.now}, s.store})
	case isDue(s.network.due, now):
		s.checkNetwork(now)
	case isDue(s.inputs.due, now):
		s.checkInputs(now)
	}
}

// finish takes over what an attempt has achieved. It returns an error only if that ends the
// daemon.
func (s *supervisor) finish(ctx context.Context, o outcome, now time.Time) error {
	s.running.cancel()
	s.running.cancel, s.running.yields = nil, false
	s.logNotices()
	s.issuance.look(s.store)
	o.learn(s)
	if s.running.replaced {
		// What this attempt has found out with the old settings does not count; what it has
		// assigned stays on disk until the next one.
		s.schedule.restart(now)
		return nil
	}
	if r, is := o.(registered); is && ctx.Err() != nil && errors.Is(r.err, context.Canceled) {
		return nil // dpsd is stopping: the attempt ended for this reason and has not failed
	}
	err := o.finish(s, now)
	s.schedule.requested()
	// The metrics are read from the board.
	s.board.Post(s.status(now))
	s.recorder.writeMetrics()
	return err
}

// failed schedules the attempt after fault f, which names err, and reports the failure. The
// error ends the daemon.
func (s *supervisor) failed(f fault.Fault, err error, credential string, now time.Time) (failure, error) {
	count := len(s.settings.Credentials)
	ends := s.Once && s.credentials.exhausted(f, count)
	failed := failure{Fault: f, Advice: s.failures.add(f, now), Credential: credential}
	failed.Wait, failed.Lane = s.settings.Retry.After(f, s.credentials.left(count), &s.failures.history, s.random)
	if s.running.renews && failed.Lane != pace.LaneNext {
		failed.Wait = max(failed.Wait, s.renewalGap(now))
	}
	s.credentials.failed(f, failed.Lane, count)
	s.schedule.set(now.Add(failed.Wait), "after "+string(f.Code))
	s.schedule.lane = failed.Lane
	s.suspectNetwork(f, err, now)
	s.suspectInputs(f, err, now)
	s.history.failed(failed, now)
	s.logFailure(failed)
	s.waiting(now, lastFault(f))
	if ends {
		return failed, f
	}
	return failed, nil
}

// request asks for an attempt; see schedule.request. It does not wait for the end of a running
// attempt that yields.
func (s *supervisor) request(at time.Time, why string) {
	s.schedule.request(at, why, s.running.active() && !s.running.yields)
}

// clockStepped ends a wait whose cause may have been the clock.
func (s *supervisor) clockStepped(step time.Duration, now time.Time) {
	s.log(event.ClockStepped, zap.Duration("by", step.Round(time.Second)), zap.Time("now", now))
	s.refusals.clockSet(step)
	s.modules.clockSet(now)
	s.consumers.board.ClockStepped()
	if s.schedule.lane == pace.LaneRefused {
		s.issuance.next = time.Time{}
		if s.certificateState(now) != control.CertificateValid {
			s.issuance.notBefore = time.Time{} // the wrong time may have been the reason
		}
		s.request(now, "the clock was set")
	}
}

// restart forgets what was found out with the settings, and takes over new ones unless
// settings is nil. A running attempt is canceled.
func (s *supervisor) restart(ctx context.Context, settings *Settings, now time.Time) {
	if settings != nil {
		s.settings = *settings
		s.measures.asksEvery(settings.Interval)
		s.logDoubts()
		s.consumers.replaced(settings.Consumers, now)
		s.logConsumers()
	}
	s.progress, s.certificate, s.lookup = progress{}, expiry{}, false
	s.recognize(now)
	s.issuance.restart()
	s.credentials.first()
	s.failures.history, s.failures.last, s.schedule.lane = pace.History{}, fault.Fault{}, ""
	s.watchInputs(ctx)
	if s.running.active() {
		s.running.replaced, s.running.yields = true, false
		s.running.cancel()
	}
}

// stop cancels a running attempt, and waits up to stopLimit until it has disconnected.
func (s *supervisor) stop() {
	s.systemd.stopping()
	s.log(event.Stopping)
	if !s.running.active() {
		return
	}
	s.running.cancel()
	limit := time.NewTimer(stopLimit)
	defer limit.Stop()
	for {
		select {
		case <-s.running.phases:
		case <-s.running.outcomes:
			return
		case <-limit.C:
			s.log(event.StoppedLate, zap.String("stage", string(s.running.phase.stage)))
			s.store = nil // the attempt still uses it; the process ends anyway
			return
		}
	}
}
