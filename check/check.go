// Package check finds out, step by step, whether a gateway can be provisioned as it
// is configured, and what keeps it from it. It goes the way of the daemon's attempt,
// up to the CONNACK and no further: nothing is registered, nothing on disk changes. Then
// it goes to the assigned hub, as far as TLS.
//
// Every step ends by a deadline of its own. What fails carries the code and the
// advice of the catalogue; a step that needs one that failed is skipped and says
// which, the others go on.
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
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/transport"
)

// Status is how a step ended.
type Status string

// The ends of a step, from good to bad.
const (
	OK      Status = "ok"
	Skipped Status = "skipped" // not checked; the detail says why
	Warning Status = "warning" // dpsd works, but somebody should look
	Failed  Status = "failed"  // dpsd cannot provision, or the hub cannot be reached, like this
)

// Result is what one step found. No field holds a secret.
type Result struct {
	Name string `json:"name"`
	// Protocol is "mqtt" or "websocket" in the steps that each takes on its own way.
	Protocol string `json:"protocol,omitempty"`
	// Subject is what was looked at: a file, a host, an address, a credential.
	Subject string `json:"subject,omitempty"`
	Status  Status `json:"status"`
	// Detail says in one line what was found, for people.
	Detail string `json:"detail"`
	// Code is the fault that dpsd would meet here; "" for none.
	Code fault.Code `json:"code,omitempty"`
	// Advice says in one line what to do; "" for nothing.
	Advice string `json:"advice,omitempty"`
}

// Report is a whole check.
type Report struct {
	Schema  int       `json:"schema"`  // 1; another one when a member goes or changes its meaning
	Version string    `json:"version"` // of dpsd
	Time    time.Time `json:"time"`    // by this gateway's clock, UTC
	Offline bool      `json:"offline"` // the network was left alone
	Status  Status    `json:"status"`  // the worst of all steps: ok, warning or failed
	Steps   []Result  `json:"steps"`
}

// Worst is the worst status of results; what was skipped counts for nothing.
func Worst(results []Result) Status {
	worst := OK
	for _, r := range results {
		if r.Status == Failed || r.Status == Warning && worst == OK {
			worst = r.Status
		}
	}
	return worst
}

// Gateway is what is checked.
type Gateway struct {
	// File is the configuration, and Invalid why it cannot be used; nil when it can.
	// An error with Unwrap() []error becomes a result for each.
	File    string
	Invalid error
	// Installed says that File is the one that the service reads.
	Installed bool
	// SocketUnknown says that File would name the control socket but cannot be used: Ask then
	// asks at the standard one.
	SocketUnknown bool

	Settings         *daemon.Settings // nil when the configuration is invalid
	StateDirectory   string
	RuntimeDirectory string
	Socket           string // the path of the control socket; "" is not checked
	Secrets          attest.Secrets
	Host             attest.Host

	// Account is the user that the service runs as. Who checks as root sees the files
	// as that user does. The zero value is nobody: whoever checks counts.
	Account Account
	// Systemctl runs systemctl(1) and returns what it printed; nil when no systemd
	// runs here.
	Systemctl func(ctx context.Context, args ...string) ([]byte, error)

	// Ask returns what the running dpsd says of itself; nil: it is not asked.
	Ask func(context.Context) (control.Status, error)

	Version string
	BuiltAt time.Time        // of dpsd: an earlier time is implausible; zero: not judged
	Now     func() time.Time // nil: time.Now

	// Resolve finds the addresses of a host; nil: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// ProxyOrigin says for people whose HTTPS_PROXY and NO_PROXY the dialer uses; "" when
	// the configuration does not leave the proxy to the environment.
	ProxyOrigin string

	// Skip has the names of the steps to leave out. What others need of them is still found
	// out, but they contact nobody.
	Skip map[string]bool

	// Progress is told what is being waited for; nil: nobody.
	Progress func(what string)
}

// inspection is one check under way: what later steps need of earlier ones.
type inspection struct {
	*Gateway
	report func(Result)

	registrationID string                         // "": not known
	payload        []byte                         // what is sent along
	usable         []usable                       // credentials
	implausible    bool                           // the clock is behind
	clockHeld      bool                           // against a certificate of the server
	dialer         *transport.Dialer              // with the roots read; nil when they cannot be
	unit           *unit                          // nil: no systemd, or no dpsd.service
	unitError      error                          // why there is none
	answer         func() (control.Status, error) // of the running dpsd; control.ErrNotRunning where nobody is asked
	misconfigured  error                          // why the service cannot use the configuration: Invalid, or a ClosedError
	told           redact.Known                   // the secrets that peers are told
}

// withDefaults is a copy with what the zero value of a function stands for.
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

// askLimit is how long the running daemon may take to answer. It answers from memory.
const askLimit = 5 * time.Second

// Run goes through all steps and hands each result on as soon as it is certain. With
// offline it stops before the network. When ctx ends, it returns early.
func (g *Gateway) Run(ctx context.Context, offline bool, report func(Result)) {
	i := &inspection{Gateway: g.withDefaults()}
	wanted := g.wanted(report)
	i.report = func(r Result) {
		// Whatever peers were told, they may repeat.
		for _, text := range []*string{&r.Subject, &r.Detail, &r.Advice} {
			*text = foreign.Line(i.told.Mask(*text), foreign.MaxFault)
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
	// needing leaves out what needs a configuration when there is none.
	needing := func(look func(), names ...string) {
		if g.Settings == nil {
			i.skipAll("the configuration is invalid", names...)
			return
		}
		look()
	}
	i.configuration()
	needing(i.identity, Identity)
	needing(i.credentials, Credential)
	i.clock()
	needing(i.roots, Roots)
	needing(i.state, State, Record)
	i.systemd()
	i.service()
	if !offline && ctx.Err() == nil {
		needing(func() { i.network(ctx); i.hub(ctx) }, Connect)
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

// failed puts a fault into words.
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

// configuration tells what reading it has come to.
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

// incorrect is a failure of the configuration. What has to follow the correction depends
// on the service.
func (i *inspection) incorrect(r Result, problem error) Result {
	r = failed(r, fault.New(fault.ConfigurationInvalid, fault.StageConfiguration, problem))
	if !errors.As(problem, new(interface{ Remedy() string })) {
		r.Advice = "Correct dpsd.toml at the place that the message names"
	}
	r.Advice = corrected(r.Advice, i.applying())
	return r
}

// applying is the command after which the service uses a corrected configuration; "" for
// none.
func (i *inspection) applying() string {
	if !i.Installed {
		return ""
	}
	return i.unit.applying()
}

// identity finds the registration ID and the payload, as an attempt does.
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
	detail := "registration ID " + id
	if i.Settings.PayloadFile != "" {
		detail += ", with the payload of " + i.Settings.PayloadFile
	}
	i.ok(r, detail)
}
