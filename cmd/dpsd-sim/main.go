// Command dpsd-sim is the DPS simulator as a program: a strict device
// endpoint of Azure IoT Hub Device Provisioning Service on this machine.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/commandline"
	"github.com/dpsd-project/dpsd/completion"
)

// Exit codes. "exec" ends with the code of its command instead.
const (
	exitDone   = 0 // done
	exitFailed = 1 // failed
	exitUsage  = 2 // the command line is wrong
)

// version is set by the linker, see the Makefile.
var version = "devel"

func main() { os.Exit(run(os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) }

// run is main with its surroundings as arguments. It gives the exit code.
func run(args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	completion.Prepare(root, args)
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.Execute()
	var status *exitStatus
	var usage *usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &status):
		return status.code
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "dpsd-sim: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "dpsd-sim: %v\n", err)
	return exitFailed
}

// usageError is a command line that cannot be carried out.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// exitStatus ends the program with the code of another one.
type exitStatus struct{ code int }

func (e *exitStatus) Error() string { return fmt.Sprintf("exit status %d", e.code) }

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "dpsd-sim",
		Short: "A simulator of Azure IoT Hub Device Provisioning Service",
		Long: `dpsd-sim simulates the device endpoint of Azure IoT Hub Device Provisioning
Service (DPS) on this machine, for tests. It is strict, and produces faults on
demand. It needs no account and no network.`,
		Example: `  dpsd-sim demo
  dpsd-sim exec -- node register.js
  dpsd-sim serve --dir sim`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(*cobra.Command, []string) error {
			return &usageError{errors.New("a command is needed: see dpsd-sim --help")}
		},
		Args: usageArgs(commandline.NoArgs),
	}
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error { return &usageError{commandline.FlagError(c, err)} })
	root.AddCommand(newServe(), newCredentials(), newExec(), newLog(), newDemo(), newFleet(), completion.Command(root, usageArgs))
	commandline.Version(root, version, usageArgs)
	return root
}

// usageArgs marks the errors of an argument check as errors of usage.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return &usageError{err}
		}
		return nil
	}
}
