package daemon

import (
	"fmt"
	"strings"
	"time"

	sd "github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/foreign"
)

// notifier tells the service manager what is going on, sd_notify(3). Without
// one (send is nil) every method does nothing; a failure to notify never stops
// provisioning and is logged once.
type notifier struct {
	send func(state string) error
	*teller
	status string // the last STATUS=, not sent twice
	lead   string // the begin of it: when the next attempt starts
	text   string // the rest of it, without the note
	note   string // stands in front of every text, after its lead, until READY
	owed   string // a READY=1 that did not get through
	failed bool
}

func (n *notifier) notify(state string) bool {
	if n.send == nil {
		return true
	}
	err := n.send(state)
	if err != nil && !n.failed {
		n.failed = true
		n.tell(event.NotifyFailed, zap.Error(err))
	}
	return err == nil
}

// statusLine is the STATUS= assignment: one line, whatever an error text holds, of at
// most control.MaxText bytes.
func statusLine(text string) string {
	return "STATUS=" + foreign.Line(strings.Join(strings.Fields(text), " "), control.MaxText)
}

func (n *notifier) setStatus(text string) { n.setWaiting("", text) }

// setWaiting is setStatus with a lead that stays in front of everything, because programs
// cut a long line at its end.
func (n *notifier) setWaiting(lead, text string) {
	n.lead, n.text = lead, text
	if line := statusLine(lead + n.note + text); line != n.status {
		n.status = line
		n.notify(line)
	}
}

func (n *notifier) setNote(note string) {
	n.note = note
	n.setWaiting(n.lead, n.text)
}

// ready says READY=1 together with the status, so that nobody sees the one
// without the other.
func (n *notifier) ready(text string) {
	n.lead, n.text, n.note, n.status = "", text, "", statusLine(text)
	n.owed = sd.SdNotifyReady + "\n" + n.status
	n.settle()
}

// settle says a READY=1 again that did not get through: whoever waits for it
// would wait for ever. It reports whether nothing is owed any more.
func (n *notifier) settle() bool {
	if n.owed != "" && n.notify(n.owed) {
		n.owed = ""
	}
	return n.owed == ""
}

// reloading must be followed by ready on every path: systemd bounds a reload
// by no time-out.
func (n *notifier) reloading() {
	n.notify(sd.SdNotifyReloading + "\n" + sd.SdNotifyMonotonicUsec())
}

func (n *notifier) stopping() { n.notify(sd.SdNotifyStopping + "\n" + statusLine("Stopping")) }

func (n *notifier) watchdog() { n.notify(sd.SdNotifyWatchdog) }

func (n *notifier) extend(by time.Duration) {
	n.notify(fmt.Sprintf("EXTEND_TIMEOUT_USEC=%d", by.Microseconds()))
}
