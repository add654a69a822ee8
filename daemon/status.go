package daemon

import (
	"os"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
)

// This file says to those who ask on the control socket what the supervisor
// knows. It decides nothing.

// account is what a Status holds beyond the supervisor's own state.
type account struct {
	started       time.Time
	confirmed     *time.Time
	confirmations int
	faults        []control.Fault // the latest first
	connection    *control.Connection
	attempts      control.AttemptsCount
	identity      *control.Identity // as it was while no attempt ran
	fingerprint   string            // of the present configuration; "": not known yet
	phase         control.Phase
}

// status is posted on the board after each turn of the loop.
func (s *supervisor) status(now time.Time) control.Status {
	st := control.Status{
		Version: s.Version, PID: os.Getpid(), StartedAt: s.account.started,
		Ready:         s.ready,
		Text:          strings.TrimPrefix(s.notify.status, "STATUS="),
		Configuration: s.configuration(),
		Confirmed:     s.account.confirmed,
		Confirmations: s.account.confirmations,
		Faults:        append([]control.Fault(nil), s.account.faults...),
		Connection:    s.account.connection,
		Attempts:      s.account.attempts,
	}
	// A running attempt owns the store, and may hang in it with the disk.
	if s.attempt == nil {
		s.account.identity = s.identity()
	}
	st.Identity = s.account.identity
	if !s.expiry.at.IsZero() {
		st.Certificate = &control.Certificate{NotAfter: s.expiry.at.UTC()}
	}
	name := control.PhaseIdle
	switch {
	case s.attempt != nil && s.phase.stage != "":
		name = string(s.phase.stage)
	case s.attempt == nil && !s.due.IsZero():
		name = control.PhaseWaiting
		st.Next = control.Due(s.due, s.why, string(s.lane))
	}
	if s.account.phase.Name != name {
		s.account.phase = control.Phase{Name: name, Since: stamp(now)}
	}
	st.Phase = s.account.phase
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
		Foreign: s.account.fingerprint != "" && rec.ConfigFingerprint != s.account.fingerprint,
	}
	foreign.Strings(i, foreign.MaxText) // the file may be somebody else's
	return i
}

// health is the one word for it.
func health(st control.Status) control.Health {
	standing := len(st.Faults) > 0 && st.Faults[0].Standing
	switch {
	case st.Identity == nil:
		return control.Unprovisioned
	case standing || !st.Identity.Durable || st.Identity.Foreign:
		return control.Degraded
	case st.Confirmed == nil:
		return control.Cached
	}
	return control.OK
}

// failed counts a fault; the same again in a row is one.
func (a *account) failed(f fault.Fault, credential string, advice string, now time.Time) {
	a.attempts.Failed++
	entry := control.Fault{
		Code: string(f.Code), Class: string(f.Class), Stage: string(f.Stage),
		Summary: fault.Describe(f.Code).Summary, Advice: advice, Credential: credential,
		ServiceCode: f.ServiceCode, TrackingID: f.TrackingID,
		First: stamp(now), Last: stamp(now), Count: 1, Standing: true,
	}
	foreign.Strings(&entry, foreign.MaxText)
	if f.Err != nil {
		entry.Cause = foreign.Line(f.Err.Error(), foreign.MaxFault)
	}
	if len(a.faults) > 0 {
		if last := a.faults[0]; last.Standing && last.Code == entry.Code && last.Stage == entry.Stage && last.Credential == entry.Credential {
			entry.First, entry.Count = last.First, last.Count+1
			a.faults = a.faults[1:]
		}
	}
	a.faults = append([]control.Fault{entry}, a.faults[:min(len(a.faults), control.MaxFaults-1)]...)
}

// mended: what stood has passed.
func (a *account) mended() {
	for i := range a.faults {
		a.faults[i].Standing = false
	}
}

// confirm counts an assignment.
func (a *account) confirm(now time.Time) {
	at := stamp(now)
	a.confirmed = &at
	a.confirmations++
	a.attempts.Assigned++
	a.mended()
}

// stamp is a time for people.
func stamp(t time.Time) time.Time { return t.UTC().Round(0).Truncate(time.Millisecond) }
