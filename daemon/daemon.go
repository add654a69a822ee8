// Package daemon is the supervisor: it obtains the gateway's assignment from
// the Device Provisioning Service, keeps it on disk, tells systemd, and goes on
// for years.
//
// One goroutine owns all state and waits in one select (supervisor.go). An attempt
// (attempt.go) runs beside it and reports its phases: a registration, a lookup of the
// published record, or a repair of the state directory. Every error passes one function
// that names it (package classify) and one that turns it into a delay (package pace).
package daemon

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// Settings is what a reload replaces as a whole.
type Settings struct {
	IDScope        string
	RegistrationID attest.RegistrationID // resolved for each attempt until DPS has assigned it, see keptID
	APIVersion     string                // "" is the default of package dps
	PayloadFile    string                // "": no payload
	Credentials    []attest.Credential   // tried in this order when the service refuses one

	// Dialer finds the way to the service; its Host is the endpoint.
	Dialer *transport.Dialer
	// ProxyUser logs in at the proxy with the contents of ProxyPassword, read for each
	// attempt, in place of what the proxy's URL says. "": nobody.
	ProxyUser       string
	ProxyPassword   attest.Reference
	ResponseTimeout time.Duration // for each answer; 0 stands for 60 s
	KeepAlive       time.Duration // MQTT keep-alive; 0 switches it off

	OnBoot       Policy        // "" is PolicyAlways
	BootDelayMax time.Duration // a random delay up to this before the first contact
	Interval     time.Duration // also register this often; 0 does not
	Retry        pace.Retry

	// Configuration is the file of these settings, as Status shows it; nil for none.
	Configuration *control.Configuration
}

// Policy says what a start of dpsd asks of the service.
type Policy string

// The policies. With the last two READY comes at once when a valid record of
// the same configuration is published; they never withdraw it.
const (
	PolicyAlways   Policy = "always"    // register; READY after the answer
	PolicyVerify   Policy = "verify"    // register in the background
	PolicyIfNeeded Policy = "if-needed" // register only without such a record, or on request
)

// Asks reports whether a start registers by itself, given that a valid record of
// the same configuration is published or not.
func (p Policy) Asks(published bool) bool { return p != PolicyIfNeeded || !published }

// Daemon is the whole service. Fill the fields and call Run once. Everything
// that reaches outside (network, clock of the boot, files' changes, systemd,
// randomness) is a field; the zero value of an optional one is named below.
type Daemon struct {
	Settings Settings
	Store    store.Options  // where the record lives
	Secrets  attest.Secrets // where credentials are found
	Host     attest.Host    // for %H and %m; zero: this machine

	// Reload reads the configuration again after a value on Hangup. It returns
	// nil when nothing has changed; an error leaves the running one. nil: there is
	// nothing to read.
	Reload func() (*Settings, error)
	// ConfigurationFile is what Reload reads. Until the first READY it is watched, and a
	// change is a reload; without Watch it is read every ten seconds. "": it is not.
	ConfigurationFile string
	// Hangup delivers SIGHUP, as signal.Notify does it. nil: never.
	Hangup <-chan os.Signal
	// Watch tells when one of the files changes, until the context ends. nil: never.
	Watch func(ctx context.Context, paths ...string) (<-chan struct{}, error)
	// ClockStepped delivers the size of a step of the wall clock. nil: never.
	ClockStepped <-chan time.Duration

	// Network is a fingerprint of how this machine reaches the destinations. It sends
	// nothing. nil: nobody looks whether the network has changed.
	Network func(destinations []netip.Addr) string

	// Notify sends a state to the service manager, sd_notify(3). nil: there is none.
	Notify func(state string) error
	// Socket is the path of the control socket, which is opened once the state
	// directory is locked. "" is none.
	Socket string
	// MetricsFile is written with the metrics after each attempt, for the textfile
	// collector of node_exporter. "" is none.
	MetricsFile string

	// Watchdog is the interval of WATCHDOG_USEC; 0 when systemd asked for none.
	Watchdog time.Duration

	// Once makes Run return after the first durable assignment, and give up as
	// soon as the service has refused every credential or the enrollment. After
	// any other fault it tries again.
	Once bool
	// Timeout bounds Run when Once is set; 0 does not.
	Timeout time.Duration

	Version  string               // of the program, for ClientVersion
	BuiltAt  time.Time            // a clock before this is implausible; zero: not judged
	Log      *zap.Logger          // nil: nothing is logged
	Rand     *rand.Rand           // for jitter; nil: seeded by the system
	BootTime func() time.Duration // nil: CLOCK_BOOTTIME
}

// ErrTimeout is returned by Run when Once is set and Timeout has passed. It is
// joined with the last fault, if there was one.
var ErrTimeout = errors.New("not provisioned within the time-out")

// ErrStopped is returned by Run when Once is set and the context ended first.
var ErrStopped = errors.New("stopped before the gateway was provisioned")

// Run provisions the gateway and stays until ctx ends; then it says farewell
// to the service and returns nil. Trouble of any kind never ends it, with
// these exceptions: *store.LockedError when another instance owns the state
// directory, and with Once a fault.Fault, ErrTimeout or ErrStopped.
func (d *Daemon) Run(ctx context.Context) error {
	s := d.supervisor()
	defer s.close()
	if err := s.open(time.Now()); err != nil {
		return err
	}
	defer s.serve(ctx)()
	go s.recorder.run()
	defer s.recorder.stop()
	return s.run(ctx)
}

// Identity is that of this gateway at DPS; version is that of dpsd.
func (s *Settings) Identity(registrationID, version string) dps.Identity {
	return dps.Identity{
		IDScope: s.IDScope, RegistrationID: registrationID,
		APIVersion: s.APIVersion, ClientVersion: "dpsd/" + version,
	}
}
