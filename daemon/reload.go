package daemon

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/event"
)

// hungUp is SIGHUP. The first is obeyed at once. Those that follow within reloadGap
// become one: a reload watches files anew, and for each instance of inotify(7) that is
// closed the kernel holds a thread for some milliseconds.
func (s *supervisor) hungUp(now time.Time) {
	if s.reloadDue.IsZero() {
		s.reloadDue = later(now, s.reloaded.Add(reloadGap))
	}
}

// reload obeys SIGHUP. Before the first READY systemd hears nothing of it: a
// RELOADING=1 then would make the unit active.
func (s *supervisor) reload(ctx context.Context, now time.Time) {
	s.reloadDue, s.reloaded = time.Time{}, now
	if s.ready {
		s.notify.reloading()
	}
	status := "Configuration reloaded; registering again"
	var settings *Settings
	var err error
	if s.Reload != nil {
		settings, err = s.Reload()
	}
	switch {
	case err != nil:
		status = "The new configuration is refused, the previous one stays in effect: " + err.Error()
		s.tellRefusal(err)
	case settings == nil && s.attempt != nil:
		s.tell(event.Reloaded, zap.Bool("changed", false)) // what runs is what was asked for
	default:
		s.tell(event.Reloaded, zap.Bool("changed", settings != nil))
		s.afresh(ctx, settings)
		s.trigger(s.force(now), "reload")
	}
	if err != nil {
		s.refuse(err)
	} else {
		s.accept()
	}
	switch {
	case s.ready:
		s.notify.ready(status)
	case err == nil:
		s.notify.setStatus(status)
	}
}
