package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/store"
)

func reprovisionCommand() *cobra.Command {
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "reprovision",
		Short: "Ask the running service to register again",
		Long: `Ask the running dpsd to register with DPS again. Root and the members of the
group dpsd may do this. dpsd makes at most one requested registration per
minute, and none before a wait that DPS has asked for is over; the output shows
when dpsd will register.

The published identity stays in place until a newer one is on disk. With --wait,
the command exits when DPS has answered (0 if assigned, 1 if refused) or the
--timeout has expired (4).`,
		Example: `  dpsd reprovision
  dpsd reprovision --wait --timeout 5m`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkTimeout(timeout, wait, "--wait"); err != nil {
				return err
			}
			return reprovision(installationOf(cmd), wait, timeout)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until DPS has answered")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: give up after this time\n(0: never)")
	_ = cmd.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
	return cmd
}

func reprovision(places installation, wait bool, timeout time.Duration) error {
	ctx, stop := interruptible(timeout)
	defer stop()
	asked := time.Now()
	answer, err := places.client().Reprovision(ctx)
	if err != nil {
		return places.notAsked(err, "dpsd reprovision")
	}
	announce(answer, "dpsd is registering again.", "dpsd will register again in %s")
	if !wait {
		return nil
	}
	var refused *control.Fault
	var last control.Status
	err = until(ctx, places, func(s control.Status) bool {
		last = s
		if !s.StartedAt.Equal(answer.StartedAt) { // dpsd was restarted, so its counters start at 0
			return s.Confirmed != nil
		}
		if s.Confirmations > answer.Confirmations {
			return true
		}
		if gaveUp(s, answer) || unsaved(s, asked) {
			refused = &s.Faults[0]
		}
		return refused != nil
	})
	switch {
	case refused != nil:
		return &exitError{exitFailed, described(*refused), check.With(places.file, "dpsd status")}
	case errors.Is(context.Cause(ctx), errWaited):
		return &exitError{exitTimeout, fmt.Errorf("no answer within %s%s", timeout, places.obstacle(last)), check.With(places.file, "dpsd status")}
	case err != nil:
		return &exitError{exitFailed, err, check.With(places.file, "dpsd status")}
	}
	rec, err := store.Published(places.state, places.runtime)
	if err != nil {
		return failed(err)
	}
	_, err = fmt.Fprintf(os.Stdout, "Assigned to %s as %s, generation %d.\n", printable(rec.AssignedHub), printable(rec.DeviceID), rec.Generation)
	return err
}

// notAsked explains why the running dpsd has not accepted a request. command is what the user
// has run.
func (i installation) notAsked(err error, command string) error {
	next := check.With(i.file, "dpsd status")
	switch {
	case errors.Is(err, control.ErrNotRunning) && i.socketUnknown:
		err = fmt.Errorf("dpsd cannot be reached: the path of its control socket is in a configuration that cannot be used: %w", i.note)
	case errors.Is(err, control.ErrNotRunning):
		next = "systemctl start --no-block dpsd"
	case errors.Is(err, control.ErrForbidden), errors.Is(err, fs.ErrPermission):
		next = "sudo " + command
	}
	return &exitError{exitFailed, err, next}
}

// announce prints when dpsd fulfils a request: now, or later with the time in later.
func announce(answer control.Reprovision, now, later string) {
	in := time.Duration(answer.In * float64(time.Second))
	if in < time.Second {
		fmt.Println(now)
		return
	}
	fmt.Printf(later+": it does so at most once a minute, and not before a wait that DPS has asked for is over.\n", span(in))
}

// described returns a fault as an error with its advice.
func described(f control.Fault) error {
	foreign.Strings(&f, foreign.MaxFault)
	return fmt.Errorf("%s: %s\n%s", f.Code, f.Cause, f.Advice)
}

// gaveUp reports whether DPS has rejected a requested registration.
func gaveUp(s control.Status, answer control.Reprovision) bool {
	return s.Attempts.Failed > answer.Failed && s.Next != nil && s.Next.Lane == "refused" && len(s.Faults) > 0
}

// unsaved reports whether the latest fault concerns the state directory and occurred after a
// time.
func unsaved(s control.Status, after time.Time) bool {
	return len(s.Faults) > 0 && s.Faults[0].Unresolved && s.Faults[0].Class == string(fault.Storage) && s.Faults[0].Last.After(after)
}
