package main

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	sd "github.com/coreos/go-systemd/v22/daemon"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/clock"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/journal"
	"github.com/dpsd-project/dpsd/network"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/transport"
	"github.com/dpsd-project/dpsd/watch"
)

func runCommand() *cobra.Command {
	var once bool
	var timeout time.Duration
	var output string
	outputs := []cobra.Completion{string(journal.Auto), string(journal.JSON), string(journal.Text), string(journal.Syslog)}
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Provision this gateway and keep running, as a service",
		Long: `Provision this gateway and keep running: systemd starts this command. On a
terminal, dpsd shows each step and the time of the next attempt.

With --once, dpsd provisions, writes the state and exits with 0. After a fault,
it retries until the --timeout expires (exit 4); it rereads a key, a certificate
or another input file as soon as the file changes. It exits earlier only if DPS
refuses every credential or the enrollment, if another dpsd is running (exit 1),
or if dpsd.toml is invalid (exit 78).

dpsd does not need a service manager. --log selects where and how it logs:

  auto    to the journal if standard error is connected to it; otherwise,
          sentences on a terminal, and JSON elsewhere
  json    one JSON object per line, to standard error
  text    sentences with date and time, to standard error
  syslog  sentences, to the system logger (/dev/log)`,
		Example: `  dpsd run
  dpsd run --once --timeout 2m --config ./dpsd.toml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkTimeout(timeout, once, "--once"); err != nil {
				return err
			}
			if !slices.Contains(outputs, output) {
				return fmt.Errorf("--log must be %s, %s, %s or %s", journal.Auto, journal.JSON, journal.Text, journal.Syslog)
			}
			err := run(configOf(cmd), journal.Output(output), once, timeout)
			if err != nil && output == string(journal.Syslog) {
				journal.ToSyslog(foreign.Lines(err.Error(), maxComplaint)) // standard error may have no reader
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&once, "once", false, "provision, write the state, and exit")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "with --once: give up after this time,\nsuch as 90s (0: never)")
	cmd.Flags().StringVar(&output, "log", string(journal.Auto), "write the log to `OUTPUT`: auto, json, text or\nsyslog")
	// RegisterFlagCompletionFunc fails only for a flag that does not exist.
	_ = cmd.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions)
	_ = cmd.RegisterFlagCompletionFunc("log", cobra.FixedCompletions(outputs, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// run creates the daemon from the configuration and runs it.
func run(file string, output journal.Output, once bool, timeout time.Duration) error {
	// This must come first, because a SIGHUP that is not handled ends a Go program.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	// Go ends a program whose write to standard output or standard error meets EPIPE
	// (os/signal, "SIGPIPE"). The loss of a log reader must not end the service; package
	// journal counts the lost entries. Other commands end, as "| head" expects.
	signal.Ignore(syscall.SIGPIPE)
	if os.Getpid() == 1 {
		// In a container without an init, orphaned processes become children of dpsd. If
		// SIGCHLD is ignored, the kernel removes them when they end (wait(2)). dpsd run
		// starts no processes.
		signal.Ignore(syscall.SIGCHLD)
	}

	text, err := contents(file)
	if err != nil {
		return invalid(file, err)
	}
	cfg, err := config.Parse(file, bytes.NewReader(text))
	if err != nil {
		return invalid(file, err)
	}
	// This must come after reading the file, because SIGTERM must end dpsd even while a file
	// server does not answer.
	ctx, stop := interruptible(0)
	defer stop()
	to := journal.Open(output)
	defer to.Close()
	level, _ := zapcore.ParseLevel(cfg.Log.Level) // config.Parse accepts only valid levels
	log := zap.New(to.Core(level))
	watchdog, err := sd.SdWatchdogEnabled(false)
	if err != nil {
		return failed(fmt.Errorf("WATCHDOG_USEC: %w", err))
	}
	credentials := os.Getenv("CREDENTIALS_DIRECTORY")
	d := &daemon.Daemon{
		Settings: settings(file, cfg),
		Store: store.Options{
			Directory:        cfg.State.Directory,
			RuntimeDirectory: filepath.Dir(cfg.Control.Socket),
			Mode:             cfg.State.Mode,
			CertificateGroup: cmp.Or(cfg.Certificate.Group, config.CertificateGroup), // a reload may add the table
		},
		ConfigurationFile: file,
		Socket:            cfg.Control.Socket,
		MetricsFile:       cfg.Control.MetricsFile,
		HubSockets:        hubSockets(activation.Files(true), log),
		Secrets:           secrets(cfg, credentials),
		Hangup:            hangup,
		Reload:            reloader(file, text, cfg),
		Watch:             watch.Files,
		Network:           network.State,
		Watchdog:          watchdog,
		ServiceManager: &control.ServiceManager{
			Notification: os.Getenv("NOTIFY_SOCKET") != "", Watchdog: watchdog.Seconds(), Credentials: credentials, Log: to.Name(),
		},
		Once: once, Timeout: timeout,
		Version: version, BuiltAt: builtAt(),
		Log: log,
	}
	if socket := os.Getenv("NOTIFY_SOCKET"); socket != "" {
		send := journal.SendTo(socket)
		d.Notify = func(state string) error { return send([]byte(state)) }
	} else if screen := terminalOn(os.Stderr); screen.attended && output == journal.Auto {
		to.Progress(screen.line("Starting"))
		d.Notify = func(state string) error {
			if text, found := statusOf(state); found {
				to.Progress(screen.line(text))
			}
			return nil
		}
		defer to.Progress("")
	}
	if d.ClockStepped, err = clock.Steps(ctx); err != nil {
		log.Warn(event.ClockNotWatched, zap.Error(err)) // then a clock change does not shorten the wait after a rejection
	}
	return ended(file, d.Run(ctx))
}

// statusOf returns the text of STATUS= in a message to the service manager.
func statusOf(state string) (text string, found bool) {
	_, text, found = strings.Cut("\n"+state, "\nSTATUS=")
	text, _, _ = strings.Cut(text, "\n")
	return text, found
}

// ended adds the exit code and the advice to an error of Run.
func ended(file string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, daemon.ErrStopped) {
		return failed(err)
	}
	code, classified := exitFailed, classify.Classify(err)
	if errors.Is(err, daemon.ErrTimeout) {
		if code = exitTimeout; !errors.As(err, &fault.Fault{}) {
			return &exitError{code, err, check.With(file, "dpsd check")} // there is no fault other than the timeout
		}
	} else {
		err = classified
	}
	next := "dpsd check"
	if locked, is := errors.AsType[*store.LockedError](err); is {
		next = "dpsd status"
		if locked.PID != 0 {
			err = fmt.Errorf("already running (pid %d); use dpsd reprovision: %w", locked.PID, err)
		}
	}
	return &exitError{code, fmt.Errorf("%w\n%s", err, classified.Advice()), check.With(file, next)}
}

// errRestart means that a change takes effect only with a restart.
var errRestart = errors.New("changes to [state], [control], [tpm], [log] and the group in [certificate] take effect only after a restart: systemctl restart --no-block dpsd")

// reloader returns a function that reloads the configuration. running is the configuration
// in use and text its text. Most of the time the file has not changed; then it is not parsed,
// which saves memory.
func reloader(file string, text []byte, running *config.Config) func() (*daemon.Settings, error) {
	group := cmp.Or(running.Certificate.Group, config.CertificateGroup)
	return func() (*daemon.Settings, error) {
		now, err := contents(file)
		if err != nil || bytes.Equal(now, text) {
			return nil, err
		}
		cfg, err := config.Parse(file, bytes.NewReader(now))
		switch {
		case err != nil:
			return nil, err
		case cfg.State != running.State || cfg.Control != running.Control || cfg.TPM != running.TPM || cfg.Log != running.Log,
			cmp.Or(cfg.Certificate.Group, group) != group: // without the table, there is nothing to give a group
			return nil, errRestart
		case reflect.DeepEqual(cfg, running):
			return nil, nil
		}
		running, text = cfg, now
		changed := settings(file, cfg)
		return &changed, nil
	}
}

// secrets returns the secrets of the configuration. credentials is $CREDENTIALS_DIRECTORY.
func secrets(cfg *config.Config, credentials string) attest.Secrets {
	s := attest.SystemSecrets(credentials)
	s.TPM = &tpm.Device{Path: cfg.TPM.Device}
	return s
}

// settings converts the configuration to the settings of the daemon.
func settings(file string, cfg *config.Config) daemon.Settings {
	t := cfg.Transport
	dialer := &transport.Dialer{
		Host:          cfg.DPS.Endpoint,
		MQTTPort:      t.MQTTPort,
		WebSocketPort: t.WebSocketPort,
		CAFile:        t.CAFile,
		ProxyCAFile:   t.ProxyCAFile,
		Timeout:       t.ConnectTimeout,
		Sessions:      tls.NewLRUClientSessionCache(4), // per protocol and certificate
	}
	for _, p := range t.Protocols {
		dialer.Protocols = append(dialer.Protocols, transport.Protocol(p))
	}
	switch t.Proxy {
	case "none":
	case "environment":
		dialer.Proxy = transport.ProxyFromEnvironment()
	default:
		dialer.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse(t.Proxy) }
	}
	var issued *daemon.CertificateSettings
	if c := cfg.Certificate; c.Request != "" {
		issued = &daemon.CertificateSettings{Required: c.Request == "required", KeyType: certificate.KeyType(c.KeyType), KeyStore: certificate.KeyStore(c.KeyStore), RenewAt: c.RenewAt}
	}
	consumers := make([]consumer.Consumer, 0, len(cfg.Consumers))
	for _, c := range cfg.Consumers {
		scope, _ := consumer.ParseScope(c.Scope) // config.Parse accepts only valid scopes
		consumers = append(consumers, consumer.Consumer{Name: c.Name, Scope: scope, Lifetime: c.Lifetime, Certificate: c.Certificate})
	}
	return daemon.Settings{
		Consumers:       consumers,
		OnRefusal:       refusal.Policy(cfg.Provisioning.OnRefusal),
		HubCheck:        cfg.Provisioning.HubCheck == "https",
		Certificate:     issued,
		IDScope:         cfg.DPS.IDScope,
		RegistrationID:  cfg.DPS.RegistrationID,
		APIVersion:      cfg.DPS.APIVersion,
		PayloadFile:     cfg.DPS.PayloadFile,
		Credentials:     cfg.Credentials,
		Dialer:          dialer,
		ProxyUser:       t.ProxyUser,
		ProxyPassword:   t.ProxyPassword,
		ResponseTimeout: t.ResponseTimeout,
		KeepAlive:       t.KeepAlive,
		OnBoot:          daemon.Policy(cfg.Provisioning.OnBoot),
		BootDelayMax:    cfg.Provisioning.BootDelayMax,
		Interval:        cfg.Provisioning.Interval,
		Retry:           cfg.Retry,
		Configuration:   &control.Configuration{File: absolute(file), Fingerprint: cfg.Fingerprint()},
	}
}

// hubSockets returns the sockets of local services among the files that systemd has passed to this
// process, by the name of the consumer (FileDescriptorName=). It accepts only listening Unix
// stream sockets, and closes the others.
func hubSockets(files []*os.File, log *zap.Logger) map[string]daemon.HubSocket {
	sockets := map[string]daemon.HubSocket{}
	for _, f := range files {
		l, err := net.FileListener(f)
		_ = f.Close() // l has a copy
		socket, is := l.(*net.UnixListener)
		switch {
		case err == nil && (!is || l.Addr().Network() != "unix"):
			err = errors.New("it is not a Unix stream socket")
		case err == nil && !listens(socket):
			err = errors.New("it does not listen")
		case err == nil && sockets[f.Name()] != nil:
			err = errors.New("there is another socket with the same name")
		}
		if err == nil {
			sockets[f.Name()] = socket
			continue
		}
		if l != nil {
			_ = l.Close()
		}
		log.Error(event.ConsumerFailed, zap.String("consumer", f.Name()), zap.Error(err))
	}
	return sockets
}

// listens reports whether a socket accepts connections. systemd passes those of a unit with
// Accept=yes to a service when they are connected.
func listens(socket *net.UnixListener) bool {
	is := 0
	raw, err := socket.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { is, _ = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ACCEPTCONN) })
	}
	return err == nil && is != 0
}

// absolute returns the path of a file for other processes.
func absolute(file string) string {
	if path, err := filepath.Abs(file); err == nil {
		return path
	}
	return file
}
