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

// This file applies a changed configuration file before the first READY. A user corrects
// a first mistake then, and systemd does not deliver a reload to a service that starts.
// After READY a reload is explicit.

// configurationFile is what is known of Daemon.ConfigurationFile while it is watched.
type configurationFile struct {
	changes <-chan struct{} // from Watch; nil: it cannot be watched, or not any more
	unwatch context.CancelFunc
	due     time.Time // when it is read next; zero: when it changes
	limit   time.Time // the latest time for that, however often it changes
}

// watchConfiguration begins with a look: the file may have changed since it was read.
func (s *supervisor) watchConfiguration(ctx context.Context, now time.Time) {
	if s.ConfigurationFile == "" || s.Reload == nil {
		return
	}
	s.file.changed(now)
	ctx, s.file.unwatch = context.WithCancel(ctx)
	if s.Watch == nil {
		return
	}
	changes, err := s.Watch(ctx, s.ConfigurationFile)
	if err != nil {
		s.tell(event.WatchFailed, zap.Error(err))
		return
	}
	s.file.changes = changes
}

// leaveConfiguration ends what watchConfiguration began.
func (s *supervisor) leaveConfiguration() {
	if s.file.unwatch != nil {
		s.file.unwatch()
	}
	s.file = configurationFile{}
}

// changed waits until the file has come to rest: an editor empties it before it writes.
func (f *configurationFile) changed(now time.Time) {
	if f.limit.IsZero() {
		f.limit = now.Add(changeGap)
	}
	if f.due = now.Add(settle); f.due.After(f.limit) {
		f.due = f.limit
	}
}

// readConfiguration applies the file if its content is valid and another one. It reads
// the file again after a while if nothing tells of a change, or if it cannot be read
// now: the reason may pass without a change.
func (s *supervisor) readConfiguration(ctx context.Context, now time.Time) {
	s.file.due, s.file.limit = time.Time{}, time.Time{}
	settings, err := s.Reload()
	if err != nil || s.file.changes == nil {
		s.file.due = now.Add(changeGap)
	}
	if err != nil {
		if err.Error() != s.refusal {
			s.tellRefusal(err)
		}
		s.refuse(err)
		return
	}
	s.accept()
	if settings == nil {
		return
	}
	s.tell(event.Reloaded, zap.Bool("changed", true))
	s.afresh(ctx, settings)
	const why = "the configuration has changed"
	s.trigger(later(now, s.reached.Add(changeGap)), why)
	if s.attempt == nil {
		s.waiting(now, why)
	}
}

// refuse remembers why the configuration file is not in effect, and says so in front of
// STATUS= until READY.
func (s *supervisor) refuse(err error) {
	s.refusal = err.Error()
	if !s.ready {
		s.notify.setNote("Configuration refused: " + s.refusal + "; the previous one stays in effect. ")
	}
}

// accept takes back what refuse has said.
func (s *supervisor) accept() {
	if s.refusal != "" {
		s.refusal = ""
		s.notify.setNote("")
	}
}

// configuration is what a Status says of the file.
func (s *supervisor) configuration() *control.Configuration {
	if s.settings.Configuration == nil || s.refusal == "" {
		return s.settings.Configuration
	}
	c := *s.settings.Configuration
	c.Refused = foreign.Line(strings.Join(strings.Fields(s.refusal), " "), foreign.MaxFault)
	return &c
}

func (s *supervisor) tellRefusal(err error) {
	s.tell(event.ReloadRefused, zap.String("fault", string(fault.ConfigurationInvalid)), zap.Error(err))
}
