package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/watch"
)

// Values of --for.
const (
	forAssigned  = "assigned"
	forConfirmed = "confirmed"
	forChange    = "change"
	forIssued    = "certificate"
)

func waitCommand() *cobra.Command {
	conditions := []cobra.Completion{forAssigned, forConfirmed, forChange, forIssued}
	var what string
	var generation uint64
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait for the identity, a confirmation, a change or a certificate",
		Long: `Wait until a condition is true, and exit with 0. When the --timeout expires,
print the unresolved fault, or why dpsd is not running, and exit with 4. The
command does not poll, and dpsd need not be running yet.

  assigned     an identity is published; if there is one, the command exits
               immediately
  confirmed    DPS has confirmed the identity since the running dpsd started
  change       the published generation is greater than --generation or,
               without that option, than when the command started
  certificate  a certificate issued by DPS is published and valid`,
		Example: `  dpsd wait && . /var/lib/dpsd/state.env
  dpsd wait --for confirmed --timeout 5m
  dpsd wait --for change --generation 3
  dpsd wait --for certificate && systemctl start my-consumer`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch {
			case !slices.Contains(conditions, what):
				return fmt.Errorf("--for must be %s, %s, %s or %s", forAssigned, forConfirmed, forChange, forIssued)
			case cmd.Flags().Changed("generation") && what != forChange:
				return errors.New("--generation requires --for change")
			}
			if err := checkTimeout(timeout, true, ""); err != nil {
				return err
			}
			places := installationOf(cmd)
			if what == forChange && !cmd.Flags().Changed("generation") {
				if rec, err := store.Published(places.state, places.runtime); err == nil {
					generation = rec.Generation
				}
			}
			return wait(places, what, generation, timeout)
		},
	}
	cmd.Flags().StringVar(&what, "for", forAssigned, "wait for `WHAT`: assigned, confirmed, change\nor certificate")
	cmd.Flags().Uint64Var(&generation, "generation", 0, "with --for change: wait until the\ngeneration is above `N`")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "give up after this time (0: never)")
	_ = cmd.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(conditions, cobra.ShellCompDirectiveNoFileComp))
	for _, flag := range []string{"generation", "timeout"} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.NoFileCompletions)
	}
	return cmd
}

func wait(places installation, what string, generation uint64, timeout time.Duration) error {
	ctx, stop := interruptible(timeout)
	defer stop()
	var last control.Status
	err := until(ctx, places, func(s control.Status) bool {
		last = s
		switch {
		case what == forIssued:
			return reportOn(s, true, nil, margin{}).State == control.CertificateValid
		case s.Identity == nil:
			return false
		case what == forConfirmed:
			return s.Confirmed != nil
		case what == forChange:
			return s.Identity.Generation > generation
		}
		return true
	})
	switch {
	case err == nil:
		return nil
	case errors.Is(context.Cause(ctx), errWaited):
		because := places.obstacle(last)
		if because == "" && what == forIssued {
			because = ": " + printable(uncertified(last))
		}
		return &exitError{exitTimeout, fmt.Errorf("%s within %s%s", map[string]string{
			forAssigned: "not provisioned", forConfirmed: "not confirmed", forChange: "not changed", forIssued: "no valid certificate"}[what], timeout, because), check.With(places.file, "dpsd status")}
	}
	return &exitError{exitFailed, err, check.With(places.file, "dpsd status")}
}

// obstacle returns the end of a sentence with the reason for waiting: the running daemon has
// rejected the configuration, its unresolved fault, or the reason why it does not run. It
// returns "" if no reason is known.
func (i installation) obstacle(last control.Status) string {
	if last.Phase.Name == phaseStopped || last.Phase.Name == phaseUnknown {
		ctx, cancel := context.WithTimeout(context.Background(), askLimit)
		defer cancel()
		why := i.whyStopped(ctx)
		said := ": "
		if last.Phase.Name == phaseStopped {
			said += notRunning + ": "
		}
		return said + printable(why.Detail) + "\n" + printable(why.Advice)
	}
	var said []string
	if c := last.Configuration; c != nil && c.Refused != "" {
		said = append(said, "the configuration was refused, and the previous one stays in effect: "+printable(oneLine(c.Refused)))
	}
	if len(last.Faults) > 0 && last.Faults[0].Unresolved {
		f := last.Faults[0]
		foreign.Strings(&f, foreign.MaxFault)
		said = append(said, f.Code+": "+f.Summary)
		if f.Cause != "" {
			said = append(said, "cause: "+oneLine(f.Cause))
		}
		said = append(said, f.Advice)
	}
	if said == nil {
		return ""
	}
	return ": " + strings.Join(said, "\n")
}

// uncertified returns why a running dpsd without a fault has no valid certificate.
func uncertified(s control.Status) string {
	c := held(s)
	if c.Request == "" {
		return control.ErrNotConfigured.Error()
	}
	text, _ := summary(c, true, s.Now)
	return "the issued certificate: " + text
}

// checkTimeout checks the value of --timeout, which is valid only with another flag.
func checkTimeout(timeout time.Duration, given bool, flag string) error {
	switch {
	case timeout != 0 && !given:
		return errors.New("--timeout requires " + flag)
	case timeout < 0:
		return errors.New("--timeout must be positive")
	}
	return nil
}

// errWaited is the cause of a context whose timeout has expired.
var errWaited = errors.New("the timeout has expired")

// interruptible returns a context that ends with SIGTERM, SIGINT, one of the other signals, or
// the timeout, unless it is 0.
func interruptible(timeout time.Duration, more ...os.Signal) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(context.Background(), append(more, syscall.SIGTERM, syscall.SIGINT)...)
	if timeout == 0 {
		return ctx, stop
	}
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errWaited)
	return ctx, func() { cancel(); stop() }
}

// until waits until is returns true for the status of the running daemon or, while it does not
// run, for the status according to the files. On a terminal it shows the progress.
func until(ctx context.Context, places installation, is func(control.Status) bool) error {
	screen := terminalOn(os.Stderr)
	defer screen.progress("")
	// A record that cannot be written to the state directory is published in the runtime
	// directory.
	paths := append(append([]string{places.socket}, store.Files(places.state)...), store.Files(places.runtime)...)
	changed, err := watch.Files(ctx, paths...)
	if err != nil {
		return err
	}
	for first := true; ; first = false {
		s, running, err := places.status(ctx)
		if err != nil && first && errors.Is(context.Cause(ctx), errWaited) { // the timeout was short; why it expired is not known yet
			ask, cancel := context.WithTimeout(context.Background(), askLimit)
			s, running, err = places.status(ask)
			cancel()
		}
		switch {
		case err == nil && is(s):
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			screen.progress("Waiting: " + err.Error())
		case running:
			err := places.client().Follow(ctx, func(s control.Status) error {
				if is(s) {
					return errTrue
				}
				screen.progress("Waiting: " + s.Text)
				return nil
			})
			if errors.Is(err, errTrue) {
				return nil
			}
			continue // the daemon has ended or restarts
		default:
			if s.Phase.Name == phaseUnknown {
				screen.progress("Waiting: dpsd cannot be reached")
				break
			}
			screen.progress("Waiting for dpsd to start")
		}
		select {
		case <-changed:
		case <-validFrom(s):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// validFrom returns a channel that receives a value when the issued certificate of a status
// becomes valid, which changes no file. It is nil if the certificate is already valid.
func validFrom(s control.Status) <-chan time.Time {
	begin := held(s).NotBefore
	if begin == nil || !begin.After(s.Now) {
		return nil
	}
	return time.After(begin.Sub(s.Now))
}

// errTrue ends a Follow.
var errTrue = errors.New("true")
