package simulator

import (
	"cmp"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// connection is one accepted connection, from its first byte to its last.
type connection struct {
	server   *Server
	number   int
	protocol string
	raw      *rawConn
	tls      *tls.Conn
	service  string // what the client uses, for the log; "" if it did not connect
	reason   string // why the connection ended, for the log
}

func (s *Server) serve(conn net.Conn, protocol string) {
	c := &connection{server: s, protocol: protocol}
	c.raw = &rawConn{Conn: conn, note: c.note, gone: make(chan struct{})}
	s.mu.Lock()
	if s.ended() || s.refusing(protocol) > 0 {
		s.mu.Unlock()
		c.raw.reset()
		return
	}
	s.number++
	c.number = s.number
	s.conns[c] = true
	s.wg.Add(1)
	s.mu.Unlock()
	c.note(Entry{Packet: "OPEN"})

	c.run()

	_ = c.raw.Close()
	c.note(Entry{Packet: "CLOSE", Service: c.service, Detail: c.reason, BytesUp: c.raw.up.Load(), BytesDown: c.raw.down.Load()})
	s.mu.Lock()
	delete(s.conns, c)
	if len(s.conns) == 0 {
		for _, idle := range s.draining {
			close(idle)
		}
		s.draining = nil
	}
	s.mu.Unlock()
	s.wg.Done()
}

// note adds an entry for this connection to the packet log.
func (c *connection) note(e Entry) {
	e.Connection, e.Protocol, e.Time = c.number, c.protocol, c.server.now()
	c.server.log.add(e)
}

// run takes the connection through TLS and, if applicable, WebSocket to MQTT.
func (c *connection) run() {
	script := c.server.script.Load()
	rule := script.Match(scenario.Event{On: OnAccept, Protocol: c.protocol})
	if !pause(rule.Delay, c.server.done) {
		return
	}
	if rule.Refuse > 0 {
		c.reason = "scenario: refused"
		c.server.refuse(c.protocol, rule.Refuse)
		c.raw.reset()
		return
	}
	if rule.AfterUp == 0 && rule.AfterDown == 0 {
		if len(rule.GarbageBytes()) > 0 {
			c.awaitClient()
		}
		if c.instead(rule, c.raw) {
			return
		}
	}
	c.raw.rule = rule

	rule = script.Match(scenario.Event{On: OnTLS, Protocol: c.protocol})
	if rule.Alert != "" && rule.AlertAt != "certificate" {
		c.awaitClient()
		_, _ = c.raw.Write(alertRecord(rule.Alert))
		c.reason = "scenario: alert"
		c.linger(nil)
		return
	}
	config, err := c.tlsConfig(script.Settings, rule)
	if err != nil {
		c.reason = err.Error()
		return
	}
	c.tls = tls.Server(c.raw, config)
	if !c.raw.delaysHandshake() {
		_ = c.raw.SetDeadline(time.Now().Add(connectTimeout))
	}
	// A handshake grows the stack of its goroutine, and this goroutine lives as long as
	// the connection, so the handshake has its own.
	shaken := make(chan error, 1)
	go func() { shaken <- c.tls.Handshake() }()
	if err := <-shaken; err != nil {
		c.reason = "TLS: " + err.Error()
		if why, ok := explainTLS(err, c.raw.first); ok && !c.server.ended() {
			c.refuse(Entry{}, "no TLS", why)
		}
		c.linger(nil)
		return
	}
	_ = c.raw.SetDeadline(time.Time{})
	c.note(Entry{Packet: "TLS", Detail: describe(c.tls.ConnectionState())})
	if !pause(rule.Delay, c.server.done) || c.instead(rule, c.tls) {
		return
	}

	stream := io.ReadWriter(c.tls)
	if c.protocol == "websocket" {
		ws := c.upgrade(script)
		if ws == nil {
			return
		}
		stream = ws
	}
	newSession(c, stream).run()
}

// awaitClient waits for the client's first bytes.
func (c *connection) awaitClient() {
	_ = c.raw.SetReadDeadline(time.Now().Add(connectTimeout))
	_, _ = c.raw.Read(make([]byte, 4096))
	_ = c.raw.SetReadDeadline(time.Time{})
}

// instead does what a rule specifies in place of continuing, and reports whether it
// did. It is for the stages before MQTT, at which silence is permanent.
func (c *connection) instead(rule *Rule, w io.Writer) bool {
	switch {
	case len(rule.GarbageBytes()) > 0:
		_, _ = w.Write(rule.GarbageBytes())
		c.note(Entry{Packet: "GARBAGE", Size: len(rule.GarbageBytes()), Raw: rule.GarbageBytes()})
		c.reason = "scenario: garbage"
		if rule.Silent {
			c.hold()
			return true
		}
		c.linger(nil)
	case rule.Reset:
		c.reason = "scenario: reset"
		c.raw.reset()
	case rule.Close:
		c.reason = "scenario: close"
		c.linger(nil)
	case rule.Silent:
		c.reason = "scenario: silent"
		c.hold()
	default:
		return false
	}
	return true
}

// hold keeps a silent connection open until the client disconnects.
func (c *connection) hold() { _, _ = io.Copy(io.Discard, c.raw) }

// linger closes the server's direction cleanly, waits a moment for the client to close
// its direction, and closes the connection. The reader, if there is one, is abandoned.
func (c *connection) linger(reader <-chan *inbound) {
	_ = c.raw.SetReadDeadline(time.Now().Add(lingerTimeout))
	if c.tls != nil {
		_ = c.tls.CloseWrite() // it sets its own deadline
	}
	c.raw.closeWrite()
	if reader != nil {
		for range reader { // drained until the reader ends
		}
	}
	_, _ = io.Copy(io.Discard, c.raw)
	_ = c.raw.Close()
}

func (c *connection) tlsConfig(set Settings, rule *Rule) (*tls.Config, error) {
	certificate := c.server.Certificate()
	if rule.ServerCertificate != "" {
		var err error
		names := slices.Concat(*c.server.hubNames.Load(), c.server.names)
		if certificate, err = c.server.material.server.server(rule.ServerCertificate, names, c.server.now()); err != nil {
			return nil, err
		}
	}
	lowest := scenario.TLSVersion(cmp.Or(rule.TLSMin, set.TLSMin))
	highest := scenario.TLSVersion(cmp.Or(rule.TLSMax, set.TLSMax))
	config := &tls.Config{
		Certificates: []tls.Certificate{*certificate},
		MinVersion:   min(lowest, highest),
		MaxVersion:   max(lowest, highest),
		// The certificate is requested but not verified here: the service refuses a wrong
		// certificate later, in MQTT.
		ClientAuth: tls.RequestClientCert,
		// A ticket that is written at the end of a handshake would block forever over net.Pipe
		// if the client writes at the same time.
		SessionTicketsDisabled: !set.SessionTickets,
		Time:                   c.server.now,
	}
	if set.SessionTickets { // each connection has its own Config
		config.SetSessionTicketKeys([][32]byte{c.server.ticketKey})
	}
	if rule.Alert != "" {
		// Go has only one alert for a certificate. Up to TLS 1.2 this alert precedes it
		// unencrypted.
		config.VerifyConnection = func(state tls.ConnectionState) error {
			if state.Version <= tls.VersionTLS12 {
				_, _ = c.raw.Write(alertRecord(rule.Alert))
			}
			return errScenario
		}
	}
	return config, nil
}

func describe(state tls.ConnectionState) string {
	text := tls.VersionName(state.Version) + " " + tls.CipherSuiteName(state.CipherSuite)
	if state.DidResume {
		text += " resumed"
	}
	if state.ServerName != "" {
		text += " for " + state.ServerName
	}
	if len(state.PeerCertificates) > 0 {
		text += " certificate " + state.PeerCertificates[0].Subject.CommonName
	}
	return text
}
