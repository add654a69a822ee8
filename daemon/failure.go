package daemon

import (
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
)

// failure is a fault with what follows from it. The log, STATUS=, the status and the flight
// recorder get the same one.
type failure struct {
	Fault      fault.Fault
	Advice     string
	Credential string        // that was used; "": none was
	Lane       pace.Lane     // the retry class
	Wait       time.Duration // until the next attempt
}

// busyAnswers is how many CONNACKs with return code 3 in a row suggest a wrong id_scope.
const busyAnswers = 10

// failures are the failed registrations since the last assignment.
type failures struct {
	last    fault.Fault // the fault of the last attempt; zero: it did not fail
	count   int
	since   time.Time // of the first of them
	busy    int       // CONNACKs with return code 3 in a row
	history pace.History
}

// add counts a fault, and returns the advice against it.
func (f *failures) add(last fault.Fault, now time.Time) (advice string) {
	f.last = last
	if f.count++; f.count == 1 {
		f.since = now
	}
	if last.Code != fault.ConnackUnavailable {
		f.busy = 0
		return last.Advice()
	}
	if f.busy++; f.busy < busyAnswers {
		return last.Advice()
	}
	return last.Advice() + fmt.Sprintf(" DPS has given this answer %d times in a row; id_scope is probably wrong.", f.busy)
}

// classify names what has ended a registration, given what the supervisor knows.
func (s *supervisor) classify(r registered, now time.Time) fault.Fault {
	return r.request.Circumstances(r.inspector, s.implausible(now)).Classify(r.err)
}

// implausible reports whether the wall clock is earlier than it has been: when the program
// was built, or at the last verified handshake.
func (s *supervisor) implausible(now time.Time) bool {
	return now.Round(0).Before(s.BuiltAt) || now.Round(0).Before(s.verified)
}

// logFailure logs f as the event "fault".
func (l *eventLog) logFailure(f failure) {
	l.log(event.Fault,
		zap.String("fault", string(f.Fault.Code)), zap.String("stage", string(f.Fault.Stage)), zap.String("class", string(f.Fault.Class)),
		zap.NamedError("cause", f.Fault.Err), zap.Int("serviceCode", f.Fault.ServiceCode), zap.String("trackingId", f.Fault.TrackingID),
		zap.String("credential", f.Credential), zap.String("lane", string(f.Lane)), zap.Duration("retryIn", f.Wait.Round(time.Millisecond)),
		zap.String("advice", f.Advice))
}
