package daemon

import (
	"context"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
)

// This file reads the configuration again: on SIGHUP, and before the first READY also when
// the file changes. A user corrects a first mistake then, and systemd does not deliver a
// reload to a service that is starting. After READY, a reload is explicit.

// configurationFile says when the configuration is read again, and whether it was refused.
type configurationFile struct {
	watched
	refusal string // why the content of the file is not in effect; "": it is

	hangupDue time.Time // when SIGHUP is obeyed; zero: none is pending
	reloaded  time.Time // when SIGHUP was last obeyed
}

// watched is what is known of Daemon.ConfigurationFile while it is watched.
type watched struct {
	changes <-chan struct{} // from Watch; nil: it cannot be watched, or not any more
	unwatch context.CancelFunc
	due     time.Time // when it is read next; zero: when it changes
	limit   time.Time // the latest time for that, however often it changes
}

// watchConfiguration begins by reading the file: it may have changed since the start.
func (s *supervisor) watchConfiguration(ctx context.Context, now time.Time) {
	if s.ConfigurationFile == "" || s.Reload == nil {
		return
	}
	s.file.changed(now)
	ctx, s.file.unwatch = context.WithCancel(ctx)
	s.file.changes = s.watchFiles(ctx, s.ConfigurationFile)
}

// leave ends what watchConfiguration began.
func (w *watched) leave() {
	if w.unwatch != nil {
		w.unwatch()
	}
	*w = watched{}
}

// changed waits until the file stops changing: an editor empties it before it writes.
func (w *watched) changed(now time.Time) {
	if w.limit.IsZero() {
		w.limit = now.Add(changeGap)
	}
	if w.due = now.Add(settle); w.due.After(w.limit) {
		w.due = w.limit
	}
}

// readConfiguration applies the file if its content is valid and has changed. If changes are
// not reported, or if the file cannot be read now, it is read again after changeGap: the
// reason may pass without a change.
func (s *supervisor) readConfiguration(ctx context.Context, now time.Time) {
	s.file.due, s.file.limit = time.Time{}, time.Time{}
	settings, err := s.Reload()
	if err != nil || s.file.changes == nil {
		s.file.due = now.Add(changeGap)
	}
	if err != nil {
		if err.Error() != s.file.refusal {
			s.logRefusal(err)
		}
		s.refuse(err)
		return
	}
	s.accept()
	if settings == nil {
		return
	}
	s.log(event.Reloaded, zap.Bool("changed", true))
	s.restart(ctx, settings, now)
	s.request(s.schedule.afterChange(now), "the configuration has changed")
	if !s.running.active() {
		s.waiting(now, "The configuration has changed")
	}
}

// refuse notes why the configuration file is not in effect, and shows it in front of STATUS=
// until READY.
func (s *supervisor) refuse(err error) {
	s.file.refusal = err.Error()
	if !s.systemd.ready {
		s.systemd.setNote("Configuration refused: " + s.file.refusal + "; the previous one stays in effect. ")
	}
}

// accept notes that the configuration file is in effect.
func (s *supervisor) accept() {
	if s.file.refusal != "" {
		s.file.refusal = ""
		s.systemd.setNote("")
	}
}

// status is what a Status says about the file.
func (f *configurationFile) status(running *control.Configuration) *control.Configuration {
	if running == nil || f.refusal == "" {
		return running
	}
	c := *running
	c.Refused = foreign.Line(strings.Join(strings.Fields(f.refusal), " "), foreign.MaxFault)
	return &c
}

func (s *supervisor) logRefusal(err error) {
	s.log(event.ReloadRefused, zap.String("fault", string(fault.ConfigurationInvalid)), zap.Error(err))
}

// hangup obeys SIGHUP. The first one is obeyed immediately, and those within reloadGap become
// one: a reload watches the files again, and for each closed inotify(7) instance the kernel
// holds a thread for some milliseconds.
func (f *configurationFile) hangup(now time.Time) {
	if f.hangupDue.IsZero() {
		f.hangupDue = later(now, f.reloaded.Add(reloadGap))
	}
}

// reload obeys SIGHUP. Before the first READY, systemd is not notified: RELOADING=1 would
// make the unit active.
func (s *supervisor) reload(ctx context.Context, now time.Time) {
	s.file.hangupDue, s.file.reloaded = time.Time{}, now
	if s.systemd.ready {
		s.systemd.reloading()
	}
	status := "Configuration reloaded; registering again"
	var settings *Settings
	var err error
	if s.Reload != nil {
		settings, err = s.Reload()
	}
	switch {
	case err != nil:
		status = "The new configuration is invalid; the previous one stays in effect: " + err.Error()
		s.logRefusal(err)
		s.refuse(err)
	case settings == nil && s.running.active():
		s.log(event.Reloaded, zap.Bool("changed", false)) // the running attempt is the one that was asked for
	default:
		s.log(event.Reloaded, zap.Bool("changed", settings != nil))
		s.restart(ctx, settings, now)
		s.request(s.schedule.force(now), "reload")
	}
	if err == nil {
		s.accept()
	}
	switch {
	case s.systemd.ready:
		s.systemd.announceReady(status)
	case err == nil:
		s.systemd.setStatus(status)
	}
}
