package mqttv3

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"
)

// kind is the control packet type, the upper half of a packet's first byte
// (table 2.1).
type kind byte

const (
	kindConnect kind = iota + 1
	kindConnack
	kindPublish
	kindPuback
	kindPubrec
	kindPubrel
	kindPubcomp
	kindSubscribe
	kindSuback
	kindUnsubscribe
	kindUnsuback
	kindPingreq
	kindPingresp
	kindDisconnect
)

var kindNames = [16]string{
	"packet type 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "packet type 15",
}

func (k kind) String() string { return kindNames[k&15] }

// flags are the lower four bits of the first byte for all packets but PUBLISH;
// any other value is malformed [MQTT-2.2.2-1] [MQTT-2.2.2-2].
func (k kind) flags() byte {
	switch k {
	case kindPubrel, kindSubscribe, kindUnsubscribe:
		return 2
	}
	return 0
}

const (
	protocolName  = "MQTT"
	protocolLevel = 4 // MQTT 3.1.1 [MQTT-3.1.2-2]

	maxRemaining = 268_435_455 // four bytes of seven bits (table 2.4)
	maxHeader    = 5

	subscriptionFailed = 0x80
)

// packet is any control packet. Which fields count depends on kind; the rest are
// zero. Byte slices alias the bytes a packet was parsed from.
type packet struct {
	kind kind
	id   uint16 // packet identifier, never 0 where there is one [MQTT-2.3.1-1]

	// CONNECT
	clientID, userName, password []byte
	hasUserName, hasPassword     bool
	keepAlive                    uint16 // seconds
	cleanSession                 bool
	will                         *will

	// CONNACK
	sessionPresent bool
	returnCode     byte

	// PUBLISH
	dup, retain    bool
	qos            byte
	topic, payload []byte

	// SUBSCRIBE and UNSUBSCRIBE; the latter has no QoS
	filters []subscription
	// SUBACK, one for each filter
	codes []byte
}

type will struct {
	topic, payload []byte
	qos            byte
	retain         bool
}

type subscription struct {
	filter []byte
	qos    byte
}

func (k kind) malformed(format string, a ...any) error {
	return &ProtocolError{Packet: k.String(), Reason: fmt.Sprintf(format, a...)}
}

// parse reads a packet from its first byte and everything after the remaining
// length.
func (p *packet) parse(first byte, body []byte) error {
	*p = packet{kind: kind(first >> 4)}
	if p.kind == kindPublish {
		p.dup, p.qos, p.retain = first&8 != 0, first>>1&3, first&1 != 0
	} else if first&15 != p.kind.flags() {
		return p.kind.malformed("reserved flags %#x in the fixed header [MQTT-2.2.2-2]", first&15)
	}
	s := scanner{b: body}
	switch p.kind {
	case kindConnect:
		if err := p.parseConnect(&s); err != nil {
			return err
		}
	case kindConnack:
		flags := s.byte()
		if flags > 1 {
			return p.kind.malformed("reserved acknowledge flags %#x", flags)
		}
		p.sessionPresent, p.returnCode = flags == 1, s.byte()
	case kindPublish:
		p.topic = s.field()
		if p.qos > 0 {
			p.id = s.uint16()
		}
		p.payload = s.rest()
	case kindPuback, kindPubrec, kindPubrel, kindPubcomp, kindUnsuback:
		p.id = s.uint16()
	case kindSubscribe, kindUnsubscribe:
		p.id = s.uint16()
		for len(s.b) > 0 && !s.short {
			f := subscription{filter: s.field()}
			if p.kind == kindSubscribe {
				f.qos = s.byte()
			}
			p.filters = append(p.filters, f)
		}
	case kindSuback:
		p.id, p.codes = s.uint16(), s.rest()
	case kindPingreq, kindPingresp, kindDisconnect:
	default:
		return p.kind.malformed("reserved")
	}
	if err := s.end(p.kind); err != nil {
		return err
	}
	return p.check()
}

func (p *packet) parseConnect(s *scanner) error {
	name, level, flags := s.field(), s.byte(), s.byte()
	if s.short {
		return s.end(p.kind)
	}
	if string(name) != protocolName || level != protocolLevel {
		return p.kind.malformed("protocol %.10q level %d [MQTT-3.1.2-1] [MQTT-3.1.2-2]", name, level)
	}
	if flags&1 != 0 {
		return p.kind.malformed("reserved connect flag [MQTT-3.1.2-3]")
	}
	p.cleanSession = flags&2 != 0
	p.keepAlive = s.uint16()
	p.clientID = s.field()
	if flags&4 != 0 {
		p.will = &will{topic: s.field(), payload: s.field(), qos: flags >> 3 & 3, retain: flags&0x20 != 0}
	} else if flags&0x38 != 0 {
		return p.kind.malformed("will QoS or will retain without a will [MQTT-3.1.2-13] [MQTT-3.1.2-15]")
	}
	if p.hasUserName = flags&0x80 != 0; p.hasUserName {
		p.userName = s.field()
	}
	if p.hasPassword = flags&0x40 != 0; p.hasPassword {
		p.password = s.field()
	}
	return nil
}

// check holds the rules that concern values rather than layout. Both directions
// pass through it, so nothing is written that would not be accepted.
func (p *packet) check() error {
	switch p.kind {
	case kindConnect:
		return p.checkConnect()
	case kindConnack:
		if p.sessionPresent && p.returnCode != 0 {
			return p.kind.malformed("return code %d together with session present [MQTT-3.2.2-4]", p.returnCode)
		}
		return nil
	case kindPingreq, kindPingresp, kindDisconnect:
		return nil
	case kindPublish:
		return p.checkPublish()
	}
	if p.id == 0 {
		return p.kind.malformed("packet identifier 0 [MQTT-2.3.1-1]")
	}
	switch p.kind {
	case kindSubscribe, kindUnsubscribe:
		if len(p.filters) == 0 {
			return p.kind.malformed("no topic filter [MQTT-3.8.3-3] [MQTT-3.10.3-2]")
		}
		for _, f := range p.filters {
			if reason := badFilter(f.filter); reason != "" {
				return p.kind.malformed("topic filter: %s", reason)
			}
			if f.qos > 2 {
				return p.kind.malformed("requested QoS byte %#x [MQTT-3.8.3-4]", f.qos)
			}
		}
	case kindSuback:
		if len(p.codes) == 0 {
			return p.kind.malformed("no return code")
		}
		for _, c := range p.codes {
			if c > 2 && c != subscriptionFailed {
				return p.kind.malformed("reserved return code %#x [MQTT-3.9.3-2]", c)
			}
		}
	}
	return nil
}

func (p *packet) checkConnect() error {
	if reason := badText(p.clientID); reason != "" {
		return p.kind.malformed("client identifier: %s", reason)
	}
	if len(p.clientID) == 0 && !p.cleanSession {
		return p.kind.malformed("empty client identifier without clean session [MQTT-3.1.3-7]")
	}
	if reason := badText(p.userName); reason != "" {
		return p.kind.malformed("user name: %s", reason)
	}
	if len(p.password) > math.MaxUint16 {
		return p.kind.malformed("password longer than 65535 bytes")
	}
	if p.hasPassword && !p.hasUserName {
		return p.kind.malformed("password without user name [MQTT-3.1.2-22]")
	}
	if w := p.will; w != nil {
		if reason := badTopic(w.topic); reason != "" {
			return p.kind.malformed("will topic: %s", reason)
		}
		if w.qos > 2 || len(w.payload) > math.MaxUint16 {
			return p.kind.malformed("will QoS 3, or will message longer than 65535 bytes [MQTT-3.1.2-14]")
		}
	}
	return nil
}

func (p *packet) checkPublish() error {
	switch {
	case p.qos > 2:
		return p.kind.malformed("QoS 3 [MQTT-3.3.1-4]")
	case p.qos == 0 && p.dup:
		return p.kind.malformed("DUP with QoS 0 [MQTT-3.3.1-2]")
	case p.qos > 0 && p.id == 0:
		return p.kind.malformed("packet identifier 0 [MQTT-2.3.1-1]")
	case p.qos == 0 && p.id != 0:
		return p.kind.malformed("packet identifier with QoS 0 [MQTT-2.3.1-5]")
	}
	if reason := badTopic(p.topic); reason != "" {
		return p.kind.malformed("topic: %s", reason)
	}
	return nil
}

// append writes the packet behind dst. On an error nothing is written.
func (p *packet) append(dst []byte) ([]byte, error) {
	if err := p.check(); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = append(dst, p.first(), 0, 0, 0, 0)
	switch p.kind {
	case kindConnect:
		dst = p.appendConnect(dst)
	case kindConnack:
		dst = append(dst, bit(p.sessionPresent, 1), p.returnCode)
	case kindPublish:
		dst = appendField(dst, p.topic)
		if p.qos > 0 {
			dst = binary.BigEndian.AppendUint16(dst, p.id)
		}
		dst = append(dst, p.payload...)
	case kindPuback, kindPubrec, kindPubrel, kindPubcomp, kindUnsuback:
		dst = binary.BigEndian.AppendUint16(dst, p.id)
	case kindSubscribe, kindUnsubscribe:
		dst = binary.BigEndian.AppendUint16(dst, p.id)
		for _, f := range p.filters {
			dst = appendField(dst, f.filter)
			if p.kind == kindSubscribe {
				dst = append(dst, f.qos)
			}
		}
	case kindSuback:
		dst = binary.BigEndian.AppendUint16(dst, p.id)
		dst = append(dst, p.codes...)
	}
	if len(dst)-start-maxHeader > maxRemaining {
		return dst[:start], ErrPacketTooLarge
	}
	return frame(dst, start), nil
}

func (p *packet) appendConnect(dst []byte) []byte {
	flags := bit(p.hasUserName, 0x80) | bit(p.hasPassword, 0x40) | bit(p.cleanSession, 2)
	if w := p.will; w != nil {
		flags |= bit(w.retain, 0x20) | w.qos<<3 | 4
	}
	dst = appendField(dst, []byte(protocolName))
	dst = append(dst, protocolLevel, flags)
	dst = binary.BigEndian.AppendUint16(dst, p.keepAlive)
	dst = appendField(dst, p.clientID)
	if w := p.will; w != nil {
		dst = appendField(dst, w.topic)
		dst = appendField(dst, w.payload)
	}
	if p.hasUserName {
		dst = appendField(dst, p.userName)
	}
	if p.hasPassword {
		dst = appendField(dst, p.password)
	}
	return dst
}

// first is the first byte on the wire.
func (p *packet) first() byte {
	if p.kind == kindPublish {
		return byte(p.kind)<<4 | bit(p.dup, 8) | p.qos<<1 | bit(p.retain, 1)
	}
	return byte(p.kind)<<4 | p.kind.flags()
}

// frame completes a packet begun at start with five bytes for the fixed header:
// it writes the remaining length and closes the gap that a short one leaves.
func frame(dst []byte, start int) []byte {
	n := binary.PutUvarint(dst[start+1:start+maxHeader], uint64(len(dst)-start-maxHeader))
	end := start + 1 + n
	return dst[:end+copy(dst[end:], dst[start+maxHeader:])]
}

// remainingLength reads a remaining length: n bytes were used, 0 when b ends
// before it does. A fifth byte is malformed (§2.2.3).
func remainingLength(b []byte) (length, n int, err error) {
	for n < len(b) && n < maxHeader-1 {
		c := b[n]
		length |= int(c&0x7f) << (7 * n)
		n++
		if c < 0x80 {
			return length, n, nil
		}
	}
	if n == maxHeader-1 {
		return 0, n, &ProtocolError{Packet: "fixed header", Reason: "remaining length of more than four bytes"}
	}
	return 0, 0, nil
}

// scanner takes a packet's body apart. Running out of bytes is remembered, so
// that it is asked about once, at the end.
type scanner struct {
	b     []byte
	short bool
}

func (s *scanner) take(n int) []byte {
	if n > len(s.b) {
		s.short, s.b = true, nil
		return nil
	}
	taken := s.b[:n:n]
	s.b = s.b[n:]
	return taken
}

func (s *scanner) byte() byte {
	if b := s.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (s *scanner) uint16() uint16 {
	if b := s.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// field reads bytes preceded by their number (§1.5.3).
func (s *scanner) field() []byte { return s.take(int(s.uint16())) }

func (s *scanner) rest() []byte { return s.take(len(s.b)) }

// end tells whether the body was as long as its contents, no more, no less.
func (s *scanner) end(k kind) error {
	if s.short {
		return k.malformed("ends too early")
	}
	if len(s.b) > 0 {
		return k.malformed("%d bytes too many", len(s.b))
	}
	return nil
}

func appendField(dst, field []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(field)))
	return append(dst, field...)
}

func bit(set bool, value byte) byte {
	if set {
		return value
	}
	return 0
}

// badText says what forbids b as a UTF-8 encoded string (§1.5.3), "" if nothing.
func badText(b []byte) string {
	switch {
	case len(b) > math.MaxUint16:
		return "longer than 65535 bytes"
	case !utf8.Valid(b):
		return "not UTF-8 [MQTT-1.5.3-1]"
	case bytes.IndexByte(b, 0) >= 0:
		return "contains U+0000 [MQTT-1.5.3-2]"
	}
	return ""
}

// badTopic says what forbids b as a topic name, "" if nothing.
func badTopic(b []byte) string {
	switch {
	case len(b) == 0:
		return "empty [MQTT-4.7.3-1]"
	case bytes.ContainsAny(b, "+#"):
		return "contains a wildcard [MQTT-3.3.2-2]"
	}
	return badText(b)
}

// badFilter says what forbids b as a topic filter, "" if nothing.
func badFilter(b []byte) string {
	if len(b) == 0 {
		return "empty [MQTT-4.7.3-1]"
	}
	for i, c := range b {
		startsLevel := i == 0 || b[i-1] == '/'
		endsTopic := i == len(b)-1
		if c == '#' && (!startsLevel || !endsTopic) {
			return "# is not the last level [MQTT-4.7.1-2]"
		}
		if c == '+' && (!startsLevel || !endsTopic && b[i+1] != '/') {
			return "+ is not a whole level [MQTT-4.7.1-3]"
		}
	}
	return badText(b)
}
