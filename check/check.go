// Package check diagnoses, step by step, whether a gateway can be provisioned with its
// configuration. It follows the daemon's attempt up to the CONNACK, but registers nothing and
// changes nothing on disk. Then it connects to the assigned hub with TLS.
//
// Every step has its own deadline. A failed step has the code and the advice of the
// catalogue. A step that needs the result of a failed step is skipped and names it; the
// other steps continue.
package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/transport"
)

// Status is the outcome of a step.
type Status string

// Outcomes of a step, from best to worst.
const (
	OK      Status = "ok"
	Skipped Status = "skipped" // not checked; the detail gives the reason
	Warning Status = "warning" // dpsd works, but the result needs attention
	Failed  Status = "failed"  // dpsd cannot provision the gateway, or the hub cannot be reached
)

// Result is one result of a step. No field contains a secret.
type Result struct {
	Name string `json:"name"`
	// Protocol is "mqtt" or "websocket" in the steps that are made for each protocol.
	Protocol string `json:"protocol,omitempty"`
	// Subject is the object of the check: a file, a host, an address, a credential.
	Subject string `json:"subject,omitempty"`
	Status  Status `json:"status"`
	// Detail describes the result in one line for people.
	Detail string `json:"detail"`
	// Code is the fault that dpsd would report, or "".
	Code fault.Code `json:"code,omitempty"`
	// Advice says in one line what to do, or is "".
	Advice string `json:"advice,omitempty"`
}

// Report is the result of a whole check.
type Report struct {
	Schema  int       `json:"schema"`  // 1; changes when a member is removed or changes its meaning
	Version string    `json:"version"` // version of dpsd
	Time    time.Time `json:"time"`    // time of this gateway's clock, in UTC
	Offline bool      `json:"offline"` // the network was not used
	Status  Status    `json:"status"`  // worst status of all steps: ok, warning or failed
	Steps   []Result  `json:"steps"`
}

// Worst returns the worst status of results. It ignores skipped steps.
func Worst(results []Result) Status {
	worst := OK
	for _, r := range results {
		if r.Status == Failed || r.Status == Warning && worst == OK {
			worst = r.Status
		}
	}
	return worst
}

// Gateway is the gateway to check.
type Gateway struct {
	// File is the configuration. Invalid is the reason why it cannot be used, or nil. Each
	// error of an Unwrap() []error becomes a result.
	File    string
	Invalid error
	// Installed means that File is the configuration of the service.
	Installed bool
	// SocketUnknown means that File sets the control socket but cannot be used. Ask then uses
	// the default socket.
	SocketUnknown bool

	Settings         *daemon.Settings // nil if the configuration is invalid
	StateDirectory   string
	RuntimeDirectory string
	CertificateGroup string // group that may read the issued certificate; "" for none
	Socket           string // path of the control socket; if it is "", the socket is not checked
	Secrets          attest.Secrets
	Host             attest.Host

	// Account is the user that the service runs as. If this process runs as root, it accesses
	// files as that user. If Account is zero, files are accessed as the current user.
	Account Account
	// Systemctl runs systemctl(1) and returns its output. It is nil if systemd is not running.
	Systemctl func(ctx context.Context, args ...string) ([]byte, error)

	// Ask returns the status of the running dpsd. If it is nil, the service is not queried.
	Ask func(context.Context) (control.Status, error)

	Version string
	BuiltAt time.Time        // build time; an earlier clock is implausible; zero disables the test
	Now     func() time.Time // if it is nil, time.Now

	// Resolve returns the addresses of a host. If it is nil, the system's resolver is used.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// ProxyOrigin describes the environment from which the dialer takes HTTPS_PROXY and
	// NO_PROXY. It is "" if the configuration sets the proxy.
	ProxyOrigin string

	// Skip contains the names of the steps to leave out. Their results are still determined if
	// other steps need them, but without contacting any host.
	Skip map[string]bool

	// Progress, if it is not nil, is called with a description of each operation that may take
	// long.
	Progress func(what string)
}

// inspection is the state of one check: the results that later steps need.
type inspection struct {
	*Gateway
	deliver func(Result) // see Run

	registrationID string                         // "" if it is unknown
	payload        []byte                         // payload of the registration
	usable         []usable                       // usable credentials
	proofs         []session.Proof                // to close
	implausible    bool                           // the clock is slow
	clockCompared  bool                           // the clock was compared with a certificate of the server
	dialer         *transport.Dialer              // with its roots; nil if they cannot be read
	unit           *unit                          // nil without systemd or dpsd.service
	unitError      error                          // reason why unit is nil
	answer         func() (control.Status, error) // status of the running dpsd; control.ErrNotRunning if the service is not queried
	misconfigured  error                          // reason why the service cannot use the configuration: Invalid, or a ClosedError
	disclosed      redact.Known                   // secrets that are sent to peers
}

// withDefaults returns a copy in which the functions have their defaults.
func (g Gateway) withDefaults() *Gateway {
	if g.Now == nil {
		g.Now = time.Now
	}
	if g.Progress == nil {
		g.Progress = func(string) {}
	}
	if g.Resolve == nil {
		g.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return &g
}

// askLimit is the time limit for an answer of the running daemon, which answers from memory.
const askLimit = 5 * time.Second

// Run runs all steps and calls report with each result as soon as the result is final. If
// offline is true, it stops before the steps that use the network. It returns early when ctx
// is done.
func (g *Gateway) Run(ctx context.Context, offline bool, report func(Result)) {
	i := &inspection{Gateway: g.withDefaults()}
	wanted := g.wanted(report)
	i.deliver = func(r Result) {
		// Peers may repeat the secrets that they received.
		for _, text := range []*string{&r.Subject, &r.Detail, &r.Advice} {
			*text = foreign.Line(i.disclosed.Mask(*text), foreign.MaxFault)
		}
		wanted(r)
	}
	if g.Systemctl != nil {
		i.unit, i.unitError = askUnit(ctx, i.Systemctl)
	}
	i.answer = sync.OnceValues(func() (control.Status, error) {
		if g.Ask == nil || g.leavesOut(Service) {
			return control.Status{}, control.ErrNotRunning
		}
		ctx, cancel := context.WithTimeout(ctx, askLimit)
		defer cancel()
		return g.Ask(ctx)
	})
	// needing skips the steps that need a configuration if it is invalid.
	needing := func(look func(), names ...string) {
		if g.Settings == nil {
			i.skipAll("the configuration is invalid", names...)
			return
		}
		look()
	}
	i.configuration()
	needing(i.identity, Identity)
	needing(i.tpm)
	defer i.close()
	needing(func() { i.credentials(ctx) }, Credential)
	i.clock()
	needing(i.roots, Roots)
	needing(i.state, State, Record)
	needing(func() { i.issued(ctx) })
	i.systemd()
	i.manager()
	i.service()
	needing(func() { i.consumers(ctx) })
	if !offline && ctx.Err() == nil {
		needing(func() { i.network(ctx); i.hub(ctx) }, Connect)
	}
}

// close releases the keys that a TPM or a signer holds.
func (i *inspection) close() {
	for _, proof := range i.proofs {
		_ = proof.Close() // the check is complete
	}
}

func (i *inspection) report(results ...Result) {
	for _, r := range results {
		i.deliver(r)
	}
}

func (r Result) ok(detail string) Result {
	r.Status, r.Detail = OK, detail
	return r
}

func (r Result) skipped(because string) Result {
	r.Status, r.Detail = Skipped, "not checked: "+because
	return r
}

func (r Result) warning(detail, advice string) Result {
	r.Status, r.Detail, r.Advice = Warning, detail, advice
	return r
}

func (i *inspection) ok(r Result, detail string)           { i.report(r.ok(detail)) }
func (i *inspection) skip(r Result, because string)        { i.report(r.skipped(because)) }
func (i *inspection) warn(r Result, detail, advice string) { i.report(r.warning(detail, advice)) }

func (i *inspection) skipAll(because string, names ...string) {
	for _, name := range names {
		i.skip(Result{Name: name}, because)
	}
}

func (i *inspection) fail(r Result, err error) { i.report(failed(r, classify.Classify(err))) }

// failed returns a result that describes a fault.
func failed(r Result, f fault.Fault) Result {
	r.Status, r.Code, r.Advice = Failed, f.Code, f.Advice()
	r.Detail = fault.Describe(f.Code).Summary
	if f.Err != nil {
		r.Detail = f.Err.Error()
	}
	var apart interface{ Problem() string }
	if errors.As(f.Err, &apart) {
		r.Detail = strings.Replace(r.Detail, apart.(error).Error(), apart.Problem(), 1)
	}
	return r
}

// configuration reports whether the configuration is valid.
func (i *inspection) configuration() {
	r := Result{Name: Configuration, Subject: i.File}
	if i.Invalid == nil {
		if i.Installed {
			if i.misconfigured = i.Account.ClosedConfiguration(i.File); i.misconfigured != nil {
				i.report(i.incorrect(r, i.misconfigured))
				return
			}
		}
		i.ok(r, "valid")
		if i.Settings == nil {
			return
		}
		for _, doubt := range i.Settings.Doubts() {
			i.warn(r, doubt.What, doubt.Advice)
		}
		return
	}
	i.misconfigured = i.Invalid
	problems := []error{i.Invalid}
	var several interface{ Unwrap() []error }
	if errors.As(i.Invalid, &several) {
		problems = several.Unwrap()
	}
	for _, problem := range problems {
		i.report(i.incorrect(r, i.asSeen(problem)))
	}
}

// incorrect returns a failure of the configuration. The command to run after the correction
// depends on the service.
func (i *inspection) incorrect(r Result, problem error) Result {
	r = failed(r, fault.New(fault.ConfigurationInvalid, fault.StageConfiguration, problem))
	if !errors.As(problem, new(interface{ Remedy() string })) {
		r.Advice = "Correct dpsd.toml at the place named in the message"
	}
	r.Advice = corrected(r.Advice, i.applying())
	return r
}

// applying returns the command after which the service uses a corrected configuration, or "".
func (i *inspection) applying() string {
	if !i.Installed {
		return ""
	}
	return i.unit.applying()
}

// identity determines the registration ID and the payload, like an attempt.
func (i *inspection) identity() {
	r := Result{Name: Identity, Subject: i.Settings.RegistrationID.String()}
	id, err := i.Settings.RegistrationID.Resolve(i.Host, i.Secrets)
	if err != nil {
		i.fail(r, i.asSeen(err))
		return
	}
	i.registrationID = id
	paths := i.Settings.RegistrationID.Paths(i.Secrets)
	if i.Settings.PayloadFile != "" {
		paths = append(paths, i.Settings.PayloadFile)
		if i.payload, err = session.ReadPayload(i.Settings.PayloadFile); err != nil {
			i.registrationID = ""
			i.fail(r, i.asSeen(err))
			return
		}
	}
	if closed := i.closedTo(paths); closed != nil {
		f := classify.Classify(closed)
		f.Code = fault.InputUnreadable
		i.report(failed(r, f))
		return
	}
	if i.Settings.Certificate != nil {
		if err := certificate.CheckRegistrationID(id); err != nil {
			i.fail(r, err)
			return
		}
	}
	detail := "registration ID " + id
	if i.Settings.PayloadFile != "" {
		detail += ", with the payload from " + i.Settings.PayloadFile
	}
	i.ok(r, detail)
}
