package simulator

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// writeTimeout ends a connection whose client does not read.
const writeTimeout = 30 * time.Second

// maxEarly is how many packets may wait for the answer to an earlier one.
const maxEarly = 64

// firstPacketID is the first packet identifier of the service. The service uses a number
// again as soon as it has been acknowledged.
const firstPacketID = 2

// application is the service that a client uses over MQTT: DPS, or a hub. The CONNECT selects
// it. A session calls its methods from one goroutine.
type application interface {
	// identify completes an entry of the packet log.
	identify(e *Entry)
	// key identifies the client: only one connection may have it.
	key() string
	// replaced is why a connection ends when a newer one has the same key.
	replaced() string
	// check returns an error if a packet violates a rule that is not one of MQTT.
	check(p *packets.Packet) error
	// rule returns the rule of the scenario that acts on a packet.
	rule(p *packets.Packet) *Rule
	// connect checks a CONNECT, and returns the return code of the CONNACK and its reason.
	connect(rule *Rule, p *packets.Packet) (code int, detail string)
	// subscribe adds filters, for which it may change the return codes of the SUBACK. It
	// returns the packets to send before the SUBACK.
	subscribe(rule *Rule, filters packets.Subscriptions, codes []byte) []packets.Packet
	// unsubscribe removes filters.
	unsubscribe(filters packets.Subscriptions)
	// publish handles a message of the client. acked means that the PUBACK has been sent.
	publish(rule *Rule, p *packets.Packet, acked bool)
	// acknowledged is called for the PUBACK of a message that the service has sent at QoS 1.
	acknowledged(id uint16)
	// awake is called after session.wake, when there may be something to send that the client did
	// not request.
	awake()
	// ended is called after the last packet of a connection that was accepted. disconnected
	// means that the client has sent DISCONNECT.
	ended(disconnected bool)
}

// session is the MQTT part of a connection. One goroutine reads packets, and another one does
// everything else. Therefore the server always reads, and two writers never wait for each
// other.
type session struct {
	c      *connection
	stream io.ReadWriter
	reader chan *inbound

	app          application // nil before CONNECT
	connected    bool
	disconnected bool            // the client has sent DISCONNECT
	unacked      map[uint16]int  // messages to the client that await a PUBACK
	unanswered   map[uint16]bool // packet identifiers of the client that await their acknowledgement
	waiting      bool            // the answer to a CONNECT or SUBSCRIBE is delayed
	early        []*inbound      // packets that have arrived since then
	keepAlive    time.Duration   // 0: no limit
	lastPacket   time.Time
	muted        bool // the server reads but sends nothing
	events       []event
	woken        chan struct{} // see wake
	taken        chan struct{} // closed when another connection takes the client identifier, or on ejection
	ejected      string        // why the server ends the session; "" if it does not
	over         bool
	resetAtOver  bool
	closeCode    int // status of the close frame; 0 is 1000
}

// event is a deferred action.
type event struct {
	at time.Time
	do func()
}

func newSession(c *connection, stream io.ReadWriter) *session {
	return &session{
		c: c, stream: stream,
		reader:  make(chan *inbound, 16),
		woken:   make(chan struct{}, 1),
		taken:   make(chan struct{}),
		unacked: map[uint16]int{}, unanswered: map[uint16]bool{},
		lastPacket: time.Now(),
	}
}

func (s *session) run() {
	stop := make(chan struct{})
	go func() {
		defer close(s.reader)
		r := bufio.NewReader(s.stream)
		for {
			in := readPacket(r)
			select {
			case s.reader <- in:
			case <-stop:
				return
			}
			if in.err != nil {
				return
			}
		}
	}()
	for !s.over {
		s.step()
	}
	close(stop)
	if s.app != nil {
		var e Entry
		s.app.identify(&e)
		s.c.service = e.Service
	}
	if s.connected {
		s.c.server.leave(s.app.key(), s)
		s.app.ended(s.disconnected)
	}
	if s.resetAtOver {
		s.c.raw.reset()
		for range s.reader { // drained until the reader ends
		}
		return
	}
	if w, ok := s.stream.(*webSocket); ok {
		last := websocket.FormatCloseMessage(cmp.Or(s.closeCode, websocket.CloseNormalClosure), "")
		_ = w.conn.WriteControl(websocket.CloseMessage, last, time.Now().Add(lingerTimeout)) // sent only if no close frame was sent before
	}
	s.c.linger(s.reader)
}

// step waits for the next event and handles it.
func (s *session) step() {
	var due <-chan time.Time
	if at := s.deadline(); !at.IsZero() {
		t := time.NewTimer(time.Until(at))
		defer t.Stop()
		due = t.C
	}
	select {
	case in := <-s.reader:
		s.lastPacket = time.Now()
		s.receive(in)
	case <-due:
		s.elapse(time.Now())
	case <-s.woken:
		if !s.muted {
			s.app.awake()
		}
	case <-s.taken:
		s.end(cmp.Or(s.ejected, s.app.replaced()))
	case <-s.c.server.done:
		s.closeCode = websocket.CloseGoingAway
		s.end("the server has shut down")
	}
}

// wake makes the session call awake. Other goroutines can call it.
func (s *session) wake() {
	select {
	case s.woken <- struct{}{}:
	default: // a call is already pending
	}
}

func (s *session) deadline() time.Time {
	var at time.Time
	if s.muted {
		return at
	}
	if len(s.events) > 0 {
		at = s.events[0].at
	}
	if limit := s.silence(); !limit.IsZero() && (at.IsZero() || limit.Before(at)) {
		at = limit
	}
	return at
}

// silence returns when the server gives up on a silent client: after one and a half
// keep-alive intervals [MQTT-3.1.2-24], or before CONNECT after the connect timeout.
func (s *session) silence() time.Time {
	switch {
	case s.c.raw.readStalled.Load(): // our stall is not the client's silence
	case s.app == nil:
		return s.lastPacket.Add(connectTimeout)
	case s.connected && s.keepAlive > 0:
		return s.lastPacket.Add(s.keepAlive * 3 / 2)
	}
	return time.Time{}
}

func (s *session) elapse(now time.Time) {
	if limit := s.silence(); !limit.IsZero() && !now.Before(limit) {
		if s.connected {
			s.violate("no packet for 1.5 keep-alive intervals [MQTT-3.1.2-24]")
		} else {
			s.violate("no CONNECT before the timeout")
		}
		return
	}
	for len(s.events) > 0 && !now.Before(s.events[0].at) && !s.over && !s.muted {
		next := s.events[0]
		s.events = s.events[1:]
		next.do()
	}
}

// after runs an action immediately, or later in the order of time.
func (s *session) after(d time.Duration, do func()) {
	if d <= 0 {
		do()
		return
	}
	at := time.Now().Add(d)
	i, _ := slices.BinarySearchFunc(s.events, at, func(e event, at time.Time) int {
		if e.at.After(at) {
			return 1
		}
		return -1 // after those of the same time
	})
	s.events = slices.Insert(s.events, i, event{at, do})
}

func (s *session) end(reason string) {
	if !s.over {
		s.over = true
		s.c.reason = reason
	}
}

func (s *session) violate(reason string) {
	s.note(Entry{Packet: "VIOLATION", Violation: reason})
	s.refuse("the connection was closed", explainViolation(reason))
	s.closeCode = websocket.ClosePolicyViolation
	s.end("violation")
}

func (s *session) note(e Entry) {
	if s.app != nil {
		s.app.identify(&e)
	}
	s.c.note(e)
}

// refuse records a refusal of the client.
func (s *session) refuse(answer string, why enroll.Explanation) {
	var e Entry
	if s.app != nil {
		s.app.identify(&e)
	}
	s.c.refuse(e, answer, why)
}

func (s *session) receive(in *inbound) {
	if in.err != nil {
		var v *violation
		switch {
		case errors.As(in.err, &v):
			s.note(Entry{Packet: packetName(in.packet.FixedHeader.Type), Direction: "up", Size: in.size, Raw: in.raw})
			if v.connack != 0 && s.app == nil {
				s.connack(&Rule{}, v.connack, v.reason)
			}
			s.violate(v.reason)
			s.closeCode = cmp.Or(v.closeCode, s.closeCode)
		case errors.Is(in.err, io.EOF):
			if s.app == nil && s.c.protocol == "mqtt" {
				s.refuse("nothing", explainSilence())
			}
			s.end("the client closed the connection")
		default:
			s.end(in.err.Error())
		}
		return
	}
	p := &in.packet
	kind := p.FixedHeader.Type
	first := s.app == nil
	if first && kind == packets.Connect {
		s.app = s.c.server.application(s, p) // the log and the rules know the client before the CONNECT is checked
	}
	entry := Entry{Direction: "up", Packet: packetName(kind), Size: in.size, PacketID: int(p.PacketID), Topic: p.TopicName, Raw: in.raw}
	if kind == packets.Publish {
		entry.QoS, entry.Dup = int(p.FixedHeader.Qos), p.FixedHeader.Dup
	}
	s.note(entry)
	switch {
	case s.muted:
	case first && kind != packets.Connect:
		s.violate(packetName(kind) + " before CONNECT [MQTT-3.1.0-1]")
	case !first && kind == packets.Connect:
		s.violate("a second CONNECT [MQTT-3.1.0-2]")
	case s.waiting:
		// A client need not wait for the CONNACK [MQTT-3.1.4-5, non-normative], nor for a SUBACK.
		if s.early = append(s.early, in); len(s.early) > maxEarly {
			s.violate("too many packets while an earlier one is unanswered")
		}
	default:
		s.handle(in)
	}
}

// handle handles the next packet. The answer may be delayed.
func (s *session) handle(in *inbound) {
	p := &in.packet
	kind := p.FixedHeader.Type
	if err := s.app.check(p); err != nil {
		s.violate(packetName(kind) + ": " + err.Error())
		return
	}
	if p.PacketID != 0 && kind != packets.Puback {
		again := kind == packets.Publish && p.FixedHeader.Dup
		if s.unanswered[p.PacketID] && !again {
			s.violate(fmt.Sprintf("%s: packet identifier %d is in use [MQTT-2.3.1-2]", packetName(kind), p.PacketID))
			return
		}
		s.unanswered[p.PacketID] = true
	}
	switch kind {
	case packets.Puback:
		if s.unacked[p.PacketID] == 0 {
			return // it acknowledges nothing
		}
		if s.unacked[p.PacketID]--; s.unacked[p.PacketID] == 0 {
			delete(s.unacked, p.PacketID)
		}
		s.app.acknowledged(p.PacketID)
	case packets.Disconnect:
		if len(s.unacked) > 0 {
			s.note(Entry{Packet: "VIOLATION", Violation: "DISCONNECT while a reply is not acknowledged [MQTT-4.3.2-2]"})
		}
	}
	rule := s.app.rule(p)
	acked := false
	if rule.AfterPuback && p.FixedHeader.Qos == 1 {
		s.send(rule, puback(p))
		acked = true
	}
	if kind != packets.Connect && kind != packets.Subscribe {
		s.after(rule.Delay, func() { s.act(rule, p, acked) })
		return
	}
	s.waiting = true // what follows depends on it
	s.after(rule.Delay, func() {
		s.act(rule, p, acked)
		s.resume()
	})
}

// resume handles the packets that arrived while an answer was delayed. If that answer ended
// the connection, it ignores them [MQTT-3.1.4-5].
func (s *session) resume() {
	s.waiting = false
	for len(s.early) > 0 && !s.waiting && !s.over && !s.muted {
		next := s.early[0]
		s.early = s.early[1:]
		s.handle(next)
	}
}

// act answers a packet as the rule specifies.
func (s *session) act(rule *Rule, p *packets.Packet, acked bool) {
	switch {
	case len(rule.GarbageBytes()) > 0:
		s.note(Entry{Packet: "GARBAGE", Size: len(rule.GarbageBytes()), Raw: rule.GarbageBytes()})
		s.write(rule, rule.GarbageBytes())
		if s.muted = rule.Silent; !s.muted {
			s.end("scenario: garbage")
		}
		return
	case rule.Reset:
		s.then(rule, "reset")
		return
	case rule.Close:
		s.then(rule, "close")
		return
	case rule.Silent:
		s.muted = p.FixedHeader.Type == packets.Connect
		return
	}
	switch p.FixedHeader.Type {
	case packets.Connect:
		s.connect(rule, p)
	case packets.Subscribe:
		s.subscribe(rule, p)
	case packets.Publish:
		s.app.publish(rule, p, acked)
		return // the reply may follow later
	case packets.Unsubscribe:
		s.app.unsubscribe(p.Filters)
		s.send(rule, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsuback}, PacketID: p.PacketID})
	case packets.Pingreq:
		s.send(rule, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})
	case packets.Disconnect:
		s.disconnected = true
		s.end("the client disconnected")
	}
	s.then(rule, rule.Then)
}

// then does what follows an answer or replaces it.
func (s *session) then(rule *Rule, what string) {
	switch what {
	case "close":
		s.closeCode = rule.CloseCode
		s.end("scenario: close")
	case "reset":
		s.resetAtOver = true
		s.end("scenario: reset")
	case "silent":
		s.muted = true
	}
}

func (s *session) connect(rule *Rule, p *packets.Packet) {
	code, detail := s.admit(rule, p)
	s.connack(rule, code, detail)
	if code != 0 {
		s.end(fmt.Sprintf("CONNACK %d", code)) // [MQTT-3.2.2-5]
	}
}

// admit checks a CONNECT, and makes an accepted session the only one with its key.
func (s *session) admit(rule *Rule, p *packets.Packet) (code int, detail string) {
	s.c.server.connecting.RLock()
	defer s.c.server.connecting.RUnlock()
	code, detail = s.app.connect(rule, p)
	if code == 0 {
		s.connected = true
		s.keepAlive = time.Duration(p.Connect.Keepalive) * time.Second
		s.c.server.take(s.app.key(), s)
	}
	return code, detail
}

func (s *session) connack(rule *Rule, code int, detail string) {
	s.sendAll(rule, detail, packets.Packet{
		FixedHeader:    packets.FixedHeader{Type: packets.Connack},
		ReasonCode:     byte(code),
		SessionPresent: rule.SessionPresent,
	})
}

func (s *session) subscribe(rule *Rule, p *packets.Packet) {
	codes := make([]byte, len(p.Filters))
	for i, f := range p.Filters {
		codes[i] = min(f.Qos, 1) // the services grant 1 at most
		if rule.Suback != nil {
			codes[i] = byte(*rule.Suback)
		}
	}
	out := s.app.subscribe(rule, p.Filters, codes)
	out = append(out, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Suback}, PacketID: p.PacketID, ReasonCodes: codes})
	s.send(rule, out...)
}

func puback(p *packets.Packet) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: p.PacketID}
}

// respond answers a PUBLISH of the client with a PUBACK and the packets that answer returns,
// in one write unless there is a delay. Two small writes would interact with Nagle's algorithm
// and the delayed acknowledgement of the peer.
func (s *session) respond(rule *Rule, p *packets.Packet, acked bool, wait time.Duration, answer func() []packets.Packet) {
	var acknowledgement []packets.Packet
	if p.FixedHeader.Qos == 1 && !acked && !rule.NoPuback {
		acknowledgement = []packets.Packet{puback(p)}
	}
	switch {
	case rule.BeforePuback:
		s.after(wait, func() { s.send(rule, append(answer(), acknowledgement...)...); s.then(rule, rule.Then) })
	case wait > 0:
		s.send(rule, acknowledgement...)
		s.after(wait, func() { s.send(rule, answer()...); s.then(rule, rule.Then) })
	default:
		s.send(rule, append(acknowledgement, answer()...)...)
		s.then(rule, rule.Then)
	}
}

// message builds a PUBLISH for the client.
func (s *session) message(qos byte, topic string, payload []byte) packets.Packet {
	out := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: qos},
		TopicName:   topic,
		Payload:     payload,
	}
	if qos > 0 {
		out.PacketID = firstPacketID
		for s.unacked[out.PacketID] > 0 {
			if out.PacketID++; out.PacketID == 0 {
				out.PacketID = 1
			}
		}
		s.unacked[out.PacketID]++
	}
	return out
}

func (s *session) send(rule *Rule, out ...packets.Packet) {
	s.sendAll(rule, "", out...)
}

// sendAll writes packets together. The detail is for the log.
func (s *session) sendAll(rule *Rule, detail string, out ...packets.Packet) {
	var all []byte
	for _, p := range out {
		b, err := encode(p)
		if err != nil {
			s.end(err.Error())
			return
		}
		all = append(all, b...)
		e := Entry{Direction: "down", Packet: packetName(p.FixedHeader.Type), Size: len(b), PacketID: int(p.PacketID), Topic: p.TopicName, Detail: detail, Raw: b}
		switch p.FixedHeader.Type {
		case packets.Connack:
			e.ReturnCode = new(int(p.ReasonCode))
		case packets.Suback:
			e.ReturnCode = new(int(p.ReasonCodes[0]))
		case packets.Publish:
			e.QoS, e.Dup = int(p.FixedHeader.Qos), p.FixedHeader.Dup
		}
		if p.FixedHeader.Type != packets.Publish { // then it is an acknowledgement if it has an identifier
			delete(s.unanswered, p.PacketID)
		}
		s.note(e)
	}
	s.write(rule, all)
}

func (s *session) write(rule *Rule, b []byte) {
	if w, ok := s.stream.(*webSocket); ok {
		w.frames = rule.Frames
	}
	if s.over || len(b) == 0 {
		return
	}
	_ = s.c.raw.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := s.c.raw.trickle(rule, b, s.stream.Write); err != nil {
		s.end(err.Error())
	}
}
