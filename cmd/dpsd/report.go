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
		Short: "Put together what a support person needs to see",
		Long: `Put into one archive what a support person needs to see: the configuration as
"dpsd config show" prints it, status, state files, the last attempts, metrics,
the last 1000 lines of the journal, the unit, versions, and what "dpsd check
--offline" finds. README.txt in it lists the parts, what is missing, and why.
dpsd need not run. Run it as root: others may not read all of it.

Keys, certificates and passwords are never put in, and neither is dpsd.toml
itself, whose comments may hold one. What the files hold that dpsd.toml refers
to, the words on those of its lines that are wrong, and what has the form of a
token is masked in every part. So is the payload of a custom allocation, which
may hold anything. The archive does name the gateway, its hub, proxy and
addresses. It is for its owner alone (mode 0600); look into it before it is
sent.

The name of the archive is printed. The exit code is 0 when it was written, also
when some parts could not be had.`,
		Example: `  sudo dpsd report
  sudo dpsd report --online    # checks the way to DPS too
  dpsd report --output report.tar.gz && tar -tzf report.tar.gz`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			gateway := reported(installationOf(cmd), online)
			gateway.WithPayload = withPayload
			return writeReport(gateway, output)
		},
	}
	cmd.Flags().StringVar(&output, "output", "", "write `FILE`, in place of\ndpsd-report-HOST-TIME.tar.gz here")
	cmd.Flags().BoolVar(&online, "online", false, "check the network too: connects to DPS, but\nregisters nothing")
	cmd.Flags().BoolVar(&withPayload, "with-payload", false, "leave the payload of a custom allocation in")
	_ = cmd.MarkFlagFilename("output", "tar.gz") // fails only for a flag that is not there
	return cmd
}

// reported is the gateway of a report, with the commands that the report quotes.
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
			s.Text = "as the files have it" // whether dpsd runs is in status.json
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
		return &exitError{exitFailed, err, "dpsd report --output FILE, with a FILE where this user can write"}
	}
	if missing != "" {
		fmt.Fprintf(os.Stderr, "Not in the report, or not all of it:\n%s", missing)
		if os.Geteuid() != 0 {
			fmt.Fprintln(os.Stderr, "Try: sudo dpsd report, which can read more")
		}
	}
	_, err = fmt.Println(file)
	return err
}
