// Package daemon is the supervisor: it obtains the gateway's assignment from the Device
// Provisioning Service, saves it, notifies systemd, and keeps running.
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
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// Settings are replaced as a whole by a reload.
type Settings struct {
	IDScope        string
	RegistrationID attest.RegistrationID // resolved for each attempt until DPS has assigned it, see keptID
	APIVersion     string                // "" is the default of package dps
	PayloadFile    string                // "": no payload
	Credentials    []attest.Credential   // tried in this order when the service refuses one

	// Dialer connects to the service; its Host is the endpoint.
	Dialer *transport.Dialer
	// ProxyUser authenticates at the proxy with the content of ProxyPassword, which is read
	// for each attempt. "": the user name and password of the proxy's URL are used.
	ProxyUser       string
	ProxyPassword   attest.Reference
	ResponseTimeout time.Duration // for each answer; 0 stands for 60 s
	KeepAlive       time.Duration // MQTT keep-alive; 0 switches it off

	OnBoot       Policy        // "" is PolicyAlways
	BootDelayMax time.Duration // a random delay up to this before the first contact
	Interval     time.Duration // also register this often; 0 does not
	Retry        pace.Retry

	Certificate *CertificateSettings // nil: no certificate is requested

	Consumers []consumer.Consumer // local services that use the hub, each with a different name
	OnRefusal refusal.Policy      // what dpsd does when they report refusals; "" means refusal.Reprovision
	HubCheck  bool                // dpsd first checks over HTTPS whether the hub refuses the device

	// Configuration is the file of these settings, as Status shows it; nil for none.
	Configuration *control.Configuration
}

// CertificateSettings describe the certificate that dpsd requests from DPS.
type CertificateSettings struct {
	Required bool // dpsd is ready only with a valid certificate
	KeyType  certificate.KeyType
	KeyStore certificate.KeyStore
	RenewAt  int // percentage of the lifetime after which the next one is requested
}

// Policy says whether a start of dpsd registers.
type Policy string

// The policies. With the last two, dpsd sends READY immediately if a valid record of the same
// configuration is published. No policy withdraws a record.
const (
	PolicyAlways   Policy = "always"    // register; READY after the answer
	PolicyVerify   Policy = "verify"    // register in the background
	PolicyIfNeeded Policy = "if-needed" // register only without such a record, or on request
)

// Asks reports whether a start registers without a request, given whether a valid record of
// the same configuration is published.
func (p Policy) Asks(published bool) bool { return p != PolicyIfNeeded || !published }

// Daemon is the whole service. Fill the fields and call Run once. Everything outside the
// package (network, clock, changes of files, systemd, randomness) is a field; the comment of
// an optional field names its zero value.
type Daemon struct {
	Settings Settings
	Store    store.Options  // where the record lives
	Secrets  attest.Secrets // where credentials are found
	Host     attest.Host    // for %H and %m; zero: this machine

	// Reload reads the configuration again after a value on Hangup. It returns nil if nothing
	// has changed. After an error, the previous settings stay in effect. nil: there is nothing
	// to read.
	Reload func() (*Settings, error)
	// ConfigurationFile is the file that Reload reads. Until the first READY it is watched, and
	// a change causes a reload; without Watch, it is read every ten seconds. "": none.
	ConfigurationFile string
	// Hangup delivers SIGHUP, as signal.Notify does it. nil: never.
	Hangup <-chan os.Signal
	// Watch reports when one of the files changes, until the context ends. nil: never.
	Watch func(ctx context.Context, paths ...string) (<-chan struct{}, error)
	// ClockStepped delivers the size of a step of the wall clock. nil: never.
	ClockStepped <-chan time.Duration

	// Network returns a fingerprint of how this machine reaches the destinations. It sends
	// nothing. nil: changes of the network are not detected.
	Network func(destinations []netip.Addr) string

	// Notify sends a state to the service manager, sd_notify(3). nil: there is none.
	Notify func(state string) error
	// Socket is the path of the control socket, which is opened once the state
	// directory is locked. "" is none.
	Socket string
	// HubSockets are the listening sockets of local services, by the name of the consumer in
	// Settings. Run serves them as soon as the state directory is locked, and closes them before it
	// returns. With Once, they are not served.
	HubSockets map[string]HubSocket
	// MetricsFile is written with the metrics after each attempt, for the textfile
	// collector of node_exporter. "" is none.
	MetricsFile string

	// Watchdog is the interval of WATCHDOG_USEC; 0 if systemd has not asked for a watchdog.
	Watchdog time.Duration
	// ServiceManager is shown by Status; nil: unknown.
	ServiceManager *control.ServiceManager

	// Once makes Run return after the first durable assignment, and give up as soon as the
	// service has refused every credential or the enrollment. After any other fault, Run
	// retries.
	Once bool
	// Timeout limits Run if Once is set; 0: no limit.
	Timeout time.Duration

	Now      func() time.Time     // nil: time.Now
	Version  string               // of the program, for ClientVersion
	BuiltAt  time.Time            // a clock before this is implausible; zero: unknown
	Log      *zap.Logger          // nil: nothing is logged
	Rand     *rand.Rand           // for jitter; nil: seeded by the system
	BootTime func() time.Duration // nil: CLOCK_BOOTTIME
}

// ErrTimeout is returned by Run if Once is set and Timeout has passed. It is joined with the
// last fault, if there was one.
var ErrTimeout = errors.New("not provisioned within the time-out")

// ErrStopped is returned by Run if Once is set and the context ended first.
var ErrStopped = errors.New("stopped before the gateway was provisioned")

// Run provisions the gateway and runs until ctx ends. Then it disconnects from the service
// and returns nil. Failures do not end it, with these exceptions: *store.LockedError when another instance owns the state
// directory, and with Once a fault.Fault, ErrTimeout or ErrStopped.
func (d *Daemon) Run(ctx context.Context) error {
	s := d.supervisor()
	defer s.close()
	if err := s.open(s.now()); err != nil {
		return err
	}
	defer s.serve(ctx)()
	defer s.serveConsumers(ctx)()
	go s.recorder.run()
	defer s.recorder.stop()
	return s.run(ctx)
}

func (d *Daemon) now() time.Time {
	if d.Now != nil {
		return d.Now()
	}
	return time.Now()
}

// Identity is that of this gateway at DPS; version is that of dpsd.
func (s *Settings) Identity(registrationID, version string) dps.Identity {
	return dps.Identity{
		IDScope: s.IDScope, RegistrationID: registrationID,
		APIVersion: s.APIVersion, ClientVersion: "dpsd/" + version,
	}
}
