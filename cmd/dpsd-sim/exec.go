package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/dpsd-project/dpsd/simulator"
)

// Exit codes of a command that could not be started, as in a shell.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
	exitSignal        = 128 // plus the signal's number
)

func newExec() *cobra.Command {
	var f flags
	var id string
	c := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARG]...",
		Short: "Run a command with its own simulator",
		Long: `Exec starts a simulator, runs COMMAND with the following variables in its
environment, and exits with the command's exit code:

  DPS_ENDPOINT          host name to connect to
  DPS_MQTT_PORT         port of MQTT over TLS
  DPS_WEBSOCKET_PORT    port of MQTT over WebSocket, and of HTTPS
  DPS_CA_FILE           root of the server's certificate
  DPS_ID_SCOPE          ID scope
  DPS_REGISTRATION_ID   registration ID
  DPS_SYMMETRIC_KEY     the device's key, base64
  DPS_CERTIFICATE_FILE  the device's certificate
  DPS_PRIVATE_KEY_FILE  its private key

With --service, DPS_SERVICE_CONNECTION_STRING and
PROVISIONING_CONNECTION_STRING are the connection string of the service API.

Without --dir, exec creates all files in a temporary directory.`,
		Example: `  dpsd-sim exec -- node register.js
  dpsd-sim exec --registration-id press-7 -- env`,
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault), // files
		Args:              usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			return f.exec(c, id, args)
		},
	}
	f.add(c, freePort, freePort, "")
	c.Flags().StringVar(&id, "registration-id", "sim-device-1", "registration `ID` of the device\n")
	withoutFiles(c, "registration-id")
	return c
}

func (f *flags) exec(c *cobra.Command, id string, args []string) error {
	if f.dir == "" {
		dir, err := os.MkdirTemp("", "dpsd-sim-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		f.dir = dir
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(stop)
	survivePipes()
	e, err := f.open()
	if err != nil {
		return err
	}
	defer e.close()
	if e.Page != "" {
		fmt.Fprintf(c.ErrOrStderr(), "dpsd-sim: the page is at %s\n", e.Page)
	}
	environment, err := e.environment(id)
	if err != nil {
		return err
	}
	command := exec.Command(args[0], args[1:]...) //nolint:gosec // running a given command is its purpose
	command.Stdin, command.Stdout, command.Stderr = c.InOrStdin(), c.OutOrStdout(), c.ErrOrStderr()
	// Variables of an outer exec must not replace those that are not set here.
	command.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "DPS_") })
	command.Env = append(command.Env, environment...)
	if err := command.Start(); err != nil {
		fmt.Fprintf(c.ErrOrStderr(), "dpsd-sim: %v\n", err)
		if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
			return &exitError{code: exitNotFound}
		}
		return &exitError{code: exitNotExecutable}
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	for {
		select {
		case s := <-stop: // we end when the command ends
			_ = command.Process.Signal(s)
		case err := <-ended:
			return commandStatus(err)
		}
	}
}

// commandStatus converts the result of a command to our exit code.
func commandStatus(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &exitError{code: exitSignal + int(status.Signal())}
	}
	return &exitError{code: exit.ExitCode()}
}

// environment writes the device's credentials and returns variables that name them.
func (e *endpoint) environment(id string) ([]string, error) {
	files, err := writeCredentials(e.server, filepath.Dir(e.CAFile), id)
	if err != nil && (len(files) == 0 || len(id) <= simulator.MaxCommonName) {
		return nil, err
	}
	environment := []string{
		"DPS_ENDPOINT=" + e.Endpoint,
		"DPS_CA_FILE=" + e.CAFile,
		"DPS_ID_SCOPE=" + e.IDScope,
		"DPS_REGISTRATION_ID=" + id,
		"DPS_SYMMETRIC_KEY=" + e.server.DeviceKey(id),
	}
	for name, port := range map[string]int{"DPS_MQTT_PORT": e.MQTTPort, "DPS_WEBSOCKET_PORT": e.WebSocketPort} {
		if port != 0 {
			environment = append(environment, name+"="+strconv.Itoa(port))
		}
	}
	if e.connection != "" {
		environment = append(environment, "DPS_SERVICE_CONNECTION_STRING="+e.connection, "PROVISIONING_CONNECTION_STRING="+e.connection)
	}
	if len(files) == 3 {
		environment = append(environment, "DPS_CERTIFICATE_FILE="+files[1], "DPS_PRIVATE_KEY_FILE="+files[2])
	}
	return environment, nil
}
