package mqttv3

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	mochi "github.com/mochi-mqtt/server/v2/packets"
)

// golden is a packet of testdata/packets.txt.
type golden struct {
	name string
	wire []byte
}

func readGolden(t testing.TB) []golden {
	t.Helper()
	text, err := os.ReadFile("testdata/packets.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []golden
	for block := range strings.SplitSeq(strings.TrimSpace(string(text)), "\n\n") {
		name, digits, _ := strings.Cut(block, "\n")
		if strings.HasPrefix(name, "#") {
			continue
		}
		wire, err := hex.DecodeString(strings.Join(strings.Fields(digits), ""))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		all = append(all, golden{name, wire})
	}
	return all
}

// same compares packets. Empty and absent fields are equal, since flags distinguish them on
// the wire.
func same(a, b packet) string {
	return cmp.Diff(a, b, cmp.AllowUnexported(packet{}), cmpopts.EquateEmpty())
}

// split removes the fixed header.
func split(t testing.TB, wire []byte) (first byte, body []byte) {
	t.Helper()
	length, n, err := remainingLength(wire[1:])
	if err != nil || n == 0 || length != len(wire)-1-n {
		t.Fatalf("remaining length of % x: %d in %d bytes, %v", wire, length, n, err)
	}
	return wire[0], wire[1+n:]
}

var ab = []byte("a/b")

// goldenPackets contains the packets of testdata/packets.txt in parsed form, in the same
// order.
var goldenPackets = []packet{
	{kind: kindConnect, clientID: []byte("gw1"), keepAlive: 10, hasUserName: true, userName: []byte("me"), hasPassword: true, password: []byte("pwd")},
	{kind: kindConnect, clientID: []byte("gw1"), keepAlive: 60, hasUserName: true, userName: []byte("s/gw")},
	{kind: kindConnect},
	{kind: kindConnack},
	{kind: kindConnack}, // the session-present flag is not parsed
	{kind: kindConnack, returnCode: 5},
	{kind: kindPublish, topic: ab, id: 10, qos: 1, dup: true, retain: true, payload: []byte("hi")},
	{kind: kindPublish, topic: ab},
	{kind: kindPublish, topic: []byte("A\U0002A6D4")},
	{kind: kindPuback, id: 10},
	{kind: kindSubscribe, id: 10, filter: ab, qos: 1},
	{kind: kindSuback, id: 10},
	{kind: kindSuback, id: 10, returnCode: 0x80},
	{kind: kindPingreq},
	{kind: kindPingresp},
	{kind: kindDisconnect},
}

// fromServer and fromClient report which side sends a packet.
func fromServer(k kind) bool {
	return slices.Contains([]kind{kindConnack, kindPublish, kindPuback, kindSuback, kindPingresp}, k)
}

func fromClient(k kind) bool {
	return slices.Contains([]kind{kindConnect, kindPublish, kindPuback, kindSubscribe, kindPingreq, kindDisconnect}, k)
}

func TestGoldenPackets(t *testing.T) {
	files := readGolden(t)
	if len(files) != len(goldenPackets) {
		t.Fatalf("%d packets in testdata, %d in the table", len(files), len(goldenPackets))
	}
	seen := map[kind]bool{}
	for i, want := range goldenPackets {
		seen[want.kind] = true
		t.Run(files[i].name, func(t *testing.T) {
			other, err := DecodeMochi(files[i].wire)
			if err != nil {
				t.Fatalf("another decoder: %v", err)
			}
			compareMochi(t, want, other)
			if fromServer(want.kind) {
				var got packet
				if err := got.parse(split(t, files[i].wire)); err != nil {
					t.Fatalf("parse: %v", err)
				}
				if diff := same(want, got); diff != "" {
					t.Errorf("parsed packet differs (-want +got):\n%s", diff)
				}
			}
			if fromClient(want.kind) {
				wire, err := want.append([]byte("before"))
				if err != nil {
					t.Fatalf("append: %v", err)
				}
				if want := append([]byte("before"), files[i].wire...); !bytes.Equal(wire, want) {
					t.Errorf("wrote % x\nwant  % x", wire, want)
				}
			}
		})
	}
	for k := range kind(16) {
		if (fromServer(k) || fromClient(k)) != seen[k] {
			t.Errorf("golden bytes for %s: %t", k, seen[k])
		}
	}
}

func TestAServerSendsNoPacketOfAClient(t *testing.T) {
	for _, g := range readGolden(t) {
		first, body := split(t, g.wire)
		var p packet
		var violation *ProtocolError
		if err := p.parse(first, body); !fromServer(kind(first>>4)) && !errors.As(err, &violation) {
			t.Errorf("%s: %v, want *ProtocolError", g.name, err)
		}
	}
}

func TestEveryTruncationIsMalformed(t *testing.T) {
	for _, g := range readGolden(t) {
		first, body := split(t, g.wire)
		if !fromServer(kind(first >> 4)) {
			continue
		}
		var whole packet
		if err := whole.parse(first, body); err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		for n := range len(body) {
			var p packet
			err := p.parse(first, body[:n])
			var violation *ProtocolError
			// A payload may end anywhere; the remaining bytes are then a complete packet
			// with a shorter payload.
			if err == nil && len(p.payload) >= len(whole.payload) {
				t.Errorf("%s: the first %d bytes of the body were accepted as the whole body", g.name, n)
			}
			if err != nil && !errors.As(err, &violation) {
				t.Errorf("%s: cut after %d: %T, want *ProtocolError", g.name, n, err)
			}
		}
		if whole.kind != kindPublish { // its payload extends to the end of the packet
			var p packet
			if err := p.parse(first, append(bytes.Clone(body), 0)); err == nil {
				t.Errorf("%s: an extra byte was accepted as part of it", g.name)
			}
		}
	}
}

func TestMalformedPackets(t *testing.T) {
	long := strings.Repeat("x", math.MaxUint16+1)
	for _, test := range []struct {
		says, wire string
	}{
		{"packet type 0 is reserved", "00 00"},
		{"packet type 15 is reserved", "f0 00"},
		{"CONNACK has no flags [MQTT-2.2.2-2]", "21 02 00 00"},
		{"SUBACK has no flags", "91 03 00 0a 01"},
		{"PINGRESP has no flags", "d8 00"},
		{"acknowledge flags other than session present", "20 02 02 00"},
		{"session present in a refusal [MQTT-3.2.2-4]", "20 02 01 05"},
		{"PUBLISH with QoS 2", "34 07 00 03 61 2f 62 00 0a"},
		{"PUBLISH with QoS 3 [MQTT-3.3.1-4]", "36 07 00 03 61 2f 62 00 0a"},
		{"PUBLISH with DUP and QoS 0 [MQTT-3.3.1-2]", "38 05 00 03 61 2f 62"},
		{"PUBLISH with packet identifier 0 [MQTT-2.3.1-1]", "32 07 00 03 61 2f 62 00 00"},
		{"PUBLISH without a topic [MQTT-4.7.3-1]", "30 02 00 00"},
		{"PUBLISH to a wildcard [MQTT-3.3.2-2]", "30 05 00 03 61 2f 23"},
		{"a topic that is not UTF-8 [MQTT-1.5.3-1]", "30 04 00 02 c3 28"},
		{"a topic with half of a surrogate pair [MQTT-1.5.3-1]", "30 05 00 03 ed a0 80"},
		{"a topic with U+0000 [MQTT-1.5.3-2]", "30 04 00 02 61 00"},
		{"PUBACK with packet identifier 0", "40 02 00 00"},
		{"SUBACK without a return code", "90 02 00 0a"},
	} {
		t.Run(test.says, func(t *testing.T) {
			wire, err := hex.DecodeString(strings.ReplaceAll(test.wire, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			var p packet
			var violation *ProtocolError
			if err := p.parse(wire[0], wire[2:]); !errors.As(err, &violation) {
				t.Fatalf("parsed % x: %v, want a *ProtocolError", wire, err)
			}
			if violation.Packet == "" || violation.Reason == "" {
				t.Errorf("empty error: %#v", violation)
			}
		})
	}
	for says, p := range map[string]packet{
		"a topic of 65,536 bytes":                       {kind: kindPublish, topic: []byte(long)},
		"a topic that begins with U+0000":               {kind: kindPublish, topic: []byte("\x00a")},
		"PUBLISH with QoS 2":                            {kind: kindPublish, topic: ab, qos: 2, id: 1},
		"a packet identifier with QoS 0 [MQTT-2.3.1-5]": {kind: kindPublish, topic: ab, id: 1},
		"no packet identifier with QoS 1":               {kind: kindPublish, topic: ab, qos: 1},
		"SUBSCRIBE without a packet identifier":         {kind: kindSubscribe, filter: ab},
		"SUBSCRIBE with QoS 2":                          {kind: kindSubscribe, id: 1, filter: ab, qos: 2},
		"SUBSCRIBE without a topic filter":              {kind: kindSubscribe, id: 1},
		"a topic filter of 65,536 bytes":                {kind: kindSubscribe, id: 1, filter: []byte(long)},
		"a topic filter that is not UTF-8":              {kind: kindSubscribe, id: 1, filter: []byte("\xff")},
		"# that is not last [MQTT-4.7.1-2]":             {kind: kindSubscribe, id: 1, filter: []byte("#/b")},
		"# that is not a whole level [MQTT-4.7.1-2]":    {kind: kindSubscribe, id: 1, filter: []byte("a/b#")},
		"a level that ends with + [MQTT-4.7.1-3]":       {kind: kindSubscribe, id: 1, filter: []byte("a+")},
		"a level that begins with + [MQTT-4.7.1-3]":     {kind: kindSubscribe, id: 1, filter: []byte("a/+b/c")},
		"a client identifier of 65,536 bytes":           {kind: kindConnect, clientID: []byte(long)},
		"a client identifier that is not UTF-8":         {kind: kindConnect, clientID: []byte("\xff")},
		"a user name of 65,536 bytes":                   {kind: kindConnect, hasUserName: true, userName: []byte(long)},
		"a password of 65,536 bytes":                    {kind: kindConnect, hasUserName: true, hasPassword: true, password: []byte(long)},
		"a password without a user name":                {kind: kindConnect, hasPassword: true, password: []byte("p")},
	} {
		wire, err := p.append([]byte("kept"))
		if err == nil || string(wire) != "kept" {
			t.Errorf("%s: %s was written, %d bytes, %v", says, p.kind, len(wire), err)
		}
	}
	most := []byte(long[1:])
	for says, p := range map[string]packet{
		"a topic of 65,535 bytes":                    {kind: kindPublish, topic: most},
		"a topic filter of 65,535 bytes":             {kind: kindSubscribe, id: 1, filter: most},
		"names of 65,535 bytes":                      {kind: kindConnect, clientID: most, hasUserName: true, userName: most, hasPassword: true, password: most},
		"# alone":                                    {kind: kindSubscribe, id: 1, filter: []byte("#")},
		"# as the last level":                        {kind: kindSubscribe, id: 1, filter: []byte("a/#")},
		"+ as the only, a middle and the last level": {kind: kindSubscribe, id: 1, filter: []byte("+/a/+/+")},
	} {
		wire, err := p.append(nil)
		if err != nil {
			t.Errorf("%s: %v", says, err)
			continue
		}
		other, err := DecodeMochi(wire)
		if err != nil {
			t.Errorf("%s: another decoder: %v", says, err)
		}
		compareMochi(t, p, other)
	}
}

func TestRemainingLength(t *testing.T) {
	for _, test := range []struct {
		wire    string
		length  int
		n       int
		invalid bool
	}{
		// Table 2.4 and the example of §2.2.3.
		{"00", 0, 1, false}, {"7f", 127, 1, false},
		{"8001", 128, 2, false}, {"c102", 321, 2, false}, {"ff7f", 16_383, 2, false},
		{"808001", 16_384, 3, false}, {"ffff7f", 2_097_151, 3, false},
		{"80808001", 2_097_152, 4, false}, {"ffffff7f", 268_435_455, 4, false},
		{"", 0, 0, false}, {"ff", 0, 0, false}, {"ffffff", 0, 0, false},
		{"ffffffff", 0, 4, true}, {"ffffffff7f", 0, 4, true},
		{"8000", 0, 2, false}, // longer than necessary, but not forbidden
	} {
		wire, _ := hex.DecodeString(test.wire)
		length, n, err := remainingLength(wire)
		if n != test.n || (err != nil) != test.invalid || err == nil && length != test.length {
			t.Errorf("% x: length %d in %d bytes, %v", wire, length, n, err)
		}
	}
}

// FuzzPacket checks that an independent decoder reads the same values from each packet of a
// server that is accepted, and that encoding the packet again gives the same bytes.
func FuzzPacket(f *testing.F) {
	for _, g := range readGolden(f) {
		first, body := split(f, g.wire)
		f.Add(first, body)
	}
	f.Fuzz(func(t *testing.T, first byte, body []byte) {
		var p packet
		if p.parse(first, body) != nil {
			return
		}
		wire := frame(append([]byte{first, 0, 0, 0, 0}, body...), 0)
		other, err := DecodeMochi(wire)
		if err != nil {
			t.Fatalf("accepted % x, another decoder says %v", wire, err)
		}
		compareMochi(t, p, other)
		again, err := p.append(nil)
		if !fromClient(p.kind) {
			again, err = encodeMochi(other)
		}
		if err != nil || !bytes.Equal(again, wire) {
			t.Fatalf("read  % x\nwrote % x, %v", wire, again, err)
		}
	})
}

// encodeMochi encodes a packet that only a server sends with mochi-mqtt's encoder.
func encodeMochi(pk mochi.Packet) ([]byte, error) {
	var b bytes.Buffer
	var err error
	switch pk.FixedHeader.Type {
	case mochi.Connack:
		err = pk.ConnackEncode(&b)
	case mochi.Suback:
		err = pk.SubackEncode(&b)
	case mochi.Pingresp:
		err = pk.PingrespEncode(&b)
	}
	return b.Bytes(), err
}

// DecodeMochi decodes a packet of MQTT 3.1.1 with mochi-mqtt's decoder.
func DecodeMochi(wire []byte) (pk mochi.Packet, err error) {
	pk.ProtocolVersion = 4
	if err := pk.FixedHeader.Decode(wire[0]); err != nil {
		return pk, err
	}
	r := bytes.NewReader(wire[1:])
	if pk.FixedHeader.Remaining, _, err = mochi.DecodeLength(r); err != nil {
		return pk, err
	}
	body := wire[len(wire)-r.Len():]
	valid := mochi.CodeSuccess
	switch pk.FixedHeader.Type {
	case mochi.Connect:
		if err = pk.ConnectDecode(body); err == nil {
			valid = pk.ConnectValidate()
			if valid == mochi.ErrProtocolViolationFlagNoPassword {
				valid = mochi.CodeSuccess // mochi rejects an empty password; the standard allows it
			}
		}
	case mochi.Connack:
		err = pk.ConnackDecode(body)
	case mochi.Publish:
		if err = pk.PublishDecode(body); err == nil {
			valid = pk.PublishValidate(0)
		}
	case mochi.Puback:
		err = pk.PubackDecode(body)
	case mochi.Subscribe:
		if err = pk.SubscribeDecode(body); err == nil {
			valid = pk.SubscribeValidate()
		}
	case mochi.Suback:
		err = pk.SubackDecode(body)
	case mochi.Pingreq:
		err = pk.PingreqDecode(body)
	case mochi.Pingresp:
		err = pk.PingrespDecode(body)
	case mochi.Disconnect:
		err = pk.DisconnectDecode(body)
	default:
		err = mochi.ErrMalformedPacket
	}
	if err == nil && valid != mochi.CodeSuccess {
		err = valid
	}
	return pk, err
}

// compareMochi checks that mochi decoded the same values.
func compareMochi(t testing.TB, p packet, other mochi.Packet) {
	t.Helper()
	got := packet{
		kind: kind(other.FixedHeader.Type), id: other.PacketID,
		dup: other.FixedHeader.Dup, retain: other.FixedHeader.Retain,
		topic: []byte(other.TopicName), payload: other.Payload,
	}
	switch p.kind {
	case kindConnack:
		got.returnCode = other.ReasonCode
	case kindPublish:
		got.qos = other.FixedHeader.Qos
	case kindSuback:
		if len(other.ReasonCodes) != 1 {
			t.Fatalf("%d return codes", len(other.ReasonCodes))
		}
		got.returnCode = other.ReasonCodes[0]
	case kindSubscribe:
		if len(other.Filters) != 1 {
			t.Fatalf("%d topic filters", len(other.Filters))
		}
		got.filter, got.qos = []byte(other.Filters[0].Filter), other.Filters[0].Qos
	case kindConnect:
		c := other.Connect
		got.clientID, got.keepAlive = []byte(c.ClientIdentifier), c.Keepalive
		got.hasUserName, got.userName, got.hasPassword, got.password = c.UsernameFlag, c.Username, c.PasswordFlag, c.Password
		if !c.Clean || c.WillFlag {
			t.Errorf("clean session %t, will %t", c.Clean, c.WillFlag)
		}
		if other.ProtocolVersion != 4 {
			t.Errorf("protocol level %d on the wire, want 4", other.ProtocolVersion)
		}
	}
	if diff := same(p, got); diff != "" {
		t.Errorf("the other decoder reads different values (-ours +theirs):\n%s", diff)
	}
}
