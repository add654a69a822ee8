package check

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
)

// service reports what the running dpsd says of itself: the steps of a check try the way
// now, and do not see what a registration meets.
func (i *inspection) service(ctx context.Context) {
	r := Result{Name: Service}
	if i.Ask == nil {
		i.skip(r, "the running dpsd is not asked")
		return
	}
	if i.leavesOut(Service) {
		i.skip(r, "")
		return
	}
	i.progress("asking the running dpsd")
	s, err := i.Ask(ctx)
	switch {
	case errors.Is(err, control.ErrNotRunning):
		i.skip(r, "dpsd is not running")
		return
	case err != nil:
		i.warn(r, "the running dpsd does not answer: "+err.Error(), "journalctl -u dpsd")
		return
	}
	running := "running for " + rough(s.Now.Sub(s.StartedAt))
	if n := slices.IndexFunc(s.Faults, func(f control.Fault) bool { return f.Standing }); n >= 0 {
		i.report(unresolved(r, s, s.Faults[n]))
	} else {
		i.ok(r, running+", no unresolved fault: "+strings.Join(strings.Fields(s.Text), " "))
	}
	i.configured(s)
}

// unresolved is a fault that stands, for how long, and what comes next.
func unresolved(r Result, s control.Status, f control.Fault) Result {
	r.Status, r.Code, r.Advice = Failed, fault.Code(f.Code), f.Advice
	cause := f.Cause
	if cause == "" {
		cause = f.Summary
	}
	r.Detail = fmt.Sprintf("while %s: %s; for %s", fault.Stage(f.Stage).Doing(), strings.Join(strings.Fields(cause), " "), brief(s.Now.Sub(f.First)))
	if f.Count > 1 {
		r.Detail += fmt.Sprintf(", %d times", f.Count)
	}
	if s.Next == nil {
		r.Detail += "; an attempt is under way"
	} else {
		r.Detail += fmt.Sprintf("; next attempt in %s, at %s", brief(time.Duration(s.Next.In*float64(time.Second))), s.Next.At.UTC().Format("15:04:05 UTC"))
	}
	return r
}

// brief is a duration as status has it: it is compared with what status shows.
func brief(d time.Duration) string {
	if d >= time.Hour {
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
	return max(0, d).Round(time.Second).String()
}

// configured reports that the running dpsd has another configuration than the file.
func (i *inspection) configured(s control.Status) {
	theirs := s.Configuration
	if theirs == nil || i.Settings == nil || i.Settings.Configuration == nil || theirs.File != i.Settings.Configuration.File || *theirs == *i.Settings.Configuration {
		return
	}
	advice := "systemctl reload dpsd; after a change to [state], [control] or [log]: systemctl restart --no-block dpsd"
	if !s.Ready {
		advice = "systemctl restart --no-block dpsd"
	}
	i.warn(Result{Name: Service, Subject: theirs.File}, "the running dpsd uses another configuration than this file", advice)
}
