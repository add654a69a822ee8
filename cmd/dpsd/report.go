package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/report"
)

func reportCommand() *cobra.Command {
	var output string
	var online, withPayload bool
	cmd := &cobra.Command{
		Use:   "report",
		Short: "Collect what a support engineer needs",
		Long: `Collect in one archive everything that a support engineer needs: the
configuration as "dpsd config show" prints it, status, state files, the last
attempts, metrics, the last 1000 lines of the journal, the unit, versions, and
the output of "dpsd check --offline". README.txt in the archive lists the parts,
what is missing, and why. The command works even if dpsd is not running. Run it
as root, because other users cannot read every part.

The archive never contains keys or passwords, nor dpsd.toml itself, because a
comment may contain a secret. The only certificate in it is the one that DPS has
issued, without its key. In every part, the command masks the content of
the files that dpsd.toml refers to, the keys of issued certificates, the words
in invalid lines of dpsd.toml, anything that looks like a token, and, unless you
use --with-payload, the payload of a custom allocation. The archive does
identify the gateway and its hub, proxy and addresses. Only its owner can read
it (mode 0600). Read it before you send it.

The command prints the name of the archive. The exit code is 0 if the archive
was written, even if some parts are missing.`,
		Example: `  sudo dpsd report
  sudo dpsd report --online    # also check the connection to DPS
  dpsd report --output report.tar.gz && tar -tzf report.tar.gz`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			gateway := reported(installationOf(cmd), online)
			gateway.WithPayload = withPayload
			return writeReport(gateway, output)
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "write to `FILE` instead of\ndpsd-report-HOST-TIME.tar.gz in the current directory")
	cmd.Flags().BoolVar(&online, "online", false, "also check the network: connect to DPS, but\nregister nothing")
	cmd.Flags().BoolVar(&withPayload, "with-payload", false, "include the payload of a custom allocation")
	_ = cmd.MarkFlagFilename("output", "tar.gz") // fails only for a flag that does not exist
	return cmd
}

// reported returns the gateway of a report, with the commands whose output is in the report.
func reported(places installation, online bool) report.Gateway {
	asJSON := func(value any, err error) ([]byte, error) {
		var b bytes.Buffer
		if err == nil {
			err = writeJSON(&b, value)
		}
		return b.Bytes(), err
	}
	return report.Gateway{
		Configuration:    places.file,
		Directory:        filepath.Dir(check.InstalledFile),
		StateDirectory:   places.state,
		RuntimeDirectory: places.runtime,
		Version:          version,
		BuiltAt:          builtAt(),
		Online:           online,
		Show: func() ([]byte, error) {
			s, err := effective(places.file)
			if err != nil {
				return nil, err
			}
			var b bytes.Buffer
			err = s.toml(&b)
			return b.Bytes(), err
		},
		Status: func(ctx context.Context) ([]byte, error) {
			s, err := places.client().Status(ctx)
			return asJSON(statusReport{Running: true, Status: s}, err)
		},
		OnFile: func() ([]byte, error) {
			s, err := places.onFile()
			s.Text = "according to the state files" // status.json shows whether dpsd runs
			return asJSON(statusReport{Status: s}, err)
		},
		Metrics: places.client().Metrics,
		Check: func(ctx context.Context) ([]byte, error) {
			found, stopped := checked(ctx, gatewayOf(places.file), !online, func(check.Result) {})
			text, err := asJSON(found, nil)
			return text, errors.Join(stopped, err)
		},
	}
}

func writeReport(gateway report.Gateway, output string) error {
	ctx, stop := interruptible(0, syscall.SIGHUP)
	defer stop()
	screen := terminalOn(os.Stderr)
	gateway.Progress = screen.progress
	defer screen.progress("")
	file, missing, err := gateway.Write(ctx, output)
	switch {
	case errors.Is(err, report.ErrStopped):
		return failed(err)
	case err != nil:
		return &exitError{exitFailed, err, "dpsd report --output FILE, with a FILE in a directory that this user can write to"}
	}
	if missing != "" {
		fmt.Fprintf(os.Stderr, "Missing from the report, or incomplete:\n%s", missing)
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "Try: sudo dpsd report, which can read more")
		}
	}
	_, err = fmt.Println(file)
	return err
}
