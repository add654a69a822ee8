package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// This file decides what local services that use the hub can get, and posts it to their servers.
// Without a socket or a module for them, it does nothing.

// consumers is what the loop knows about the local services that use the hub.
type consumers struct {
	sockets []*hubSocket // by name
	board   consumer.Board
	posted  consumer.State // the last State that was posted to the board
	first   chan struct{}  // closed when the first State has been posted: the servers wait for this
	posting sync.Once      // closes first
	roots   string         // file with the system's roots

	record     store.Record // the published one, as it was when no attempt was running
	found      bool
	recognized bool      // statusHistory.fingerprint is that of the current settings
	due        time.Time // when a recognition is due; zero: none is due
	comparing  time.Time // the deadline for the result of a comparison; zero: none is running
	assignedBy string    // the credential with which DPS last assigned this device; "": unknown

	signing   atomic.Pointer[signing]   // for the servers; nil: there is no key
	registers atomic.Pointer[registers] // for the socket of package aisapi; nil: unknown

	turn chan struct{} // capacity 1: one request at a time uses the key, because a TPM is slow
}

// signing is the key for the tokens of a device.
type signing struct {
	device  hub.Identity
	key     attest.SymmetricKey
	secrets attest.Secrets
}

// openConsumers prepares the sockets of the services.
func (s *supervisor) openConsumers(now time.Time) {
	if s.Once {
		return
	}
	defer s.logConsumers()
	s.openModules(now)
	s.consumers.assignedBy = assignedBy(s.Store.Directory, s.Store.RuntimeDirectory) // a reload may add the first consumer
	if len(s.HubSockets) == 0 && !s.modules.concern(s.settings.Consumers) {
		return
	}
	s.consumers.turn = make(chan struct{}, 1)
	s.consumers.roots = transport.SystemRoots()
	s.consumers.sockets = newHubSockets(s.HubSockets)
	s.board.Use = s.consumers.used
	s.consumers.record, s.consumers.found = s.store.Current()
	s.consumers.configure(s.settings.Consumers)
	s.consumers.first = make(chan struct{})
	s.consumers.compare(now)
	if !s.lookup { // a lookup also determines the fingerprint
		s.recognize(now)
	}
	s.postConsumers(now) // the servers start before the loop
}

// assignedBy returns the credential of the last recorded assignment; "" if none is recorded.
func assignedBy(directory, runtimeDirectory string) (credential string) {
	for _, a := range store.Attempts(directory, runtimeDirectory) {
		if a.Outcome == "assigned" {
			credential = a.Credential
		}
	}
	return credential
}

// usesHub reports whether there are sockets of local services, or modules for them.
func (s *supervisor) usesHub() bool {
	return len(s.consumers.sockets) > 0 || s.modules.concern(s.settings.Consumers)
}

// replaced applies the consumers of new settings.
func (c *consumers) replaced(all []consumer.Consumer, now time.Time) {
	c.recognized = false
	c.compare(now)
	c.configure(all)
}

// postConsumers posts what services can get, if this has changed.
func (s *supervisor) postConsumers(now time.Time) {
	c := &s.consumers
	if !s.usesHub() || now.Before(c.comparing) {
		return
	}
	// A running attempt owns the store, and may hang there because of the disk.
	if !s.running.active() {
		c.record, c.found = s.store.Current()
	}
	s.postRegisters()
	credential := s.hubCredential()
	st := consumer.State{Withheld: s.withheld(now), RootsFile: cmp.Or(s.settings.Dialer.CAFile, c.roots)}
	if c.found {
		st.Hub = hub.Identity{Host: c.record.AssignedHub, DeviceID: c.record.DeviceID}
		st.Generation, st.Profile = c.record.Generation, c.record.ConnectionProfile
		st.Certificate = s.certificateFiles(credential)
	}
	var key attest.SymmetricKey
	key, st.Tokens = credential.(attest.SymmetricKey)
	c.use(signing{st.Hub, key, s.Secrets}, st.Tokens)
	st.Modules = s.modules.states(st.Hub, s.settings.Consumers)
	if reflect.DeepEqual(st, c.posted) {
		return
	}
	c.posted = st
	s.modules.useKeys(st.Hub)
	c.board.Post(st)
	c.posting.Do(func() { close(c.first) })
}

// use gives the servers the key for tokens, if there is one.
func (c *consumers) use(with signing, found bool) {
	switch before := c.signing.Load(); {
	case !found:
		c.signing.Store(nil)
	case before == nil || before.key != with.key || before.device != with.device:
		c.signing.Store(&with)
	}
}

// withheld returns why services currently get no credentials; "": they do. Another configuration
// precedes an implausible clock, because services then do not learn the assignment either.
func (s *supervisor) withheld(now time.Time) consumer.Reason {
	switch c := &s.consumers; {
	case !c.found:
		return consumer.NotAssigned
	case !c.recognized || c.record.ConfigFingerprint != s.history.fingerprint:
		return consumer.OtherConfiguration
	case s.implausible(now):
		return consumer.ClockImplausible
	}
	return ""
}

// consumersDue returns when the State for services changes even if nothing else happens: a comparison
// has reached its deadline, or the clock has reached a plausible time in small steps, which are not
// reported. Zero: never.
func (s *supervisor) consumersDue(now time.Time) time.Time {
	switch {
	case !s.usesHub():
		return time.Time{}
	case now.Before(s.consumers.comparing):
		return s.consumers.comparing
	case s.withheld(now) == consumer.ClockImplausible:
		return now.Add(later(s.BuiltAt, s.verified).Sub(now.Round(0)))
	}
	return time.Time{}
}

// hubCredential returns the credential with which the hub knows this device: the one with which
// DPS last assigned it. If that is unknown, DPS may have reported its type.
func (s *supervisor) hubCredential() attest.Credential {
	return hubCredential(s.settings.Credentials, s.consumers.assignedBy, s.consumers.record)
}

func hubCredential(all []attest.Credential, assignedBy string, rec store.Record) attest.Credential {
	for _, c := range all {
		if c.String() == assignedBy {
			return c
		}
	}
	said := attestation(rec.RegistrationState)
	for _, c := range all {
		if c.Type().Name == said {
			return c
		}
	}
	return all[0]
}

// attestation returns the type of the credential that a registration state of DPS names, or "".
func attestation(state json.RawMessage) string {
	var members struct {
		SymmetricKey map[string]any `json:"symmetricKey"`
		X509         map[string]any `json:"x509"`
	}
	_ = json.Unmarshal(state, &members) // without the member, the type is unknown
	switch {
	case members.SymmetricKey != nil && members.X509 == nil:
		return attest.SymmetricKey{}.Type().Name
	case members.X509 != nil && members.SymmetricKey == nil:
		return attest.X509{}.Type().Name
	}
	return ""
}

// certificateFiles returns the files of the certificate with which the device signs in at the
// hub: the issued certificate or, without one, that of the credential. nil: there are no files that
// a service could read.
func (s *supervisor) certificateFiles(credential attest.Credential) *consumer.Files {
	if c := s.consumers.record.Certificate; c != nil {
		return &consumer.Files{Certificate: c.CertificateFile, PrivateKey: c.PrivateKeyFile, NotAfter: c.NotAfter}
	}
	x, is := credential.(attest.X509)
	if !is || x.Certificate.File == "" || x.PrivateKey.File == "" {
		return nil
	}
	files := consumer.Files{Certificate: x.Certificate.File, PrivateKey: x.PrivateKey.File}
	if s.certificate.what == deviceCertificate {
		files.NotAfter = s.certificate.at.UTC()
	}
	return &files
}

var (
	errNoKey = errors.New("the device has no symmetric key")
	errMoved = errors.New("the assignment has just changed")
)

// mac returns the HMAC-SHA256 of a statement under the key of an identity. It fails if the identity
// has changed since the server read it from the board: no key signs for another identity. The servers
// call it.
func (s *supervisor) mac(ctx context.Context, of hub.Identity, statement []byte) ([]byte, error) {
	device := of
	device.ModuleID = ""
	if of.ModuleID != "" {
		return s.modules.mac(device, of.ModuleID, statement)
	}
	ctx, cancel := context.WithTimeout(ctx, hardwareLimit)
	defer cancel()
	select {
	case s.consumers.turn <- struct{}{}:
		defer func() { <-s.consumers.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	with := s.consumers.signing.Load() // not before the wait
	switch {
	case with == nil:
		return nil, errNoKey
	case with.device != device:
		return nil, errMoved
	}
	return with.key.MAC(ctx, with.secrets, statement)
}

// serveConsumers serves the services as soon as the board has a State, and returns a function that
// closes their sockets and waits until that is done. Before and after that, services wait, because
// systemd keeps the sockets open.
func (s *supervisor) serveConsumers(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var ended sync.WaitGroup
	for _, socket := range s.consumers.sockets {
		ended.Go(func() {
			select {
			case <-s.consumers.first:
			case <-ctx.Done():
			}
			socket.serve(ctx, s.hubServer, func(err error) {
				s.log(event.ConsumerFailed, zap.String("consumer", socket.name), zap.Error(err))
			})
		})
	}
	return func() {
		cancel()
		ended.Wait()
	}
}

// logConsumers logs which services have no socket, and which sockets have no service.
func (s *supervisor) logConsumers() {
	for _, c := range s.consumers.status(s.settings.Consumers) {
		switch {
		case !c.Listening:
			s.log(event.ConsumerWithoutSocket, zap.String("consumer", c.Name), zap.String("advice", "Run: "+listen(c.Name)))
		case c.Scope == "":
			s.log(event.ConsumerNotConfigured, zap.String("consumer", c.Name),
				zap.String("advice", `Add a [[consumer]] with name = "`+c.Name+`" and run: systemctl reload dpsd; or run: systemctl disable --now dpsd-hub@`+c.Name+".socket && systemctl restart --no-block dpsd"))
		}
	}
}

// listen returns the command that opens the socket of a service. systemd does not start a socket
// while its service is running, so the restart of dpsd starts it.
func listen(name string) string {
	return "systemctl enable dpsd-hub@" + name + ".socket && systemctl restart --no-block dpsd"
}

// status lists the services by name.
func (c *consumers) status(configured []consumer.Consumer) []control.Consumer {
	var all []control.Consumer
	for _, one := range configured {
		all = append(all, control.Consumer{Name: one.Name, Scope: one.Scope.String()})
	}
	for _, socket := range c.sockets {
		i := slices.IndexFunc(all, func(one control.Consumer) bool { return one.Name == socket.name })
		if i < 0 {
			i, all = len(all), append(all, control.Consumer{Name: socket.name})
		}
		all[i].Listening = true
		if socket.name == aisapi.Listener {
			all[i].Scope = aisapi.Scope
		}
	}
	slices.SortFunc(all, func(a, b control.Consumer) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// configure gives each socket its consumer.
func (c *consumers) configure(all []consumer.Consumer) {
	for _, socket := range c.sockets {
		var own *consumer.Consumer
		if socket.name == aisapi.Listener {
			own = aziotConsumer()
		}
		for i := range all {
			if all[i].Name == socket.name {
				own = &all[i]
			}
		}
		socket.configure(own)
	}
}

// hubServer returns the server for a consumer.
func (s *supervisor) hubServer(h *hubSocket, c *consumer.Consumer) *consumer.Server {
	if c != nil && c.Name == aisapi.Listener {
		return s.aziotServer(h)
	}
	server := &consumer.Server{Unconfigured: c == nil, Board: &s.consumers.board, Refused: s.refused, Now: s.now, Usage: &h.usage}
	if c == nil {
		return server
	}
	server.Consumer = *c
	server.MAC = func(ctx context.Context, of hub.Identity, statement []byte) ([]byte, error) {
		mac, err := s.mac(ctx, of, statement)
		if err != nil && ctx.Err() == nil { // otherwise, the client has closed the connection
			s.log(event.ConsumerKeyFailed, zap.String("consumer", c.Name), zap.Error(err))
		}
		return mac, err
	}
	return server
}

// used returns what a service has done.
func (c *consumers) used(name string) control.ConsumerUse {
	i := slices.IndexFunc(c.sockets, func(socket *hubSocket) bool { return socket.name == name })
	if i < 0 {
		return control.ConsumerUse{}
	}
	n := c.sockets[i].usage.Counts()
	use := control.ConsumerUse{Requests: n.Requests, Tokens: n.Tokens, Limited: n.Limited, Refusals: n.Refused}
	if n.Tokens > 0 {
		issued, expiry := stamp(n.Issued), stamp(n.Expiry)
		use.LastToken, use.TokenExpiry = &issued, &expiry
	}
	return use
}
