package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
)

// finish checks the new configuration, starts the service, and waits for the assignment.
func (i *installer) finish(ctx context.Context) error {
	local, remote, err := i.check(ctx)
	switch {
	case err != nil:
		return failed(err)
	case local > 0:
		return &exitError{exitFailed, errors.New("dpsd cannot use the configuration, so the service was not started"), check.With(i.file, "dpsd check")}
	case i.offline:
		return nil
	}
	begin := time.Now().Truncate(time.Millisecond)
	started, err := i.start(ctx)
	switch {
	case err != nil:
		return failed(err)
	case !started && remote > 0:
		return &exitError{exitFailed, errors.New("the configuration was written, but the check failed"), check.With(i.file, "dpsd check")}
	case !started:
		fmt.Printf("No service manager runs dpsd with this configuration. Start dpsd with:\n  %s\n", check.With(i.file, "dpsd run"))
		return nil
	case remote > 0:
		return &exitError{exitFailed, errors.New("the configuration was written and dpsd was started, but the check failed; dpsd retries automatically, and applies corrections without a restart"), check.With(i.file, "dpsd wait")}
	case i.timeout == 0:
		return nil
	}
	return i.await(ctx, begin)
}

// check runs the steps of "dpsd check" and prints those that need attention. It returns how many
// steps failed on this gateway and how many in the network.
func (i *installer) check(ctx context.Context) (local, remote int, err error) {
	gateway := gatewayOf(i.file)
	gateway.Skip = map[string]bool{check.Service: true, check.Unit: true}
	gateway.Progress = func(what string) { i.screen.progress("Checking: " + what) }
	out, done, steps := terminalOn(os.Stdout), false, 0
	_, err = checked(ctx, gateway, i.offline, func(r check.Result) {
		done = done || r.Name == check.Name
		switch r.Status {
		case check.OK:
			steps++
			return
		case check.Skipped:
			return
		case check.Failed:
			if done {
				remote++
			} else {
				local++
			}
		}
		i.screen.progress("")
		printStep(out, r)
	})
	i.screen.progress("")
	if err == nil && local+remote == 0 {
		fmt.Fprintf(out, "checked the configuration: %d steps, none failed\n", steps)
	}
	return local, remote, err
}

// initScript is the script of dpsd for OpenRC and procd.
const initScript = "/etc/init.d/dpsd"

// start starts or restarts the service. It reports false if no service manager runs dpsd with
// this configuration.
func (i *installer) start(ctx context.Context) (bool, error) {
	if i.file != check.InstalledFile {
		return false, nil
	}
	run := func(name string, args ...string) error {
		i.screen.progress("Starting dpsd")
		defer i.screen.progress("")
		c := exec.CommandContext(ctx, name, args...) //nolint:gosec // the arguments are constants
		c.WaitDelay = time.Second
		if text, err := c.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", c, err, printable(oneLine(string(text))))
		}
		return nil
	}
	if systemctl := bootedSystemctl(); systemctl != nil {
		if out, err := systemctl(ctx, "show", "--property=LoadState", "--value", "dpsd.service"); err == nil && oneLine(string(out)) == "loaded" {
			// A read-only /etc does not prevent the start.
			if err := run("systemctl", "--quiet", "enable", "dpsd.service"); err != nil {
				fmt.Fprintln(i.screen, "dpsd: warning: dpsd will not start at boot:", err)
			}
			return true, run("systemctl", "--no-block", "restart", "dpsd.service")
		}
		return false, nil
	}
	if info, err := os.Stat(initScript); err == nil && info.Mode()&0o111 != 0 {
		return true, run(initScript, "restart")
	}
	return false, nil
}

// await waits until DPS assigns or refuses the gateway. It ignores a dpsd that was started before
// since.
func (i *installer) await(ctx context.Context, since time.Time) error {
	ctx, cancel := context.WithTimeoutCause(ctx, i.timeout, errWaited)
	defer cancel()
	places := installationIn(i.file)
	var last control.Status
	refused := false
	err := until(ctx, places, func(s control.Status) bool {
		last = s
		if s.StartedAt.Before(since) {
			return false // the dpsd before the restart, or none
		}
		refused = s.Attempts.Failed > 0 && s.Next != nil && s.Next.Lane == "refused" && len(s.Faults) > 0 && s.Faults[0].Unresolved
		return refused || s.Confirmed != nil && s.Identity != nil
	})
	const later = "; dpsd keeps trying"
	next := check.With(i.file, "dpsd status")
	switch {
	case refused:
		return &exitError{exitFailed, described(last.Faults[0]), next}
	case errors.Is(context.Cause(ctx), errWaited):
		return &exitError{exitTimeout, fmt.Errorf("not assigned within %s%s%s", i.timeout, later, places.obstacle(last)), next}
	case ctx.Err() != nil:
		return &exitError{exitFailed, errors.New("stopped waiting" + later), next}
	case err != nil:
		return &exitError{exitFailed, err, next}
	}
	fmt.Printf("Assigned to %s as %s.\nOther services read the identity in %s/state.env. To show it, run: dpsd status\n",
		printable(last.Identity.AssignedHub), printable(last.Identity.DeviceID), printable(places.state))
	return nil
}
