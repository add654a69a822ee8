// Command dpsd-sim is the DPS simulator: a strict device endpoint of Azure IoT Hub Device
// Provisioning Service that runs on this machine.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/commandline"
	"github.com/dpsd-project/dpsd/completion"
)

// Exit codes. "exec" ends with the exit code of its command instead.
const (
	exitDone   = 0 // done
	exitFailed = 1 // failed
	exitUsage  = 2 // the command line is wrong
)

// version is set by the linker; see the Makefile.
var version = "devel"

func main() { os.Exit(run(os.Args[1:])) }

// run runs one command line and returns the exit code.
func run(args []string) int {
	root := newRoot()
	completion.Prepare(root, args)
	root.SetArgs(args)
	err := root.Execute()
	if err == nil {
		return exitDone
	}
	exit := &exitError{exitFailed, err}
	if errors.As(err, &exit); exit.err != nil {
		fmt.Fprintf(os.Stderr, "dpsd-sim: %v\n", err)
	}
	return exit.code
}

// exitError ends the program with an exit code. If it has no error, nothing is printed.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return fmt.Sprint(e.err) }
func (e *exitError) Unwrap() error { return e.err }

// usageError reports an invalid command line.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "dpsd-sim",
		Short: "A simulator of Azure IoT Hub Device Provisioning Service",
		Long: `dpsd-sim simulates Azure IoT Hub Device Provisioning Service (DPS), and the hubs
that it assigns, on this machine. Devices register and connect as they do in
Azure. dpsd-sim verifies them strictly, explains each refusal, and injects
faults on demand. It needs no Azure account and no network.`,
		Example: `  dpsd-sim demo
  dpsd-sim exec -- node register.js
  dpsd-sim serve --dir sim`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			return usageError("no command given: see dpsd-sim --help")
		},
		Args: usageArgs(commandline.NoArgs),
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &exitError{exitUsage, commandline.FlagError(c, err)} })
	for _, c := range []*cobra.Command{newServe(), newReady(), newCredentials(), newExec(), newLog(), newDemo(), newFleet()} {
		if c.Args == nil {
			c.Args, c.ValidArgsFunction = usageArgs(commandline.NoArgs), cobra.NoFileCompletions
		}
		root.AddCommand(c)
	}
	root.AddCommand(completion.Command(root, usageArgs))
	commandline.Version(root, version, usageArgs)
	return root
}

// usageArgs marks the errors of an argument check as usage errors.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return &exitError{exitUsage, err}
		}
		return nil
	}
}
