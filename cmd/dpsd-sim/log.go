package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/commandline"
	"github.com/dpsd-project/dpsd/simulator"
)

func newLog() *cobra.Command {
	c := &cobra.Command{
		Use:     "log",
		Short:   "Read a packet log",
		Long:    `Log reads the file that serve and exec write with --packet-log.`,
		Example: `  dpsd-sim log summary sim.log`,
		Args:    usageArgs(commandline.NoArgs),
		RunE: func(*cobra.Command, []string) error {
			return usageError("no command given: log summary FILE")
		},
	}
	c.AddCommand(newLogSummary())
	return c
}

func newLogSummary() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:                   "summary [--json] FILE",
		Short:                 "Summarize a packet log by device",
		DisableFlagsInUseLine: true,
		Long: `Summary summarizes a packet log (--packet-log of serve and exec) by device:
connections, MQTT round trips, bytes (TLS included), register requests, polls
and the gaps before them, and protocol violations. FILE may be "-" for standard
input.`,
		Example: `  dpsd-sim log summary sim.log
  dpsd-sim log summary --json - <sim.log`,
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault), // files
		Args:              usageArgs(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			in := c.InOrStdin()
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			entries, err := simulator.ReadLog(in)
			switch {
			case errors.Is(err, io.ErrUnexpectedEOF): // the simulator is still writing, or was killed
				fmt.Fprintf(c.ErrOrStderr(), "dpsd-sim: %s: ignoring the last line, which is incomplete\n", args[0])
			case err != nil:
				return fmt.Errorf("%s: line %d is not a packet: %w", args[0], len(entries)+1, err)
			}
			devices := simulator.SummarizeDevices(entries)
			if asJSON {
				out := json.NewEncoder(c.OutOrStdout())
				out.SetIndent("", "  ")
				out.SetEscapeHTML(false)
				return out.Encode(devices)
			}
			return printSummary(c.OutOrStdout(), devices)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print the summary as a JSON array")
	return c
}

func printSummary(out io.Writer, devices []simulator.DeviceSummary) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "device\tconnections\tround trips\tbytes up\tbytes down\tregisters\tpolls\tgaps (min/median/max)\tviolations")
	for _, d := range devices {
		fmt.Fprintf(table, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%s\t%d\n", cmp.Or(d.RegistrationID, "-"), d.Connections, d.RoundTrips,
			d.BytesUp, d.BytesDown, d.Registers, d.Polls, gaps(d.PollGaps), len(d.Violations))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, d := range devices {
		for _, v := range d.Violations {
			if _, err := fmt.Fprintf(out, "%s: %s\n", cmp.Or(d.RegistrationID, "-"), v); err != nil {
				return err
			}
		}
	}
	return nil
}

// gaps shows the minimum, the median and the maximum.
func gaps(seconds []float64) string {
	if len(seconds) == 0 {
		return "-"
	}
	sorted := slices.Sorted(slices.Values(seconds))
	return fmt.Sprintf("%.3fs/%.3fs/%.3fs", sorted[0], sorted[len(sorted)/2], sorted[len(sorted)-1])
}
