package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
)

func certificateRenewCommand() *cobra.Command {
	var wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "renew",
		Short: "Ask the running service to request another certificate",
		Long: `Ask the running dpsd to register with DPS again and to request another
certificate with a new key, even if no renewal is due. Root and the members of
the group dpsd may do this. The limits are those of "dpsd reprovision"; the
output shows when dpsd will send the request.

The published certificate and its key stay in place until the new pair is on
disk. With --wait, the command exits when the new certificate is published (0),
when the request has failed (1), or when the --timeout has expired (4).`,
		Example: `  dpsd certificate renew
  dpsd certificate renew --wait --timeout 5m`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkTimeout(timeout, wait, "--wait"); err != nil {
				return err
			}
			return renewCertificate(installationOf(cmd), wait, timeout)
		},
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the new certificate is published")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "with --wait: give up after this time\n(0: never)")
	_ = cmd.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
	return cmd
}

func renewCertificate(places installation, wait bool, timeout time.Duration) error {
	ctx, stop := interruptible(timeout)
	defer stop()
	// The status before the request shows which certificate is the new one, even if that is
	// published before the answer to this request arrives.
	before, err := places.client().Status(ctx)
	var answer control.Reprovision
	asked := time.Now()
	if err == nil {
		answer, err = places.client().RenewCertificate(ctx)
	}
	if errors.Is(err, control.ErrNotConfigured) {
		return &exitError{exitFailed, err, "man dpsd.toml, which describes [certificate]"}
	}
	if err != nil {
		return places.notAsked(err, "dpsd certificate renew")
	}
	announce(answer, "dpsd is requesting a certificate.", "dpsd will request a certificate in %s")
	if !wait {
		return nil
	}
	r := renewal{before: held(before), answer: answer, asked: asked}
	err = until(ctx, places, r.over)
	switch {
	case r.failed:
		return &exitError{exitFailed, r.reason(), check.With(places.file, "dpsd status")}
	case errors.Is(context.Cause(ctx), errWaited):
		return &exitError{exitTimeout, fmt.Errorf("no certificate within %s%s", timeout, places.obstacle(r.last)), check.With(places.file, "dpsd status")}
	case err != nil:
		return &exitError{exitFailed, err, check.With(places.file, "dpsd status")}
	}
	c := held(r.last)
	if c.NotAfter == nil {
		return nil
	}
	_, err = fmt.Fprintf(os.Stdout, "The new certificate is valid until %s; its serial number is %s.\n", c.NotAfter.UTC().Format(time.RFC3339), printable(c.Serial))
	return err
}

// held returns the issued certificate of a status, or the zero value if there is none.
func held(s control.Status) control.IssuedCertificate {
	if s.IssuedCertificate == nil {
		return control.IssuedCertificate{}
	}
	return *s.IssuedCertificate
}

// renewal observes a requested renewal.
type renewal struct {
	before control.IssuedCertificate
	answer control.Reprovision
	asked  time.Time

	last   control.Status
	failed bool
}

// over reports whether the renewal is over: another certificate is published, or the request
// has failed.
func (r *renewal) over(s control.Status) bool {
	r.last = s
	c := held(s)
	if c.SHA256 != "" && c.SHA256 != r.before.SHA256 {
		return true
	}
	if s.StartedAt.Equal(r.answer.StartedAt) { // otherwise dpsd was restarted, and its counters have started at 0
		r.failed = c.Failed > r.before.Failed || gaveUp(s, r.answer) || unsaved(s, r.asked)
	}
	return r.failed
}

// reason returns the unresolved fault that ended the request.
func (r *renewal) reason() error {
	for _, f := range r.last.Faults {
		if f.Unresolved {
			return described(f)
		}
	}
	reason := "DPS has issued no certificate"
	if due := held(r.last).Due; due != "" {
		reason += ": " + printable(due)
	}
	return errors.New(reason)
}
