package mqttv3

import "encoding/binary"

// The constants of MQTT 5 that paho writes and reads.
const (
	v5Level = 5

	v5SessionExpiry  = 0x11
	v5ReasonString   = 0x1f
	v5ReceiveMaximum = 0x21
	v5MaximumQoS     = 0x24
	v5RetainAllowed  = 0x25
	v5SubIDAllowed   = 0x29
	v5SharedAllowed  = 0x2a
)

// transcoder converts the version 5 packets of paho to 3.1.1 and the server's 3.1.1 packets
// to version 5. It does no I/O. It keeps the state that is needed to reject packets that do
// not fit the session.
type transcoder struct {
	phase phase
	// requests are the client's packets that wait for an acknowledgement.
	requests map[uint16]request
	// owed counts the messages of QoS 1 that paho has not acknowledged yet.
	owed int
	// refused is the return code of a CONNACK that refused the connection.
	refused byte
}

type phase byte

const (
	phaseNew          phase = iota
	phaseConnecting         // CONNECT written
	phaseConnected          // CONNACK 0 read
	phaseRefused            // CONNACK other than 0 read
	phaseDisconnected       // DISCONNECT written
)

// request is a packet that an acknowledgement must match.
type request struct {
	kind kind
	qos  byte // requested by a SUBSCRIBE
}

// down converts a packet of paho to 3.1.1 and appends it to dst. It returns an error if
// 3.1.1 cannot express the packet.
func (t *transcoder) down(dst []byte, first byte, body []byte) ([]byte, error) {
	k := kind(first >> 4)
	switch {
	case t.phase == phaseDisconnected:
		return dst, ErrClosed // nothing follows DISCONNECT [MQTT-3.14.4-1]
	case (t.phase == phaseNew) != (k == kindConnect):
		return dst, k.malformed("CONNECT must be the first packet, and there must be only one [MQTT-3.1.0-1] [MQTT-3.1.0-2]")
	case t.phase == phaseConnecting || t.phase == phaseRefused:
		return dst, k.malformed("sent before CONNACK")
	}
	var p packet
	if err := p.parseV5(first, body); err != nil {
		return dst, err
	}
	dst, err := p.append(dst)
	if err != nil {
		return dst, err
	}
	switch p.kind {
	case kindConnect:
		t.phase, t.requests = phaseConnecting, map[uint16]request{}
	case kindPublish, kindSubscribe:
		if p.id != 0 {
			t.requests[p.id] = request{p.kind, p.qos}
		}
	case kindPuback:
		t.owed--
	case kindDisconnect:
		t.phase = phaseDisconnected
	}
	return dst, nil
}

// up converts a packet of the server to version 5 and appends it to dst.
func (t *transcoder) up(dst []byte, first byte, body []byte) ([]byte, error) {
	var p packet
	if err := p.parse(first, body); err != nil {
		return dst, err
	}
	if (t.phase == phaseConnecting) != (p.kind == kindConnack) {
		return dst, p.kind.malformed("CONNACK must be the first packet, and there must be only one [MQTT-3.2.0-1]")
	}
	switch p.kind {
	case kindConnack:
		t.phase, t.refused = phaseConnected, p.returnCode
		if p.returnCode != 0 {
			t.phase = phaseRefused
		}
	case kindPublish:
		t.owed += int(p.qos)
	case kindPuback, kindSuback:
		if err := t.answer(&p); err != nil {
			return dst, err
		}
	}
	return p.appendV5(dst), nil
}

// answer matches an acknowledgement with its request.
func (t *transcoder) answer(p *packet) error {
	r, known := t.requests[p.id]
	if !known && p.kind == kindPuback {
		return nil // unsolicited; paho ignores it
	}
	want := p.kind - 1 // each acknowledgement is numbered one above its request
	if r.kind != want {
		return p.kind.malformed("packet identifier %d does not belong to an unacknowledged %s", p.id, want)
	}
	delete(t.requests, p.id)
	if p.kind == kindSuback && p.returnCode != subscriptionFailed && p.returnCode > r.qos {
		return p.kind.malformed("QoS %d granted, but %d requested [MQTT-3.8.4-6]", p.returnCode, r.qos)
	}
	return nil
}

// parseV5 parses the packets that paho writes. It rejects properties that 3.1.1 cannot
// express, and omits the two that only control paho.
func (p *packet) parseV5(first byte, body []byte) error {
	*p = packet{kind: kind(first >> 4)}
	s := scanner{b: body}
	switch p.kind {
	case kindConnect:
		if err := p.parseConnectV5(&s); err != nil {
			return err
		}
	case kindPublish:
		p.publishFlags(first)
		p.topic = s.field()
		if p.qos > 0 {
			p.id = s.uint16()
		}
		if err := s.noProperties(p.kind); err != nil {
			return err
		}
		p.payload = s.rest()
	case kindPuback:
		p.id = s.uint16()
		if err := s.plain(p.kind); err != nil {
			return err
		}
	case kindSubscribe:
		p.id = s.uint16()
		if err := s.noProperties(p.kind); err != nil {
			return err
		}
		p.filter, p.qos = s.field(), s.byte()
	case kindPingreq:
	case kindDisconnect:
		if err := s.plain(p.kind); err != nil {
			return err
		}
	default:
		return p.kind.malformed("cannot be expressed in MQTT 3.1.1")
	}
	return s.end(p.kind)
}

func (p *packet) parseConnectV5(s *scanner) error {
	name, level, flags := s.field(), s.byte(), s.byte()
	if string(name) != protocolName || level != v5Level {
		return p.kind.malformed("not an MQTT 5 CONNECT")
	}
	// Only a clean session, a user name and a password are allowed: the service keeps no
	// sessions and accepts no will.
	if flags&^0xc0 != cleanSession {
		return p.kind.malformed("connect flags %#x are not supported", flags)
	}
	p.hasUserName, p.hasPassword = flags&0x80 != 0, flags&0x40 != 0
	p.keepAlive = s.uint16()
	properties := scanner{b: s.take(int(s.byte()))} // the length of the two below fits one byte
	for len(properties.b) > 0 {
		switch id := properties.byte(); id {
		case v5SessionExpiry:
			properties.take(4)
		case v5ReceiveMaximum:
			properties.take(2)
		default:
			return p.kind.malformed("property %#x cannot be expressed in MQTT 3.1.1", id)
		}
	}
	if properties.short {
		return p.kind.malformed("properties end too early")
	}
	p.clientID = s.field()
	if p.hasUserName {
		p.userName = s.field()
	}
	if p.hasPassword {
		p.password = s.field()
	}
	return nil
}

// noProperties reads an empty property list.
func (s *scanner) noProperties(k kind) error {
	if s.byte() != 0 {
		return k.malformed("properties cannot be expressed in MQTT 3.1.1")
	}
	return nil
}

// plain reads a reason code of 0 and an empty property list; both are optional in version
// 5.
func (s *scanner) plain(k kind) error {
	if len(s.b) > 0 && s.byte() != 0 {
		return k.malformed("a reason cannot be expressed in MQTT 3.1.1")
	}
	if len(s.b) > 0 {
		return s.noProperties(k)
	}
	return nil
}

// appendV5 appends a packet for paho. up passes only checked packets.
func (p *packet) appendV5(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, p.first(), 0, 0, 0, 0)
	switch p.kind {
	case kindConnack:
		dst = p.appendConnackV5(dst)
	case kindPublish:
		dst = appendField(dst, p.topic)
		if p.qos > 0 {
			dst = binary.BigEndian.AppendUint16(dst, p.id)
		}
		dst = append(dst, 0)
		dst = append(dst, p.payload...)
	case kindPuback:
		dst = binary.BigEndian.AppendUint16(dst, p.id)
	case kindSuback:
		dst = binary.BigEndian.AppendUint16(dst, p.id)
		dst = append(dst, 0, p.returnCode)
	}
	return frame(dst, start)
}

// appendConnackV5 adds the limits of this connection, which a server of 3.1.1 cannot state,
// so that paho rejects unsupported requests before it writes them. It clears the
// session-present flag, since the client has no session [MQTT-3.2.2-1].
func (p *packet) appendConnackV5(dst []byte) []byte {
	if p.returnCode == 0 {
		return append(dst, 0, 0, 8,
			v5MaximumQoS, 1, v5RetainAllowed, 0, v5SubIDAllowed, 0, v5SharedAllowed, 0)
	}
	r := refusalOf(p.returnCode)
	dst = append(dst, 0, r.reason, byte(3+len(r.text)), v5ReasonString)
	return appendField(dst, []byte(r.text))
}
