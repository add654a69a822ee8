package mqttv3

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
)

// unhex reads hexadecimal digits with blanks between them.
func unhex(t testing.TB, digits string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(digits, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// connected returns a transcoder after CONNECT and CONNACK, with these requests in flight:
// 1 a SUBSCRIBE of QoS 1, 3 a PUBLISH, 4 a SUBSCRIBE of QoS 0.
func connected() *transcoder {
	return &transcoder{phase: phaseConnected, requests: map[uint16]request{
		1: {kindSubscribe, 1}, 3: {kindPublish, 1}, 4: {kindSubscribe, 0},
	}}
}

func TestDown(t *testing.T) {
	for _, test := range []struct {
		says     string
		t        *transcoder
		v5, v311 string // v311 empty: rejected
	}{
		{"CONNECT loses its properties and gets level 4", &transcoder{},
			"10 1e 00 04 4d515454 05 c2 003c 08 11 00000001 21 0010 00 03 677731 00 01 75 00 01 70",
			"10 15 00 04 4d515454 04 c2 003c 00 03 677731 00 01 75 00 01 70"},
		{"CONNECT without clean start is refused", &transcoder{},
			"10 10 00 04 4d515454 05 00 003c 00 00 03 677731", ""},
		{"CONNECT with an extra byte is rejected", &transcoder{},
			"10 11 00 04 4d515454 05 02 003c 00 00 03 677731 00", ""},
		{"CONNECT with a will is refused", &transcoder{},
			"10 17 00 04 4d515454 05 06 003c 00 00 03 677731 00 0001 61 0001 62", ""},
		{"CONNECT with an authentication method is refused", &transcoder{},
			"10 14 00 04 4d515454 05 02 003c 04 15 0001 78 00 03 677731", ""},
		{"CONNECT of level 4 does not come from paho", &transcoder{},
			"10 0f 00 04 4d515454 04 02 003c 00 03 677731", ""},
		{"a second CONNECT is refused [MQTT-3.1.0-2]", connected(),
			"10 10 00 04 4d515454 05 02 003c 00 00 03 677731", ""},
		{"nothing is sent before CONNECT [MQTT-3.1.0-1]", &transcoder{}, "c0 00", ""},
		{"nothing is sent before CONNACK", &transcoder{phase: phaseConnecting}, "c0 00", ""},
		{"nothing follows a refusal", &transcoder{phase: phaseRefused}, "c0 00", ""},
		{"nothing follows DISCONNECT [MQTT-3.14.4-1]", &transcoder{phase: phaseDisconnected}, "40 04 000a 00 00", ""},
		{"PUBLISH of QoS 0 loses its property length", connected(), "30 08 0003 612f62 00 6869", "30 07 0003 612f62 6869"},
		{"PUBLISH of QoS 1 keeps its identifier", connected(), "32 0a 0003 612f62 0007 00 6869", "32 09 0003 612f62 0007 6869"},
		{"PUBLISH with a property is refused", connected(), "30 08 0003 612f62 02 0101", ""},
		{"PUBLISH with a topic alias instead of a topic is refused", connected(), "30 06 0000 03 23 0001", ""},
		{"PUBLISH of QoS 2 is refused", connected(), "34 08 0003 612f62 0007 00", ""},
		{"PUBLISH to a wildcard is refused [MQTT-3.3.2-2]", connected(), "30 06 0003 612f23 00", ""},
		{"PUBACK is reduced to its identifier", connected(), "40 04 000a 00 00", "40 02 000a"},
		{"PUBACK with only an identifier is unchanged", connected(), "40 02 000a", "40 02 000a"},
		{"PUBACK with an extra byte is rejected", connected(), "40 05 000a 00 00 00", ""},
		{"DISCONNECT with an extra byte is rejected", connected(), "e0 03 00 00 00", ""},
		{"PUBACK with a reason is refused", connected(), "40 04 000a 80 00", ""},
		{"SUBSCRIBE with an empty topic filter is refused [MQTT-4.7.3-1]", connected(), "82 06 000a 00 0000 01", ""},
		{"SUBSCRIBE keeps filter and QoS", connected(), "82 09 000a 00 0003 612f62 01", "82 08 000a 0003 612f62 01"},
		{"SUBSCRIBE with options of version 5 is refused", connected(), "82 09 000a 00 0003 612f62 05", ""},
		{"SUBSCRIBE of QoS 2 is refused", connected(), "82 09 000a 00 0003 612f62 02", ""},
		{"SUBSCRIBE with a subscription identifier is refused", connected(), "82 0b 000a 02 0b01 0003 612f62 01", ""},
		{"SUBSCRIBE of two topic filters is refused", connected(), "82 0f 000a 00 0003 612f62 01 0003 632f64 01", ""},
		{"SUBSCRIBE without a topic filter is refused [MQTT-3.8.3-3]", connected(), "82 03 000a 00", ""},
		{"UNSUBSCRIBE is refused", connected(), "a2 08 000a 00 0003 612f62", ""},
		{"PINGREQ is unchanged", connected(), "c0 00", "c0 00"},
		{"DISCONNECT loses its body", connected(), "e0 02 00 00", "e0 00"},
		{"DISCONNECT without a body is unchanged", connected(), "e0 00", "e0 00"},
		{"DISCONNECT with a reason is refused", connected(), "e0 02 04 00", ""},
		{"AUTH is refused", connected(), "f0 00", ""},
		{"PUBREC is refused", connected(), "50 02 000a", ""},
		{"a body that is too short is refused", connected(), "32 06 0003 612f62 00", ""},
	} {
		t.Run(test.says, func(t *testing.T) {
			first, body := split(t, unhex(t, test.v5))
			got, err := test.t.down([]byte{}, first, body)
			if test.v311 == "" {
				if err == nil || len(got) != 0 {
					t.Fatalf("wrote % x, %v; want a refusal", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := unhex(t, test.v311); !bytes.Equal(got, want) {
				t.Errorf("wrote % x\nwant  % x", got, want)
			}
		})
	}
}

func TestUp(t *testing.T) {
	connecting := func() *transcoder { return &transcoder{phase: phaseConnecting} }
	for _, test := range []struct {
		says     string
		t        *transcoder
		v311, v5 string // v5 empty: a protocol violation
	}{
		{"CONNACK 0 gets the limits: QoS 1 at most, no retained messages, no identifiers, no shared subscriptions", connecting(),
			"20 02 00 00", "20 0b 00 00 08 24 01 25 00 29 00 2a 00"},
		{"a session that the server kept is hidden", connecting(), "20 02 01 00", "20 0b 00 00 08 24 01 25 00 29 00 2a 00"},
		{"CONNACK 1 is unsupported protocol version", connecting(), "20 02 00 01", "20 23 00 84 20 1f 001d" + hex.EncodeToString([]byte("unacceptable protocol version"))},
		{"CONNACK 5 is not authorized", connecting(), "20 02 00 05", "20 14 00 87 11 1f 000e" + hex.EncodeToString([]byte("not authorized"))},
		{"CONNACK 6, the first reserved code, is an unspecified error", connecting(), "20 02 00 06", "20 1a 00 80 17 1f 0014" + hex.EncodeToString([]byte("reserved return code"))},
		{"CONNACK with an undefined code is an unspecified error", connecting(), "20 02 00 80", "20 1a 00 80 17 1f 0014" + hex.EncodeToString([]byte("reserved return code"))},
		{"a second CONNACK is a violation [MQTT-3.2.0-1]", connected(), "20 02 00 00", ""},
		{"CONNACK before CONNECT is a violation", &transcoder{}, "20 02 00 00", ""},
		{"anything before CONNACK is a violation [MQTT-3.2.0-1]", connecting(), "d0 00", ""},
		{"PUBLISH of QoS 0 gets a property length", connected(), "30 07 0003 612f62 6869", "30 08 0003 612f62 00 6869"},
		{"PUBLISH of QoS 1 gets a property length too", connected(), "3b 09 0003 612f62 000a 6869", "3b 0a 0003 612f62 000a 00 6869"},
		{"PUBLISH of QoS 2 was not requested", connected(), "34 07 0003 612f62 000a", ""},
		{"PUBACK of a PUBLISH is unchanged", connected(), "40 02 0003", "40 02 0003"},
		{"an unsolicited PUBACK is passed to paho, which ignores it", connected(), "40 02 0063", "40 02 0063"},
		{"PUBACK of a SUBSCRIBE is a violation", connected(), "40 02 0001", ""},
		{"SUBACK gets a property length", connected(), "90 03 0001 01", "90 04 0001 00 01"},
		{"SUBACK may grant less", connected(), "90 03 0001 00", "90 04 0001 00 00"},
		{"SUBACK may refuse", connected(), "90 03 0004 80", "90 04 0004 00 80"},
		{"SUBACK may not grant more [MQTT-3.8.4-6]", connected(), "90 03 0004 01", ""},
		{"SUBACK may not grant QoS 2", connected(), "90 03 0001 02", ""},
		{"SUBACK with a reserved return code is a violation [MQTT-3.9.3-2]", connected(), "90 03 0001 03", ""},
		{"the return code below failure is reserved too", connected(), "90 03 0001 7f", ""},
		{"SUBACK with an extra code is a violation [MQTT-3.8.4-5]", connected(), "90 04 0001 01 01", ""},
		{"SUBACK with a missing code is a violation", connected(), "90 02 0004", ""},
		{"an unsolicited SUBACK is a violation", connected(), "90 03 0063 01", ""},
		{"SUBACK of a PUBLISH is a violation", connected(), "90 03 0003 01", ""},
		{"UNSUBACK belongs to UNSUBSCRIBE", connected(), "b0 02 0001", ""},
		{"PINGRESP is unchanged", connected(), "d0 00", "d0 00"},
		{"PUBREC belongs to QoS 2", connected(), "50 02 0003", ""},
		{"PUBREL belongs to QoS 2", connected(), "62 02 0003", ""},
		{"PUBCOMP belongs to QoS 2", connected(), "70 02 0003", ""},
		{"a server sends no CONNECT", connected(), "10 0c 00 04 4d515454 04 02 0000 0000", ""},
		{"a server sends no SUBSCRIBE", connected(), "82 08 000a 0003 612f62 01", ""},
		{"a server sends no UNSUBSCRIBE", connected(), "a2 07 000a 0003 612f62", ""},
		{"a server sends no PINGREQ", connected(), "c0 00", ""},
		{"a server of 3.1.1 sends no DISCONNECT", connected(), "e0 00", ""},
		{"nor AUTH", connected(), "f0 00", ""},
	} {
		t.Run(test.says, func(t *testing.T) {
			first, body := split(t, unhex(t, test.v311))
			got, err := test.t.up([]byte{}, first, body)
			var violation *ProtocolError
			if test.v5 == "" {
				if !errors.As(err, &violation) || len(got) != 0 {
					t.Fatalf("gave paho % x, %v; want a *ProtocolError", got, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want := unhex(t, test.v5)
			if !bytes.Equal(got, want) {
				t.Errorf("gave paho % x\nwant      % x", got, want)
			}
			if _, err := packets.ReadPacket(bytes.NewReader(got)); err != nil {
				t.Errorf("paho does not read % x: %v", got, err)
			}
		})
	}
}

func TestAnAnswerEndsItsRequest(t *testing.T) {
	tr := connected()
	if _, err := tr.up(nil, 0x90, []byte{0, 1, 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := tr.up(nil, 0x90, []byte{0, 1, 1}); err == nil {
		t.Error("the same SUBACK was accepted twice")
	}
}

// FuzzUp checks that a packet of a server is either rejected or read by paho as the same
// packet.
func FuzzUp(f *testing.F) {
	for _, g := range readGolden(f) {
		f.Add(g.wire, true)
		f.Add(g.wire, false)
	}
	f.Add(unhex(f, "20020000 30070003612f626869 9003000101 d000 40020003"), false)
	f.Fuzz(func(t *testing.T, wire []byte, wasConnected bool) {
		c := NewConn(recorded{in: bytes.NewReader(wire)}, 1<<16, time.Minute)
		c.t = transcoder{phase: phaseConnecting}
		if wasConnected {
			c.t = *connected()
		}
		server := bytes.NewReader(wire)
		for {
			read, err := packets.ReadPacket(c)
			if err != nil {
				if c.Err() == nil {
					t.Fatalf("paho refused what was made of % x: %v", wire, err)
				}
				return
			}
			compareV5(t, nextPacket(t, server), read)
		}
	})
}

// nextPacket reads a packet of 3.1.1 without applying the rules of a session.
func nextPacket(t *testing.T, r *bytes.Reader) (p packet) {
	t.Helper()
	first, _ := r.ReadByte()
	var digits []byte
	for {
		b, err := r.ReadByte()
		if err != nil {
			t.Fatal("paho read a packet that the server did not send")
		}
		digits = append(digits, b)
		if length, n, err := remainingLength(digits); n > 0 {
			body := make([]byte, length)
			if _, short := io.ReadFull(r, body); err != nil || short != nil {
				t.Fatal("paho read a packet that the server did not send")
			}
			if err := p.parse(first, body); err != nil {
				t.Fatal(err)
			}
			return p
		}
	}
}

// compareV5 checks that paho read the values of the server's packet.
func compareV5(t *testing.T, p packet, read *packets.ControlPacket) {
	t.Helper()
	if byte(p.kind) != read.Type {
		t.Fatalf("%s became %s", p.kind, read.PacketType())
	}
	ok := true
	switch v5 := read.Content.(type) {
	case *packets.Connack:
		ok = (p.returnCode == 0) == (v5.ReasonCode == 0) && (v5.ReasonCode == 0 || v5.ReasonCode >= 0x80)
	case *packets.Publish:
		ok = v5.Topic == string(p.topic) && bytes.Equal(v5.Payload, p.payload) && v5.QoS == p.qos &&
			v5.Duplicate == p.dup && v5.Retain == p.retain && v5.PacketID == p.id
	case *packets.Puback:
		ok = v5.PacketID == p.id && v5.ReasonCode == 0
	case *packets.Suback:
		ok = v5.PacketID == p.id && bytes.Equal(v5.Reasons, []byte{p.returnCode})
	case *packets.Pingresp:
	default:
		ok = false
	}
	if !ok {
		t.Errorf("paho read %+v from %+v", read.Content, p)
	}
}

// FuzzDown checks that a packet of paho is either rejected, with nothing on the wire, or
// sent with one write that mochi-mqtt's decoder of 3.1.1 reads as the same packet.
func FuzzDown(f *testing.F) {
	f.Add(byte(1), "gw1", "s/registrations/gw1", "token", uint16(60), byte(0), []byte(nil))
	f.Add(byte(3), "a/b", "", "", uint16(0), byte(0), []byte("hi"))
	f.Add(byte(3), "a/b", "", "", uint16(9), byte(1), []byte("hi"))
	f.Add(byte(4), "", "", "", uint16(9), byte(0), []byte(nil))
	f.Add(byte(8), "$dps/registrations/res/#", "", "", uint16(9), byte(1), []byte(nil))
	f.Add(byte(12), "", "", "", uint16(0), byte(0), []byte(nil))
	f.Add(byte(14), "", "", "", uint16(0), byte(0), []byte(nil))
	f.Fuzz(func(t *testing.T, which byte, a, b, c string, number uint16, options byte, payload []byte) {
		if max(len(a), len(b), len(c)) > 1<<16-1 {
			return // paho truncates these; the client rejects them before
		}
		p, write := fromPaho(kind(which&15), a, b, c, number, options, payload)
		if write == nil {
			return
		}
		rec := recorded{out: &[][]byte{}}
		conn := NewConn(rec, defaultMaxPacket, time.Minute)
		if p.kind != kindConnect {
			conn.t = *connected()
		}
		if _, err := write.WriteTo(conn); err != nil {
			if len(*rec.out) > 0 {
				t.Fatalf("refused with %v, but wrote % x", err, *rec.out)
			}
			if p.check() == nil && p.qos < 2 && len(a)+len(b)+len(c)+len(payload) < 1<<10 && options < 2 {
				t.Fatalf("rejected %+v, which 3.1.1 can express: %v", p, err)
			}
			return
		}
		if len(*rec.out) != 1 {
			t.Fatalf("%d writes for one packet", len(*rec.out))
		}
		other, err := DecodeMochi((*rec.out)[0])
		if err != nil {
			t.Fatalf("wrote % x, another decoder says %v", (*rec.out)[0], err)
		}
		compareMochi(t, p, other)
	})
}

// fromPaho returns a packet as paho would write it, and its 3.1.1 form.
func fromPaho(k kind, a, b, c string, number uint16, options byte, payload []byte) (packet, io.WriterTo) {
	p := packet{kind: k}
	none := &packets.Properties{}
	switch k {
	case kindConnect:
		p.clientID, p.userName, p.password = []byte(a), []byte(b), []byte(c)
		p.hasUserName, p.hasPassword, p.keepAlive = b != "", c != "", number
		return p, &packets.Connect{ProtocolName: "MQTT", ProtocolVersion: 5, Properties: none, CleanStart: true,
			ClientID: a, Username: b, UsernameFlag: b != "", Password: []byte(c), PasswordFlag: c != "", KeepAlive: number}
	case kindPublish:
		p.topic, p.payload, p.qos, p.dup, p.retain = []byte(a), payload, options&3, options&4 != 0, options&8 != 0
		if p.qos > 0 {
			p.id = number
		}
		return p, &packets.Publish{Topic: a, Payload: payload, QoS: p.qos, Duplicate: p.dup, Retain: p.retain, PacketID: number, Properties: none}
	case kindPuback:
		p.id = number
		return p, &packets.Puback{PacketID: number, Properties: none}
	case kindSubscribe:
		p.id, p.filter, p.qos = number, []byte(a), options&3
		return p, &packets.Subscribe{PacketID: number, Properties: none, Subscriptions: []packets.SubOptions{{Topic: a, QoS: p.qos, NoLocal: options&4 != 0}}}
	case kindPingreq:
		return p, &packets.Pingreq{}
	case kindDisconnect:
		return p, &packets.Disconnect{Properties: none}
	}
	return p, nil
}

// recorded is a connection that reads from in and keeps each write.
type recorded struct {
	net.Conn
	in  io.Reader
	out *[][]byte
}

func (r recorded) Read(b []byte) (int, error) { return r.in.Read(b) }

func (r recorded) Write(b []byte) (int, error) {
	*r.out = append(*r.out, bytes.Clone(b))
	return len(b), nil
}

func (recorded) Close() error                     { return nil }
func (recorded) SetReadDeadline(time.Time) error  { return nil }
func (recorded) SetWriteDeadline(time.Time) error { return nil }
