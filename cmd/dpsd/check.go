package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/nearest"
	"github.com/dpsd-project/dpsd/store"
)

// serviceAccount is the user of dpsd.service.
const serviceAccount = "dpsd"

func checkCommand() *cobra.Command {
	var o checkOptions
	var list bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Diagnose why this gateway is not provisioned",
		Long: `Diagnose why this gateway is not provisioned. The command checks the
configuration, registration ID, credentials, clock, trusted roots, state
directory, issued certificate and unit, and queries the running dpsd. Then it
tries name resolution, TCP to each address, the proxy, TLS with each protocol,
and CONNECT with each credential. Last, it connects to the assigned hub with
TLS, without signing in. Each step prints one line. A failed step shows its
code, as in dpsd-faults(7), and what to do. --list prints the steps.

The check registers nothing and changes nothing on disk, so only "dpsd run"
shows whether DPS has an enrollment. DPS allows one connection per registration
ID, so a check may interrupt a registration by the service, which then retries.

Run the command as root: it then opens files with the permissions of the user
dpsd, as the service does. For the installed configuration, it uses HTTPS_PROXY
and NO_PROXY from the environment of dpsd.service, if systemd is running; for
any other configuration, it uses those of its own environment.

If a step fails, the check skips the steps that need it, and continues with the
others. If one protocol, address or credential fails but another works, the
check reports a warning.

Exit codes: 0 if no step failed, 1 if a step failed, 2 if --skip names an
unknown step, 78 if the configuration is invalid.`,
		Example: `  sudo dpsd check
  dpsd check --offline --config new.toml   # before you install it
  sudo dpsd check --skip connect --warnings-as-errors
  dpsd check --json | jq '.steps[] | select(.status == "failed")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.known(); err != nil {
				return err
			}
			if list {
				return listSteps(cmd.OutOrStdout(), o.json)
			}
			return runCheck(configOf(cmd), o)
		},
	}
	cmd.Flags().BoolVar(&o.offline, "offline", false, "skip the steps that use the network")
	cmd.Flags().BoolVar(&o.json, "json", false, "print JSON; its schema is\n/usr/share/dpsd/check.schema.json")
	cmd.Flags().BoolVar(&list, "list", false, "print the steps and exit")
	cmd.Flags().StringSliceVar(&o.skip, "skip", nil, "skip the step `NAME`; repeat the flag, or separate\nseveral names with commas")
	cmd.Flags().BoolVar(&o.strict, "warnings-as-errors", false, "also exit with 1 if there are warnings")
	steps := make([]cobra.Completion, 0, len(check.Steps()))
	for _, s := range check.Steps() {
		steps = append(steps, cobra.CompletionWithDesc(s.Name, s.Description))
	}
	// RegisterFlagCompletionFunc fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("skip", cobra.FixedCompletions(steps, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// checkOptions are the options of a check.
type checkOptions struct {
	offline, json bool
	skip          []string
	strict        bool // warnings count as failures
}

// known returns an error if a step does not exist.
func (o checkOptions) known() error {
	names := make([]string, 0, len(check.Steps()))
	for _, s := range check.Steps() {
		names = append(names, s.Name)
	}
	for _, name := range o.skip {
		if slices.Contains(names, name) {
			continue
		}
		err := fmt.Errorf("--skip: unknown step %q", name)
		if meant := nearest.Name(name, names); meant != "" {
			err = fmt.Errorf("%w; did you mean %q?", err, meant)
		}
		return &exitError{exitUsage, err, "dpsd check --list"}
	}
	return nil
}

// listSteps prints the steps, as JSON or for people and scripts. Each line consists of a name,
// spaces and a description.
func listSteps(out io.Writer, asJSON bool) error {
	if asJSON {
		return failed(writeJSON(out, check.Steps()))
	}
	for _, s := range check.Steps() {
		if _, err := fmt.Fprintf(out, "%-17s %s\n", s.Name, s.Description); err != nil {
			return failed(err)
		}
	}
	return nil
}

// runCheck runs a check and prints its results.
func runCheck(file string, o checkOptions) error {
	ctx, stop := interruptible(0, syscall.SIGHUP)
	defer stop()
	gateway := gatewayOf(file)
	gateway.Skip = map[string]bool{}
	for _, name := range o.skip {
		gateway.Skip[name] = true
	}
	out := terminalOn(os.Stdout)
	if !o.json {
		gateway.Progress = func(what string) { out.progress("… " + what) }
	}
	report, err := checked(ctx, gateway, o.offline, func(r check.Result) {
		if !o.json {
			printStep(out, r)
		}
	})
	if !o.json {
		out.progress("")
	}
	if err == nil && o.json {
		err = writeJSON(out, report)
	}
	if err != nil {
		return failed(err)
	}
	return o.verdict(gateway, report)
}

// checked runs all steps and passes each result to show as soon as the result is final.
func checked(ctx context.Context, gateway *check.Gateway, offline bool, show func(check.Result)) (check.Report, error) {
	report := check.Report{Schema: 1, Version: version, Time: time.Now().UTC().Truncate(time.Second), Offline: offline}
	gateway.Run(ctx, offline, func(r check.Result) {
		if gateway.Systemctl == nil {
			r.Advice = check.WithoutSystemd(r.Advice)
		}
		report.Steps = append(report.Steps, r)
		show(r)
	})
	report.Status = check.Worst(report.Steps)
	if ctx.Err() != nil {
		return report, errors.New("stopped before all steps were checked")
	}
	return report, nil
}

// writeJSON writes indented JSON.
func writeJSON(to io.Writer, value any) error {
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// verdict returns an error with the exit code for the report and the next command to try.
func (o checkOptions) verdict(gateway *check.Gateway, report check.Report) error {
	failures, warnings := 0, 0
	for _, r := range report.Steps {
		switch r.Status {
		case check.Failed:
			failures++
		case check.Warning:
			warnings++
		}
	}
	found := fmt.Errorf("%d of %d steps failed", failures, len(report.Steps))
	switch {
	case failures == 0 && gateway.Invalid == nil && warnings > 0 && o.strict:
		return failed(fmt.Errorf("%d of %d steps gave a warning, which counts as an error with --warnings-as-errors", warnings, len(report.Steps)))
	case failures == 0 && gateway.Invalid == nil:
		return nil
	case errors.Is(gateway.Invalid, fs.ErrPermission) && os.Geteuid() != 0:
		return &exitError{exitFailed, errors.New("this user cannot read the configuration"), "sudo dpsd check"}
	case store.Temporary(gateway.Invalid):
		return failed(errors.New("the configuration cannot be read at the moment"))
	case gateway.Invalid != nil:
		invalid := errors.New("the configuration is invalid")
		if gateway.Skip[check.Configuration] {
			invalid = fmt.Errorf("%w: %w", invalid, gateway.Invalid)
		}
		return &exitError{exitConfiguration, invalid, check.With(gateway.File, "dpsd check --offline") + ", after correcting it"}
	case os.Geteuid() != 0:
		return &exitError{exitFailed, found, "sudo dpsd check, which accesses files as the service does"}
	}
	return &exitError{exitFailed, found, "man dpsd-faults for an explanation of each code, and journalctl -u dpsd for the service's log"}
}

// gatewayOf reads the configuration and returns the gateway to check.
func gatewayOf(file string) *check.Gateway {
	g := &check.Gateway{
		File:      file,
		Installed: file == check.InstalledFile,
		Secrets:   attest.SystemSecrets(os.Getenv("CREDENTIALS_DIRECTORY")),
		Version:   version, BuiltAt: builtAt(),
	}
	g.Systemctl = bootedSystemctl()
	if account, err := check.LookUpAccount(context.Background(), serviceAccount, g.Systemctl); err == nil {
		g.Account = account
	}
	cfg, err := load(file)
	if err != nil {
		g.Invalid = err
		socket, known := socketOf(file)
		g.Ask, g.SocketUnknown = control.Client{Socket: socket}.Status, !known
		return g
	}
	g.Ask = control.Client{Socket: cfg.Control.Socket}.Status
	if cfg.Transport.Proxy == "environment" {
		g.ProxyOrigin = "this command"
		if g.Installed && g.Systemctl != nil {
			if e, err := check.ServiceEnvironment(context.Background(), g.Systemctl); err == nil {
				g.ProxyOrigin = e.Origin
				useProxyOf(e)
			}
		}
	}
	s := settings(file, cfg)
	g.Settings = &s
	g.Secrets.TPM = secrets(cfg, "").TPM
	g.StateDirectory, g.CertificateGroup = cfg.State.Directory, cfg.Certificate.Group
	g.Socket, g.RuntimeDirectory = cfg.Control.Socket, filepath.Dir(cfg.Control.Socket)
	return g
}

// useProxyOf copies the proxy variables of an environment to this process, because net/http,
// which interprets them, reads only its own environment, and only once.
func useProxyOf(e check.Environment) {
	for _, name := range []string{"HTTPS_PROXY", "https_proxy", "NO_PROXY", "no_proxy"} {
		_ = os.Unsetenv(name)
		if value := e.Values[name]; value != "" {
			_ = os.Setenv(name, value) // fails only for names and values that are invalid in an environment
		}
	}
}

// bootedSystemctl returns a function that runs systemctl, or nil if systemd has not booted
// this machine (sd_booted(3)).
func bootedSystemctl() func(ctx context.Context, args ...string) ([]byte, error) {
	if info, err := os.Lstat("/run/systemd/system"); err != nil || !info.IsDir() {
		return nil
	}
	return systemctl
}

func systemctl(ctx context.Context, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, "systemctl", args...) //nolint:gosec // the arguments are constants
	c.WaitDelay = time.Second
	out, err := c.Output()
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return out, err
}

// printStep prints a result: its status, the step, the detail and, on the next line, the
// advice.
func printStep(out *terminal, r check.Result) {
	out.progress("")
	colours := map[check.Status]colour{check.OK: green, check.Skipped: faint, check.Warning: yellow, check.Failed: red}
	step, what := r.Name, r.Detail
	if r.Protocol != "" && r.Protocol != r.Name {
		step += " (" + r.Protocol + ")"
	}
	if r.Code != "" {
		what = string(r.Code) + ": " + what
	}
	// Many errors already name their subject.
	if r.Subject != "" && !strings.Contains(r.Detail, r.Subject) {
		what = r.Subject + ": " + what
	}
	fmt.Fprintf(out, "%s  %-21s %s\n", out.paint(colours[r.Status], fmt.Sprintf("%-7s", r.Status)), step, printable(what))
	if r.Advice != "" {
		fmt.Fprintf(out, "%9s%-21s %s\n", "", "", out.paint(bold, "→ "+printable(r.Advice)))
	}
}

// printable prevents text of other parties, such as the text of a certificate, from
// controlling the terminal.
func printable(text string) string { return foreign.Line(text, foreign.MaxFault) }
