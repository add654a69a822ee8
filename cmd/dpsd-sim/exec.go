package main

import (
	"context"
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
	"time"

	"github.com/spf13/cobra"
)

// execWebSocket is the address that samples connect to, which serve does not use by default.
const execWebSocket = "localhost:443"

// drainLimit is how long exec waits for connections that its command has left open, for example
// in a program in the background.
const drainLimit = time.Second

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
  DPS_CA_FILE           root certificate that the device must trust
  DPS_ID_SCOPE          ID scope
  DPS_REGISTRATION_ID   registration ID
  DPS_SYMMETRIC_KEY     the device's symmetric key, base64
  DPS_CERTIFICATE_FILE  the device's certificate
  DPS_PRIVATE_KEY_FILE  its private key

Microsoft's samples run unchanged, because exec also sets the variables that
they read: PROVISIONING_HOST, PROVISIONING_IDSCOPE,
PROVISIONING_REGISTRATION_ID, PROVISIONING_SYMMETRIC_KEY, CERTIFICATE_FILE and
KEY_FILE, DPS_X509_REGISTRATION_ID, X509_CERT_FILE and X509_KEY_FILE,
IOTHUB_DEVICE_SECURITY_TYPE, IOTHUB_DEVICE_DPS_*,
IOTHUB_DEVICE_CONNECTION_STRING, DEVICE_CONNECTION_STRING and AZ_IOT_*.
NODE_EXTRA_CA_CERTS, SSL_CERT_FILE and REQUESTS_CA_BUNDLE make Node, OpenSSL and
Python trust the server's certificate.

The samples connect to the service's own ports: 8883 for MQTT, and 443 for
WebSocket and HTTPS. If exec is not permitted to use one of these ports, or
another program uses it, exec prints a line to standard error and uses a free
port instead.

With --service, DPS_SERVICE_CONNECTION_STRING and
PROVISIONING_CONNECTION_STRING contain the connection string of the service API.

Variables for which the enrollments allow no value are not set. Without --dir,
exec creates all files in a temporary directory, and removes it afterwards.`,
		Example: `  dpsd-sim exec -- node register.js
  dpsd-sim exec --registration-id press-7 -- env`,
		ValidArgsFunction: cobra.FixedCompletions(nil, cobra.ShellCompDirectiveDefault), // files
		Args:              usageArgs(cobra.MinimumNArgs(1)),
		RunE: func(c *cobra.Command, args []string) error {
			f.replaceable = map[string]bool{}
			for flag, address := range map[string]string{"mqtt": defaultMQTT, "websocket": execWebSocket} {
				f.replaceable[address] = !c.Flags().Changed(flag)
			}
			return f.exec(c, id, args)
		},
	}
	f.add(c, defaultMQTT, execWebSocket, execHub, "")
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
	command.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
		name, _, _ := strings.Cut(v, "=")
		return strings.HasPrefix(name, "DPS_") || slices.Contains(execVariables, name)
	})
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
			ctx, cancel := context.WithTimeout(c.Context(), drainLimit)
			e.server.Drain(ctx)
			cancel()
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

// execVariables are the variables that exec sets or removes, beside those that begin with DPS_.
var execVariables = []string{
	"PROVISIONING_HOST", "PROVISIONING_IDSCOPE", "PROVISIONING_REGISTRATION_ID", "PROVISIONING_SYMMETRIC_KEY",
	"CERTIFICATE_FILE", "KEY_FILE", "X509_CERT_FILE", "X509_KEY_FILE",
	"PROVISIONING_CONNECTION_STRING",
	"IOTHUB_DEVICE_SECURITY_TYPE", "IOTHUB_DEVICE_DPS_ENDPOINT", "IOTHUB_DEVICE_DPS_ID_SCOPE", "IOTHUB_DEVICE_DPS_DEVICE_ID",
	"IOTHUB_DEVICE_DPS_DEVICE_KEY", "IOTHUB_DEVICE_CONNECTION_STRING", "DEVICE_CONNECTION_STRING",
	"AZ_IOT_HUB_HOSTNAME", "AZ_IOT_HUB_DEVICE_ID", "AZ_IOT_HUB_SAS_DEVICE_ID", "AZ_IOT_HUB_SAS_KEY", "AZ_IOT_PROVISIONING_ID_SCOPE", "AZ_IOT_PROVISIONING_REGISTRATION_ID",
	"AZ_IOT_PROVISIONING_SAS_REGISTRATION_ID", "AZ_IOT_PROVISIONING_SAS_KEY", "AZ_IOT_DEVICE_X509_TRUST_PEM_FILE_PATH",
	"NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE",
}

// environment writes the device's credentials and returns the variables of exec.
func (e *endpoint) environment(id string) ([]string, error) {
	d, err := writeDevice(e.server, filepath.Dir(e.CAFile), id)
	if err != nil {
		return nil, err
	}
	e.server.AddDevice(id) // a sample with a connection string does not register
	var all []string
	set := func(value string, names ...string) {
		for _, name := range names {
			all = append(all, name+"="+value)
		}
	}
	if e.connection != "" {
		set(e.connection, "DPS_SERVICE_CONNECTION_STRING", "PROVISIONING_CONNECTION_STRING")
	}
	set(e.Endpoint, "DPS_ENDPOINT", "PROVISIONING_HOST", "IOTHUB_DEVICE_DPS_ENDPOINT")
	set(e.IDScope, "DPS_ID_SCOPE", "PROVISIONING_IDSCOPE", "IOTHUB_DEVICE_DPS_ID_SCOPE", "AZ_IOT_PROVISIONING_ID_SCOPE")
	set(id, "DPS_REGISTRATION_ID", "PROVISIONING_REGISTRATION_ID", "IOTHUB_DEVICE_DPS_DEVICE_ID",
		"DPS_X509_REGISTRATION_ID", "AZ_IOT_PROVISIONING_REGISTRATION_ID", "AZ_IOT_PROVISIONING_SAS_REGISTRATION_ID")
	set(e.CAFile, "DPS_CA_FILE", "NODE_EXTRA_CA_CERTS", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AZ_IOT_DEVICE_X509_TRUST_PEM_FILE_PATH")
	set("DPS", "IOTHUB_DEVICE_SECURITY_TYPE")
	set(d.Hub, "AZ_IOT_HUB_HOSTNAME")
	set(d.DeviceID, "AZ_IOT_HUB_DEVICE_ID", "AZ_IOT_HUB_SAS_DEVICE_ID")
	if e.MQTTPort != 0 {
		set(strconv.Itoa(e.MQTTPort), "DPS_MQTT_PORT")
	}
	if e.WebSocketPort != 0 {
		set(strconv.Itoa(e.WebSocketPort), "DPS_WEBSOCKET_PORT")
	}
	if d.NoKey == nil {
		set(d.Key, "DPS_SYMMETRIC_KEY", "PROVISIONING_SYMMETRIC_KEY", "IOTHUB_DEVICE_DPS_DEVICE_KEY", "AZ_IOT_PROVISIONING_SAS_KEY", "AZ_IOT_HUB_SAS_KEY")
		set("HostName="+d.Hub+";DeviceId="+d.DeviceID+";SharedAccessKey="+d.Key, "IOTHUB_DEVICE_CONNECTION_STRING", "DEVICE_CONNECTION_STRING")
	}
	if d.NoCertificate == nil {
		set(d.certificate, "DPS_CERTIFICATE_FILE", "CERTIFICATE_FILE", "X509_CERT_FILE")
		set(d.privateKey, "DPS_PRIVATE_KEY_FILE", "KEY_FILE", "X509_KEY_FILE")
	}
	return all, nil
}
