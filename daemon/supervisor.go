package daemon

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/store"
)

// supervisor is the state of a running daemon. Only the goroutine of run
// touches it; an attempt gets a copy of what it needs and hands back a result.
type supervisor struct {
	*Daemon
	*teller
	settings Settings // the current ones; Daemon.Settings are the first
	store    *store.Store
	notify   notifier
	random   *rand.Rand
	noticed  int // how many of the store's notices were logged

	// What is known.
	registrationID string            // once resolved
	registration   *dps.Registration // kept while its operation runs
	payload        []byte            // of registration
	credential     int               // the one to use, an index into settings.Credentials
	tried          int               // how many of this round failed for a reason of their own
	refused        int               // how many of this round the service refused
	history        pace.History
	unsaved        *store.Record // assigned, but the disk refused it
	floors         floors
	ready          bool      // READY=1 was sent
	since          time.Time // when the registration was first tried that has not succeeded yet
	lastFault      fault.Fault
	faults         int       // since the last assignment
	faultsSince    time.Time // when the first of them was
	connackBusy    int       // CONNACK 3 in a row
	verified       time.Time // wall clock at the last verified handshake: an earlier one is implausible
	expiry         expiry

	// What is going on. Either an attempt runs, or due says when the next one
	// starts (zero: not by itself).
	attempt   context.CancelFunc // nil: none runs
	registers bool               // the running attempt asks the service
	look      bool               // the next one only sees whether the published record will do
	forced    time.Time          // when the last registration that somebody asked for was, or is, due
	started   time.Time          // of the last attempt
	reached   time.Time          // when the last one began that did not end at a file of this gateway
	phase     phase              // of the running attempt
	replaced  bool               // the settings were replaced while it ran
	wanted    time.Time          // when a trigger asked for the next one while it ran
	due       time.Time
	reloadDue time.Time // when SIGHUP is obeyed; zero: none came
	reloaded  time.Time // when it last was
	file      configurationFile
	refusal   string       // why the content of the configuration file is not in effect; "": it is
	mendDue   time.Time    // when the state directory is looked after; zero: it was not touched
	mended    time.Time    // when it was last
	mendFor   pace.History // of what kept it from being mended
	unmended  bool         // the last fault was of that kind
	network   surroundings
	inputs    inputs
	lane      pace.Lane
	hung      bool // the gate is shut; said once
	phases    chan phase
	results   chan result
	changes   <-chan struct{} // from Watch
	unwatch   context.CancelFunc
	touched   <-chan struct{} // from Watch: somebody was at the files of the state directory
	assigned  bool            // in this run

	// What others are told.
	why      string // something is due
	account  account
	board    control.Board
	measures *measures
	scribe   *scribe
	requests chan request // from the control socket
}

// phase is a step of an attempt, with the time at which the step ends itself.
type phase struct {
	stage    fault.Stage
	status   string // for STATUS=
	deadline time.Time
}

func (d *Daemon) supervisor() *supervisor {
	s := &supervisor{Daemon: d, teller: newTeller(d.Log), settings: d.Settings, random: d.Rand}
	if s.random == nil {
		s.random = rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())) //nolint:gosec // jitter needs no secrecy
	}
	s.notify = notifier{send: d.Notify, teller: s.teller}
	s.floors = floors{runtime: store.Runtime{Directory: d.Store.RuntimeDirectory}, bootTime: d.BootTime}
	s.phases = make(chan phase)
	s.results = make(chan result, 1) // an attempt that outlives run can still end
	s.requests = make(chan request)
	s.inputs.found = make(chan []string, 1) // a look that outlives run can still end
	s.measures = newMeasures(&s.board)
	s.measures.asksEvery(s.settings.Interval)
	s.scribe = newScribe(d, s.teller, s.measures)
	return s
}

// open takes the lock and reads the last record. Only a second instance is an
// error; what else may be wrong with the directory is met again, and named, at
// the save.
func (s *supervisor) open(now time.Time) error {
	var err error
	if s.store, err = store.Open(s.Store, now); err != nil {
		return err
	}
	s.tellNotices()
	fields := []zap.Field{zap.String("endpoint", s.settings.Dialer.Host), zap.String("idScope", s.settings.IDScope)}
	if rec, found := s.store.Current(); found {
		fields = append(fields, zap.String("publishedHub", rec.AssignedHub), zap.Uint64("generation", rec.Generation))
	}
	s.tell(event.Started, append(fields, zap.String("version", s.Version))...)
	s.doubt()
	if rec, found := s.store.Current(); found {
		s.verified = rec.ProvisionedAt
		// Somebody who runs --once asks for a registration.
		s.look = s.settings.OnBoot != PolicyAlways && s.settings.OnBoot != "" && !s.Once
	}
	s.due, s.why, s.account.started = now, "start", stamp(now)
	if !s.look {
		s.due = s.boot(now)
	}
	return nil
}

// boot is when the service is first contacted.
func (s *supervisor) boot(now time.Time) time.Time {
	return now.Add(pace.Boot(s.settings.BootDelayMax, s.random))
}

// tellNotices logs what the store found and mended since it was last asked.
func (s *supervisor) tellNotices() {
	all := s.store.Notices()
	for _, n := range all[s.noticed:] {
		s.tell(event.StateNotice, zap.Stringer("notice", n))
	}
	s.noticed = len(all)
}

func (s *supervisor) close() {
	if s.store != nil {
		_ = s.store.Close() // the lock goes with the process anyway
	}
}

// run is the loop: one goroutine, one select, the clock read once a turn.
func (s *supervisor) run(ctx context.Context) error {
	s.watch(ctx)
	defer func() { s.unwatch() }()
	s.watchState(ctx)
	s.watchConfiguration(ctx, time.Now())
	defer s.leaveConfiguration()
	var limit <-chan time.Time
	if s.Once && s.Timeout > 0 {
		limit = time.After(s.Timeout)
	}
	beat := s.newBeat()
	defer beat.Stop()
	if now := time.Now(); s.due.After(now) {
		s.waiting(now, "boot delay")
	}
	for {
		if s.ready {
			s.leaveConfiguration()
		}
		s.announce(time.Now())
		s.board.Post(s.status(time.Now()))
		wake := time.NewTimer(s.sleep(time.Now()))
		var err error
		select {
		case <-ctx.Done():
			wake.Stop()
			s.stop()
			if s.Once {
				return ErrStopped
			}
			return nil
		case <-s.Hangup:
			s.hungUp(time.Now())
		case now := <-wake.C:
			switch {
			case reached(s.reloadDue, now):
				s.reload(ctx, now)
			case reached(s.file.due, now):
				s.readConfiguration(ctx, now)
			case s.attempt != nil:
			case reached(s.due, now):
				s.begin(ctx, now)
			case reached(s.mendDue, now):
				s.mend(ctx, now)
			case reached(s.network.due, now):
				s.lookAtNetwork(now)
			case reached(s.inputs.due, now):
				s.lookAtInputs(now)
			}
		case p := <-s.phases:
			s.phase = p
			if p.status != "" {
				s.notify.setStatus(p.status)
			}
		case r := <-s.results:
			err = s.finish(r, time.Now())
		case <-s.changes:
			s.filesChanged(time.Now())
		case failing := <-s.inputs.found:
			s.foundInputs(failing, time.Now())
		case <-s.file.changes:
			s.file.changed(time.Now())
		case <-s.touched:
			s.mendDue = later(time.Now().Add(settle), s.mended.Add(changeGap))
		case step := <-s.ClockStepped:
			s.clockStepped(step, time.Now())
		case r := <-s.requests:
			r.answer <- s.reprovision(time.Now())
		case <-beat.C:
			s.beat(time.Now())
			if s.ready && s.Watchdog == 0 && s.notify.settle() {
				beat.Stop() // READY is out and nobody asked for a watchdog
			}
		case <-limit:
			s.stop()
			if s.lastFault.Code != "" {
				return fmt.Errorf("%w: %w", ErrTimeout, s.lastFault)
			}
			return ErrTimeout
		}
		wake.Stop()
		if err != nil || s.Once && s.assigned {
			return err
		}
	}
}

// sleep is how long nothing is due by itself.
func (s *supervisor) sleep(now time.Time) time.Duration {
	due := []time.Time{s.reloadDue, s.file.due}
	if s.attempt == nil {
		due = append(due, s.due, s.mendDue, s.network.due, s.inputs.due)
	}
	wait := idle
	for _, at := range due {
		if !at.IsZero() {
			wait = min(wait, max(0, at.Sub(now)))
		}
	}
	return wait
}

// reached reports whether something is due.
func reached(due, now time.Time) bool { return !due.IsZero() && !due.After(now) }

// begin starts an attempt. It reads its inputs afresh.
func (s *supervisor) begin(ctx context.Context, now time.Time) {
	s.started, s.due, s.inputs.due = now, time.Time{}, time.Time{}
	s.enterNetwork()
	if s.tried == 0 {
		s.inputs.beginRound()
	}
	if !s.look {
		s.account.attempts.Started++
		if s.since.IsZero() {
			s.since = now
		}
	}
	s.launch(ctx, now, &attempt{
		settings:       s.settings,
		secrets:        s.Secrets,
		host:           s.Host,
		version:        s.Version,
		store:          s.store,
		floors:         &s.floors,
		registrationID: s.registrationID,
		registration:   s.registration,
		payload:        s.payload,
		credential:     s.settings.Credentials[s.credential],
		record:         s.unsaved,
		look:           s.look,
		teller:         s.teller,
		recording:      &recording{began: now, trigger: s.why},
		phases:         s.phases,
	})
}

// mend looks after the state directory, beside what is due.
func (s *supervisor) mend(ctx context.Context, now time.Time) {
	s.mended, s.mendDue = now, time.Time{}
	s.launch(ctx, now, &attempt{
		store: s.store, mend: true, teller: s.teller, phases: s.phases,
		recording: &recording{began: now},
		// Handed back as they are.
		registrationID: s.registrationID, registration: s.registration, payload: s.payload, record: s.unsaved,
		credential: s.settings.Credentials[s.credential],
	})
}

func (s *supervisor) launch(ctx context.Context, now time.Time, a *attempt) {
	ctx, s.attempt = context.WithCancel(ctx)
	s.replaced, s.wanted = false, time.Time{}
	s.registers = !a.look && !a.mend
	s.phase = phase{deadline: now.Add(overdue)}
	go func() { s.results <- a.run(ctx) }()
}

// finish takes over what an attempt achieved. It returns an error only when
// that ends the daemon.
func (s *supervisor) finish(r result, now time.Time) error {
	s.attempt()
	s.attempt = nil
	if !r.looked && !r.mended && classify.Classify(r.err).Class != fault.Input {
		s.reached = s.started
	}
	s.tellNotices()
	if r.connection != nil {
		s.account.connection = r.connection
	}
	if r.fingerprint != "" {
		s.account.fingerprint = r.fingerprint
	}
	if s.replaced {
		// What this attempt found out about the old settings counts for nothing;
		// what it assigned stays on disk until the next one.
		at := s.wanted
		if !at.Equal(s.forced) { // a file asks for it, and not a person
			at = later(at, s.reached.Add(changeGap))
		}
		s.due = later(now, at)
		if r.mended {
			s.mendDue = now
		}
		return nil
	}
	s.registrationID, s.registration, s.payload, s.unsaved = r.registrationID, r.registration, r.payload, r.unsaved
	if !r.expiry.at.IsZero() {
		s.expiry.at, s.expiry.because = r.expiry.at, r.expiry.because
	}
	var err error
	switch {
	case r.mended:
		s.lookedAfter(r, now)
	case r.err != nil:
		err = s.failed(r, now)
	case r.looked:
		s.lookedUp(r.published, now)
	case r.wait > 0:
		const why = "DPS asked to wait (Retry-After)"
		s.due, s.why = now.Add(r.wait), why
		s.tell(event.Waiting, zap.String("why", why), zap.Duration("retryIn", r.wait.Round(time.Millisecond)))
		s.waiting(now, why)
	default:
		s.provisioned(r, now)
	}
	s.record(r, now)
	if !r.verified.IsZero() {
		s.verified = r.verified // and an earlier, later time is forgotten
	}
	if !s.wanted.IsZero() {
		s.trigger(later(s.wanted, s.reached.Add(changeGap)), s.why)
	}
	// Also after a look at a record or at the state files: READY or a fault may come
	// of it. The metrics are read from the board.
	s.board.Post(s.status(now))
	s.scribe.writeMetrics()
	return err
}

// lookedUp is reached once, after a start whose policy lets a published record
// do.
func (s *supervisor) lookedUp(published bool, now time.Time) {
	s.look, s.history, s.lastFault, s.lane = false, pace.History{}, fault.Fault{}, ""
	s.due, s.why = s.boot(now), "boot delay"
	if !published {
		s.tell(event.RecordOfAnotherConfiguration)
		if s.due.After(now) {
			s.waiting(now, "boot delay")
		}
		return
	}
	rec, _ := s.store.Current()
	s.tell(event.Published, zap.String("assignedHub", rec.AssignedHub), zap.String("deviceId", rec.DeviceID),
		zap.Uint64("generation", rec.Generation), zap.String("policy", string(s.settings.OnBoot)))
	s.ready = true
	switch {
	case !s.settings.OnBoot.Asks(published):
		s.nextRegular(now)
		s.notify.ready(s.standing())
	case s.due.After(now):
		lead, text := s.upcoming("attempt", now, s.due, s.why)
		s.notify.ready(lead + text)
	default:
		s.notify.ready(s.standing())
	}
}

// lookedAfter is reached when somebody was at the state files: dpsd itself, or
// somebody who removed or changed them.
func (s *supervisor) lookedAfter(r result, now time.Time) {
	if r.err != nil {
		f := classify.Classify(r.err)
		wait, lane := s.settings.Retry.After(f, false, &s.mendFor, s.random)
		s.mendDue, s.unmended = now.Add(wait), true
		s.account.failed(f, "", f.Advice(), now)
		s.tellFault(f, lane, wait, "", f.Advice())
		s.notify.setWaiting(s.upcoming("attempt to save", now, s.mendDue, f.Error()))
		return
	}
	if r.saved != store.Unchanged {
		rec, _ := s.store.Current()
		s.tell(event.StateRestored, zap.String("directory", s.Store.Directory), zap.Uint64("generation", rec.Generation))
	}
	if s.unmended {
		s.faultsMended()
		s.account.mended()
		if s.ready && s.lastFault.Code == "" {
			s.notify.setStatus(s.standing())
		}
	}
	s.mendFor, s.unmended = pace.History{}, false
}

// nextRegular is when the interval asks for the next registration, if it does.
func (s *supervisor) nextRegular(now time.Time) {
	s.due = time.Time{}
	if s.settings.Interval > 0 {
		s.due, s.why = now.Add(pace.Regular(s.settings.Interval, s.random)), "interval"
	}
}

// provisioned is reached when DPS has answered 200 with status assigned and the
// record is durable: READY means both.
func (s *supervisor) provisioned(r result, now time.Time) {
	s.assigned = true
	s.account.confirm(now)
	s.measures.took.Update(now.Sub(s.since).Seconds())
	s.since = time.Time{}
	s.history, s.connackBusy = pace.History{}, 0
	s.firstCredential()
	s.lane, s.lastFault = "", fault.Fault{}
	s.nextRegular(now)
	rec, _ := s.store.Current()
	fields := []zap.Field{
		zap.String("assignedHub", rec.AssignedHub), zap.String("deviceId", rec.DeviceID),
		zap.String("registrationId", rec.RegistrationID), zap.String("substatus", rec.Substatus),
		zap.Uint64("generation", rec.Generation), zap.Stringer("state", r.saved),
		zap.String("protocol", r.protocol), zap.String("otherName", r.otherName),
	}
	if s.faults > 0 { // most of them were told at level debug only
		fields = append(fields, zap.Int("faults", s.faults), zap.Time("faultsSince", s.faultsSince))
	}
	s.faults = 0
	s.tell(event.Assigned, fields...)
	s.faultsMended()
	if s.ready {
		s.notify.setStatus(s.standing())
		return
	}
	s.ready = true
	s.notify.ready(s.standing())
}

// standing says for STATUS= what this gateway is.
func (s *supervisor) standing() string {
	rec, found := s.store.Current()
	if !found {
		return ""
	}
	text := "Assigned to " + rec.AssignedHub + " as " + rec.DeviceID
	if !s.assigned {
		text += " (cached: DPS has not confirmed it since the start)"
	}
	if s.expiry.announced != 0 {
		text += "; " + s.expiry.String()
	}
	return text
}

// failed names the fault, chooses the next credential and the delay.
func (s *supervisor) failed(r result, now time.Time) error {
	f := s.classify(r, now)
	s.lastFault = f
	if s.faults++; s.faults == 1 {
		s.faultsSince = now
	}
	if f.Code == fault.ConnackUnavailable {
		s.connackBusy++
	} else {
		s.connackBusy = 0
	}
	ends := s.Once && s.refuses(f)
	more := s.tried+1 < len(s.settings.Credentials)
	wait, lane := s.settings.Retry.After(f, more, &s.history, s.random)
	switch {
	case lane == pace.LaneNext:
		s.tried++
		s.credential = (s.credential + 1) % len(s.settings.Credentials)
	case lane == pace.LaneRefused && f.Stage != fault.StageIdentity:
		s.firstCredential()
	}
	s.due, s.lane = now.Add(wait), lane
	s.suspectNetwork(f, r.err, now)
	s.suspectInputs(f, r.err, now)
	advice := f.Advice()
	if s.connackBusy >= 10 {
		advice += " It has given this answer " + fmt.Sprint(s.connackBusy) + " times in a row: id_scope is probably wrong."
	}
	s.why = "after " + string(f.Code)
	s.account.failed(f, r.credential, advice, now)
	s.tellFault(f, lane, wait, r.credential, advice)
	s.waiting(now, f.Error())
	if ends {
		return f
	}
	return nil
}

func (s *supervisor) tellFault(f fault.Fault, lane pace.Lane, wait time.Duration, credential, advice string) {
	s.tell(event.Fault,
		zap.String("fault", string(f.Code)), zap.String("stage", string(f.Stage)), zap.String("class", string(f.Class)),
		zap.NamedError("cause", f.Err), zap.Int("serviceCode", f.ServiceCode), zap.String("trackingId", f.TrackingID),
		zap.String("credential", credential), zap.String("lane", string(lane)), zap.Duration("retryIn", wait.Round(time.Millisecond)),
		zap.String("advice", advice))
}

// waiting says on STATUS= when the next attempt starts, and why it has to wait.
func (s *supervisor) waiting(now time.Time, why string) {
	s.notify.setWaiting(s.upcoming("attempt", now, s.due, why))
}

// upcoming says when the next attempt starts, and why. It gives the time and not the
// delay, because the status stays as it is until then.
func (s *supervisor) upcoming(attempt string, now, due time.Time, why string) (lead, text string) {
	why = foreign.Line(why, control.MaxCause)
	at := "now"
	switch wait := due.Sub(now); {
	case wait > 12*time.Hour:
		at = due.UTC().Format("at 2006-01-02 15:04:05 UTC")
	case wait > 0:
		at = due.UTC().Format("at 15:04:05 UTC")
	}
	if s.ready {
		why += strings.Replace(s.standing(), "Assigned", "; assigned", 1)
	}
	return "Next " + attempt + " " + at + ": ", why
}

// trigger asks for an attempt at the given time, or earlier when one is due
// anyway. The floor is kept by the attempt itself, whoever asked for it.
func (s *supervisor) trigger(at time.Time, why string) {
	next := &s.due
	if s.attempt != nil {
		next = &s.wanted
	}
	if next.IsZero() || at.Before(*next) {
		*next, s.why = at, why
	}
}

// reprovision is a registration that somebody asks for on the control socket. A
// registration that runs already is the one.
func (s *supervisor) reprovision(now time.Time) control.Reprovision {
	due := now
	if s.attempt == nil || !s.registers {
		due = s.force(now)
		s.trigger(due, "asked for")
		if s.attempt == nil && s.registrationID != "" {
			due = later(due, now.Add(s.floors.remaining(floorKey(s.settings.Dialer.Host, s.registrationID))))
		}
	}
	wait := max(0, due.Sub(now))
	s.tell(event.AskedFor, zap.Duration("attemptIn", wait.Round(time.Second)))
	return control.Reprovision{
		StartedAt: s.account.started, Due: stamp(now.Add(wait)), In: wait.Seconds(),
		Confirmations: s.account.confirmations, Failed: s.account.attempts.Failed,
	}
}

// filesChanged: a key, a certificate, the serial number, the payload or the host name has
// appeared or is another one.
func (s *supervisor) filesChanged(now time.Time) {
	s.firstCredential()
	before := s.due
	s.trigger(later(now.Add(settle), s.reached.Add(changeGap)), "an input has changed")
	if s.due != before { // a file that changes all the time fills no journal
		s.tell(event.FilesChanged, zap.Duration("attemptIn", s.due.Sub(now)))
	}
}

// clockStepped ends the waits whose cause may have been the clock.
func (s *supervisor) clockStepped(step time.Duration, now time.Time) {
	s.tell(event.ClockStepped, zap.Duration("by", step.Round(time.Second)), zap.Time("now", now))
	if s.lane == pace.LaneRefused {
		s.trigger(now, "the clock was set")
	}
}

// afresh forgets what was found out under the settings so far, and takes over
// new ones if there are any. A running attempt gives way.
func (s *supervisor) afresh(ctx context.Context, settings *Settings) {
	if settings != nil {
		s.settings = *settings
		s.measures.asksEvery(settings.Interval)
		s.doubt()
	}
	s.registrationID, s.registration, s.payload, s.unsaved = "", nil, nil, nil
	s.firstCredential()
	s.history = pace.History{}
	s.lastFault, s.lane, s.look = fault.Fault{}, "", false
	s.expiry = expiry{}
	s.watch(ctx)
	if s.attempt != nil {
		s.replaced = true
		s.attempt()
	}
}

// force is when a registration that somebody asks for now may be: at most one a
// minute, and those in between are one.
func (s *supervisor) force(now time.Time) time.Time {
	if !s.forced.After(now) {
		at := now
		if !s.forced.IsZero() {
			at = later(now, s.forced.Add(forcedGap))
		}
		s.forced = at
	}
	return s.forced
}

// watch watches the files that the settings name, once for the settings: what
// the watch before has seen and not yet told is lost.
func (s *supervisor) watch(ctx context.Context) {
	if s.unwatch != nil {
		s.unwatch()
	}
	ctx, s.unwatch = context.WithCancel(ctx)
	s.changes = nil
	if s.Watch == nil {
		return
	}
	paths := s.settings.RegistrationID.Paths(s.Secrets)
	for _, c := range s.settings.Credentials {
		for _, ref := range c.References() {
			paths = append(paths, s.Secrets.Paths(ref)...)
		}
	}
	paths = append(paths, s.Secrets.Paths(s.settings.ProxyPassword)...)
	paths = append(paths, s.settings.PayloadFile, s.settings.Dialer.CAFile, s.settings.Dialer.ProxyCAFile)
	known := paths[:0]
	for _, p := range paths {
		if p != "" {
			known = append(known, p)
		}
	}
	if len(known) == 0 {
		return
	}
	changes, err := s.Watch(ctx, known...)
	if err != nil {
		s.tell(event.WatchFailed, zap.Error(err))
		return
	}
	s.changes = changes
}

// watchState watches the files that other services read. With Once nobody stays
// to look after them.
func (s *supervisor) watchState(ctx context.Context) {
	if s.Watch == nil || s.Once {
		return
	}
	touched, err := s.Watch(ctx, store.Files(s.Store.Directory)...)
	if err != nil {
		s.tell(event.WatchFailed, zap.Error(err))
		return
	}
	s.touched = touched
}

// newBeat is the ticker of the watchdog and of EXTEND_TIMEOUT_USEC. Without a
// service manager it never ticks.
func (s *supervisor) newBeat() *time.Ticker {
	every := extension / 4
	if s.Watchdog > 0 {
		every = min(every, s.Watchdog/2)
	}
	t := time.NewTicker(every)
	if s.Notify == nil {
		t.Stop()
	}
	return t
}

// beat is the one gate in front of EXTEND_TIMEOUT_USEC and WATCHDOG=1: this
// loop turns, and the attempt meets its phase's deadline.
func (s *supervisor) beat(now time.Time) {
	if s.attempt != nil && now.After(s.phase.deadline.Add(overdue)) {
		if !s.hung {
			s.hung = true
			s.tell(event.Hung, zap.String("stage", string(s.phase.stage)), zap.Time("deadline", s.phase.deadline))
		}
		return
	}
	s.hung = false
	s.notify.settle()
	switch {
	case !s.ready:
		s.notify.extend(extension)
	case s.Watchdog > 0:
		s.notify.watchdog()
	}
}

// stop ends a running attempt and waits for its farewell, but not for long.
func (s *supervisor) stop() {
	s.notify.stopping()
	s.tell(event.Stopping)
	if s.attempt == nil {
		return
	}
	s.attempt()
	late := time.NewTimer(stopLimit)
	defer late.Stop()
	for {
		select {
		case <-s.phases:
		case <-s.results:
			return
		case <-late.C:
			s.tell(event.StoppedLate, zap.String("stage", string(s.phase.stage)))
			s.store = nil // the attempt still uses it; the process ends anyway
			return
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}
