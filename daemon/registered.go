package daemon

import (
	"cmp"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/store"
)

// registered is the outcome of a registration. Without err and wait, the record is durable.
type registered struct {
	progress
	wait        time.Duration // DPS has asked to come back after this time
	err         error         // a *classify.StageError
	credential  string
	request     session.Request     // what was sent to whom; explains a refusal
	inspector   string              // the issuer that inspects the connection; "" for none
	verified    time.Time           // wall clock at a handshake whose certificate was valid then
	expiry      expiry              // of the device certificate; zero: none was read
	connection  *control.Connection // nil: there was none
	clockOffset *time.Duration      // of this clock from the server's; nil: the server did not say
	recording   *recording
	fingerprint string // of the configuration; "": it could not be made
	saved       store.Result
	otherName   string // under which consumers knew the assigned hub before; "": none

	requested      bool          // the registration contained a certificate request
	certified      bool          // an issued certificate was published
	validIn        time.Duration // the issued certificate is published after this time, when it is valid
	certificateErr error         // why a certificate was not requested, issued or published; a *classify.StageError
}

func (r registered) learn(s *supervisor) {
	if classify.Classify(r.err).Class != fault.Input {
		s.schedule.reached = s.running.began
	}
	if r.connection != nil {
		s.history.connection = r.connection
	}
	if r.err == nil && r.wait == 0 {
		s.consumers.assignedBy = r.credential
	}
	s.recognized(r.fingerprint)
}

func (r registered) finish(s *supervisor, now time.Time) (err error) {
	s.progress = r.progress
	if r.certified {
		s.certificateIssued(now)
	}
	if !r.expiry.at.IsZero() {
		s.certificate.what, s.certificate.at, s.certificate.because = r.expiry.what, r.expiry.at, r.expiry.because
	}
	var failed failure
	s.suspectHardware(classify.Classify(cmp.Or(r.err, r.certificateErr)), cmp.Or(r.err, r.certificateErr))
	switch {
	case r.requestRefused():
		failed = s.certificateRefused(r, now)
	case r.err != nil:
		failed, err = s.failed(s.classify(r, now), r.err, r.credential, now)
		s.requestLost(r, failed, now)
	case r.wait > 0:
		const why = "DPS asked dpsd to wait (Retry-After)"
		s.schedule.set(now.Add(r.wait), why)
		s.log(event.Waiting, zap.String("why", why), zap.Duration("retryIn", r.wait.Round(time.Millisecond)))
		s.waiting(now, why)
	default:
		s.provisioned(r, now)
		err = s.certificateAnswered(r, now)
	}
	s.record(r, failed, now)
	if !r.verified.IsZero() {
		s.verified = r.verified // and an earlier, later time is forgotten
	}
	return err
}

// protocol is the one that led to the answer; "" if nothing was asked.
func (r *registered) protocol() string {
	if r.connection == nil {
		return ""
	}
	return r.connection.Protocol
}

// whyInterval is the reason for a regular registration.
const whyInterval = "interval"

// nextRegular schedules the next regular registration if the settings have an interval.
func (s *supervisor) nextRegular(now time.Time) {
	s.schedule.due = time.Time{}
	if s.settings.Interval > 0 {
		s.schedule.set(now.Add(pace.Regular(s.settings.Interval, s.random)), whyInterval)
	}
}

// provisioned is called when DPS has answered 200 with status "assigned" and the record is
// durable: READY means both.
func (s *supervisor) provisioned(r registered, now time.Time) {
	s.assigned = true
	s.history.confirm(now, s.needCertificate(now) == "")
	s.measures.took.Update(now.Sub(s.pending).Seconds())
	s.pending = time.Time{}
	s.credentials.first()
	s.refusals.tracker.Forget()
	s.schedule.lane = ""
	s.nextRegular(now)
	rec, _ := s.store.Current()
	moved := deviceOf(rec) != deviceOf(s.consumers.record)
	if why := r.recording.trigger; moved || why == whyRefusals || why == whyRequested {
		s.modules.verify = true // DPS may have created the device again, without its modules
	}
	fields := []zap.Field{
		zap.String("assignedHub", rec.AssignedHub), zap.String("deviceId", rec.DeviceID),
		zap.String("registrationId", rec.RegistrationID), zap.String("substatus", rec.Substatus),
		zap.Uint64("generation", rec.Generation), zap.Stringer("state", r.saved),
		zap.String("protocol", r.protocol()), zap.String("otherName", r.otherName),
	}
	if s.failures.count > 0 { // most of them were logged at level debug only
		fields = append(fields, zap.Int("faults", s.failures.count), zap.Time("faultsSince", s.failures.since))
	}
	s.failures = failures{}
	s.log(event.Assigned, fields...)
	s.faultsResolved()
	if s.systemd.ready || !s.certified(now) {
		s.systemd.setStatus(s.assignment(now))
		return
	}
	s.systemd.ready = true
	s.systemd.announceReady(s.assignment(now))
}
