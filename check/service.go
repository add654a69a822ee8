package check

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
)

// service reports the status of the running dpsd, because the steps of a check do not detect
// the failures of a registration.
func (i *inspection) service() {
	r := Result{Name: Service}
	if i.Ask == nil {
		i.skip(r, "the running dpsd is not queried")
		return
	}
	if i.leavesOut(Service) {
		i.skip(r, "")
		return
	}
	i.Progress("querying the running dpsd")
	s, err := i.answer()
	switch {
	case errors.Is(err, control.ErrNotRunning) && i.SocketUnknown && (i.unit == nil || i.unit.running()):
		i.skip(r, "dpsd cannot be reached: the path of its control socket is in "+i.File+", which cannot be used")
		return
	case errors.Is(err, control.ErrNotRunning):
		if s, found := Unreachable(i.StateDirectory, i.RuntimeDirectory); found {
			i.warn(r, s.Detail, s.Advice)
			return
		}
		if locked := store.Holder(i.StateDirectory); locked != nil && !i.unit.running() {
			i.fail(r, locked)
			return
		}
		i.skip(r, "dpsd is not running")
		return
	case err != nil:
		i.warn(r, "cannot query the running dpsd: "+err.Error(), "journalctl -u dpsd")
		return
	}
	doubt := i.configured(s)
	n := slices.IndexFunc(s.Faults, func(f control.Fault) bool { return f.Unresolved })
	switch {
	case n >= 0:
		i.report(unresolved(r, s, s.Faults[n]))
	case doubt == nil || doubt.Code == "":
		i.ok(r, "running for "+rough(s.Now.Sub(s.StartedAt))+", no unresolved faults: "+strings.Join(strings.Fields(s.Text), " "))
	}
	if doubt != nil {
		i.report(*doubt)
	}
}

// manager reports which features of its service manager the running dpsd uses. All are optional.
func (i *inspection) manager() {
	r := Result{Name: Manager}
	s, err := i.answer()
	m := s.ServiceManager
	switch {
	case err == nil && m == nil:
		i.skip(r, "the running dpsd is an earlier version")
	case m == nil && i.Systemctl == nil:
		i.ok(r, "systemd is not running: dpsd works without notification, watchdog and journal, and reads a \"credential:\" from "+strings.Join(i.Secrets.Directories, ", "))
	case m == nil:
		i.skip(r, "dpsd is not running, or does not answer")
	default:
		notification, watchdog := "none", "none"
		if m.Notification {
			notification = "yes"
		}
		if m.Watchdog > 0 {
			watchdog = fmt.Sprintf("every %gs", m.Watchdog)
		}
		i.ok(r, fmt.Sprintf("notification: %s; watchdog: %s; credentials: %s; log: %s", notification, watchdog, cmp.Or(m.Credentials, "none"), m.Log))
	}
}

// unresolved returns a failure that describes an unresolved fault, its duration and the next
// attempt.
func unresolved(r Result, s control.Status, f control.Fault) Result {
	r.Status, r.Code, r.Advice = Failed, fault.Code(f.Code), f.Advice
	cause := cmp.Or(f.Cause, f.Summary)
	r.Detail = fmt.Sprintf("while %s: %s; for %s", fault.Stage(f.Stage).Doing(), strings.Join(strings.Fields(cause), " "), brief(s.Now.Sub(f.First)))
	if f.Count > 1 {
		r.Detail += fmt.Sprintf(", %d times", f.Count)
	}
	switch {
	case s.Next == nil:
		r.Detail += "; an attempt is under way"
	case s.Next.In < 0.5: // "in 0s" would be odd
		r.Detail += "; the next attempt starts now"
	default:
		r.Detail += fmt.Sprintf("; next attempt in %s, at %s", brief(time.Duration(s.Next.In*float64(time.Second))), s.Next.At.UTC().Format("15:04:05 UTC"))
	}
	return r
}

// brief returns a duration in the form of "dpsd status", so that people can compare them.
func brief(d time.Duration) string {
	if d >= time.Hour {
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return max(0, d).Round(time.Second).String()
}

// configured returns a warning if the running dpsd does not use the current content of the
// file. It returns nil if it does or if that is unknown. The warning has a code if dpsd has
// rejected the file.
func (i *inspection) configured(s control.Status) *Result {
	theirs := s.Configuration
	if theirs == nil {
		return nil
	}
	r := &Result{Name: Service, Subject: theirs.File, Status: Warning}
	ours := (*control.Configuration)(nil)
	if i.Settings != nil {
		ours = i.Settings.Configuration
	}
	file, err := filepath.Abs(i.File)
	if ours != nil {
		file = ours.File
	}
	switch {
	case err != nil, theirs.File != file:
		return nil
	case ours != nil && theirs.Fingerprint == ours.Fingerprint:
		return nil
	case theirs.Refused != "":
		r.Code = fault.ConfigurationInvalid
		r.Detail = "the running dpsd refused the file and uses the previous configuration: " + strings.Join(strings.Fields(theirs.Refused), " ")
	case ours == nil:
		return nil
	default:
		r.Detail = "the running dpsd uses a different configuration than this file"
	}
	reload, restart := reloadCommand, restartCommand
	if !i.Installed || i.Systemctl == nil {
		reload, restart = fmt.Sprintf("kill -HUP %d", s.PID), "restart dpsd"
	}
	afterRestart := "after a change to [state], [control], [tpm], [log] or the group in [certificate]: " + restart
	switch {
	case ours == nil && s.Ready:
		r.Advice = corrected("Correct it", reload)
	case ours == nil:
		r.Advice = "Correct it; dpsd applies the correction automatically"
	case s.Ready:
		r.Advice = reload + "; " + afterRestart
	default:
		r.Advice = "dpsd applies it automatically within seconds; " + afterRestart
	}
	return r
}
