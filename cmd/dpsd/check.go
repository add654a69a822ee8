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
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/commandline"
	"github.com/dpsd-project/dpsd/config"
)

// serviceAccount is the user of dpsd.service.
const serviceAccount = "dpsd"

func checkCommand() *cobra.Command {
	var offline, asJSON bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Find out what keeps this gateway from being provisioned",
		Long: `Find out what keeps this gateway from being provisioned: configuration,
registration ID, credentials, clock, trusted roots, state directory and unit;
then name, TCP to each address, proxy, TLS with each protocol, and CONNECT with
each credential. One line a step; what fails has its code, as in dpsd-faults(7),
and what to do.

Nothing is registered and nothing on disk is changed, so that whether DPS knows
the enrollment shows only in "dpsd run". DPS lets a registration ID connect once
at a time: a registration that the service has under way at this moment may be
cut off, and is then tried again.

Run it as root: files are then looked at with the rights of the user dpsd, as
the service sees them. HTTPS_PROXY is that of the command's own environment.

A step that needs one that failed is skipped, the others go on. One protocol,
address or credential that does not work while another does is a warning.

Exit codes: 0 nothing failed, 1 something did, 78 the configuration is invalid.`,
		Example: `  sudo dpsd check
  dpsd check --offline --config new.toml   # before it is installed
  dpsd check --json | jq '.steps[] | select(.status == "failed")'`,
		Args:              commandline.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := cmd.Flags().GetString("config")
			if err != nil {
				return err
			}
			return runCheck(file, offline, asJSON)
		},
	}
	cmd.Flags().BoolVar(&offline, "offline", false, "stop before the network")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON; its schema is\n/usr/share/dpsd/check.schema.json")
	return cmd
}

// runCheck wires the check and prints what it finds.
func runCheck(file string, offline, asJSON bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	gateway := gatewayOf(file)
	out := terminalOn(os.Stdout)
	if !asJSON {
		gateway.Progress = func(what string) { out.progress("… " + what) }
	}
	report, err := checked(ctx, gateway, offline, func(r check.Result) {
		if !asJSON {
			printStep(out, r)
		}
	})
	if !asJSON {
		out.progress("")
	}
	if err != nil {
		return &exitError{exitFailed, err}
	}
	if asJSON {
		if err := writeJSON(out, report); err != nil {
			return &exitError{exitFailed, err}
		}
	}
	return verdict(gateway, report)
}

// checked goes through the steps, and tells each as soon as it is certain.
func checked(ctx context.Context, gateway *check.Gateway, offline bool, tell func(check.Result)) (check.Report, error) {
	report := check.Report{Schema: 1, Version: version, Time: time.Now().UTC().Truncate(time.Second), Offline: offline}
	gateway.Run(ctx, offline, func(r check.Result) {
		report.Steps = append(report.Steps, r)
		tell(r)
	})
	report.Status = check.Worst(report.Steps)
	if ctx.Err() != nil {
		return report, errors.New("stopped before every step was checked")
	}
	return report, nil
}

// writeJSON writes JSON for people too.
func writeJSON(to io.Writer, value any) error {
	encoder := json.NewEncoder(to)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(value)
}

// verdict gives the report its exit code, and the next command to try.
func verdict(gateway *check.Gateway, report check.Report) error {
	failures := 0
	for _, r := range report.Steps {
		if r.Status == check.Failed {
			failures++
		}
	}
	switch {
	case failures == 0:
		return nil
	case errors.Is(gateway.Invalid, fs.ErrPermission) && os.Geteuid() != 0:
		return &exitError{exitFailed, try("sudo dpsd check", errors.New("the configuration cannot be read by this user"))}
	case temporary(gateway.Invalid):
		return &exitError{exitFailed, errors.New("the configuration cannot be read at present")}
	case gateway.Invalid != nil:
		return &exitError{exitConfiguration, try(with(gateway.File, "dpsd check --offline")+", when it is mended", errors.New("the configuration is invalid"))}
	case os.Geteuid() != 0:
		return &exitError{exitFailed, try("sudo dpsd check, which sees what the service sees", fmt.Errorf("%d of %d steps failed", failures, len(report.Steps)))}
	}
	return &exitError{exitFailed, try("man dpsd-faults, for each code; journalctl -u dpsd, for what the service met", fmt.Errorf("%d of %d steps failed", failures, len(report.Steps)))}
}

// gatewayOf reads the configuration and says what there is to check.
func gatewayOf(file string) *check.Gateway {
	g := &check.Gateway{
		File:      file,
		Installed: file == configurationFile,
		Secrets:   attest.SystemSecrets(os.Getenv("CREDENTIALS_DIRECTORY")),
		Version:   version, BuiltAt: builtAt(),
	}
	if account, err := check.LookUpAccount(serviceAccount); err == nil {
		g.Account = account
	}
	g.Systemctl = bootedSystemctl()
	cfg, err := loadSoon(file)
	if err != nil {
		g.Invalid = err
		return g
	}
	s := settings(cfg)
	g.Settings = &s
	g.StateDirectory = cfg.State.Directory
	g.RuntimeDirectory = filepath.Dir(cfg.Control.Socket)
	if cfg.Transport.Proxy == "environment" {
		g.Environment = os.Getenv
	}
	return g
}

// loadSoon is load for a command that is to answer: a FIFO without a writer is empty,
// and one whose writer says nothing is given up.
func loadSoon(file string) (*config.Config, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return load(file) // says it better
	}
	defer f.Close()
	_ = f.SetReadDeadline(time.Now().Add(5 * time.Second)) // a regular file has no deadline and needs none
	return config.Parse(file, f)
}

// bootedSystemctl runs systemctl; nil when systemd has not booted this machine,
// sd_booted(3).
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

// printStep prints a result: how it ended, the step, what was found, and below it what
// to do.
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
	// Many errors name their subject themselves.
	if r.Subject != "" && !strings.Contains(r.Detail, r.Subject) {
		what = r.Subject + ": " + what
	}
	fmt.Fprintf(out, "%s  %-21s %s\n", out.paint(colours[r.Status], fmt.Sprintf("%-7s", r.Status)), step, printable(what))
	if r.Advice != "" {
		fmt.Fprintf(out, "%9s%-21s %s\n", "", "", out.paint(bold, "→ "+printable(r.Advice)))
	}
}

// printable keeps what others have said, such as a certificate, from steering the
// terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, text)
}
