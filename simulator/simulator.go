// Package simulator is a strict, scriptable device endpoint of Azure IoT Hub
// Device Provisioning Service: MQTT 3.1.1 over TLS and over WebSocket, with
// real checks of SAS tokens and client certificates.
//
// It shares no code with the client it judges: packets are read and written
// by mochi-mqtt's codec, WebSocket by gorilla's, and tokens are verified by
// code of its own. A mistake would otherwise be made twice and not be seen.
//
// A Server works on accepted connections, so it serves a test as well as a
// program: over net.Pipe inside a testing/synctest bubble, where its
// certificates are made by the bubble's clock, or over listeners.
package simulator

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// connectTimeout is the time a client has from TCP to CONNECT [MQTT-3.1.4-1, non-normative].
const connectTimeout = 60 * time.Second

// lingerTimeout is how long the server waits for the client to hang up after
// it has ended a connection, lest a TCP reset overtakes its last bytes.
const lingerTimeout = time.Second

// Options of a Server. The zero value is a service in memory that assigns
// every device of its two default groups.
type Options struct {
	// Directory keeps keys, certificates and enrollments over restarts. Empty: in memory only.
	Directory string
	// Seed makes what looks random: operation and tracking IDs, etags, and
	// in memory the ID scope and the group key. Keys of certificates are always random.
	Seed uint64
	// Scenario scripts faults; nil for none.
	Scenario *Scenario
	// Enrollments say who may register. Nil: the directory's enrollments.toml,
	// or in memory one symmetric-key group and one X.509 group.
	Enrollments *enroll.Enrollments
	// PacketLog receives one JSON object a line, see Entry. Nil: none.
	PacketLog io.Writer
	// DiscardLog keeps no entries in memory, for a server that runs long; Log is then empty.
	DiscardLog bool
	// OnError hears of what went wrong without a device seeing it: the
	// assignments could not be written to the directory, or there was no file
	// descriptor for another connection. Nil: nobody.
	OnError func(error)
	// Now is the service's clock, for certificates, tokens and time stamps. Nil: time.Now.
	Now func() time.Time
}

// Server is a simulated service. Make it with New, end it with Close. Its
// methods may be used by several goroutines.
type Server struct {
	now         func() time.Time
	onError     func(error)
	seed        seed
	material    *material
	entries     atomic.Pointer[enroll.Entries]
	certificate *tls.Certificate
	ticketKey   [32]byte // of the sessions that are resumed
	log         *packetLog
	service     *service
	script      atomic.Pointer[scenario.Script]

	mu        sync.Mutex
	closed    bool
	number    int
	conns     map[*connection]bool
	listeners []*listener
	refused   map[string]time.Time // until when, by protocol
	sessions  map[string]*session  // by lower-case client identifier

	done chan struct{}
	wg   sync.WaitGroup
}

// New makes a server. Errors come from the directory's files, from
// enrollments and from the scenario (*tomlfile.Error).
func New(o Options) (*Server, error) {
	s := &Server{
		ticketKey: sha256.Sum256(fmt.Appendf(nil, "session tickets of seed %d", o.Seed)),
		now:       o.Now,
		seed:      seed(o.Seed),
		log:       newPacketLog(o.PacketLog, o.DiscardLog),
		conns:     map[*connection]bool{},
		sessions:  map[string]*session{},
		refused:   map[string]time.Time{},
		done:      make(chan struct{}),
		onError:   o.OnError,
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
		issuing:  func() (*issuing, error) { return s.material.issuing() },
	}
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
	enrollments := o.Enrollments
	switch {
	case enrollments != nil:
	case o.Directory == "":
		enrollments = &enroll.Enrollments{Groups: []enroll.Group{
			{Name: "keys", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: s.GroupKey()}},
			{Name: "certificates", Attestation: enroll.Attestation{Type: "x509", CA: string(s.DeviceCA())}},
		}}
	default:
		if enrollments, err = enroll.ReadFile(filepath.Join(o.Directory, fileEnrollments)); err != nil {
			return nil, err
		}
	}
	if err := s.SetEnrollments(enrollments); err != nil {
		return nil, err
	}
	if s.service.records, err = loadAssignments(o.Directory, s.onError); err != nil {
		return nil, err
	}
	if s.certificate, err = s.material.server.server("", s.now()); err != nil {
		return nil, err
	}
	if o.Directory != "" {
		s.wg.Go(func() { s.service.records.keep(s.done) })
	}
	return s, nil
}

// CA gives the root of the server's certificate, PEM.
func (s *Server) CA() []byte { return certificatePEM(s.material.server.certificate.Raw) }

// DeviceCA gives the root of the default X.509 group, PEM.
func (s *Server) DeviceCA() []byte { return certificatePEM(s.material.device.certificate.Raw) }

// IDScope gives the one ID scope that is served.
func (s *Server) IDScope() string { return s.material.scope }

// GroupKey gives the key of the default symmetric-key group, base64.
func (s *Server) GroupKey() string { return base64.StdEncoding.EncodeToString(s.material.groupKey) }

// DeviceKey gives the key derived for a device from the group key, base64.
func (s *Server) DeviceKey(registrationID string) string {
	return base64.StdEncoding.EncodeToString(enroll.DeriveKey(s.material.groupKey, registrationID))
}

// DeviceCertificate issues a client certificate of the default X.509 group,
// whose common name is the registration ID, and gives both as PEM. An ID of
// more than 64 octets does not fit into a common name and is an error.
func (s *Server) DeviceCertificate(registrationID string) (certificate, key []byte, err error) {
	return s.material.device.device(registrationID, s.now())
}

// SetScenario replaces settings and rules, and counts them from the start;
// nil is a well-behaved service. A scenario with an error changes nothing.
func (s *Server) SetScenario(sc *Scenario) error {
	if sc != nil {
		if err := sc.Validate(); err != nil {
			return err
		}
	}
	s.script.Store(scenario.NewScript(sc, s.seed.draw))
	return nil
}

// SetEnrollments replaces the enrollments, for connections from now on; what
// devices were assigned stays. Ones with an error (*tomlfile.Error) change nothing.
func (s *Server) SetEnrollments(e *enroll.Enrollments) error {
	entries, err := enroll.Compile(e)
	if err == nil {
		s.entries.Store(&entries)
	}
	return err
}

// IssuingRoot gives the root of the certificates that are issued for CSRs, PEM.
func (s *Server) IssuingRoot() ([]byte, error) {
	i, err := s.material.issuing()
	if err != nil {
		return nil, err
	}
	return certificatePEM(i.root.Raw), nil
}

// Log gives the packet log so far, in the order of its events.
func (s *Server) Log() []Entry { return s.log.all() }

// ServeMQTT serves MQTT over TLS on an accepted connection, which it owns.
// It returns when the connection has ended.
func (s *Server) ServeMQTT(conn net.Conn) { s.serve(conn, "mqtt") }

// ServeWebSocket serves MQTT over WebSocket over TLS on an accepted
// connection, which it owns. It returns when the connection has ended.
func (s *Server) ServeWebSocket(conn net.Conn) { s.serve(conn, "websocket") }

// AcceptMQTT serves every connection of a listener, which it owns, until
// Close; then it returns nil. A rule with Refuse closes the listener and
// opens another at its address.
func (s *Server) AcceptMQTT(l net.Listener) error { return s.accept(l, "mqtt") }

// AcceptWebSocket does for MQTT over WebSocket what AcceptMQTT does for MQTT.
func (s *Server) AcceptWebSocket(l net.Listener) error { return s.accept(l, "websocket") }

// pause lets time pass, or returns false when it is interrupted.
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

// isClosed reports whether a channel that nothing is sent on is closed.
func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func (s *Server) ended() bool { return isClosed(s.done) }

// Close ends all connections and listeners and returns when nothing of the
// server runs any more. It may be called twice.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
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
	s.service.records.flush()
}

// principal is who a connection speaks for.
type principal struct {
	registrationID string
	apiVersion     string
	features       []string        // of the api-version
	enrollment     *enroll.Entry   // never nil; empty for one that was not judged or was refused
	certificate    bool            // proved by a certificate
	refused        *enroll.Refusal // the register answer will say so
}

// authenticate judges a CONNECT: a CONNACK return code, and who it is. The
// service splits its judgement: what is wrong with the credential it says
// only in the answer to the register request.
func (s *Server) authenticate(clientID, user string, password []byte, state tls.ConnectionState) (*principal, int, string) {
	set := s.script.Load().Settings
	u, err := parseUserName(user)
	who := &principal{registrationID: u.registrationID, apiVersion: u.apiVersion, enrollment: &enroll.Entry{}}
	who.features = set.Features[u.apiVersion]
	entries := *s.entries.Load()
	switch {
	case err != nil:
		return who, 5, err.Error()
	case u.scope != s.material.scope:
		return who, 3, "the ID scope is another"
	case clientID != u.registrationID:
		return who, 5, "the client identifier is not the registration ID"
	case !set.Serves(u.apiVersion):
		return who, 5, "the api-version is not served"
	}
	var found *enroll.Entry
	switch {
	case len(password) > 0:
		found, who.refused = entries.ByToken(u.scope, u.registrationID, string(password), s.now())
	case len(state.PeerCertificates) > 0:
		who.certificate = true
		if cn := state.PeerCertificates[0].Subject.CommonName; !strings.EqualFold(cn, u.registrationID) {
			return who, 5, "the certificate's common name is not the registration ID"
		}
		found, who.refused = entries.ByCertificate(u.registrationID, state, s.now())
	default:
		return who, 5, "neither a token nor a certificate"
	}
	if found != nil {
		who.enrollment = found
	}
	if who.refused == nil {
		return who, 0, ""
	}
	if set.Refuse == "early" {
		return who, 5, who.refused.Reason
	}
	return who, 0, "will be refused: " + who.refused.Reason
}

// take makes a session the only one of its client identifier [MQTT-3.1.4-2].
func (s *Server) take(clientID string, mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	key := strings.ToLower(clientID)
	if other := s.sessions[key]; other != nil {
		close(other.taken)
	}
	s.sessions[key] = mine
}

// leave is take's opposite.
func (s *Server) leave(clientID string, mine *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if key := strings.ToLower(clientID); s.sessions[key] == mine {
		delete(s.sessions, key)
	}
}
