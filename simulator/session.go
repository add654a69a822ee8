package simulator

import (
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/gorilla/websocket"
	"github.com/mochi-mqtt/server/v2/packets"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// writeTimeout ends a connection whose client does not read.
const writeTimeout = 30 * time.Second

// maxEarly is how many packets may wait for the CONNACK.
const maxEarly = 64

// firstPacketID is the first packet identifier of the service. The service uses a number
// again as soon as it has been acknowledged.
const firstPacketID = 2

// session is the MQTT part of a connection. One goroutine reads packets, and another one does
// everything else. Therefore the server always reads, and two writers never wait for each
// other.
type session struct {
	c      *connection
	stream io.ReadWriter
	reader chan *inbound

	who         *principal
	connected   bool
	subscribed  bool
	granted     byte
	unacked     map[uint16]int  // replies that await a PUBACK
	unanswered  map[uint16]bool // packet identifiers of the client that await their acknowledgement
	early       []*inbound      // packets that followed a CONNECT that is still being checked
	previous    byte            // type of the previous packet
	keepAlive   time.Duration   // 0: no limit
	lastPacket  time.Time
	muted       bool // the server reads but sends nothing
	events      []event
	taken       chan struct{} // closed when another connection has the client identifier
	over        bool
	resetAtOver bool
	closeCode   int // status of the close frame; 0 is 1000
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
	if s.who != nil {
		s.c.server.leave(s.who.registrationID, s)
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
	case <-s.taken:
		s.end("another connection has taken over the client identifier [MQTT-3.1.4-2]")
	case <-s.c.server.done:
		s.closeCode = websocket.CloseGoingAway
		s.end("the server has shut down")
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
	case !s.connected && s.previous == 0:
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
	s.closeCode = websocket.ClosePolicyViolation
	s.end("violation")
}

func (s *session) note(e Entry) {
	if s.who != nil {
		e.RegistrationID = s.who.registrationID
	}
	s.c.note(e)
}

func (s *session) receive(in *inbound) {
	if in.err != nil {
		var v *violation
		switch {
		case errors.As(in.err, &v):
			s.note(Entry{Packet: packetName(in.packet.FixedHeader.Type), Direction: "up", Size: in.size})
			if v.connack != 0 && !s.connected && !s.muted && s.previous == 0 {
				s.connack(&Rule{}, v.connack, v.reason)
			}
			s.violate(v.reason)
			s.closeCode = cmp.Or(v.closeCode, s.closeCode)
		case errors.Is(in.err, io.EOF):
			s.end("the client closed the connection")
		default:
			s.end(in.err.Error())
		}
		return
	}
	p := &in.packet
	kind := p.FixedHeader.Type
	if kind == packets.Connect && s.previous == 0 {
		// The registration ID is known to the log and the rules before the CONNECT is checked.
		u, _ := parseUserName(string(p.Connect.Username))
		s.who = &principal{registrationID: cmp.Or(u.registrationID, p.Connect.ClientIdentifier), enrollment: &enroll.Entry{}}
	}
	entry := Entry{Direction: "up", Packet: packetName(kind), Size: in.size, PacketID: int(p.PacketID), Topic: p.TopicName}
	if kind == packets.Publish {
		entry.QoS, entry.Dup = int(p.FixedHeader.Qos), p.FixedHeader.Dup
	}
	s.note(entry)
	previous := s.previous
	s.previous = kind
	if s.muted {
		return
	}
	switch {
	case previous == 0 && kind != packets.Connect:
		s.violate(packetName(kind) + " before CONNECT [MQTT-3.1.0-1]")
		return
	case previous != 0 && kind == packets.Connect:
		s.violate("a second CONNECT [MQTT-3.1.0-2]")
		return
	case kind != packets.Connect && !s.connected:
		// A client need not wait for the CONNACK [MQTT-3.1.4-5, non-normative].
		if s.early = append(s.early, in); len(s.early) > maxEarly {
			s.violate("too many packets before the CONNACK")
		}
		return
	}
	s.handle(in, previous)
}

// stageOf maps packets of the client to the stages that they begin. A PUBLISH can also be a poll.
var stageOf = map[byte]Stage{
	packets.Connect: OnConnect, packets.Subscribe: OnSubscribe, packets.Publish: OnRegister, packets.Puback: OnPuback,
	packets.Unsubscribe: OnUnsubscribe, packets.Pingreq: OnPing, packets.Disconnect: OnDisconnect,
}

// handle handles the next packet.
func (s *session) handle(in *inbound, previous byte) {
	p := &in.packet
	kind := p.FixedHeader.Type
	if p.PacketID != 0 && kind != packets.Puback {
		again := kind == packets.Publish && p.FixedHeader.Dup
		if s.unanswered[p.PacketID] && !again {
			s.violate(fmt.Sprintf("%s: packet identifier %d is in use [MQTT-2.3.1-2]", packetName(kind), p.PacketID))
			return
		}
		s.unanswered[p.PacketID] = true
	}

	var req request
	on := stageOf[kind]
	switch kind {
	case packets.Publish:
		var err error
		if req, err = parseRequest(p.TopicName); err != nil {
			s.violate("PUBLISH: " + err.Error())
			return
		}
		// If it is in the same segment as the SUBSCRIBE, the client cannot have seen the SUBACK.
		if !s.subscribed || in.pipelined && previous == packets.Subscribe {
			s.violate("PUBLISH before SUBACK: the reply could be lost")
			return
		}
		if req.poll {
			on = OnPoll
		}
	case packets.Puback:
		if s.unacked[p.PacketID] == 0 {
			s.violate(fmt.Sprintf("PUBACK %d without a PUBLISH", p.PacketID))
			return
		}
		if s.unacked[p.PacketID]--; s.unacked[p.PacketID] == 0 {
			delete(s.unacked, p.PacketID)
		}
	case packets.Disconnect:
		if len(s.unacked) > 0 {
			s.note(Entry{Packet: "VIOLATION", Violation: "DISCONNECT while a reply is not acknowledged [MQTT-4.3.2-2]"})
		}
	}
	rule := s.c.server.script.Load().Match(on, s.c.protocol, s.who.registrationID, s.c.tls.ConnectionState().DidResume)
	acked := false
	if rule.AfterPuback && p.FixedHeader.Qos == 1 {
		s.send(rule, puback(p))
		acked = true
	}
	s.after(rule.Delay, func() { s.act(rule, in, req, acked) })
}

// act answers a packet as the rule specifies.
func (s *session) act(rule *Rule, in *inbound, req request, acked bool) {
	switch {
	case len(rule.GarbageBytes()) > 0:
		s.note(Entry{Packet: "GARBAGE", Size: len(rule.GarbageBytes())})
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
		s.muted = rule.On == OnConnect
		return
	}
	p := &in.packet
	switch p.FixedHeader.Type {
	case packets.Connect:
		s.connect(rule, p)
	case packets.Subscribe:
		s.subscribe(rule, p)
	case packets.Publish:
		s.request(rule, p, req, acked)
		return // the reply may follow later
	case packets.Unsubscribe:
		s.subscribed = false
		s.send(rule, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Unsuback}, PacketID: p.PacketID})
	case packets.Pingreq:
		s.send(rule, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Pingresp}})
	case packets.Disconnect:
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
	who, code, detail := s.c.server.authenticate(p.Connect.ClientIdentifier, string(p.Connect.Username), p.Connect.Password, s.c.tls.ConnectionState())
	if rule.Connack != nil {
		code, detail = *rule.Connack, "scenario"
		who.refused = nil
	}
	if who.registrationID == "" {
		who.registrationID = p.Connect.ClientIdentifier
	}
	s.who = who
	if code == 0 {
		s.connected = true
		s.keepAlive = time.Duration(p.Connect.Keepalive) * time.Second
		s.c.server.take(who.registrationID, s)
	}
	s.connack(rule, code, detail)
	if code != 0 {
		s.end(fmt.Sprintf("CONNACK %d", code)) // [MQTT-3.2.2-5]
	}
	early := s.early
	s.early = nil
	previous := packets.Connect
	for _, in := range early {
		if s.over || s.muted { // [MQTT-3.1.4-5]
			return
		}
		s.handle(in, previous)
		previous = in.packet.FixedHeader.Type
	}
}

func (s *session) connack(rule *Rule, code int, detail string) {
	s.sendAll(rule, detail, packets.Packet{
		FixedHeader:    packets.FixedHeader{Type: packets.Connack},
		ReasonCode:     byte(code),
		SessionPresent: rule.SessionPresent,
	})
}

func (s *session) subscribe(rule *Rule, p *packets.Packet) {
	var out []packets.Packet
	codes := make([]byte, len(p.Filters))
	for i, f := range p.Filters {
		codes[i] = min(f.Qos, 1) // the service grants 1 at most
		if rule.Suback != nil {
			codes[i] = byte(*rule.Suback)
		}
		if codes[i] < 0x80 {
			s.subscribed, s.granted = true, codes[i]
		}
	}
	if rule.BeforeSuback {
		unasked := *rule
		unasked.State = cmp.Or(rule.State, "assigned")
		r := s.c.server.service.unasked(s.who, &unasked, s.c.server.now())
		out = append(out, s.reply(&unasked, r, cmp.Or(rule.RequestID, "1")))
	}
	out = append(out, packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Suback}, PacketID: p.PacketID, ReasonCodes: codes})
	s.send(rule, out...)
}

func puback(p *packets.Packet) packets.Packet {
	return packets.Packet{FixedHeader: packets.FixedHeader{Type: packets.Puback}, PacketID: p.PacketID}
}

// request answers a register or poll request with a PUBACK and the reply, in one
// write unless the reply is delayed. Two small writes would interact with Nagle's
// algorithm and the delayed acknowledgement of the peer.
func (s *session) request(rule *Rule, p *packets.Packet, req request, acked bool) {
	server := s.c.server
	answer := func() []packets.Packet {
		r := server.service.answer(req, p.Payload, s.who, rule, server.now())
		out := make([]packets.Packet, 0, 4)
		for range max(1, rule.Replies) {
			out = append(out, s.reply(rule, r, cmp.Or(rule.RequestID, req.requestID)))
		}
		if rule.Duplicate {
			again := out[len(out)-1]
			if again.FixedHeader.Qos > 0 {
				again.FixedHeader.Dup = true
				s.unacked[again.PacketID]++
			}
			out = append(out, again)
		}
		return out
	}
	var acknowledgement []packets.Packet
	if p.FixedHeader.Qos == 1 && !acked && !rule.NoPuback {
		acknowledgement = []packets.Packet{puback(p)}
	}
	wait := server.script.Load().Settings.ReplyDelay
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

// reply builds the PUBLISH of a reply.
func (s *session) reply(rule *Rule, r reply, requestID string) packets.Packet {
	topic := fmt.Sprintf("$dps/registrations/res/%d/?$rid=%s", r.status, requestID)
	if after := cmp.Or(rule.RetryAfter, r.retryAfter); after != "none" {
		topic += "&retry-after=" + after
	}
	payload, err := r.encode(rule)
	if err != nil { // every value here came from JSON
		s.end(err.Error())
	}
	out := packets.Packet{
		FixedHeader: packets.FixedHeader{Type: packets.Publish, Qos: s.granted},
		TopicName:   cmp.Or(strings.ReplaceAll(rule.Topic, "{rid}", requestID), topic),
		Payload:     payload,
	}
	if s.granted > 0 {
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
		e := Entry{Direction: "down", Packet: packetName(p.FixedHeader.Type), Size: len(b), PacketID: int(p.PacketID), Topic: p.TopicName, Detail: detail}
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
