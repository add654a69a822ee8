package daemon

import (
	"bytes"
	"context"
	"crypto"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/store"
)

// saveLimit is how long the disk may take before the supervisor counts as hung.
const saveLimit = 30 * time.Second

// attempt is work in a goroutine beside the loop: a registration, a lookup or a repair.
// While it runs, it owns the store.
type attempt interface {
	run(ctx context.Context) outcome
}

// outcome is what an attempt hands back to the loop.
type outcome interface {
	// learn takes over what holds even if the settings were replaced while the attempt was
	// running.
	learn(s *supervisor)
	// finish takes over the rest, and schedules what comes next. An error ends the daemon.
	finish(s *supervisor, now time.Time) error
}

// phase is a step of an attempt, with the time by which it ends.
type phase struct {
	stage    fault.Stage
	status   string // for STATUS=; "": the step is not shown
	deadline time.Time
}

// reporter reports the phases of an attempt to the supervisor.
type reporter struct {
	*eventLog
	phases    chan<- phase
	recording *recording // nil: the attempt is not recorded
	now       func() time.Time
}

// enter reports that a phase begins, which ends within limit.
func (r *reporter) enter(ctx context.Context, stage fault.Stage, limit time.Duration, status string) {
	select {
	case r.phases <- phase{stage, status, r.now().Add(limit)}:
	case <-ctx.Done():
	}
	if r.recording != nil {
		r.recording.enter(stage, r.now())
	}
	r.log(event.Phase, zap.String("stage", string(stage)), zap.String("status", status), zap.Duration("limit", limit))
}

// progress is how far the attempts have come with the current settings. Each attempt gets a
// copy, and hands back its own.
type progress struct {
	registrationID string            // of the last attempt; "": it could not be resolved
	registration   *dps.Registration // nil: no operation is in progress
	payload        []byte            // of registration
	unsaved        *store.Record     // assigned by DPS, but not saved yet
	public         crypto.PublicKey  // of the certificate request in registration; nil: it has none
	issued         *issued           // issued by DPS, but not published yet; nil: none
}

// identification is what an attempt needs to identify this gateway.
type identification struct {
	progress
	settings Settings
	secrets  attest.Secrets
	host     attest.Host
	version  string
}

// identify resolves the registration ID, reads the payload, and makes a registration for
// both, unless there is one already.
func (i *identification) identify(now time.Time) error {
	if i.registrationID == "" {
		id, err := i.settings.RegistrationID.Resolve(i.host, i.secrets)
		if err != nil {
			return err
		}
		i.registrationID = id
	}
	payload, err := session.ReadPayload(i.settings.PayloadFile)
	if err != nil {
		return err
	}
	if i.registration == nil || i.registration.Identity.RegistrationID != i.registrationID || !bytes.Equal(payload, i.payload) {
		i.payload = payload
		i.registration = &dps.Registration{
			Identity:        i.settings.Identity(i.registrationID, i.version),
			Payload:         payload,
			ResponseTimeout: i.settings.ResponseTimeout,
			// Each registration has a range of its own, so that a stray reply answers nothing.
			// The range is from "10" to "zz", because one is sent with every request.
			RequestIDs: 35 + uint64(now.UnixMilli()%1_250),
		}
	}
	return nil
}

// fingerprint identifies the configuration in a record; "" before the registration ID is
// known.
func (i *identification) fingerprint() string {
	if i.registrationID == "" {
		return ""
	}
	return store.Fingerprint(i.settings.Dialer.Host, i.settings.IDScope, i.registrationID, i.payload)
}

// begin starts a lookup or a registration, which reads its inputs again.
func (s *supervisor) begin(ctx context.Context, now time.Time) {
	s.running.began, s.schedule.due, s.inputs.due = now, time.Time{}, time.Time{}
	s.noteNetwork()
	if s.credentials.tried == 0 {
		s.inputs.failed = nil
	}
	report := reporter{s.eventLog, s.running.phases, nil, s.now}
	who := identification{s.progress, s.settings, s.Secrets, s.Host, s.Version}
	who.registrationID, s.renames = s.keptID(), false
	credential := s.settings.Credentials[s.credentials.current]
	s.running.renews = s.schedule.why == whyCertificate || s.running.renews && s.schedule.lane != ""
	if s.lookup {
		s.launch(ctx, now, &lookup{report, who, s.store, credential.String()})
		return
	}
	s.history.attempts.Started++
	if s.pending.IsZero() {
		s.pending = now
	}
	report.recording = &recording{began: now, trigger: s.schedule.why}
	s.launch(ctx, now, &registration{report, who, s.store, &s.floors, credential, s.issuing(now)})
}

// keptID is the registration ID that the next attempt keeps; "": it is resolved again. It is
// kept once DPS has assigned it, so that a host name that changes later does not make another
// device of this gateway, until a registration is requested.
func (s *supervisor) keptID() string {
	rec, found := s.store.Current()
	if s.progress.unsaved != nil {
		rec, found = *s.progress.unsaved, true
	}
	id := s.progress.registrationID
	if !s.renames && found && rec.RegistrationID == id && rec.IDScope == s.settings.IDScope && strings.EqualFold(rec.Endpoint, s.settings.Dialer.Host) {
		return id
	}
	return ""
}

func (s *supervisor) launch(ctx context.Context, now time.Time, a attempt) {
	ctx, s.running.cancel = context.WithCancel(ctx)
	s.running.replaced, s.running.yields, s.schedule.wanted = false, false, time.Time{}
	_, s.running.registers = a.(*registration)
	switch a.(type) {
	case *moduleJob, *hubCheck: // they may take long if the hub does not respond
		s.running.yields = true
	}
	s.running.phase = phase{deadline: now.Add(overdue)}
	go func() { s.running.outcomes <- a.run(ctx) }()
}
