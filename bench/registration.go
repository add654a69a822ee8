package main

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
)

const (
	registrationID = "gw-0123456789abcdef0123456789abcdef" // as long as the expansion of gw-%m
	retryAfter     = 2 * time.Second                       // dpsd ignores shorter delays
	limit          = 30 * time.Second
)

// variant is one way to register.
type variant struct {
	credential string // "key" or "certificate"
	protocol   string // "mqtt" or "websocket"
	tls        string // "1.2" or "1.3", and no other
	polls      int    // until the service assigns
}

func (v variant) String() string {
	return fmt.Sprintf("%s, %s, TLS %s, polls %d", v.credential, v.protocol, v.tls, v.polls)
}

// variants returns all variants with one poll, and two of them with two polls, to show the
// cost of a poll. The live service takes one or two polls.
func variants() []variant {
	var all []variant
	for _, credential := range []string{"key", "certificate"} {
		for _, protocol := range []string{"mqtt", "websocket"} {
			for _, version := range []string{"1.2", "1.3"} {
				all = append(all, variant{credential, protocol, version, 1})
			}
		}
	}
	return append(all, variant{"key", "mqtt", "1.2", 2}, variant{"key", "mqtt", "1.3", 2})
}

// sample is the cost of one registration.
type sample struct {
	cpu                    time.Duration
	peak                   int64         // bytes
	elapsed                time.Duration // from the start of the process to its end
	beyond                 time.Duration // from the start of the process to its end, without the requested delays
	bytesUp, bytesDown     int64         // payload of TCP
	connections            int
	packetsUp, packetsDown int           // of MQTT
	roundTrips             int           // of MQTT
	first                  time.Duration // from the start of the process to its first byte
	allRoundTrips          int           // with those of TCP, TLS and WebSocket
	smallest               int           // minimum bytes up for the same registration
}

// service is a simulator in this process for one variant.
type service struct {
	variant   variant
	table     string // added to the configuration: [certificate], [[consumer]], or ""
	consumer  string // name of the local service whose socket the program inherits; "": none
	directory string // of configuration, credentials and state
	server    *simulator.Server
	version   string // of the program, which it sends to the service
	port      int
	roundTrip time.Duration // simulated round-trip time to the service; 0: that of the loopback interface
}

// newService creates a service that issues session tickets or not.
func newService(v variant, directory string, tickets bool, rules ...simulator.Rule) (*service, error) {
	scenario := &simulator.Scenario{Settings: simulator.Settings{
		Polls:      &v.polls,
		RetryAfter: fmt.Sprint(int(retryAfter.Seconds())),
		TLSMin:     v.tls, TLSMax: v.tls,
		SessionTickets: tickets,
	}, Rules: rules}
	return newServiceOf(v, directory, scenario)
}

func newServiceOf(v variant, directory string, scenario *simulator.Scenario) (*service, error) {
	server, err := simulator.New(simulator.Options{Seed: 1, Scenario: scenario})
	if err != nil {
		return nil, err
	}
	s := &service{variant: v, directory: directory, server: server}
	if err := s.writeCredentials(); err != nil {
		server.Close()
		return nil, err
	}
	return s, nil
}

func (s *service) path(name string) string { return filepath.Join(s.directory, name) }

func (s *service) writeCredentials() error {
	certificate, key, err := s.server.DeviceCertificate(registrationID)
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{
		"ca.pem":     s.server.CA(),
		"key":        []byte(s.server.DeviceKey(registrationID) + "\n"),
		"device.pem": certificate,
		"device.key": key,
	} {
		if err := os.WriteFile(s.path(name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// configuration returns the configuration of a gateway that connects to port.
func (s *service) configuration(port int) string {
	credential := "type = \"symmetric-key\"\nkey = \"file:" + s.path("key") + "\""
	if s.variant.credential == "certificate" {
		credential = "type = \"x509\"\ncertificate = \"file:" + s.path("device.pem") + "\"\nprivate_key = \"file:" + s.path("device.key") + "\""
	}
	return fmt.Sprintf(`
[dps]
id_scope = %q
registration_id = %q
endpoint = "localhost"
[[credential]]
%s
[transport]
protocols = [%q]
%s_port = %d
proxy = "none"
ca_file = %q
[state]
directory = %q
[control]
socket = %q
%s`, s.server.IDScope(), registrationID, credential, s.variant.protocol, s.variant.protocol, port,
		s.path("ca.pem"), s.path("state"), s.path("run/dpsd.sock"), s.table)
}

// anew gives the gateway new directories, as if it had never registered.
func (s *service) anew() error {
	for _, name := range []string{"state", "run"} {
		if err := os.RemoveAll(s.path(name)); err != nil {
			return err
		}
		if err := os.Mkdir(s.path(name), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// serve writes the configuration and serves while use runs. It returns the simulator's log
// and the connections of that time.
func (s *service) serve(use func() error) ([]simulator.Entry, []*wire, error) {
	before := len(s.server.Log())
	listeners, err := simulator.ListenLoopback(0)
	if err != nil {
		return nil, nil, err
	}
	s.port = listeners[0].Addr().(*net.TCPAddr).Port
	var met wires
	var open sync.WaitGroup
	for _, l := range listeners {
		open.Go(func() { s.accept(l, &met, &open) })
	}
	err = os.WriteFile(s.path("dpsd.toml"), []byte(s.configuration(s.port)), 0o600)
	if err == nil {
		err = use()
	}
	for _, l := range listeners {
		_ = l.Close()
	}
	open.Wait() // the log is complete when every connection has ended
	return s.server.Log()[before:], met.all, err
}

// once runs the program until it ends. The gateway must then be registered.
func (s *service) once(program string) (usage, error) {
	u, err := run(limit, environment(), s.path("log"), program, "--config", s.path("dpsd.toml"), "run", "--once")
	if err != nil {
		return u, err
	}
	if u.status.ExitStatus() != 0 {
		return u, s.failed(fmt.Errorf("%s ended with wait status %#x", program, u.status))
	}
	record, err := store.Read(s.path("state"))
	if err == nil && record.AssignedHub == "" {
		err = errors.New("the record names no hub")
	}
	if err != nil {
		return u, s.failed(fmt.Errorf("%s wrote no assignment: %w", program, err))
	}
	return u, nil
}

// register runs the program once on a gateway that has never registered.
func (s *service) register(program string) (sample, error) {
	if err := s.anew(); err != nil {
		return sample{}, err
	}
	var u usage
	entries, wires, err := s.serve(func() (err error) {
		u, err = s.once(program)
		return err
	})
	if err != nil {
		return sample{}, err
	}
	sum := simulator.Summarize(entries)
	if len(sum.Violations) > 0 || len(sum.Registers) != 1 || len(sum.Polls) != s.variant.polls {
		return sample{}, s.failed(fmt.Errorf("%d register requests, %d polls, violations %q", len(sum.Registers), len(sum.Polls), sum.Violations))
	}
	content, err := s.content(entries)
	if err != nil {
		return sample{}, err
	}
	return sample{
		cpu: u.cpu, peak: u.peak, elapsed: u.elapsed, beyond: u.elapsed - time.Duration(s.variant.polls)*retryAfter,
		bytesUp: sum.BytesUp, bytesDown: sum.BytesDown,
		connections: sum.Connections,
		packetsUp:   sum.PacketsUp, packetsDown: sum.PacketsDown,
		roundTrips: roundTrips(entries),
		first:      wires[0].firstByte().Sub(u.started), allRoundTrips: allRoundTrips(entries), smallest: smallest(s.variant, content),
	}, nil
}

// content returns what the gateway must send.
func (s *service) content(entries []simulator.Entry) (content, error) {
	c := content{
		identity: dps.Identity{IDScope: s.server.IDScope(), RegistrationID: registrationID, ClientVersion: "dpsd/" + s.version},
		port:     strconv.Itoa(s.port),
	}
	for _, e := range entries {
		if _, operation, found := strings.Cut(e.Topic, "&operationId="); found {
			c.operation = operation
		}
	}
	if s.variant.credential == "certificate" {
		pair, err := tls.LoadX509KeyPair(s.path("device.pem"), s.path("device.key"))
		if err != nil {
			return c, err
		}
		for _, der := range pair.Certificate {
			c.chain = append(c.chain, len(der))
		}
	}
	return c, nil
}

// accept serves every connection until the listener is closed, and adds it to met.
func (s *service) accept(l net.Listener, met *wires, open *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		if s.roundTrip > 0 {
			conn = newDistant(conn, s.roundTrip)
		}
		w := &wire{Conn: conn}
		met.add(w)
		if s.variant.protocol == "websocket" {
			open.Go(func() { s.server.ServeWebSocket(w) })
		} else {
			open.Go(func() { s.server.ServeMQTT(w) })
		}
	}
}

// roundTrips counts how often the device changed from sending to receiving.
func roundTrips(entries []simulator.Entry) int {
	n, previous := 0, ""
	for _, e := range entries {
		if e.Direction == "down" && previous == "up" {
			n++
		}
		if e.Direction != "" {
			previous = e.Direction
		}
	}
	return n
}

// allRoundTrips also counts those of TCP, of TLS and of the upgrade to WebSocket. A full TLS
// 1.2 handshake takes two (RFC 5246 figure 1); a resumed one (figure 2) and a TLS 1.3
// handshake (RFC 8446 figure 1) take one.
func allRoundTrips(entries []simulator.Entry) int {
	n := roundTrips(entries)
	for _, e := range entries {
		switch e.Packet {
		case "OPEN", "UPGRADE":
			n++
		case "TLS":
			n++
			if strings.HasPrefix(e.Detail, "TLS 1.2") && !strings.Contains(e.Detail, " resumed") {
				n++
			}
		}
	}
	return n
}

// failed adds the output of the program.
func (s *service) failed(err error) error {
	said, _ := os.ReadFile(s.path("log"))
	return fmt.Errorf("%s: %w\n%s", s.variant, err, said)
}
