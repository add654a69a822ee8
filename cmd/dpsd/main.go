// Command dpsd provisions a Linux gateway: it registers the gateway with the Azure IoT Hub
// Device Provisioning Service and stores the assigned hub and device ID in a file that other
// services read.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/commandline"
	"github.com/dpsd-project/dpsd/completion"
)

// Exit codes, the same for every command.
const (
	exitOK            = 0  // success
	exitFailed        = 1  // failed, or the result is unknown
	exitUsage         = 2  // the command line is invalid
	exitNone          = 3  // not provisioned, or no certificate was issued
	exitTimeout       = 4  // --timeout has expired
	exitConfiguration = 78 // dpsd.toml is invalid: EX_CONFIG of sysexits.h
)

// exitError is an error with an exit code and the command to try next, or "".
type exitError struct {
	code int
	err  error
	next string
}

// failed returns an error with exit code 1, or nil if err is nil.
func failed(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{exitFailed, err, ""}
}

func (e *exitError) Error() string { return fmt.Sprint(e.err) }
func (e *exitError) Unwrap() error { return e.err }

func main() { os.Exit(command(os.Args[1:])) }

// command runs one command line and returns its exit code.
func command(args []string) int {
	root := rootCommand()
	completion.Prepare(root, args)
	root.SetArgs(args)
	of, err := root.ExecuteC()
	if err == nil {
		return exitOK
	}
	exit, is := errors.AsType[*exitError](err)
	switch {
	case !is:
		exit = &exitError{exitUsage, err, of.CommandPath() + " --help"}
	case exit.err == nil:
		return exit.code // the error was already printed
	}
	terminalOn(os.Stderr).complain(err, exit.next)
	return exit.code
}

// ofSystemctl rejects arguments. Some are commands of systemctl(1) that users try with dpsd.
func ofSystemctl(cmd *cobra.Command, args []string) error {
	err := commandline.NoArgs(cmd, args)
	if err == nil {
		return nil
	}
	instead := map[string]string{
		"start": "start --no-block dpsd", "stop": "stop dpsd", "restart": "restart --no-block dpsd", "reload": "reload dpsd",
		"enable": "enable --now --no-block dpsd", "disable": "disable --now dpsd",
	}[args[0]]
	if instead == "" {
		return err
	}
	return &exitError{exitUsage, fmt.Errorf("dpsd has no command %q: systemd manages the service", args[0]), "systemctl " + instead}
}

// configOf returns the path of the configuration on the command line.
func configOf(cmd *cobra.Command) string { return cmd.Flag("config").Value.String() }

// takeNoArgs makes commands that do not declare arguments reject them.
func takeNoArgs(of *cobra.Command) {
	for _, c := range of.Commands() {
		if c.Args == nil {
			c.Args, c.ValidArgsFunction = commandline.NoArgs, cobra.NoFileCompletions
		}
		takeNoArgs(c)
	}
}

func rootCommand() *cobra.Command {
	cobra.EnableCommandSorting = false // help and manual page begin with the everyday commands
	root := &cobra.Command{
		Use:   "dpsd",
		Short: "Azure device provisioning for Linux gateways",
		Long: `dpsd registers this gateway with the Azure IoT Hub Device Provisioning Service,
and keeps the assigned hub and device ID in files that other services read.`,
		Example: `  dpsd run --once --timeout 2m    # provision, write the state, and exit
  dpsd run                        # run as a service, as systemd does`,
		Args:          ofSystemctl,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().String("config", check.InstalledFile, "read the configuration\nfrom `FILE`")
	_ = root.MarkPersistentFlagFilename("config", "toml") // fails only for a flag that does not exist
	root.AddCommand(initCommand(), runCommand(), statusCommand(), healthCommand(), waitCommand(), reprovisionCommand(), certificateCommand(), checkCommand(), reportCommand(), configCommand(),
		deriveKeyCommand(), tpmCommand(), enrollInfoCommand(), forgetCommand(), completion.Command(root, nil))
	takeNoArgs(root)
	commandline.Version(root, version, func(check cobra.PositionalArgs) cobra.PositionalArgs { return check })
	root.SetFlagErrorFunc(commandline.FlagError)
	return root
}
