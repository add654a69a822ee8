package daemon

import (
	"fmt"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
)

// notifier reports to the service manager, sd_notify(3). Without one (send is nil), every
// method does nothing. A failure to notify never stops provisioning, and is logged once.
type notifier struct {
	send func(state string) error
	*eventLog
	ready  bool   // READY=1 was sent, or is due
	hung   bool   // the supervisor or the attempt has missed a deadline; logged once
	status string // the last STATUS=, which is not sent twice
	lead   string // the beginning of it: when the next attempt starts
	text   string // the rest of it, without the note
	note   string // is shown in front of every text, after its lead, until READY
	due    bool   // READY=1 has not been sent yet, see sendReady
	failed bool
}

func (n *notifier) notify(state string) bool {
	if n.send == nil {
		return true
	}
	err := n.send(state)
	if err != nil && !n.failed {
		n.failed = true
		n.log(event.NotifyFailed, zap.Error(err))
	}
	return err == nil
}

// statusLine is the STATUS= assignment: one line, whatever an error text holds, of at
// most control.MaxText bytes.
func statusLine(text string) string {
	return "STATUS=" + foreign.Line(strings.Join(strings.Fields(text), " "), control.MaxText)
}

func (n *notifier) setStatus(text string) { n.setWaiting("", text) }

// setWaiting is setStatus with a lead in front of everything, because programs cut a long
// line at its end.
func (n *notifier) setWaiting(lead, text string) {
	n.lead, n.text = lead, text
	line := statusLine(lead + n.note + text)
	if line == n.status {
		return
	}
	n.status = line
	if !n.due { // sendReady sends both
		n.notify(line)
	}
}

func (n *notifier) setNote(note string) {
	n.note = note
	n.setWaiting(n.lead, n.text)
}

// announceReady makes READY=1 due together with the status, so that neither is seen without the
// other.
func (n *notifier) announceReady(text string) {
	n.lead, n.text, n.note, n.status, n.due = "", text, "", statusLine(text), true
}

// sendReady sends READY=1 if it is due, and repeats it if it could not be sent: units that wait for
// it would wait forever. The loop calls it after it has posted its status and what local services
// can get, because units that are ordered after dpsd use both.
func (n *notifier) sendReady() {
	if n.due && n.notify(sd.SdNotifyReady+"\n"+n.status) {
		n.due = false
	}
}

// reloading must be followed by announceReady on every path: systemd sets no time limit for a
// reload.
func (n *notifier) reloading() {
	n.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
}

func (n *notifier) stopping() { n.notify(sd.SdNotifyStopping + "\n" + statusLine("Stopping")) }

// assignment says for STATUS= what this gateway is.
func (s *supervisor) assignment(now time.Time) string {
	rec, found := s.store.Current()
	if !found {
		return ""
	}
	text := "Assigned to " + rec.AssignedHub + " as " + rec.DeviceID
	if !s.assigned {
		text += " (cached: DPS has not confirmed it since the start)"
	}
	if s.certificate.announced != 0 {
		text += "; " + s.certificate.String()
	}
	return text + s.missingCertificate(now)
}

// waiting shows in STATUS= when the next attempt starts, and what it waits for.
func (s *supervisor) waiting(now time.Time, why string) {
	s.systemd.setWaiting(s.upcoming("attempt", now, s.schedule.due, why))
}

// bootDelay is the reason for waiting during the boot delay.
const bootDelay = "Waiting for the boot delay"

// lastFault is the reason for waiting after a fault.
func lastFault(f fault.Fault) string {
	return "Last fault: " + foreign.Line(f.Error(), control.MaxCause)
}

// upcoming says when the next attempt starts, and why. It gives the time and not the delay,
// because STATUS= stays the same until then.
func (s *supervisor) upcoming(attempt string, now, due time.Time, why string) (lead, text string) {
	at := "now"
	switch wait := due.Sub(now); {
	case wait > 12*time.Hour:
		at = due.UTC().Format("at 2006-01-02 15:04:05 UTC")
	case wait > 0:
		at = due.UTC().Format("at 15:04:05 UTC")
	}
	if s.systemd.ready {
		why += strings.Replace(s.assignment(now), "Assigned", "; assigned", 1)
	}
	return "Next " + attempt + " " + at + ". ", why
}

// newBeat returns the ticker of the watchdog and of EXTEND_TIMEOUT_USEC. Without a service
// manager it never ticks.
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

// beat is the only place that sends EXTEND_TIMEOUT_USEC and WATCHDOG=1: the loop is running,
// and the attempt meets the deadline of its phase. It reports whether no further beat is
// needed, because READY=1 was sent and systemd has not asked for a watchdog.
func (s *supervisor) beat(now time.Time) (last bool) {
	n := &s.systemd
	if s.running.active() && now.After(s.running.phase.deadline.Add(overdue)) {
		if !n.hung {
			n.hung = true
			s.log(event.Hung, zap.String("stage", string(s.running.phase.stage)), zap.Time("deadline", s.running.phase.deadline))
		}
		return false
	}
	n.hung = false
	switch {
	case !n.ready:
		n.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", extension.Microseconds()))
	case s.Watchdog > 0:
		n.notify(sd.SdNotifyWatchdog)
	default:
		return !n.due
	}
	return false
}
