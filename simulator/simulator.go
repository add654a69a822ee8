// Package simulator is a strict, scriptable device endpoint of Azure IoT Hub
// Device Provisioning Service: MQTT 3.1.1 over TLS and over WebSocket, with
// real checks of SAS tokens and client certificates.
//
// It shares no code with the client that it tests: mochi-mqtt's codec reads and writes
// packets, gorilla's library handles WebSocket, and the package has its own code to verify
// tokens. With shared code, the same mistake on both sides would go unnoticed.
//
// A Server works on accepted connections, so it can serve a test as well as a program: over
// net.Pipe inside a testing/synctest bubble, where its certificates follow the bubble's
// clock, or over listeners.
package simulator

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// connectTimeout is the time a client has between TCP and CONNECT [MQTT-3.1.4-1, non-normative].
const connectTimeout = 60 * time.Second

// lingerTimeout is how long the server waits for the client to close a connection that the
// server has ended, so that a TCP reset does not discard its last bytes.
const lingerTimeout = time.Second

// Options are the options of a Server. The zero value is a service in memory that assigns
// every device of its two default groups.
type Options struct {
	// Directory keeps keys, certificates and enrollments across restarts. If it is empty, they
	// are in memory only.
	Directory string
	// Seed determines the values that look random: operation and tracking IDs, etags, and,
	// in memory, the ID scope and the group key. Keys of certificates are always random.
	Seed uint64
	// Scenario scripts faults. Nil means none.
	Scenario *Scenario
	// Enrollments define which devices may register. Nil means the directory's
	// enrollments.toml, or, in memory, one symmetric-key group and one X.509 group.
	Enrollments *enroll.Enrollments
	// EnrollmentsFile is the file that Enrollments come from, in which ChangeEnrollments makes
	// its changes. If it is empty, it is the directory's enrollments.toml if Enrollments is
	// nil, and otherwise changes are in memory only.
	EnrollmentsFile string
	// DefaultHub is the host name of the hub that devices are assigned if no hub is linked and
	// their enrollment names none. If it is empty, it is enroll.DefaultHub.
	DefaultHub string
	// Names are further host names and IP addresses of the server's certificate.
	Names []string
	// PacketLog receives one JSON object per line, see Entry. Nil means no output.
	PacketLog io.Writer
	// DiscardLog keeps no entries in memory, for a server that runs for a long time. Log then
	// returns nothing.
	DiscardLog bool
	// OnTelemetry receives the messages that devices send to their assigned hub. It must return
	// quickly, because the device waits for it. Nil ignores them.
	OnTelemetry func(hub.Telemetry)
	// OnRefusal receives each refusal: of a connection, of a request, or of a device that
	// violates the protocol. Nil ignores them. It is called from several goroutines.
	OnRefusal func(Refusal)
	// OnIssue receives each certificate that is issued for a CSR. It must return quickly, because
	// the service waits for it, and must not use the server. If it is nil, they are ignored.
	OnIssue func(Issued)
	// Observe receives each entry of the packet log, in the order of the log, with the bytes of
	// its packet. It must return quickly, because all connections wait for it, and it must not
	// modify the bytes. Nil means no observer.
	Observe func(Entry)
	// OnError receives errors that devices do not notice: the assignments cannot be
	// written to the directory, or there is no file descriptor for another connection.
	// Nil ignores them.
	OnError func(error)
	// Now is the service's clock, for certificates, tokens and timestamps. Nil means time.Now.
	Now func() time.Time
}

// Server is a simulated service. Create it with New, and end it with Close. Its methods are
// safe for concurrent use.
type Server struct {
	now         func() time.Time
	onError     func(error)
	onRefusal   func(Refusal)
	seed        seed
	defaultHub  string
	names       []string
	material    *material
	entries     atomic.Pointer[enroll.Entries]
	enrollments atomic.Pointer[enroll.Enrollments] // the source of entries
	changing    sync.Mutex                         // held while enrollments change
	connecting  sync.RWMutex                       // held for reading from the check of a credential until take
	file        string                             // of the enrollments; "" for none
	hubNames    atomic.Pointer[[]string]           // of the hubs that the enrollments can assign
	certificate atomic.Pointer[tls.Certificate]
	ticketKey   [32]byte // for resumed sessions
	log         *packetLog
	service     *service
	hub         *hub.Hub
	saved       []*savedFile
	script      atomic.Pointer[scenario.Script]

	mu        sync.Mutex
	number    int
	conns     map[*connection]bool
	listeners []*listener
	refused   map[string]time.Time // until when, by protocol
	sessions  map[string]*session  // by the key of their application

	draining []chan struct{} // closed under mu, when no connection is open
	done     chan struct{}   // closed under mu, by Close
	wg       sync.WaitGroup
}

// New creates a server. Errors come from the directory's files, from the enrollments and
// from the scenario (*tomlfile.Error).
func New(o Options) (*Server, error) {
	s := &Server{
		ticketKey: sha256.Sum256(fmt.Appendf(nil, "session tickets of seed %d", o.Seed)),
		now:       o.Now,
		seed:      seed(o.Seed),
		log:       newPacketLog(o.PacketLog, o.DiscardLog, o.Observe),
		conns:     map[*connection]bool{},
		sessions:  map[string]*session{},
		refused:   map[string]time.Time{},
		done:      make(chan struct{}),
		onError:   o.OnError,
		file:      o.EnrollmentsFile,
		onRefusal: o.OnRefusal,

		defaultHub: o.DefaultHub,
		names:      o.Names,
	}
	if s.onRefusal == nil {
		s.onRefusal = func(Refusal) {}
	}
	if s.onError == nil {
		s.onError = func(error) {}
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.service = &service{
		seed:     s.seed,
		devices:  map[string]*device{},
		settings: func() Settings { return s.script.Load().Settings },
		onIssue:  o.OnIssue,
	}
	if s.service.onIssue == nil {
		s.service.onIssue = func(Issued) {}
	}
	s.hub = s.newHub(o.OnTelemetry)
	if err := s.SetScenario(o.Scenario); err != nil {
		return nil, err
	}
	var err error
	if o.Directory == "" {
		s.material, err = newMaterial(s.seed.draw, s.now())
	} else {
		s.material, err = loadMaterial(o.Directory, s.now())
	}
	if err != nil {
		return nil, err
	}
	s.service.issuer = s.material.issuer
	enrollments := o.Enrollments
	switch {
	case enrollments != nil:
	case o.Directory == "":
		enrollments = &enroll.Enrollments{Groups: []enroll.Group{
			{Name: "keys", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: s.GroupKey()}},
			{Name: "certificates", Attestation: enroll.Attestation{Type: "x509", CA: string(s.DeviceCA())}},
		}}
	default:
		s.file = cmp.Or(s.file, filepath.Join(o.Directory, fileEnrollments))
		if enrollments, err = enroll.ReadFile(s.file); err != nil {
			return nil, err
		}
	}
	if err := s.SetEnrollments(enrollments); err != nil {
		return nil, err
	}
	if s.service.records, err = loadAssignments(o.Directory, s.hub.Forget, s.onError); err != nil {
		return nil, err
	}
	modules := newSavedFile(o.Directory, fileModules, 0o600, func() any { return s.hub.Modules.Stored() }, s.onError)
	var stored []hub.Stored
	if err := modules.load(&stored); err != nil {
		return nil, err
	}
	if err := s.hub.Modules.Load(stored); err != nil {
		return nil, fmt.Errorf("%s: %w", modules.path, err)
	}
	s.hub.Modules.Changed = modules.changed
	s.saved = []*savedFile{s.service.records.file, modules}
	if o.Directory != "" {
		for _, f := range s.saved {
			s.wg.Go(func() { f.keep(s.done) })
		}
	}
	return s, nil
}

// CA returns the root of the server's certificate as PEM.
func (s *Server) CA() []byte { return certificatePEM(s.material.server.certificate.Raw) }

// DeviceCA returns the root of the default X.509 group as PEM.
func (s *Server) DeviceCA() []byte { return certificatePEM(s.material.device.certificate.Raw) }

// IDScope returns the only ID scope that the server accepts.
func (s *Server) IDScope() string { return s.material.scope }

// GroupKey returns the key of the default symmetric-key group in base64.
func (s *Server) GroupKey() string { return base64.StdEncoding.EncodeToString(s.material.groupKey) }

// DeviceKey returns the device key that is derived for a device from the group key, in base64.
func (s *Server) DeviceKey(registrationID string) string {
	return base64.StdEncoding.EncodeToString(enroll.DeriveKey(s.material.groupKey, registrationID))
}

// DeviceCertificate issues a client certificate of the default X.509 group with the
// registration ID as its common name, and returns certificate and key as PEM. It returns an
// error for an ID of more than 64 octets, which does not fit into a common name.
func (s *Server) DeviceCertificate(registrationID string) (certificate, key []byte, err error) {
	return s.material.device.device(registrationID, s.now())
}

// SetScenario replaces settings and rules, and restarts their counters; nil means a
// well-behaved service. A scenario with an error changes nothing.
func (s *Server) SetScenario(sc *Scenario) error {
	if sc != nil {
		if err := sc.Validate(); err != nil {
			return err
		}
	}
	s.script.Store(scenario.NewScript(sc, s.seed.draw))
	return nil
}

// AddFault adds a rule before those of the scenario, without restarting their counters, and
// returns its number. SetScenario removes it.
func (s *Server) AddFault(r Rule) (number int, err error) { return s.script.Load().Add(r) }

// RemoveFault removes a rule that AddFault added, and reports whether it existed.
func (s *Server) RemoveFault(number int) bool { return s.script.Load().Remove(number) }

// Faults returns the rules that AddFault added, the newest first.
func (s *Server) Faults() []scenario.Added { return s.script.Load().Added() }

// SetEnrollments replaces the enrollments for subsequent connections. The assignments of
// devices remain. Enrollments with an error (*tomlfile.Error) change nothing.
func (s *Server) SetEnrollments(e *enroll.Enrollments) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	return s.setEnrollments(e)
}

// setEnrollments does what SetEnrollments does. The caller holds s.changing.
func (s *Server) setEnrollments(e *enroll.Enrollments) error {
	own := *e
	own.DefaultHub = cmp.Or(e.DefaultHub, s.defaultHub)
	entries, err := enroll.Compile(&own)
	if err != nil {
		return err
	}
	names := allNames(entries.Hubs())
	certificate, err := s.material.server.server("", slices.Concat(names, s.names), s.now())
	if err != nil {
		return err
	}
	s.entries.Store(&entries)
	s.enrollments.Store(e)
	s.hubNames.Store(&names)
	s.certificate.Store(certificate)
	return nil
}

// IssuingRoot returns the root of the certificates that are issued for CSRs, as PEM.
func (s *Server) IssuingRoot() ([]byte, error) {
	i, err := s.material.issuer.get()
	if err != nil {
		return nil, err
	}
	return certificatePEM(i.root.certificate.Raw), nil
}

// Log returns the packet log so far, in the order of its events.
func (s *Server) Log() []Entry { return s.log.all() }

// ServeMQTT serves MQTT over TLS on an accepted connection, which it owns. It returns when
// the connection has ended.
func (s *Server) ServeMQTT(conn net.Conn) { s.serve(conn, "mqtt") }

// ServeWebSocket serves MQTT over WebSocket over TLS on an accepted
// connection, which it owns. It returns when the connection has ended.
func (s *Server) ServeWebSocket(conn net.Conn) { s.serve(conn, "websocket") }

// AcceptMQTT serves every connection of a listener, which it owns, until Close, and then
// returns nil. A rule with Refuse closes the listener and opens a new one at its address.
func (s *Server) AcceptMQTT(l net.Listener) error { return s.accept(l, "mqtt") }

// AcceptWebSocket does the same as AcceptMQTT for MQTT over WebSocket.
func (s *Server) AcceptWebSocket(l net.Listener) error { return s.accept(l, "websocket") }

// pause waits for a duration. It returns false if it is interrupted.
func pause(d time.Duration, interrupt <-chan struct{}) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-interrupt:
		return false
	}
}

// isClosed reports whether a channel on which nothing is sent has been closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (s *Server) ended() bool { return isClosed(s.done) }

// Drain waits until no connection is open, or until the context is done. When a client has exited, the
// server may still have to read what the client sent last, such as why it ended a TLS handshake.
func (s *Server) Drain(ctx context.Context) {
	s.mu.Lock()
	if len(s.conns) == 0 {
		s.mu.Unlock()
		return
	}
	idle := make(chan struct{})
	s.draining = append(s.draining, idle)
	s.mu.Unlock()
	select {
	case <-idle:
	case <-ctx.Done():
	}
}

// Close ends all connections and listeners, and returns when all goroutines of the server
// have ended. It may be called more than once.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.ended() {
		close(s.done)
		for _, l := range s.listeners {
			_ = l.Close()
		}
		for c := range s.conns {
			_ = c.raw.Close()
		}
	}
	s.mu.Unlock()
	s.wg.Wait()
	for _, f := range s.saved {
		f.flush()
	}
}

// principal is the identity of a connection.
type principal struct {
	registrationID string
	apiVersion     string
	features       []string        // of the api-version
	enrollment     *enroll.Entry   // never nil; empty for one that was not judged or was refused
	certificate    bool            // authenticated by a certificate
	refused        *enroll.Refusal // reported in the register answer
}

// authenticate checks a CONNECT, and returns a CONNACK return code, its reason, and the
// identity. Like the service, it reports a wrong credential only in the answer to the register
// request.
func (s *Server) authenticate(clientID, user string, password []byte, state tls.ConnectionState) (*principal, int, enroll.Explanation) {
	set := s.script.Load().Settings
	u, err := parseUserName(user)
	who := &principal{registrationID: u.registrationID, apiVersion: u.apiVersion, enrollment: &enroll.Entry{}}
	who.features = set.Features[u.apiVersion]
	switch {
	case err != nil:
		return who, 5, explainUserName(user, err)
	case u.scope != s.material.scope:
		return who, 3, s.explainScope(u.scope)
	case clientID != u.registrationID:
		return who, 5, enroll.Explanation{
			Reason: "the client identifier is not the registration ID", Expected: enroll.Quote(u.registrationID), Given: enroll.Quote(clientID),
			Advice: "The client identifier must be exactly the registration ID in the user name.",
		}
	case !set.Serves(u.apiVersion):
		return who, 5, explainVersion(set, u.apiVersion)
	}
	if why := s.verify(who, u.scope, string(password), state); why.Reason != "" {
		return who, 5, why
	}
	switch {
	case who.refused == nil:
		return who, 0, enroll.Explanation{}
	case set.Refuse == "early":
		return who, 5, who.refused.Explanation
	}
	return who, 0, enroll.Explanation{Reason: "will be refused: " + who.refused.Reason}
}

// verify checks the credential of a device, and adds its enrollment or the refusal to its
// identity. It returns why there is no credential to check, or the zero value.
func (s *Server) verify(who *principal, scope, token string, state tls.ConnectionState) enroll.Explanation {
	entries := *s.entries.Load()
	var found *enroll.Entry
	switch {
	case token != "":
		found, who.refused = entries.ByToken(scope, who.registrationID, token, s.now())
	case len(state.PeerCertificates) > 0:
		who.certificate = true
		if cn := state.PeerCertificates[0].Subject.CommonName; !strings.EqualFold(cn, who.registrationID) {
			return enroll.Explanation{
				Reason: "the certificate's common name is not the registration ID", Expected: enroll.Quote(who.registrationID), Given: enroll.Quote(cn),
			}
		}
		found, who.refused = entries.ByCertificate(who.registrationID, state, s.now())
	default:
		return enroll.Explanation{
			Reason: "the client sent neither a token nor a certificate", Expected: "a SAS token as the password, or a client certificate in TLS", Given: "neither",
			Advice: "Check that the program loads its key or certificate.",
		}
	}
	if found != nil {
		who.enrollment = found
	}
	return enroll.Explanation{}
}

// application returns the service that a CONNECT addresses.
func (s *Server) application(mine *session, connect *packets.Packet) application {
	name := mine.c.tls.ConnectionState().ServerName
	if hub.Addressed(string(connect.Connect.Username), name, *s.hubNames.Load()) {
		return newHubSession(mine, connect)
	}
	return newProvisioning(mine, connect)
}

// take makes a session the only one with its key [MQTT-3.1.4-2].
func (s *Server) take(key string, mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.sessions[key]; other != nil {
		close(other.taken)
	}
	s.sessions[key] = mine
}

// connected reports whether there is a session with a key.
func (s *Server) connected(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[key] != nil
}

// eject ends the session with a key, if there is one. The caller has changed what a new session is
// checked against. A session that was checked before the change also ends, because eject waits for it.
func (s *Server) eject(key, reason string) {
	s.connecting.Lock()
	defer s.connecting.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if mine := s.sessions[key]; mine != nil {
		mine.ejected = reason
		close(mine.taken)
		delete(s.sessions, key)
	}
}

// leave undoes take.
func (s *Server) leave(key string, mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.sessions[key] == mine {
		delete(s.sessions, key)
	}
}
