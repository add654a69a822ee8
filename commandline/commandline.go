// Package commandline contains the common parts of the command lines of both programs: the
// handling of usage errors, and the version.
package commandline

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/dpsd-project/dpsd/nearest"
)

// NoArgs rejects arguments, like cobra.NoArgs, and suggests the intended command.
func NoArgs(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case !c.HasAvailableSubCommands():
		return fmt.Errorf("%s takes no arguments, but was given %q", c.CommandPath(), args[0])
	}
	var names []string
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return fmt.Errorf("unknown command %q for %q%s", args[0], c.CommandPath(), suggestion("", args[0], names))
}

// FlagError adds a suggestion to the error of a flag. It is a function for cobra's
// SetFlagErrorFunc.
func FlagError(c *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if !errors.As(err, &unknown) {
		return err
	}
	// The flag follows an unknown command, which is the actual mistake.
	if args := c.Flags().Args(); c.HasAvailableSubCommands() && len(args) > 0 {
		return NoArgs(c, args)
	}
	word := unknown.GetSpecifiedName()
	if one := unknown.GetSpecifiedShortnames(); one != "" {
		word, _, _ = strings.Cut(one, "=") // -config for --config
	}
	var names []string
	c.Flags().VisitAll(func(f *pflag.Flag) {
		if !f.Hidden {
			names = append(names, f.Name)
		}
	})
	slices.Sort(names)
	return fmt.Errorf("%w%s", err, suggestion("--", word, names))
}

func suggestion(before, word string, names []string) string {
	if name := nearest.Name(word, names); name != "" {
		return fmt.Sprintf("; did you mean %q?", before+name)
	}
	return ""
}

// Version adds the command "version" and the flag --version to a program whose RunE is
// already set. args converts errors about arguments to the program's usage errors.
func Version(root *cobra.Command, version string, args func(cobra.PositionalArgs) cobra.PositionalArgs) {
	line := fmt.Sprintf("%s %s %s/%s %s", root.Name(), version, runtime.GOOS, runtime.GOARCH, runtime.Version())
	// This does not use cobra's Version: a custom template would link text/template, half a
	// megabyte that the linker can otherwise omit.
	requested := root.Flags().Bool("version", false, "print the version")
	show := func(c *cobra.Command, _ []string) error {
		_, err := fmt.Fprintln(c.OutOrStdout(), line)
		return err
	}
	run := root.RunE
	root.RunE = func(c *cobra.Command, args []string) error {
		if *requested {
			return show(c, args)
		}
		return run(c, args)
	}
	root.AddCommand(&cobra.Command{
		Use:               "version",
		Short:             "Print the version",
		Long:              `Print the version, the platform and the Go version on one line.`,
		Example:           "  " + root.Name() + " version",
		Args:              args(NoArgs),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              show,
	})
}
