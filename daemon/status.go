package daemon

import (
	"os"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
)

// This file puts what the supervisor knows into the status of the control socket. It
// decides nothing.

// statusHistory is what a Status holds beyond the supervisor's own state.
type statusHistory struct {
	started       time.Time
	confirmed     *time.Time
	confirmations int
	faults        []control.Fault // the latest first
	connection    *control.Connection
	attempts      control.AttemptsCount
	identity      *control.Identity // as it was when no attempt was running
	fingerprint   string            // of the current configuration; "": not known yet
	phase         control.Phase
	issued        *control.IssuedCertificate // as it was when no attempt was running
}

// status is posted on the board in each iteration of the loop.
func (s *supervisor) status(now time.Time) control.Status {
	st := control.Status{
		Version: s.Version, PID: os.Getpid(), StartedAt: s.history.started,
		Ready:          s.systemd.ready,
		ServiceManager: s.ServiceManager,
		Text:           strings.TrimPrefix(s.systemd.status, "STATUS="),
		Configuration:  s.file.status(s.settings.Configuration),
		Confirmed:      s.history.confirmed,
		Confirmations:  s.history.confirmations,
		Faults:         append([]control.Fault(nil), s.history.faults...),
		Connection:     s.history.connection,
		Attempts:       s.history.attempts,
		Consumers:      s.modules.status(s.refusals.status(s.consumers.status(s.settings.Consumers)), s.modules.states(deviceOf(s.consumers.record), s.settings.Consumers)),
	}
	// A running attempt owns the store, and may hang in it with the disk.
	if !s.running.active() {
		s.history.identity = s.identity()
	}
	st.Identity = s.history.identity
	if !s.certificate.at.IsZero() {
		st.Certificate = &control.Certificate{NotAfter: s.certificate.at.UTC()}
	}
	name := control.PhaseIdle
	switch {
	case s.running.active() && s.running.phase.stage != "":
		name = string(s.running.phase.stage)
	case !s.running.active() && !s.schedule.due.IsZero():
		name = control.PhaseWaiting
		st.Next = control.Due(s.schedule.due, s.schedule.why, string(s.schedule.lane))
	}
	if s.history.phase.Name != name {
		s.history.phase = control.Phase{Name: name, Since: stamp(now)}
	}
	st.Phase = s.history.phase
	if !s.running.active() {
		s.history.issued = s.issuedStatus(now)
	}
	st.IssuedCertificate = s.history.issued
	st.Health = health(st)
	return st
}

func (s *supervisor) identity() *control.Identity {
	rec, found := s.store.Current()
	if !found {
		return nil
	}
	i := &control.Identity{
		AssignedHub: rec.AssignedHub, DeviceID: rec.DeviceID, RegistrationID: rec.RegistrationID,
		IDScope: rec.IDScope, Endpoint: rec.Endpoint, ConnectionProfile: rec.ConnectionProfile,
		Generation: rec.Generation, ProvisionedAt: rec.ProvisionedAt, Durable: s.store.Durable(),
		Foreign: s.history.fingerprint != "" && rec.ConfigFingerprint != s.history.fingerprint,
	}
	foreign.Strings(i, foreign.MaxText) // others may have changed the file
	return i
}

// health sums a Status up in one word.
func health(st control.Status) control.Health {
	switch {
	case st.Identity == nil:
		return control.Unprovisioned
	case unresolved(st) != nil || !st.Identity.Durable || st.Identity.Foreign:
		return control.Degraded
	case st.Confirmed == nil:
		return control.Cached
	}
	return control.OK
}

// failed counts a failure of an attempt to register, and adds it to the faults.
func (h *statusHistory) failed(f failure, now time.Time) {
	h.attempts.Failed++
	h.noted(f, now)
}

// noted adds a failure to the faults. Consecutive identical failures are one fault. The failures of
// the hub and those of registrations are counted separately, because they may alternate.
func (h *statusHistory) noted(f failure, now time.Time) {
	entry := control.Fault{
		Code: string(f.Fault.Code), Class: string(f.Fault.Class), Stage: string(f.Fault.Stage),
		Summary: fault.Describe(f.Fault.Code).Summary, Advice: f.Advice, Credential: f.Credential,
		ServiceCode: f.Fault.ServiceCode, TrackingID: f.Fault.TrackingID,
		First: stamp(now), Last: stamp(now), Count: 1, Unresolved: true,
	}
	foreign.Strings(&entry, foreign.MaxText)
	if f.Fault.Err != nil {
		entry.Cause = foreign.Line(f.Fault.Err.Error(), foreign.MaxFault)
	}
	if i := slices.IndexFunc(h.faults, func(f control.Fault) bool { return ofHub(f) == ofHub(entry) }); i >= 0 {
		if last := h.faults[i]; last.Unresolved && last.Code == entry.Code && last.Stage == entry.Stage && last.Credential == entry.Credential {
			entry.First, entry.Count = last.First, last.Count+1
			h.faults = slices.Delete(h.faults, i, i+1)
		}
	}
	h.faults = append([]control.Fault{entry}, h.faults[:min(len(h.faults), control.MaxFaults-1)]...)
}

// resolved marks the faults that are of a kind as resolved.
func (h *statusHistory) resolved(is func(control.Fault) bool) {
	for i, f := range h.faults {
		h.faults[i].Unresolved = f.Unresolved && !is(f)
	}
}

// The kinds of faults for resolved.
func ofHub(f control.Fault) bool         { return f.Stage == string(fault.StageHub) }
func ofRepaired(f control.Fault) bool    { return !ofHub(f) }
func ofCertificate(f control.Fault) bool { return f.Stage == string(fault.StageCertificate) }
func ofOthers(f control.Fault) bool      { return !ofCertificate(f) && !ofHub(f) }

// configured notes the fingerprint of the configuration; "" is not known.
func (h *statusHistory) configured(fingerprint string) {
	if fingerprint != "" {
		h.fingerprint = fingerprint
	}
}

// confirm counts an assignment. certified says whether no certificate is missing: until then, the
// faults that explain why stay unresolved.
func (h *statusHistory) confirm(now time.Time, certified bool) {
	at := stamp(now)
	h.confirmed = &at
	h.confirmations++
	h.attempts.Assigned++
	if h.resolved(ofOthers); certified {
		h.resolved(ofCertificate)
	}
}

// stamp is a time as people read it, in UTC and to the millisecond.
func stamp(t time.Time) time.Time { return t.UTC().Round(0).Truncate(time.Millisecond) }
