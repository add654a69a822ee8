package mqttv3

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	mochi "github.com/mochi-mqtt/server/v2/packets"
)

// golden is one packet of testdata/packets.txt.
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

// same compares packets; an empty field and an absent one are the same on the
// wire, where a flag tells them apart.
func same(a, b packet) string {
	return cmp.Diff(a, b, cmp.AllowUnexported(packet{}, will{}, subscription{}), cmpopts.EquateEmpty())
}

// split takes the fixed header off.
func split(t testing.TB, wire []byte) (first byte, body []byte) {
	t.Helper()
	length, n, err := remainingLength(wire[1:])
	if err != nil || n == 0 || length != len(wire)-1-n {
		t.Fatalf("remaining length of % x: %d in %d bytes, %v", wire, length, n, err)
	}
	return wire[0], wire[1+n:]
}

var ab, cd = []byte("a/b"), []byte("c/d")

// goldenPackets says what the packets of testdata/packets.txt mean, in the same order.
var goldenPackets = []packet{
	{kind: kindConnect, clientID: []byte("gw1"), keepAlive: 10, cleanSession: true,
		will:        &will{topic: ab, payload: []byte("!"), qos: 1},
		hasUserName: true, userName: []byte("me"), hasPassword: true, password: []byte("pwd")},
	{kind: kindConnect, clientID: []byte("gw1"), keepAlive: 60, cleanSession: true, hasUserName: true, userName: []byte("s/gw")},
	{kind: kindConnect, cleanSession: true},
	{kind: kindConnack},
	{kind: kindConnack, sessionPresent: true},
	{kind: kindConnack, returnCode: 5},
	{kind: kindPublish, topic: ab, id: 10, qos: 1, dup: true, retain: true, payload: []byte("hi")},
	{kind: kindPublish, topic: ab},
	{kind: kindPublish, topic: []byte("A\U0002A6D4")},
	{kind: kindPublish, topic: ab, id: 10, qos: 2},
	{kind: kindPuback, id: 10},
	{kind: kindPubrec, id: 10},
	{kind: kindPubrel, id: 10},
	{kind: kindPubcomp, id: 10},
	{kind: kindSubscribe, id: 10, filters: []subscription{{ab, 1}, {cd, 2}}},
	{kind: kindSuback, id: 10, codes: []byte{0, 2, 0x80}},
	{kind: kindUnsubscribe, id: 10, filters: []subscription{{filter: ab}, {filter: cd}}},
	{kind: kindUnsuback, id: 10},
	{kind: kindPingreq},
	{kind: kindPingresp},
	{kind: kindDisconnect},
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
			var got packet
			if err := got.parse(split(t, files[i].wire)); err != nil {
				t.Fatalf("parse: %v", err)
			}
			if diff := same(want, got); diff != "" {
				t.Errorf("parsed packet differs (-want +got):\n%s", diff)
			}
			wire, err := want.append([]byte("before"))
			if err != nil {
				t.Fatalf("append: %v", err)
			}
			if want := append([]byte("before"), files[i].wire...); !bytes.Equal(wire, want) {
				t.Errorf("wrote % x\nwant  % x", wire, want)
			}
		})
	}
	for k := kindConnect; k <= kindDisconnect; k++ {
		if !seen[k] {
			t.Errorf("no golden bytes for %s", k)
		}
	}
}

func TestEveryTruncationIsMalformed(t *testing.T) {
	for _, g := range readGolden(t) {
		first, body := split(t, g.wire)
		var whole packet
		if err := whole.parse(first, body); err != nil {
			t.Fatalf("%s: %v", g.name, err)
		}
		for n := range len(body) {
			var p packet
			err := p.parse(first, body[:n])
			var violation *ProtocolError
			// A payload, and a list of return codes, may end anywhere after what
			// is fixed; what is left is then a whole packet that says less.
			if err == nil && len(p.payload) >= len(whole.payload) && len(p.codes) >= len(whole.codes) && len(p.filters) >= len(whole.filters) {
				t.Errorf("%s: the first %d bytes of the body were taken for the whole", g.name, n)
			}
			if err != nil && !errors.As(err, &violation) {
				t.Errorf("%s: cut after %d: %T, want *ProtocolError", g.name, n, err)
			}
		}
		if whole.kind != kindPublish && whole.kind != kindSuback { // these two end where the packet does
			var p packet
			if err := p.parse(first, append(bytes.Clone(body), 0)); err == nil {
				t.Errorf("%s: a byte too many was taken for part of it", g.name)
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
		{"PUBREL without its flags 2 [MQTT-3.6.1-1]", "60 02 00 0a"},
		{"SUBSCRIBE without its flags 2 [MQTT-3.8.1-1]", "80 08 00 0a 00 03 61 2f 62 01"},
		{"UNSUBSCRIBE without its flags 2 [MQTT-3.10.1-1]", "a0 07 00 0a 00 03 61 2f 62"},
		{"SUBACK has no flags", "91 03 00 0a 01"},
		{"PINGRESP has no flags", "d8 00"},
		{"acknowledge flags other than session present", "20 02 02 00"},
		{"session present in a refusal [MQTT-3.2.2-4]", "20 02 01 05"},
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
		{"SUBACK with a reserved return code [MQTT-3.9.3-2]", "90 03 00 0a 03"},
		{"SUBSCRIBE without a topic filter [MQTT-3.8.3-3]", "82 02 00 0a"},
		{"SUBSCRIBE with the reserved bits of the QoS byte [MQTT-3.8.3-4]", "82 08 00 0a 00 03 61 2f 62 04"},
		{"UNSUBSCRIBE without a topic filter [MQTT-3.10.3-2]", "a2 02 00 0a"},
		{"a topic filter whose # is not last [MQTT-4.7.1-2]", "82 08 00 0a 00 03 23 2f 62 01"},
		{"a topic filter whose + is not a whole level [MQTT-4.7.1-3]", "82 07 00 0a 00 02 61 2b 01"},
		{"CONNECT of another protocol [MQTT-3.1.2-1]", "10 0c 00 04 4d 51 54 58 04 02 00 00 00 00"},
		{"CONNECT of level 5 [MQTT-3.1.2-2]", "10 0c 00 04 4d 51 54 54 05 02 00 00 00 00"},
		{"CONNECT with the reserved flag [MQTT-3.1.2-3]", "10 0c 00 04 4d 51 54 54 04 03 00 00 00 00"},
		{"CONNECT with a will QoS but no will [MQTT-3.1.2-13]", "10 0c 00 04 4d 51 54 54 04 0a 00 00 00 00"},
		{"CONNECT with will retain but no will [MQTT-3.1.2-15]", "10 0c 00 04 4d 51 54 54 04 22 00 00 00 00"},
		{"CONNECT with will QoS 3 [MQTT-3.1.2-14]", "10 12 00 04 4d 51 54 54 04 1e 00 00 00 00 00 01 61 00 01 21"},
		{"CONNECT with a password but no user name [MQTT-3.1.2-22]", "10 0f 00 04 4d 51 54 54 04 42 00 00 00 00 00 01 70"},
		{"CONNECT without client identifier and clean session [MQTT-3.1.3-7]", "10 0c 00 04 4d 51 54 54 04 00 00 00 00 00"},
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
	for _, p := range []packet{
		{kind: kindPublish, topic: []byte(long)},
		{kind: kindPublish, topic: []byte("a"), id: 1},
		{kind: kindSubscribe, id: 1, filters: []subscription{{filter: []byte(long)}}},
		{kind: kindConnect, clientID: []byte(long)},
		{kind: kindConnect, clientID: []byte("a"), hasUserName: true, userName: []byte(long)},
		{kind: kindConnect, clientID: []byte("a"), hasUserName: true, hasPassword: true, password: []byte(long)},
	} {
		wire, err := p.append([]byte("kept"))
		if err == nil || string(wire) != "kept" {
			t.Errorf("%s that no receiver would take was written, %d bytes, %v", p.kind, len(wire), err)
		}
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
		{"8000", 0, 2, false}, // longer than need be, but nothing forbids it
	} {
		wire, _ := hex.DecodeString(test.wire)
		length, n, err := remainingLength(wire)
		if n != test.n || (err != nil) != test.invalid || err == nil && length != test.length {
			t.Errorf("% x: length %d in %d bytes, %v", wire, length, n, err)
		}
	}
}

// FuzzPacket: whatever is accepted is written back byte for byte, and a decoder
// of other hands reads the same from it.
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
		wire, err := p.append(nil)
		if err != nil {
			t.Fatalf("accepted % x % x, but cannot write it: %v", first, body, err)
		}
		gotFirst, gotBody := split(t, wire)
		if gotFirst != first || !bytes.Equal(gotBody, body) {
			t.Fatalf("read % x % x\nwrote % x % x", first, body, gotFirst, gotBody)
		}
		other, err := DecodeMochi(wire)
		if err != nil {
			t.Fatalf("accepted % x, another decoder says %v", wire, err)
		}
		compareMochi(t, p, other)
	})
}

// DecodeMochi reads one packet of MQTT 3.1.1 with mochi-mqtt's decoder.
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
			if valid == mochi.ErrProtocolViolationFlagNoPassword || valid == mochi.ErrProtocolViolationWillFlagNoPayload {
				valid = mochi.CodeSuccess // mochi wants a password and a will message not to be empty; the standard does not
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
	case mochi.Pubrec:
		err = pk.PubrecDecode(body)
	case mochi.Pubrel:
		err = pk.PubrelDecode(body)
	case mochi.Pubcomp:
		err = pk.PubcompDecode(body)
	case mochi.Subscribe:
		if err = pk.SubscribeDecode(body); err == nil {
			valid = pk.SubscribeValidate()
		}
	case mochi.Suback:
		err = pk.SubackDecode(body)
	case mochi.Unsubscribe:
		if err = pk.UnsubscribeDecode(body); err == nil {
			valid = pk.UnsubscribeValidate()
		}
	case mochi.Unsuback:
		err = pk.UnsubackDecode(body)
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

// compareMochi checks that mochi read from the wire what the packet says.
func compareMochi(t testing.TB, p packet, other mochi.Packet) {
	t.Helper()
	got := packet{
		kind: kind(other.FixedHeader.Type), id: other.PacketID,
		dup: other.FixedHeader.Dup, retain: other.FixedHeader.Retain,
		sessionPresent: other.SessionPresent, returnCode: p.returnCode,
		topic: []byte(other.TopicName), payload: other.Payload,
	}
	switch p.kind {
	case kindConnack:
		got.returnCode = other.ReasonCode
	case kindPublish:
		got.qos = other.FixedHeader.Qos
	case kindSuback:
		got.codes = other.ReasonCodes
	case kindSubscribe, kindUnsubscribe:
		for _, f := range other.Filters {
			got.filters = append(got.filters, subscription{[]byte(f.Filter), f.Qos})
		}
	case kindConnect:
		c := other.Connect
		got.clientID, got.keepAlive, got.cleanSession = []byte(c.ClientIdentifier), c.Keepalive, c.Clean
		got.hasUserName, got.userName, got.hasPassword, got.password = c.UsernameFlag, c.Username, c.PasswordFlag, c.Password
		if c.WillFlag {
			got.will = &will{topic: []byte(c.WillTopic), payload: c.WillPayload, qos: c.WillQos, retain: c.WillRetain}
		}
		if other.ProtocolVersion != 4 {
			t.Errorf("protocol level %d on the wire, want 4", other.ProtocolVersion)
		}
	}
	if diff := same(p, got); diff != "" {
		t.Errorf("another decoder reads something else (-ours +theirs):\n%s", diff)
	}
}
