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

// The packets that a client with QoS 0 and 1 and without UNSUBSCRIBE sends and receives.
const (
	kindConnect    kind = 1
	kindConnack    kind = 2
	kindPublish    kind = 3
	kindPuback     kind = 4
	kindSubscribe  kind = 8
	kindSuback     kind = 9
	kindPingreq    kind = 12
	kindPingresp   kind = 13
	kindDisconnect kind = 14
)

var kindNames = [16]string{
	"packet type 0", "CONNECT", "CONNACK", "PUBLISH", "PUBACK", "PUBREC", "PUBREL", "PUBCOMP",
	"SUBSCRIBE", "SUBACK", "UNSUBSCRIBE", "UNSUBACK", "PINGREQ", "PINGRESP", "DISCONNECT", "packet type 15",
}

func (k kind) String() string { return kindNames[k&15] }

const (
	protocolName  = "MQTT"
	protocolLevel = 4 // MQTT 3.1.1 [MQTT-3.1.2-2]

	maxRemaining = 268_435_455 // four bytes of seven bits (table 2.4)
	maxHeader    = 5

	cleanSession       = 2 // a connect flag
	subscriptionFailed = 0x80
)

// packet is one of these control packets. kind determines which fields are used; the others
// are zero. Byte slices alias the bytes from which the packet was parsed.
type packet struct {
	kind kind
	id   uint16 // packet identifier, not 0 in packets that have one [MQTT-2.3.1-1]

	// CONNECT, always with a clean session and without a will
	clientID, userName, password []byte
	hasUserName, hasPassword     bool
	keepAlive                    uint16 // seconds

	// CONNACK, and SUBACK for its one topic filter
	returnCode byte

	// PUBLISH
	dup, retain    bool
	topic, payload []byte
	// PUBLISH and SUBSCRIBE
	qos byte
	// SUBSCRIBE
	filter []byte
}

func (k kind) malformed(format string, a ...any) error {
	return &ProtocolError{Packet: k.String(), Reason: fmt.Sprintf(format, a...)}
}

// parse parses a packet of the server from its first byte and the bytes after the remaining
// length.
func (p *packet) parse(first byte, body []byte) error {
	*p = packet{kind: kind(first >> 4)}
	if p.kind == kindPublish {
		p.publishFlags(first)
	} else if first&15 != 0 {
		return p.kind.malformed("reserved flags %#x in the fixed header [MQTT-2.2.2-2]", first&15)
	}
	s := scanner{b: body}
	switch p.kind {
	case kindConnack:
		flags := s.byte()
		if flags > 1 {
			return p.kind.malformed("reserved acknowledge flags %#x", flags)
		}
		p.returnCode = s.byte()
		if flags == 1 && p.returnCode != 0 {
			return p.kind.malformed("return code %d together with session present [MQTT-3.2.2-4]", p.returnCode)
		}
	case kindPublish:
		p.topic = s.field()
		if p.qos > 0 {
			p.id = s.uint16()
		}
		p.payload = s.rest()
	case kindPuback:
		p.id = s.uint16()
	case kindSuback:
		p.id, p.returnCode = s.uint16(), s.byte()
	case kindPingresp:
	default:
		// PUBREC, PUBREL and PUBCOMP belong to QoS 2, which the client does not use. In
		// paho, they would also reach code that writes to a nil connection.
		return p.kind.malformed("unexpected from a server")
	}
	if err := s.end(p.kind); err != nil {
		return err
	}
	return p.check()
}

func (p *packet) publishFlags(first byte) {
	p.dup, p.qos, p.retain = first&8 != 0, first>>1&3, first&1 != 0
}

// check applies the rules about values rather than layout. It is used for both directions,
// so the client writes only packets that it would accept.
func (p *packet) check() error {
	switch p.kind {
	case kindConnect:
		return p.checkConnect()
	case kindPublish:
		return p.checkPublish()
	case kindConnack, kindPingreq, kindPingresp, kindDisconnect:
		return nil
	}
	if p.id == 0 {
		return p.kind.malformed("packet identifier 0 [MQTT-2.3.1-1]")
	}
	if p.kind == kindSubscribe {
		if reason := badFilter(p.filter); reason != "" {
			return p.kind.malformed("topic filter: %s", reason)
		}
		if p.qos > 1 { // in version 5, this byte has other options besides the QoS
			return p.kind.malformed("QoS byte %#x is not supported", p.qos)
		}
	}
	return nil
}

func (p *packet) checkConnect() error {
	if reason := badText(p.clientID); reason != "" {
		return p.kind.malformed("client identifier: %s", reason)
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
	return nil
}

func (p *packet) checkPublish() error {
	switch {
	case p.qos > 1:
		return p.kind.malformed("QoS %d is not supported", p.qos)
	case p.qos == 0 && p.dup:
		return p.kind.malformed("DUP with QoS 0 [MQTT-3.3.1-2]")
	case (p.qos > 0) != (p.id > 0):
		return p.kind.malformed("packet identifier %d with QoS %d [MQTT-2.3.1-1] [MQTT-2.3.1-5]", p.id, p.qos)
	}
	if reason := badTopic(p.topic); reason != "" {
		return p.kind.malformed("topic: %s", reason)
	}
	return nil
}

// append appends a packet of the client to dst. It appends nothing on an error.
func (p *packet) append(dst []byte) ([]byte, error) {
	if err := p.check(); err != nil {
		return dst, err
	}
	start := len(dst)
	dst = append(dst, p.first(), 0, 0, 0, 0)
	switch p.kind {
	case kindConnect:
		dst = p.appendConnect(dst)
	case kindPublish:
		dst = appendField(dst, p.topic)
		if p.qos > 0 {
			dst = binary.BigEndian.AppendUint16(dst, p.id)
		}
		dst = append(dst, p.payload...)
	case kindPuback:
		dst = binary.BigEndian.AppendUint16(dst, p.id)
	case kindSubscribe:
		dst = binary.BigEndian.AppendUint16(dst, p.id)
		dst = append(appendField(dst, p.filter), p.qos)
	}
	if len(dst)-start-maxHeader > maxRemaining {
		return dst[:start], ErrPacketTooLarge
	}
	return frame(dst, start), nil
}

func (p *packet) appendConnect(dst []byte) []byte {
	dst = appendField(dst, []byte(protocolName))
	dst = append(dst, protocolLevel, bit(p.hasUserName, 0x80)|bit(p.hasPassword, 0x40)|cleanSession)
	dst = binary.BigEndian.AppendUint16(dst, p.keepAlive)
	dst = appendField(dst, p.clientID)
	if p.hasUserName {
		dst = appendField(dst, p.userName)
	}
	if p.hasPassword {
		dst = appendField(dst, p.password)
	}
	return dst
}

// first returns the first byte on the wire.
func (p *packet) first() byte {
	if p.kind == kindPublish {
		return byte(p.kind)<<4 | bit(p.dup, 8) | p.qos<<1 | bit(p.retain, 1)
	}
	return byte(p.kind)<<4 | bit(p.kind == kindSubscribe, 2) // reserved [MQTT-3.8.1-1]
}

// frame completes a packet that begins at start with five bytes for the fixed header: it
// writes the remaining length and removes the unused bytes of a short one.
func frame(dst []byte, start int) []byte {
	n := binary.PutUvarint(dst[start+1:start+maxHeader], uint64(len(dst)-start-maxHeader))
	end := start + 1 + n
	return dst[:end+copy(dst[end:], dst[start+maxHeader:])]
}

// remainingLength parses a remaining length of n bytes; n is 0 if b is too short. A fifth
// byte is malformed (§2.2.3).
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

// scanner splits a packet's body into its fields. It records if the body is too short, so
// that callers check once at the end.
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

// field reads bytes that are preceded by their length (§1.5.3).
func (s *scanner) field() []byte { return s.take(int(s.uint16())) }

func (s *scanner) rest() []byte { return s.take(len(s.b)) }

// end checks that the length of the body was exactly that of its contents.
func (s *scanner) end(k kind) error {
	if s.short {
		return k.malformed("ends too early")
	}
	if len(s.b) > 0 {
		return k.malformed("has %d extra bytes", len(s.b))
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

// badText returns why b is not a valid UTF-8 encoded string (§1.5.3), or "" if it is.
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

// badTopic returns why b is not a valid topic name, or "" if it is.
func badTopic(b []byte) string {
	switch {
	case len(b) == 0:
		return "empty [MQTT-4.7.3-1]"
	case bytes.ContainsAny(b, "+#"):
		return "contains a wildcard [MQTT-3.3.2-2]"
	}
	return badText(b)
}

// badFilter returns why b is not a valid topic filter, or "" if it is.
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
