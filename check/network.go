package check

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/clock"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// maxAddresses is the maximum number of addresses of a name that are checked.
const maxAddresses = 16

// way is the state of the check for one protocol.
type way struct {
	protocol transport.Protocol
	route    transport.Route
	results  []Result
	blocked  string // reason why later steps are not checked, or ""
	worked   bool   // the CONNACK was received
}

// hop returns the address that is dialed: the service or the proxy.
func (w *way) hop() string {
	return cmp.Or(w.route.Proxy, w.route.Address)
}

func (w *way) add(r Result) {
	r.Protocol = string(w.protocol)
	w.results = append(w.results, r)
}

func (w *way) fail(r Result, f fault.Fault) {
	w.add(failed(r, f))
	w.blocked = r.Name + " failed"
}

func (w *way) skip(name, because string) {
	w.add(Result{Name: name, Subject: w.route.Address}.skipped(because))
}

// network checks the connection with each protocol. It does so sequentially, because the
// service accepts only one connection of a registration ID at a time. A failure of one
// protocol is a warning if dpsd can use another.
func (i *inspection) network(ctx context.Context) {
	if i.dialer == nil {
		i.skipAll("the roots cannot be read", Name, TCP, TLS, Connect)
		return
	}
	protocols := i.dialer.Protocols
	if len(protocols) == 0 {
		protocols = []transport.Protocol{transport.MQTT, transport.WebSocket}
	}
	ways := make([]*way, len(protocols))
	for n, p := range protocols {
		w := &way{protocol: p}
		var err error
		if w.route, err = i.dialer.Route(p); err != nil {
			w.fail(Result{Name: Proxy}, classify.Classify(err))
			w.results[len(w.results)-1].Detail += i.proxyOrigin()
		}
		ways[n] = w
	}
	i.proxyPassword()
	var with *usable // first usable credential
	if len(i.usable) > 0 {
		with = &i.usable[0]
	}
	first := i.hops(ctx, ways, Name, TCP)
	for _, w := range ways {
		if ctx.Err() != nil {
			return
		}
		if w.route.Proxy == "" && w.route.Address != "" {
			w.add(Result{Name: Proxy, Subject: w.route.Address}.ok("none" + i.proxyOrigin()))
		}
		w.worked = i.open(ctx, w, with, true)
	}
	if i.others(ctx, ways); ctx.Err() != nil {
		return
	}
	worked := slices.ContainsFunc(ways, func(w *way) bool { return w.worked })
	if worked {
		soften(first, "dpsd can connect in another way")
	}
	i.report(first...)
	for _, w := range ways {
		if worked {
			soften(w.results, "dpsd can connect in another way")
		}
		i.report(w.results...)
	}
}

// proxyPassword sets the dialer's credentials for the proxy. The step for credentials has
// already reported a password that cannot be read.
func (i *inspection) proxyPassword() {
	if password, err := i.Secrets.Password(i.Settings.ProxyPassword); err == nil && i.Settings.ProxyUser != "" {
		i.dialer.ProxyUser = url.UserPassword(i.Settings.ProxyUser, password)
	}
	i.disclosed.Add([]byte(i.dialer.ProxyPassword()))
}

// hops resolves every host that is dialed, once, and connects to each of its addresses in
// parallel. A host that cannot be reached blocks the protocols that use it. name and tcp are
// the names of the steps.
func (i *inspection) hops(ctx context.Context, ways []*way, name, tcp string) []Result {
	var results []Result
	addresses := map[string][]netip.Addr{}
	tried := map[string]string{} // reason why a hop cannot be reached
	if i.leavesOut(name, tcp) {
		return []Result{{Name: name, Status: Skipped}, {Name: tcp, Status: Skipped}}
	}
	for _, w := range ways {
		if w.blocked != "" {
			continue
		}
		hop := w.hop()
		if blocked, known := tried[hop]; known {
			w.blocked = blocked
			continue
		}
		host, port, _ := net.SplitHostPort(hop)
		found, known := addresses[host]
		if !known {
			var r Result
			r, found = i.resolve(ctx, Result{Name: name, Subject: host}, w.route.Proxy != "")
			results = append(results, r)
			addresses[host] = found
		}
		switch {
		case len(found) == 0:
			w.blocked = "the name " + host + " cannot be resolved"
		case i.leavesOut(tcp):
			results = append(results, Result{Name: tcp, Status: Skipped})
		default:
			probes, reached := i.probe(ctx, tcp, found, port, w.route.Proxy != "")
			results = append(results, probes...)
			if !reached {
				w.blocked = "there is no TCP connection to " + hop
			}
		}
		tried[hop] = w.blocked
	}
	return results
}

// onTheWay returns an error of a connection to the service or to the proxy in the form of
// package transport.
func onTheWay(stage transport.Stage, address string, proxy bool, err error) error {
	if proxy {
		stage = transport.StageProxy
	}
	return transport.Errors{{Stage: stage, Address: address, Err: err}}
}

func (i *inspection) resolve(ctx context.Context, r Result, proxy bool) (Result, []netip.Addr) {
	host := r.Subject
	i.Progress("resolving " + host)
	ctx, cancel := context.WithTimeout(ctx, i.patience())
	defer cancel()
	found, err := i.Resolve(ctx, host)
	if err != nil {
		err = transport.Unresolved(err, transport.ResolverFile)
		f := classify.Classify(onTheWay(transport.StageName, host, proxy, &net.OpError{Op: "dial", Net: "tcp", Err: err}))
		f.Err = err
		return failed(r, f), nil
	}
	var text []string
	found = found[:min(len(found), maxAddresses)]
	for n, a := range found {
		found[n] = a.Unmap()
		text = append(text, found[n].String())
	}
	return r.ok(strings.Join(text, ", ")), found
}

// probe connects to each address. An address that does not answer is a warning if another
// one does. IPv6 without a route is not reported, because most networks have none.
func (i *inspection) probe(ctx context.Context, name string, addresses []netip.Addr, port string, proxy bool) (results []Result, reached bool) {
	results = make([]Result, len(addresses))
	errs := make([]error, len(addresses))
	_, azure := classify.CloudOf(i.dialer.Host)
	var all sync.WaitGroup
	i.Progress("connecting to port " + port)
	for n, address := range addresses {
		target := net.JoinHostPort(address.String(), port)
		results[n] = Result{Name: name, Subject: target}
		all.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, i.patience())
			defer cancel()
			start := i.Now()
			c, err := i.dialer.DialTCP(ctx, target)
			if err != nil {
				errs[n] = err
				return
			}
			_ = c.Close()
			results[n] = results[n].ok("connected in " + i.Now().Sub(start).Round(10*time.Microsecond).String())
		})
	}
	all.Wait()
	reached = slices.Contains(errs, nil)
	for n, err := range errs {
		switch {
		case err == nil:
		case reached && addresses[n].Is6() && (errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.EADDRNOTAVAIL)):
			results[n] = results[n].skipped("this network has no IPv6")
		default:
			f := classify.Classify(onTheWay(transport.StageTCP, results[n].Subject, proxy, err))
			if azure && !proxy && classify.Blocked(addresses[n]) {
				f = fault.New(fault.DNSBlocked, fault.StageTCP, err)
			}
			f.Err = i.reason(err)
			results[n] = failed(results[n], i.circumstantial(f))
			if reached {
				soften(results[n:n+1], "another address answers")
			}
		}
	}
	return results, reached
}

// reason returns the error of a dialer without the address.
func (i *inspection) reason(err error) error {
	var errno syscall.Errno
	var timeout net.Error
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.As(err, &timeout) && timeout.Timeout():
		return fmt.Errorf("no answer within %v", i.patience())
	}
	return err
}

func (i *inspection) patience() time.Duration {
	return cmp.Or(i.dialer.Timeout, transport.DefaultTimeout)
}

// notConnecting is the reason why a stream is opened but no session.
type notConnecting struct{ because string } // "" if the user has skipped the step

func (notConnecting) Error() string { return "no session is opened" }

// open opens a session with the credential and closes it. It reports whether the steps that
// were requested succeeded. If verbose is true, it adds a result for each step. DPS often
// checks a key or certificate only at the registration, which check does not make.
func (i *inspection) open(ctx context.Context, w *way, with *usable, verbose bool) bool {
	steps := []string{TLS, Connect}
	if w.route.Proxy != "" {
		steps = append([]string{Proxy}, steps...)
	}
	if w.protocol == transport.WebSocket {
		steps = append(steps[:len(steps)-1], WebSocket, Connect)
	}
	if w.blocked != "" || i.leavesOut(steps...) {
		for _, step := range steps {
			w.skip(step, w.blocked)
		}
		return false
	}
	request := session.Request{
		Identity: i.Settings.Identity(i.registrationID, i.Version), Source: i.Settings.RegistrationID,
		Dialer: *i.dialer, KeepAlive: i.Settings.KeepAlive, ResponseTimeout: i.Settings.ResponseTimeout,
	}
	request.Dialer.Protocols = []transport.Protocol{w.protocol}
	r := Result{Name: Connect, Subject: w.route.Address}
	if with != nil {
		request.Proof, r.Subject = with.proof, with.String()
	}
	request.Connected = func(conn *transport.Conn) error {
		if verbose {
			i.connected(w, conn)
		}
		if err := i.mayConnect(with); err != nil {
			return err
		}
		i.Progress("signing in to " + w.route.Address)
		return nil
	}
	i.Progress("TLS handshake with " + w.route.Address)
	s, err := request.Open(ctx)
	var not notConnecting
	switch {
	case err == nil:
		s.Close(ctx)
		w.add(r.ok("accepted (CONNACK 0); DPS looks up the enrollment only when dpsd registers"))
		return true
	case errors.As(err, &not):
		w.skip(Connect, not.because)
		return not.because == ""
	}
	circumstances := request.Circumstances(s.Inspector, i.implausible)
	if s.Conn != nil {
		w.fail(r, circumstances.Classify(err))
		return false
	}
	var where *transport.Error
	if errors.As(err, &where) { // the dialer has tried one protocol
		err = where
	}
	f := circumstances.Classify(err)
	if where != nil && f.Err == err { //nolint:errorlint // the same error would repeat the name of the step
		f.Err = where.Err
	}
	i.notConnected(w, steps, where, f, verbose)
	return false
}

// mayConnect returns a notConnecting if no CONNECT is to be sent.
func (i *inspection) mayConnect(with *usable) error {
	if i.leavesOut(Connect) {
		return notConnecting{}
	}
	if with == nil {
		return notConnecting{"there is no usable credential"}
	}
	if wait := daemon.Floor(store.Runtime{Directory: i.RuntimeDirectory}, i.dialer.Host, i.registrationID); wait > 0 {
		return notConnecting{"DPS asked not to be contacted for another " + rough(wait) + " (Retry-After)"}
	}
	return nil
}

// notConnected adds results for the steps up to the one that failed with fault f at where.
func (i *inspection) notConnected(w *way, steps []string, where *transport.Error, f fault.Fault, verbose bool) {
	at := Connect
	if where != nil {
		at = string(where.Stage)
	}
	// The steps before the failed one succeeded.
	reached := false
	for _, step := range steps {
		r := Result{Name: step, Subject: w.route.Address}
		switch {
		case step == at:
			reached = true
			w.fail(r, i.circumstantial(f))
			if step == Proxy {
				w.results[len(w.results)-1].Detail += i.proxyOrigin()
			}
		case reached:
			w.skip(step, w.blocked)
		case verbose:
			w.add(r.ok("passed"))
		}
	}
	if !reached { // name, TCP or the roots, which worked before
		w.fail(Result{Name: Connect, Subject: w.route.Address}, f)
	}
}

// circumstantial adds the circumstance that dpsd tries no other protocol, unless the fault
// already has a circumstance.
func (i *inspection) circumstantial(f fault.Fault) fault.Fault {
	only := len(i.dialer.Protocols) == 1 && i.dialer.Protocols[0] == transport.MQTT
	if f.Circumstance == "" && only && i.dialer.MQTTPort != transport.DefaultWebSocketPort {
		f.Circumstance = fault.OnlyMQTT
	}
	return f
}

// proxyOrigin returns a text that names the environment which sets the proxy, or "".
func (i *inspection) proxyOrigin() string {
	if i.ProxyOrigin == "" {
		return ""
	}
	return " (from HTTPS_PROXY and NO_PROXY in " + i.ProxyOrigin + "'s environment)"
}

// connected adds results about an open stream.
func (i *inspection) connected(w *way, conn *transport.Conn) {
	if conn.Proxy != "" {
		w.add(Result{Name: Proxy, Subject: conn.Proxy}.ok("connects to " + conn.Address + i.proxyOrigin()))
	}
	leaf := conn.TLS.PeerCertificates[0]
	r := Result{Name: TLS, Subject: conn.Address}.ok(agreed(conn))
	if inspector := classify.Inspector(i.dialer.Host, conn.Issuer()); inspector != "" {
		r = r.warning(fmt.Sprintf("%q, which this gateway trusts, inspects this connection: %s", inspector, r.Detail), fault.Describe(fault.TLSIntercepted).Advice)
		r.Code = fault.TLSIntercepted
	}
	w.add(r)
	if w.protocol == transport.WebSocket {
		w.add(Result{Name: WebSocket, Subject: conn.Address}.ok("the server accepts MQTT over WebSocket"))
	}
	switch {
	case !conn.Date.IsZero():
		w.add(compare("the server", conn.Date, i.Now()))
	case !conn.ProxyDate.IsZero():
		r := []Result{compare("the proxy", conn.ProxyDate, i.Now())}
		soften(r, "if the proxy's own clock is right")
		w.add(r[0])
	case !i.clockCompared:
		// The handshake has compared the clock with the certificate.
		i.clockCompared = true
		w.add(Result{Name: Clock, Subject: "the server"}.ok("the server does not send the time; according to this clock, its certificate is valid (" + day(leaf.NotBefore) + " to " + day(leaf.NotAfter) + ")"))
	}
}

// agreed describes the TLS connection.
func agreed(conn *transport.Conn) string {
	names := make([]string, 0, 3)
	if len(conn.TLS.VerifiedChains) > 0 {
		for _, c := range conn.TLS.VerifiedChains[0] {
			names = append(names, cmp.Or(c.Subject.CommonName, c.Subject.String()))
		}
	}
	return fmt.Sprintf("%s, valid until %s, %s", strings.Join(names, " ← "), day(conn.TLS.PeerCertificates[0].NotAfter), tls.VersionName(conn.TLS.Version))
}

// compare returns a result about this gateway's clock compared with the clock of a peer.
func compare(peer string, theirs, now time.Time) Result {
	off := now.Round(0).Sub(theirs)
	direction := "ahead of"
	if off < 0 {
		direction = "behind"
	}
	r := Result{Name: Clock, Subject: peer}.ok(fmt.Sprintf("this gateway's clock is %s %s that of %s", rough(off), direction, peer))
	switch {
	case off.Abs() < clock.Significant:
		return r
	case off <= -attest.TokenLifetime:
		// According to the server's clock, a token made now has expired.
		return failed(r, fault.New(fault.ClockImplausible, fault.StageTLS, errors.New(r.Detail)))
	}
	return r.warning(r.Detail, fault.Describe(fault.ClockImplausible).Advice)
}

// others tries the other credentials with the first protocol that works.
func (i *inspection) others(ctx context.Context, ways []*way) {
	for _, w := range ways {
		if w.blocked != "" && !w.refused() || len(i.usable) < 2 || i.leavesOut(Connect) {
			continue
		}
		for n := range i.usable[1:] {
			w.blocked = ""
			w.worked = i.open(ctx, w, &i.usable[n+1], false) || w.worked
		}
		return
	}
}

// refused reports whether the credential was the only obstacle.
func (w *way) refused() bool {
	last := w.results[len(w.results)-1]
	return last.Status == Failed && fault.Describe(last.Code).Class == fault.Credential
}
