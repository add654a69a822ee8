package simulator_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// A conformance case tests one statement: of MQTT 3.1.1, by its number in Appendix B,
// of RFC 6455, by its section, or of the service ("DPS"). It sends bytes that were
// written by hand.
type conformance struct {
	clause string
	name   string
	seen   string // the fault in mutants_test.go with which the case was seen to fail
	run    func(t *testing.T)
}

// patience is how long a case waits for the server, in virtual time.
const patience = time.Hour

// open connects, as far as "", "connect" or "subscribe".
func open(t *testing.T, s *simulator.Server, after string) *client {
	t.Helper()
	c := dial(t, s)
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	switch after {
	case "connect":
		c.connect(s, device)
	case "subscribe":
		c.connect(s, device).subscribe()
	}
	return c
}

type packetsOf func(*simulator.Server) []byte

func these(b ...byte) packetsOf { return func(*simulator.Server) []byte { return b } }

// refused: the server sends only the answer, closes the connection, and logs the
// reason.
func refused(after string, send packetsOf, says string, answer ...byte) func(*testing.T) {
	return func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := open(t, s, after)
		begin := time.Now()
		c.send(send(s)...)
		c.expect("the answer before the end", answer...)
		c.expectEnd("the connection is closed")
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("closed after %v", d)
		}
		synctest.Wait()
		if v := violations(s); !strings.Contains(v, says) {
			t.Errorf("violation %q, want one that says %q", v, says)
		}
	}
}

// answered: the server answers with these bytes, continues, and logs no violation of
// the client.
func answered(after string, send packetsOf, answer ...byte) func(*testing.T) {
	return func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := open(t, s, after)
		c.send(send(s)...)
		c.expect("the answer", answer...)
		c.lives()
		if v := violations(s); v != "" {
			t.Errorf("violation %q", v)
		}
	}
}

// lives checks that the server answers a ping before anything else.
func (c *client) lives() {
	c.t.Helper()
	c.send(0xc0, 0)
	c.expect("the connection lives", 0xd0, 0)
}

// session is a case with its own code.
func session(after string, f func(t *testing.T, s *simulator.Server, c *client)) func(*testing.T) {
	return scripted(nil, after, f)
}

func scripted(sc *simulator.Scenario, after string, f func(t *testing.T, s *simulator.Server, c *client)) func(*testing.T) {
	return func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: sc})
		f(t, s, open(t, s, after))
	}
}

// changed is a valid CONNECT with one byte of its variable header changed;
// 0 is the first letter of MQTT.
func changed(at int, to byte) packetsOf {
	return func(s *simulator.Server) []byte {
		b := goodConnect(s, device)
		b[bytes.Index(b, []byte("MQTT"))+at] = to
		return b
	}
}

func connectAs(flags byte, fields func(s *simulator.Server) []string) packetsOf {
	return func(s *simulator.Server) []byte { return connectPacket(flags, 0, fields(s)...) }
}

// calling is a CONNECT with a different client identifier and user name; {} is the valid one.
func calling(clientID, user string) packetsOf {
	return connectAs(0xc2, func(s *simulator.Server) []string {
		return []string{strings.ReplaceAll(clientID, "{}", device), strings.ReplaceAll(user, "{}", userNameOf(s, device)), goodToken(s, device)}
	})
}

// first changes the first byte of a packet.
func first(b byte, p []byte) []byte { return append([]byte{b}, p[1:]...) }

const (
	surrogate = "\xed\xa0\x80"
	overlong  = "\xc0\x80"
	bom       = "\xef\xbb\xbf"
	goodTopic = registerPath + "1"
	filter    = "$dps/registrations/res/#"
)

func subscribing(filter string, options ...byte) []byte {
	return packet(0x82, []byte{0, 1}, text(filter), options)
}

func unsubscribing(id byte, filters ...string) []byte {
	all := [][]byte{{0, id}}
	for _, f := range filters {
		all = append(all, text(f))
	}
	return packet(0xa2, all...)
}

func mqttCases() []conformance {
	good := packetsOf(func(s *simulator.Server) []byte { return goodConnect(s, device) })
	cases := []conformance{
		// 1.5.3 UTF-8 encoded strings.
		{"MQTT-1.5.3-1", "a surrogate in the client identifier", "any text is UTF-8", refused("", calling(surrogate, "{}"), "client identifier not valid")},
		{"MQTT-1.5.3-1", "a surrogate in the user name", "any user name is UTF-8", refused("", calling("{}", surrogate), "UTF-8")},
		{"MQTT-1.5.3-1", "a surrogate in a topic", "any text is UTF-8", refused("subscribe", these(publishPacket(0x30, goodTopic+surrogate, 0, "")...), "utf-8")},
		{"MQTT-1.5.3-1", "a surrogate in a filter", "any text is UTF-8", refused("connect", these(subscribing(filter+surrogate, 1)...), "malformed packet: topic")},
		{"MQTT-1.5.3-1", "an overlong form in the client identifier", "any text is UTF-8", refused("", calling(overlong, "{}"), "client identifier not valid")},
		{"MQTT-1.5.3-1", "a byte that UTF-8 has not in a topic", "any text is UTF-8", refused("subscribe", these(publishPacket(0x30, goodTopic+"\xff", 0, "")...), "utf-8")},
		{"MQTT-1.5.3-1", "a code point above U+10FFFF in the user name", "any user name is UTF-8", refused("", calling("{}", "\xf4\x90\x80\x80"), "UTF-8")},
		{"MQTT-1.5.3-2", "U+0000 in the client identifier", "any text is UTF-8", refused("", calling("a\x00b", "{}"), "client identifier not valid")},
		{"MQTT-1.5.3-2", "U+0000 in the user name", "any user name is UTF-8", refused("", calling("{}", "a\x00b"), "UTF-8")},
		{"MQTT-1.5.3-2", "U+0000 in a topic", "any text is UTF-8", refused("subscribe", these(publishPacket(0x30, goodTopic+"\x00", 0, "")...), "utf-8")},
		{"MQTT-1.5.3-2", "U+0000 in a filter", "any text is UTF-8", refused("connect", these(subscribing(filter+"\x00", 1)...), "malformed packet: topic")},
		{"MQTT-1.5.3-3", "U+FEFF is kept in the $rid that is echoed", "U+FEFF is stripped from a $rid", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			if p := c.register(bom + "x"); !strings.Contains(p.topic, "?$rid="+bom+"x&") {
				t.Errorf("%q", p.topic)
			}
		})},
		{"MQTT-1.5.3-3", "U+FEFF ahead of the user name belongs to the ID scope", "U+FEFF is stripped from the user name", refused("", calling("{}", bom+"{}"), "", 0x20, 2, 0, 3)},

		// 2.2 The fixed header.
		{"MQTT-2.2.2-2", "flag 0 of CONNECT", "reserved flags pass", refused("", func(s *simulator.Server) []byte { return first(0x11, goodConnect(s, device)) }, "flags")},
		{"MQTT-2.2.2-2", "flag 3 of CONNECT", "reserved flags pass", refused("", func(s *simulator.Server) []byte { return first(0x18, goodConnect(s, device)) }, "flags")},
		{"MQTT-2.2.2-2", "flag 1 of PUBACK", "reserved flags pass", refused("subscribe", these(0x42, 2, 0, 2), "flags")},
		{"MQTT-2.2.2-2", "flag 0 of PINGREQ", "reserved flags pass", refused("connect", these(0xc1, 0), "flags")},
		{"MQTT-2.2.2-2", "flag 2 of PINGREQ", "reserved flags pass", refused("connect", these(0xc4, 0), "flags")},
		{"MQTT-3.14.1-1", "flag 0 of DISCONNECT", "reserved flags pass", refused("connect", these(0xe1, 0), "flags")},
		{"MQTT-3.14.1-1", "flag 3 of DISCONNECT", "reserved flags pass", refused("connect", these(0xe8, 0), "flags")},
		{"MQTT-3.8.1-1", "SUBSCRIBE without flag 1", "flags of SUBSCRIBE pass", refused("connect", these(first(0x80, subscribePacket(1, 1))...), "flags")},
		{"MQTT-3.8.1-1", "SUBSCRIBE with flag 0", "flags of SUBSCRIBE pass", refused("connect", these(first(0x83, subscribePacket(1, 1))...), "flags")},
		{"MQTT-3.8.1-1", "SUBSCRIBE with flag 3", "flags of SUBSCRIBE pass", refused("connect", these(first(0x8a, subscribePacket(1, 1))...), "flags")},
		{"MQTT-3.10.1-1", "UNSUBSCRIBE without flag 1", "flags of SUBSCRIBE pass", refused("connect", these(first(0xa0, unsubscribing(1, filter))...), "flags")},
		{"MQTT-3.10.1-1", "UNSUBSCRIBE with flag 2", "flags of SUBSCRIBE pass", refused("connect", these(first(0xa6, unsubscribing(1, filter))...), "flags")},
		{"MQTT-3.6.1-1", "PUBREL without flag 1", "flags of SUBSCRIBE pass", refused("connect", these(0x60, 2, 0, 1), "flags")},
		{"MQTT-2.2.3", "a remaining length of five bytes", "a remaining length has no end", refused("connect", these(0x30, 0x80, 0x80, 0x80, 0x80, 0x01), "more than four bytes")},
		{"MQTT-2.2.3", "a remaining length in a longer form than needed is understood", "a longer form of a length is refused", answered("connect", these(0xc0, 0x80, 0x00), 0xd0, 0)},
		{"DPS limits", "a packet of 4 MiB is refused by its header", "a packet of any size is awaited", refused("connect", these(0x30, 0x80, 0x80, 0x80, 0x02), "the packet is too large")},
		{"MQTT-2.2.1", "packet type 0", "any packet type passes", refused("connect", these(0x00, 0), "the server does not accept this packet type")},
		{"MQTT-2.2.1", "packet type 15", "any packet type passes", refused("connect", these(0xf0, 0), "the server does not accept this packet type")},
		{"MQTT-2.2.1", "CONNACK from a client", "any packet type passes", refused("connect", these(0x20, 2, 0, 0), "the server does not accept this packet type")},
		{"MQTT-2.2.1", "SUBACK from a client", "any packet type passes", refused("connect", these(0x90, 3, 0, 1, 1), "the server does not accept this packet type")},
		{"MQTT-2.2.1", "UNSUBACK from a client", "any packet type passes", refused("connect", these(0xb0, 2, 0, 1), "the server does not accept this packet type")},
		{"MQTT-2.2.1", "PINGRESP from a client", "any packet type passes", refused("connect", these(0xd0, 0), "the server does not accept this packet type")},
		{"DPS QoS", "PUBREC, which only QoS 2 has", "any packet type passes", refused("subscribe", these(0x50, 2, 0, 2), "the server does not accept this packet type")},
		{"DPS QoS", "PUBREL, which only QoS 2 has", "any packet type passes", refused("subscribe", these(0x62, 2, 0, 2), "the server does not accept this packet type")},
		{"DPS QoS", "PUBCOMP, which only QoS 2 has", "any packet type passes", refused("subscribe", these(0x70, 2, 0, 2), "the server does not accept this packet type")},
		{"MQTT-4.2", "a packet that comes one byte at a time", "a packet comes in one piece", session("", func(_ *testing.T, s *simulator.Server, c *client) {
			for _, b := range goodConnect(s, device) {
				c.send(b)
			}
			c.expect("CONNACK", 0x20, 2, 0, 0)
		})},
		{"MQTT-4.2", "three packets in one piece are answered in their order", "data after a packet is lost", answered("connect",
			these(slices.Concat([]byte{0xc0, 0}, subscribePacket(7, 1), []byte{0xc0, 0})...), 0xd0, 0, 0x90, 3, 0, 7, 1, 0xd0, 0)},
		{"MQTT-4.8.0", "the end of the connection inside a packet differs from one between packets", "an end is an end", session("connect", func(t *testing.T, s *simulator.Server, c *client) {
			c.send(0x82, 28)
			c.conn.Close()
			synctest.Wait()
			if log := s.Log(); !strings.Contains(log[len(log)-1].Detail, "unexpected EOF") {
				t.Errorf("%+v", log[len(log)-1])
			}
		})},

		// 2.3 Packet identifiers.
		{"MQTT-2.3.1-1", "PUBLISH at QoS 1 with packet identifier 0", "PUBLISH may have packet identifier 0", refused("subscribe", these(publishPacket(0x32, goodTopic, 0, "")...), "missing packet id")},
		{"MQTT-2.3.1-1", "SUBSCRIBE with packet identifier 0", "SUBSCRIBE may have packet identifier 0", refused("connect", these(subscribePacket(0, 1)...), "missing packet id")},
		{"MQTT-2.3.1-1", "UNSUBSCRIBE with packet identifier 0", "UNSUBSCRIBE may have packet identifier 0", refused("connect", these(unsubscribing(0, filter)...), "missing packet id")},
		{"MQTT-2.3.1-1", "PUBACK with packet identifier 0", "PUBACK may have packet identifier 0", refused("subscribe", these(0x40, 2, 0, 0), "MQTT-2.3.1-1")},
		{"MQTT-2.3.1-2", "a packet identifier that still awaits its PUBACK, in a PUBLISH", "a packet identifier may be used twice", held(publishPacket(0x32, goodTopic, 5, ""), publishPacket(0x32, goodTopic, 5, ""))},
		{"MQTT-2.3.1-2", "a packet identifier that still awaits its PUBACK, in a SUBSCRIBE", "a packet identifier may be used twice", held(publishPacket(0x32, goodTopic, 5, ""), subscribePacket(5, 1))},
		{"MQTT-2.3.1-2", "a packet identifier that still awaits its PUBACK, in an UNSUBSCRIBE", "a packet identifier may be used twice", held(publishPacket(0x32, goodTopic, 5, ""), unsubscribing(5, filter))},
		{"MQTT-2.3.1-2", "a packet identifier is free again once it was acknowledged", "a packet identifier is never free again", session("subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			for range 3 {
				c.send(publishPacket(0x32, goodTopic, 5, "")...)
				c.expect("PUBACK", 0x40, 2, 0, 5)
				c.puback(c.expectPublish("the reply").id)
			}
		})},
		{"MQTT-2.3.1-4", "two replies under way have two packet identifiers", "every reply has packet identifier 2", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			if a, b := c.register("1").id, c.register("2").id; a == b || a == 0 || b == 0 {
				t.Errorf("%d and %d", a, b)
			}
		})},
		{"MQTT-2.3.1-4", "a reply takes the number of one that was acknowledged", "a reply's number is never free again", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			a := c.register("1").id
			c.puback(a)
			if b := c.register("2").id; b != a {
				t.Errorf("%d after %d", b, a)
			}
		})},
		{"MQTT-2.3.1-5", "a PUBLISH at QoS 0 begins with its payload after the topic", "a packet identifier is read at QoS 0", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			c.send(publishPacket(0x30, goodTopic, 0, "{}")...)
			if p := c.expectPublish("the reply"); !strings.Contains(p.topic, "/202/") {
				t.Errorf("%+v", p)
			}
		})},

		// 3.1 CONNECT.
		{"MQTT-3.1.0-1", "PINGREQ ahead of CONNECT", "the first packet may be any", refused("", these(0xc0, 0), "MQTT-3.1.0-1")},
		{"MQTT-3.1.0-1", "SUBSCRIBE ahead of CONNECT", "the first packet may be any", refused("", these(subscribePacket(1, 1)...), "MQTT-3.1.0-1")},
		{"MQTT-3.1.0-1", "PUBLISH ahead of CONNECT", "the first packet may be any", refused("", these(publishPacket(0x30, goodTopic, 0, "")...), "MQTT-3.1.0-1")},
		{"MQTT-3.1.0-1", "DISCONNECT ahead of CONNECT", "the first packet may be any", refused("", these(0xe0, 0), "MQTT-3.1.0-1")},
		{"MQTT-3.1.0-2", "a second CONNECT", "CONNECT may come again", refused("connect", good, "MQTT-3.1.0-2")},
		{"MQTT-3.1.0-2", "a second CONNECT right behind the first", "CONNECT may come again", refused("", func(s *simulator.Server) []byte {
			return slices.Concat(goodConnect(s, device), goodConnect(s, device))
		}, "MQTT-3.1.0-2", 0x20, 2, 0, 0)},
		{"MQTT-3.1.2-1", "the protocol name MQTX", "any protocol name will do", refused("", changed(3, 'X'), "protocol name")},
		{"MQTT-3.1.2-1", "the protocol name mQTT", "any protocol name will do", refused("", changed(0, 'm'), "protocol name")},
		{"MQTT-3.1.2-1", "a protocol name of five letters", "any protocol name will do", refused("", these(packet(0x10, text("MQTTX"), []byte{4, 2, 0, 0}, text("x"))...), "protocol name")},
		{"MQTT-3.1.2-2", "protocol level 5 gets CONNACK 1", "any protocol level will do", refused("", changed(4, 5), "protocol level", 0x20, 2, 0, 1)},
		{"MQTT-3.1.2-2", "protocol level 3 gets CONNACK 1", "any protocol level will do", refused("", changed(4, 3), "protocol level", 0x20, 2, 0, 1)},
		{"MQTT-3.1.2-2", "protocol level 0x84, a bridge of another broker, gets CONNACK 1", "any protocol level will do", refused("", changed(4, 0x84), "protocol level", 0x20, 2, 0, 1)},
		{"MQTT-3.1.2-2", "MQTT 3.1 under its own name gets CONNACK 1", "any protocol level will do", refused("", these(packet(0x10, text("MQIsdp"), []byte{3, 2, 0, 0}, text("x"))...), "protocol level", 0x20, 2, 0, 1)},
		{"MQTT-3.1.2-3", "the reserved flag of CONNECT", "bytes need not be those that were understood", refused("", changed(5, 0xc3), "reserved")},
		{"MQTT-3.1.2-6", "a session ends with its connection, clean session or not: the subscription is gone", "a session begins subscribed", session("", func(_ *testing.T, s *simulator.Server, c *client) {
			unclean := connectAs(0xc0, func(s *simulator.Server) []string {
				return []string{device, userNameOf(s, device), goodToken(s, device)}
			})(s)
			c.send(unclean...)
			c.expect("CONNACK", 0x20, 2, 0, 0)
			c.subscribe().send(0xe0, 0)
			c.expectEnd("the end")
			again := open(c.t, s, "")
			again.send(unclean...)
			again.expect("no session is present", 0x20, 2, 0, 0)
			again.send(publishPacket(0x30, goodTopic, 0, "")...)
			again.expectEnd("there is no subscription")
		})},
		{"MQTT-3.1.2-11", "a will topic and message without the will flag", "bytes need not be those that were understood", refused("", connectAs(0xc2, func(s *simulator.Server) []string {
			return []string{device, userNameOf(s, device), goodToken(s, device), "topic", "gone"}
		}), "trailing bytes")},
		{"MQTT-3.1.2-13", "a will QoS without the will flag", "will QoS and retain need no will", refused("", changed(5, 0xca), "MQTT-3.1.2-13")},
		{"MQTT-3.1.2-14", "a will of QoS 3", "a will is taken", refused("", will(0xde, "topic"), "will")},
		{"MQTT-3.1.2-15", "will retain without the will flag", "will QoS and retain need no will", refused("", changed(5, 0xe2), "MQTT-3.1.2-15")},
		{"DPS", "a will", "a will is taken", refused("", will(0xc6, "topic"), "does not accept a will")},
		{"MQTT-3.1.3-10", "a will topic that is not UTF-8", "any text is UTF-8", refused("", will(0xc6, surrogate), "malformed packet: will topic")},
		{"MQTT-3.1.2-18", "a user name without its flag", "bytes need not be those that were understood", refused("", connectAs(0x02, func(s *simulator.Server) []string {
			return []string{device, userNameOf(s, device)}
		}), "trailing bytes")},
		{"MQTT-3.1.2-19", "a user-name flag without a user name", "a user name may be missing", refused("", connectAs(0x82, func(*simulator.Server) []string { return []string{device} }), "username flag set but no value")},
		{"MQTT-3.1.2-20", "a password without its flag", "bytes need not be those that were understood", refused("", connectAs(0x82, func(s *simulator.Server) []string {
			return []string{device, userNameOf(s, device), goodToken(s, device)}
		}), "trailing bytes")},
		{"MQTT-3.1.2-21", "a password flag without a password", "a password may be missing", refused("", connectAs(0xc2, func(s *simulator.Server) []string {
			return []string{device, userNameOf(s, device)}
		}), "malformed packet: password")},
		{"MQTT-3.1.2-22", "a password flag without a user-name flag", "a password needs no user name", refused("", connectAs(0x42, func(s *simulator.Server) []string {
			return []string{device, goodToken(s, device)}
		}), "MQTT-3.1.2-22")},
		{"MQTT-3.1.2-24", "a client is given up after 1.5 keep-alive intervals", "silence lasts for ever", kept(60, func(c *client) { c.expectEnd("given up") }, 90*time.Second)},
		{"MQTT-3.1.2-24", "a client is not given up before 1.5 keep-alive intervals", "a client is given up after one interval", kept(60, func(c *client) { time.Sleep(89 * time.Second); c.lives() }, 89*time.Second)},
		{"MQTT-3.1.2-24", "every packet counts, not the ping alone", "only a ping counts", kept(60, func(c *client) {
			time.Sleep(80 * time.Second)
			c.subscribe()
			time.Sleep(80 * time.Second)
			c.lives()
		}, 160*time.Second)},
		{"MQTT-3.1.2-24", "half a packet does not count", "a byte counts", kept(60, func(c *client) {
			time.Sleep(80 * time.Second)
			c.send(0xc0)
			c.expectEnd("given up")
		}, 90*time.Second)},
		{"MQTT-3.1.2-24", "keep-alive 0 is for ever", "keep-alive 0 is an interval", kept(0, func(c *client) { time.Sleep(50 * time.Minute); c.lives() }, 50*time.Minute)},
		{"MQTT-3.1.2-24", "the longest keep-alive is 65,535 s", "an interval has 15 bits", session("", func(t *testing.T, s *simulator.Server, c *client) {
			_ = c.conn.SetReadDeadline(time.Time{})
			c.send(connectPacket(0xc2, 0xffff, device, userNameOf(s, device), goodToken(s, device))...)
			c.expect("CONNACK", 0x20, 2, 0, 0)
			begin := time.Now()
			c.expectEnd("given up")
			if d := time.Since(begin); d != 65535*time.Second*3/2 {
				t.Error(d)
			}
		})},
		{"MQTT-3.1.4, non-normative", "a client that says no CONNECT is given up after a minute", "CONNECT may take its time", session("", func(t *testing.T, _ *simulator.Server, c *client) {
			begin := time.Now()
			c.expectEnd("given up")
			if d := time.Since(begin); d != time.Minute {
				t.Error(d)
			}
		})},
		{"MQTT-3.1.3-5", "a client identifier of 23 letters and digits", "a registration ID has 22 characters at most", identified("0123456789abcdefghijklm")},
		{"MQTT-3.1.3-5", "a client identifier of one character", "a registration ID has two characters at least", identified("7")},
		{"DPS identifiers", "a client identifier of 128 characters", "a registration ID has 22 characters at most", identified(strings.Repeat("x", 128))},
		{"DPS identifiers", "a client identifier with every sign that is allowed", "a registration ID has no colon", identified("a-b.c_d:e")},
		{"MQTT-3.1.3-8", "no client identifier and clean session 0 get CONNACK 2", "no client identifier needs no clean session", refused("", connectAs(0xc0, func(s *simulator.Server) []string {
			return []string{"", userNameOf(s, device), goodToken(s, device)}
		}), "MQTT-3.1.3-8", 0x20, 2, 0, 2)},
		{"DPS CONNACK", "no client identifier with clean session is not the registration ID", "the client identifier may be any", refused("", calling("", "{}"), "", 0x20, 2, 0, 5)},
		{"DPS CONNACK", "a client identifier that is not the registration ID", "the client identifier may be any", refused("", calling("another", "{}"), "", 0x20, 2, 0, 5)},
		{"DPS CONNACK", "a client identifier in other letters than the registration ID", "the client identifier may be any", refused("", calling(strings.ToUpper(device), "{}"), "", 0x20, 2, 0, 5)},
		{"DPS CONNACK", "a user name of another form", "a user name may have more parts", refused("", calling("{}", "{}/x"), "", 0x20, 2, 0, 5)},
		{"MQTT-3.1.4-1", "a CONNECT that is cut is closed without a CONNACK", "a cut CONNECT gets CONNACK 2", refused("", these(0x10, 6, 0, 4, 'M', 'Q', 'T', 'T'), "truncated")},
		{"MQTT-3.1.4-1", "a CONNECT with a byte behind it is closed without a CONNACK", "bytes need not be those that were understood", refused("", func(s *simulator.Server) []byte {
			return packet(0x10, goodConnect(s, device)[3:], []byte{0})
		}, "trailing bytes")},
		{"MQTT-3.1.4-2", "a second connection takes the client identifier over", "no connection is taken over", session("subscribe", func(t *testing.T, s *simulator.Server, c *client) {
			second := open(t, s, "subscribe")
			begin := time.Now()
			c.expectEnd("the first one is closed")
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("after %v", d)
			}
			second.lives()
		})},
		{"MQTT-3.1.4-2", "a third takes it over from the second, after the first has gone", "the end of an old connection removes the new one", session("connect", func(t *testing.T, s *simulator.Server, c *client) {
			second := open(t, s, "connect")
			c.expectEnd("the first one is closed")
			c.conn.Close()
			time.Sleep(time.Minute)
			third := open(t, s, "connect")
			begin := time.Now()
			second.expectEnd("the second one is closed")
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("after %v", d)
			}
			third.lives()
		})},
		{"MQTT-3.1.4-2", "a connection that is refused takes nothing over", "a refused client takes over", session("connect", func(t *testing.T, s *simulator.Server, c *client) {
			thief := open(t, s, "")
			thief.send(connectPacket(0x82, 0, device, userNameOf(s, device))...)
			thief.expect("refused", 0x20, 2, 0, 5)
			thief.expectEnd("closed")
			c.lives()
		})},
		{"MQTT-3.1.4-4", "a good CONNECT gets CONNACK 0", "every CONNACK is 5", answered("", good, 0x20, 2, 0, 0)},
		{"MQTT-3.1.4-5", "what follows a CONNECT that is refused is not looked at", "a refused client stays", refused("", func(s *simulator.Server) []byte {
			return slices.Concat(calling("{}", "0neX/registrations/"+device+"/api-version=2019-03-31")(s), subscribePacket(1, 1), []byte{0xc0, 0})
		}, "", 0x20, 2, 0, 3)},
		{"MQTT-3.1.4, non-normative", "a client need not wait for the CONNACK", "a client must wait for the CONNACK", scripted(&simulator.Scenario{Rules: []simulator.Rule{{On: "connect", Delay: time.Second}}}, "", func(_ *testing.T, s *simulator.Server, c *client) {
			c.send(slices.Concat(goodConnect(s, device), subscribePacket(1, 1), []byte{0xc0, 0})...)
			c.expect("all in their order", 0x20, 2, 0, 0, 0x90, 3, 0, 1, 1, 0xd0, 0)
		})},
		{"DPS limits", "no more than 64 packets before the CONNACK", "any number of packets may wait", scripted(&simulator.Scenario{Rules: []simulator.Rule{{On: "connect", Delay: 30 * time.Minute}}}, "", func(t *testing.T, s *simulator.Server, c *client) {
			c.send(goodConnect(s, device)...)
			c.send(bytes.Repeat([]byte{0xc0, 0}, 65)...)
			c.expectEnd("too many")
			if v := violations(s); !strings.Contains(v, "too many packets") {
				t.Error(v)
			}
		})},

		// 3.2 CONNACK.
		{"MQTT-3.2.0-1", "the CONNACK is the first packet, after the CONNECT and not before", "a packet precedes the CONNACK", session("", func(_ *testing.T, s *simulator.Server, c *client) {
			time.Sleep(30 * time.Second)
			c.send(goodConnect(s, device)...)
			c.expect("CONNACK", 0x20, 2, 0, 0)
		})},
		{"MQTT-3.2.2-1", "clean session 1: no session is present", "a session is always present", answered("", good, 0x20, 2, 0, 0)},
		{"MQTT-3.2.2-3", "clean session 0: no session is present, since none is kept", "a session is always present", answered("", connectAs(0xc0, func(s *simulator.Server) []string {
			return []string{device, userNameOf(s, device), goodToken(s, device)}
		}), 0x20, 2, 0, 0)},
		{"MQTT-3.2.2-4", "a refusal says that no session is present", "a session is always present", refused("", calling("another", "{}"), "", 0x20, 2, 0, 5)},
		{"MQTT-3.2.2-5", "after a refusal the connection is closed", "a refused client stays", refused("", calling("another", "{}"), "", 0x20, 2, 0, 5)},

		// 3.3 PUBLISH, 3.4 PUBACK.
		{"MQTT-3.3.1-2", "DUP at QoS 0", "DUP may be set at QoS 0", refused("subscribe", these(publishPacket(0x38, goodTopic, 0, "")...), "dup true with no qos")},
		{"MQTT-3.3.1-3", "a reply has no DUP flag, even if the request had", "every reply has the DUP flag", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			c.send(publishPacket(0x3a, goodTopic, 5, "")...)
			c.expect("PUBACK", 0x40, 2, 0, 5)
			if p := c.expectPublish("the reply"); p.flags&0x08 != 0 {
				t.Errorf("%+v", p)
			}
		})},
		{"MQTT-3.3.1-4", "PUBLISH at QoS 3", "QoS 3 passes", refused("subscribe", these(publishPacket(0x36, goodTopic, 1, "")...), "qos out of range")},
		{"MQTT-3.3.1-9", "a reply has no RETAIN flag", "every reply has the RETAIN flag", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			if p := c.register("1"); p.flags&0x01 != 0 {
				t.Errorf("%+v", p)
			}
		})},
		{"MQTT-3.3.1-8", "a subscription brings nothing that was retained", "a reply comes with the SUBACK", answered("connect", these(subscribePacket(1, 1)...), 0x90, 3, 0, 1, 1)},
		{"DPS QoS", "PUBLISH at QoS 2", "QoS 2 passes", refused("subscribe", these(publishPacket(0x34, goodTopic, 1, "")...), "QoS 2")},
		{"DPS retain", "PUBLISH with RETAIN", "RETAIN passes", refused("subscribe", these(publishPacket(0x31, goodTopic, 0, "")...), "does not retain messages")},
		{"MQTT-3.3.2-1", "a topic longer than its packet", "a text may be longer than its packet", refused("subscribe", these(0x30, 3, 0, 9, 'a'), "malformed packet: topic")},
		{"MQTT-3.3.2-2", "a topic with +", "a topic may have a wildcard", refused("subscribe", these(publishPacket(0x30, goodTopic+"+", 0, "")...), "wildcard")},
		{"MQTT-3.3.2-2", "a topic with #", "a topic may have a wildcard", refused("subscribe", these(publishPacket(0x30, goodTopic+"#", 0, "")...), "wildcard")},
		{"MQTT-3.3.2-3", "the topic of a reply matches the filter", "a reply has another topic", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			if p := c.register("1"); !strings.HasPrefix(p.topic, "$dps/registrations/res/") {
				t.Error(p.topic)
			}
		})},
		{"MQTT-3.3.4-1", "PUBLISH at QoS 1 gets a PUBACK", "no PUBACK is sent", session("subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(publishPacket(0x32, goodTopic, 1, "")...)
			c.expect("PUBACK", 0x40, 2, 0, 1)
		})},
		{"MQTT-3.3.4-1", "PUBLISH at QoS 0 gets none", "every PUBLISH gets a PUBACK", session("subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			c.register("1")
		})},
		{"MQTT-2.3.1-6", "the PUBACK has the packet identifier of the PUBLISH", "every PUBACK is for 1", session("subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			for _, id := range []uint16{2, 0x1234, 0xffff} {
				c.send(publishPacket(0x32, goodTopic, id, "")...)
				c.expect("PUBACK", 0x40, 2, byte(id>>8), byte(id))
				c.puback(c.expectPublish("the reply").id)
			}
		})},
		{"DPS order", "the PUBACK goes ahead of the reply", "the reply goes ahead of the PUBACK", session("subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(publishPacket(0x32, goodTopic, 9, "")...)
			c.expect("PUBACK", 0x40, 2, 0, 9)
			c.expectPublish("the reply")
		})},
		{"MQTT-4.6.0-2", "PUBACKs come in the order of the PUBLISHes", "events of the same time come in reverse order", scripted(&simulator.Scenario{Rules: []simulator.Rule{{On: "register", Delay: time.Second}}}, "subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			for _, id := range []uint16{5, 6, 7} {
				c.send(publishPacket(0x32, goodTopic, id, "")...)
			}
			for _, id := range []byte{5, 6, 7} {
				c.expect("PUBACK", 0x40, 2, 0, id)
				c.expectPublish("the reply")
			}
		})},
		{"MQTT-4.3.2-2", "a PUBLISH with DUP and a packet identifier that was acknowledged is a new one", "a PUBLISH with DUP is passed over", session("subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			for _, flags := range []byte{0x32, 0x3a, 0x3a} {
				c.send(publishPacket(flags, goodTopic, 5, "")...)
				c.expect("PUBACK", 0x40, 2, 0, 5)
				c.puback(c.expectPublish("the reply").id)
			}
		})},
		{"MQTT-3.3.5-1", "a reply comes at the QoS that was granted: 0", "every reply has QoS 1", session("connect", func(t *testing.T, _ *simulator.Server, c *client) {
			c.send(subscribePacket(1, 0)...)
			c.expect("SUBACK", 0x90, 3, 0, 1, 0)
			if p := c.register("1"); p.flags != 0 {
				t.Errorf("%+v", p)
			}
		})},
		{"MQTT-3.3.5-1", "a reply comes at the QoS that was granted: 1", "every reply has QoS 0", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			if p := c.register("1"); p.flags != 0x02 {
				t.Errorf("%+v", p)
			}
		})},
		{"MQTT-3.3.3", "a PUBLISH may have no payload", "a body is needed", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			if p := c.register("1"); !strings.Contains(p.topic, "/202/") {
				t.Errorf("%+v", p)
			}
		})},
		{"DPS limits", "a message of 96 KB", "a message has 95 KB at most", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			c.send(publishPacket(0x30, goodTopic, 0, strings.Repeat(" ", 96<<10))...)
			if p := c.expectPublish("the reply"); !strings.Contains(p.topic, "/202/") {
				t.Errorf("%+v", p)
			}
		})},
		{"DPS limits", "a message of one byte more", "a message has 97 KB at most", refused("subscribe", these(publishPacket(0x30, goodTopic, 0, strings.Repeat(" ", 96<<10+1))...), "96 KB")},
		{"MQTT-3.3.5-2", "PUBLISH to another topic", "any topic is a request", refused("subscribe", these(publishPacket(0x30, "devices/x/messages/events/", 0, "")...), "the topic is unknown to the service")},
		{"MQTT-3.3.5-2", "PUBLISH to the topic of replies", "any topic is a request", refused("subscribe", these(publishPacket(0x30, "$dps/registrations/res/200/?$rid=1", 0, "")...), "the topic is unknown to the service")},
		{"MQTT-3.3.5-2", "PUBLISH without the slash ahead of the question mark", "any topic is a request", refused("subscribe", these(publishPacket(0x30, "$dps/registrations/PUT/iotdps-register?$rid=1", 0, "")...), "the topic is unknown to the service")},
		{"MQTT-4.7.3-1", "PUBLISH to an empty topic", "any topic is a request", refused("subscribe", these(publishPacket(0x30, "", 0, "")...), "the topic is unknown to the service")},
		{"MQTT-4.7.3-4", "PUBLISH to a topic in other letters", "any topic is a request", refused("subscribe", these(publishPacket(0x30, strings.ToLower(goodTopic), 0, "")...), "the topic is unknown to the service")},
		{"DPS topics", "a request without $rid", "a request needs no $rid", refused("subscribe", these(publishPacket(0x30, pollTopic("", "x")[:len(pollTopic("", ""))-len("$rid=&operationId=")]+"operationId=x", 0, "")...), "no $rid")},
		{"DPS topics", "a request with $rid twice", "a parameter may be repeated", refused("subscribe", these(publishPacket(0x30, goodTopic+"&$rid=2", 0, "")...), "repeated")},
		{"DPS topics", "a poll without operationId", "a poll needs no operationId", refused("subscribe", these(publishPacket(0x30, "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1", 0, "")...), "no operationId")},
		{"DPS order", "PUBLISH without a subscription", "PUBLISH needs no subscription", refused("connect", these(publishPacket(0x30, goodTopic, 0, "")...), "there is no subscription")},
		{"DPS order", "PUBLISH in one piece with SUBSCRIBE is answered after the SUBACK", "no SUBACK is sent", session("connect", func(t *testing.T, _ *simulator.Server, c *client) {
			c.send(slices.Concat(subscribePacket(1, 1), publishPacket(0x30, goodTopic, 0, ""))...)
			c.expect("SUBACK", 0x90, 3, 0, 1, 1)
			if p := c.expectPublish("the reply"); p.topic != "$dps/registrations/res/202/?$rid=1&retry-after=3" {
				t.Errorf("%+v", p)
			}
		})},
		{"DPS order", "PUBLISH waits for a SUBACK that is delayed", "PUBLISH must wait for the SUBACK", scripted(&simulator.Scenario{Rules: []simulator.Rule{{On: "subscribe", Delay: time.Minute}}}, "connect", func(t *testing.T, _ *simulator.Server, c *client) {
			c.send(slices.Concat(subscribePacket(1, 1), publishPacket(0x32, goodTopic, 2, ""), []byte{0xc0, 0})...)
			c.expect("SUBACK, then PUBACK", 0x90, 3, 0, 1, 1, 0x40, 2, 0, 2)
			c.expectPublish("the reply")
			c.expect("PINGRESP", 0xd0, 0)
		})},
		{"MQTT-3.4", "a PUBACK without a PUBLISH is ignored", "a PUBACK must be for something", session("subscribe", func(_ *testing.T, _ *simulator.Server, c *client) {
			c.puback(9)
			c.lives()
		})},
		{"MQTT-3.4", "a second PUBACK for a reply is ignored", "a PUBACK must be for something", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			p := c.register("1")
			c.puback(p.id)
			c.puback(p.id)
			if p := c.register("2"); p.id != 2 {
				t.Errorf("%+v", p)
			}
		})},
		{"MQTT-3.4", "PUBACK with a byte behind it", "bytes need not be those that were understood", refused("subscribe", these(0x40, 3, 0, 2, 0), "trailing bytes")},
		{"MQTT-3.4", "PUBACK without a packet identifier", "a packet identifier may be cut", refused("subscribe", these(0x40, 1, 0), "malformed packet: packet identifier")},
		{"MQTT-4.3.2-2", "DISCONNECT while a reply is not acknowledged is noted", "a PUBACK is not missed", session("subscribe", func(t *testing.T, s *simulator.Server, c *client) {
			c.register("1")
			c.send(0xe0, 0)
			c.expectEnd("closed")
			if v := violations(s); !strings.Contains(v, "MQTT-4.3.2-2") {
				t.Error(v)
			}
		})},
		{"MQTT-4.4.0-1", "a reply that was not acknowledged is not sent again, on this connection or the next", "a reply is sent twice", session("subscribe", func(t *testing.T, s *simulator.Server, c *client) {
			c.register("1")
			time.Sleep(10 * time.Minute)
			c.lives()
			again := open(t, s, "subscribe")
			again.lives()
		})},

		// 3.8 SUBSCRIBE, 3.9 SUBACK.
		{"MQTT-3.8.3-3", "SUBSCRIBE without a filter", "there may be no filter", refused("connect", these(0x82, 2, 0, 1), "MQTT-3.8.3-3")},
		{"MQTT-3.8.3-4", "SUBSCRIBE at QoS 3", "any QoS may be asked for", refused("connect", these(subscribePacket(1, 3)...), "qos out of range")},
		{"MQTT-3.8.3-4", "SUBSCRIBE with bit 2 of the QoS byte", "any QoS may be asked for", refused("connect", these(subscribePacket(1, 0x04)...), "qos out of range")},
		{"MQTT-3.8.3-4", "SUBSCRIBE with bit 7 of the QoS byte", "any QoS may be asked for", refused("connect", these(subscribePacket(1, 0x81)...), "qos out of range")},
		{"MQTT-3.8.3", "SUBSCRIBE without the QoS byte", "the QoS byte may be cut", refused("connect", these(subscribing(filter)...), "malformed packet: qos")},
		{"MQTT-3.8.3", "SUBSCRIBE with a filter longer than the packet", "a text may be longer than its packet", refused("connect", these(packet(0x82, []byte{0, 1, 0, 99, 'a'})...), "malformed packet: topic")},
		{"DPS filters", "SUBSCRIBE to #", "any filter is granted", refused("connect", these(subscribing("#", 1)...), "the filter is not")},
		{"DPS filters", "SUBSCRIBE to the replies of one status", "any filter is granted", refused("connect", these(subscribing("$dps/registrations/res/200/#", 1)...), "the filter is not")},
		{"DPS filters", "SUBSCRIBE to the requests of others", "any filter is granted", refused("connect", these(subscribing("$dps/registrations/PUT/#", 1)...), "the filter is not")},
		{"DPS filters", "SUBSCRIBE to the filter of a hub", "any filter is granted", refused("connect", these(subscribing("devices/x/messages/devicebound/#", 1)...), "the filter is not")},
		{"MQTT-4.7.3-1", "SUBSCRIBE to an empty filter", "any filter is granted", refused("connect", these(subscribing("", 1)...), "the filter is not")},
		{"DPS filters", "SUBSCRIBE to one filter more", "any filter is granted", refused("connect", these(subscribing(filter, append([]byte{1}, append(text("a"), 1)...)...)...), "the filter is not")},
		{"MQTT-3.8.4-1", "SUBSCRIBE gets a SUBACK", "no SUBACK is sent", answered("connect", these(subscribePacket(1, 1)...), 0x90, 3, 0, 1, 1)},
		{"MQTT-3.8.4-2", "the SUBACK has the packet identifier of the SUBSCRIBE", "every SUBACK is for 1", answered("connect", these(packet(0x82, []byte{0xab, 0xcd}, text(filter), []byte{1})...), 0x90, 3, 0xab, 0xcd, 1)},
		{"MQTT-3.8.4-3", "a second subscription takes the place of the first", "the highest QoS ever granted stays", session("subscribe", func(t *testing.T, _ *simulator.Server, c *client) {
			c.send(subscribePacket(2, 0)...)
			c.expect("SUBACK", 0x90, 3, 0, 2, 0)
			if p := c.register("1"); p.flags != 0 {
				t.Errorf("%+v", p)
			}
		})},
		{"MQTT-3.8.4-5", "a SUBACK has a return code for each filter, in their order", "a SUBACK has one return code", answered("connect",
			these(subscribing(filter, append([]byte{0}, append(text(filter), 1)...)...)...), 0x90, 4, 0, 1, 0, 1)},
		{"MQTT-3.8.4-6", "QoS 0 is granted as 0", "QoS 1 is always granted", answered("connect", these(subscribePacket(1, 0)...), 0x90, 3, 0, 1, 0)},
		{"MQTT-3.8.4-6", "QoS 2 is granted as 1", "QoS 2 is granted", answered("connect", these(subscribePacket(1, 2)...), 0x90, 3, 0, 1, 1)},

		// 3.10 UNSUBSCRIBE, 3.11 UNSUBACK.
		{"MQTT-3.10.3-2", "UNSUBSCRIBE without a filter", "there may be no filter", refused("connect", these(0xa2, 2, 0, 1), "MQTT-3.10.3-2")},
		{"MQTT-3.10.3-1", "UNSUBSCRIBE with a filter that is not UTF-8", "any text is UTF-8", refused("connect", these(unsubscribing(1, surrogate)...), "malformed packet: topic")},
		{"DPS filters", "UNSUBSCRIBE from another filter", "any filter is granted", refused("subscribe", these(unsubscribing(1, "a")...), "the filter is not")},
		{"MQTT-3.10.3", "UNSUBSCRIBE with a filter longer than the packet", "a text may be longer than its packet", refused("connect", these(packet(0xa2, []byte{0, 1, 0, 99, 'a'})...), "malformed packet: topic")},
		{"MQTT-3.10.4-2", "after UNSUBSCRIBE there is no subscription", "UNSUBSCRIBE changes nothing", session("subscribe", func(t *testing.T, s *simulator.Server, c *client) {
			c.send(unsubscribing(3, filter)...)
			c.expect("UNSUBACK", 0xb0, 2, 0, 3)
			c.send(publishPacket(0x30, goodTopic, 0, "")...)
			c.expectEnd("a reply could not be received")
			if v := violations(s); !strings.Contains(v, "there is no subscription") {
				t.Error(v)
			}
		})},
		{"MQTT-3.10.4-4", "the UNSUBACK has the packet identifier of the UNSUBSCRIBE", "every UNSUBACK is for 1", answered("subscribe", these(packet(0xa2, []byte{0xab, 0xcd}, text(filter))...), 0xb0, 2, 0xab, 0xcd)},
		{"MQTT-3.10.4-5", "UNSUBSCRIBE without a subscription gets an UNSUBACK", "UNSUBSCRIBE needs a subscription", answered("connect", these(unsubscribing(3, filter)...), 0xb0, 2, 0, 3)},
		{"MQTT-3.10.4-6", "UNSUBSCRIBE from two filters gets one UNSUBACK", "every filter gets an UNSUBACK", answered("subscribe", these(unsubscribing(3, filter, filter)...), 0xb0, 2, 0, 3)},

		// 3.12 PINGREQ, 3.14 DISCONNECT.
		{"MQTT-3.12.4-1", "PINGREQ gets a PINGRESP", "no PINGRESP is sent", answered("connect", these(0xc0, 0), 0xd0, 0)},
		{"MQTT-3.12", "PINGREQ with a payload", "an empty packet may have a payload", refused("connect", these(0xc0, 1, 0), "payload")},
		{"MQTT-3.14", "DISCONNECT with a payload", "an empty packet may have a payload", refused("connect", these(0xe0, 1, 0), "payload")},
		{"MQTT-3.14.4", "after DISCONNECT the server closes the connection", "DISCONNECT changes nothing", refused("connect", these(0xe0, 0), "")},
		{"MQTT-3.14.4-2", "what follows DISCONNECT is not answered", "DISCONNECT changes nothing", refused("connect", these(0xe0, 0, 0xc0, 0), "")},
	}
	return cases
}

// held sends a second packet while the first one, which a rule delays, waits for its
// acknowledgement.
func held(one, two []byte) func(*testing.T) {
	return scripted(&simulator.Scenario{Rules: []simulator.Rule{{On: "register", Delay: time.Minute}}}, "subscribe", func(t *testing.T, s *simulator.Server, c *client) {
		c.send(one...)
		c.send(two...)
		c.expectEnd("closed")
		if v := violations(s); !strings.Contains(v, "MQTT-2.3.1-2") {
			t.Errorf("violation %q", v)
		}
	})
}

// kept connects with a keep-alive, and measures the duration of f.
func kept(seconds uint16, f func(*client), want time.Duration) func(*testing.T) {
	return session("", func(t *testing.T, s *simulator.Server, c *client) {
		c.send(connectPacket(0xc2, seconds, device, userNameOf(s, device), goodToken(s, device))...)
		c.expect("CONNACK", 0x20, 2, 0, 0)
		begin := time.Now()
		f(c)
		if d := time.Since(begin); d != want {
			t.Errorf("after %v, want %v", d, want)
		}
	})
}

func identified(id string) func(*testing.T) {
	return answered("", func(s *simulator.Server) []byte { return goodConnect(s, id) }, 0x20, 2, 0, 0)
}

func will(flags byte, topic string) packetsOf {
	return connectAs(flags, func(s *simulator.Server) []string {
		return []string{device, topic, "gone", userNameOf(s, device), goodToken(s, device)}
	})
}

// The parts of a valid upgrade request.
var upgradeRequest = []string{
	"GET /$iothub/websocket HTTP/1.1", "Host: localhost", "Upgrade: websocket", "Connection: Upgrade",
	"Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol: mqtt",
}

// requested sends an upgrade request with one line changed or omitted, and checks the
// response.
func requested(line, instead string, look func(t *testing.T, r *http.Response)) func(*testing.T) {
	return func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dialWebSocket(t, s)
		request := ""
		for _, l := range upgradeRequest {
			if strings.HasPrefix(l, line) && line != "" {
				l = instead
			}
			if l != "" {
				request += l + "\r\n"
			}
		}
		c.send([]byte(request + "\r\n")...)
		r, err := http.ReadResponse(c.in, nil)
		if err != nil {
			t.Fatal(err)
		}
		look(t, r)
		if r.StatusCode != http.StatusSwitchingProtocols {
			_, _ = io.Copy(io.Discard, r.Body)
			c.expectEnd("closed")
			if violations(s) == "" {
				t.Error("the log does not say why")
			}
		}
	}
}

func status(want int) func(*testing.T, *http.Response) {
	return func(t *testing.T, r *http.Response) {
		if r.StatusCode != want {
			t.Errorf("%s, want %d", r.Status, want)
		}
	}
}

func header(name, want string) func(*testing.T, *http.Response) {
	return func(t *testing.T, r *http.Response) {
		if got := strings.Join(r.Header.Values(name), ","); r.StatusCode != http.StatusSwitchingProtocols || got != want {
			t.Errorf("%s, %s %q, want %q", r.Status, name, got, want)
		}
	}
}

// framed is a case on an open WebSocket after CONNECT and CONNACK.
func framed(f func(t *testing.T, s *simulator.Server, c *client)) func(*testing.T) {
	return func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dialWebSocket(t, s)
		c.send([]byte(strings.Join(upgradeRequest, "\r\n") + "\r\n\r\n")...)
		if r, err := http.ReadResponse(c.in, nil); err != nil || r.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(r, err)
		}
		c.send(frame(0x82, goodConnect(s, device))...)
		if b := c.unframed("CONNACK", 0x82); string(b) != "\x20\x02\x00\x00" {
			t.Fatalf("% x", b)
		}
		f(t, s, c)
	}
}

// closes: the server answers with a close frame of this status, and closes the connection.
func closes(code uint16, says string, bytes ...byte) func(*testing.T) {
	return framed(func(t *testing.T, s *simulator.Server, c *client) {
		begin := time.Now()
		c.send(bytes...)
		b := c.unframed("a close frame", 0x88)
		if code == 0 && len(b) != 0 || code != 0 && (len(b) < 2 || binary.BigEndian.Uint16(b) != code) {
			t.Errorf("close frame % x, want status %d", b, code)
		}
		c.expectEnd("then the end")
		if d := time.Since(begin); d > 2*time.Second {
			t.Errorf("after %v", d)
		}
		synctest.Wait()
		if v := violations(s); !strings.Contains(v, says) || says == "" && v != "" {
			t.Errorf("violation %q, want one that says %q", v, says)
		}
	})
}

// pinged: after these bytes the connection is open, and the server answers a PINGREQ in
// a separate, unmasked frame.
func pinged(bytes ...byte) func(*testing.T) {
	return framed(func(t *testing.T, s *simulator.Server, c *client) {
		c.send(bytes...)
		c.send(frame(0x82, []byte{0xc0, 0})...)
		c.expect("PINGRESP", 0x82, 2, 0xd0, 0)
		if v := violations(s); v != "" {
			t.Error(v)
		}
	})
}

func webSocketCases() []conformance {
	subscribe := subscribePacket(1, 1)
	return []conformance{
		{"RFC 6455 4.2.1", "POST is refused", "any method upgrades", requested("GET", "POST /$iothub/websocket HTTP/1.1", status(http.StatusMethodNotAllowed))},
		{"RFC 6455 4.2.1", "HTTP/1.0 is refused", "HTTP/1.0 and no Host will do", requested("GET", "GET /$iothub/websocket HTTP/1.0", status(http.StatusBadRequest))},
		{"RFC 6455 4.2.1", "no Host is refused", "HTTP/1.0 and no Host will do", requested("Host", "", status(http.StatusBadRequest))},
		{"RFC 6455 4.2.1", "no Upgrade is refused", "Upgrade is not looked at", requested("Upgrade", "", status(http.StatusBadRequest))},
		{"RFC 6455 4.2.1", "an Upgrade to something else is refused", "Upgrade is not looked at", requested("Upgrade", "Upgrade: h2c", status(http.StatusBadRequest))},
		{"RFC 6455 4.2.1", "no Connection is refused", "Connection is not looked at", requested("Connection", "", status(http.StatusBadRequest))},
		{"RFC 6455 4.2.1", "Connection may have more values, in any case", "Connection is one word", requested("Connection", "Connection: keep-alive, upgrade", status(http.StatusSwitchingProtocols))},
		{"RFC 6455 4.2.1", "no key is refused", "any key will do", requested("Sec-WebSocket-Key", "", status(http.StatusBadRequest))},
		{"RFC 6455 4.2.1", "a key of 15 bytes is refused", "any key will do", requested("Sec-WebSocket-Key", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAA", status(http.StatusBadRequest))},
		{"RFC 6455 4.4", "a different version is refused, and the response has the supported one", "any version will do", requested("Sec-WebSocket-Version", "Sec-WebSocket-Version: 8", func(t *testing.T, r *http.Response) {
			if r.StatusCode != http.StatusBadRequest || r.Header.Get("Sec-WebSocket-Version") != "13" {
				t.Error(r.Status, r.Header)
			}
		})},
		{"RFC 6455 4.2.2", "the key is answered", "the answer to the key is another", requested("", "", header("Sec-WebSocket-Accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="))},
		{"RFC 6455 9.1", "an extension that was offered is not agreed to", "compression is agreed to", requested("Host", "Host: localhost\r\nSec-WebSocket-Extensions: permessage-deflate", header("Sec-WebSocket-Extensions", ""))},
		{"DPS WebSocket", "the path of the Paho libraries upgrades", "only the documented path upgrades", requested("GET", "GET /mqtt HTTP/1.1", status(http.StatusSwitchingProtocols))},
		{"DPS WebSocket", "another path is refused", "any path upgrades", requested("GET", "GET /mqtt/x HTTP/1.1", status(http.StatusBadRequest))},
		{"DPS WebSocket", "no path upgrades", "only the documented path upgrades", requested("GET", "GET / HTTP/1.1", status(http.StatusSwitchingProtocols))},
		{"MQTT-6.0.0-3", "no subprotocol is refused", "any subprotocol will do", requested("Sec-WebSocket-Protocol", "", status(http.StatusBadRequest))},
		{"MQTT-6.0.0-3", "another subprotocol is refused", "any subprotocol will do", requested("Sec-WebSocket-Protocol", "Sec-WebSocket-Protocol: mqttv3.1", status(http.StatusBadRequest))},
		{"MQTT-6.0.0-4", "the subprotocol mqtt is agreed to", "no subprotocol is agreed to", requested("", "", header("Sec-WebSocket-Protocol", "mqtt"))},
		{"MQTT-6.0.0-4", "mqtt is chosen among others", "no subprotocol is agreed to", requested("Sec-WebSocket-Protocol", "Sec-WebSocket-Protocol: amqp, mqtt", header("Sec-WebSocket-Protocol", "mqtt"))},
		{"DPS WebSocket", "MQTT in capitals is agreed to as it was offered", "the subprotocol is written in small letters", requested("Sec-WebSocket-Protocol", "Sec-WebSocket-Protocol: MQTT", header("Sec-WebSocket-Protocol", "MQTT"))},

		{"MQTT-6.0.0-1", "a text frame is closed with 1003", "a text frame will do", closes(1003, "MQTT-6.0.0-1", frame(0x81, []byte{0xc0, 0})...)},
		{"MQTT-6.0.0-2", "a packet may span frames", "a packet is in one frame", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			for _, b := range subscribe {
				c.send(frame(0x82, []byte{b})...)
			}
			c.expect("SUBACK", 0x82, 5, 0x90, 3, 0, 1, 1)
		})},
		{"MQTT-6.0.0-2", "a frame may hold several packets", "data after a packet is lost", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(frame(0x82, append([]byte{0xc0, 0}, subscribe...))...)
			c.expect("PINGRESP", 0x82, 2, 0xd0, 0)
			c.expect("SUBACK", 0x82, 5, 0x90, 3, 0, 1, 1)
		})},
		{"MQTT-6.0.0-2", "a frame may hold the end of one packet and the start of the next", "a packet is in one frame", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(frame(0x82, subscribe[:9])...)
			c.send(frame(0x82, append(slices.Clone(subscribe[9:]), 0xc0))...)
			c.send(frame(0x82, []byte{0})...)
			c.expect("SUBACK", 0x82, 5, 0x90, 3, 0, 1, 1)
			c.expect("PINGRESP", 0x82, 2, 0xd0, 0)
		})},
		{"RFC 6455 5.1", "a frame that is not masked is closed with 1002", "a frame need not be masked", closes(1002, "MASK", 0x82, 2, 0xc0, 0)},
		{"RFC 6455 5.3", "the masking key is applied", "the masking key is not applied", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(0x82, 0x82, 1, 2, 3, 4, 0xc0^1, 0^2)
			c.expect("PINGRESP, not masked (5.1)", 0x82, 2, 0xd0, 0)
		})},
		{"RFC 6455 5.2", "RSV1 is closed with 1002", "reserved bits of a frame pass", closes(1002, "RSV1", frame(0xc2, []byte{0xc0, 0})...)},
		{"RFC 6455 5.2", "RSV2 is closed with 1002", "reserved bits of a frame pass", closes(1002, "RSV2", frame(0xa2, []byte{0xc0, 0})...)},
		{"RFC 6455 5.2", "RSV3 is closed with 1002", "reserved bits of a frame pass", closes(1002, "RSV3", frame(0x92, []byte{0xc0, 0})...)},
		{"RFC 6455 5.2", "opcode 3 is closed with 1002", "any opcode passes", closes(1002, "opcode", frame(0x83, nil)...)},
		{"RFC 6455 5.2", "opcode 7 is closed with 1002", "any opcode passes", closes(1002, "opcode", frame(0x87, nil)...)},
		{"RFC 6455 5.2", "opcode 11 is closed with 1002", "any opcode passes", closes(1002, "opcode", frame(0x8b, nil)...)},
		{"RFC 6455 5.2", "opcode 15 is closed with 1002", "any opcode passes", closes(1002, "opcode", frame(0x8f, nil)...)},
		{"RFC 6455 5.2", "a length in 16 bits is understood", "a length has 7 bits", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(frame(0x82, bytes.Repeat([]byte{0xc0, 0}, 65))...) // 130 bytes
			for range 65 {
				c.expect("PINGRESP", 0x82, 2, 0xd0, 0)
			}
		})},
		{"RFC 6455 5.2", "a length of 64 bits with the highest bit is refused", "a length may be negative", framed(func(t *testing.T, s *simulator.Server, c *client) {
			c.send(0x82, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0xc0, 0)
			_, _ = io.Copy(io.Discard, c.in)
			synctest.Wait()
			if v := violations(s); !strings.Contains(v, "limit") {
				t.Errorf("violation %q", v)
			}
		})},
		{"RFC 6455 10.4", "a frame above 1 MiB is closed with 1009", "a frame may have any size", closes(1009, "limit", 0x82, 0xff, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0)},
		{"RFC 6455 5.4", "a message may come in fragments", "a fragment is not known", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(frame(0x02, subscribe[:5])...)
			c.send(frame(0x00, subscribe[5:9])...)
			c.send(frame(0x00, nil)...)
			c.send(frame(0x80, subscribe[9:])...)
			c.expect("SUBACK", 0x82, 5, 0x90, 3, 0, 1, 1)
		})},
		{"RFC 6455 5.4", "a control frame may come between fragments", "a ping gets no pong", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(frame(0x02, subscribe[:5])...)
			c.send(frame(0x89, []byte("x"))...)
			c.expect("pong", 0x8a, 1, 'x')
			c.send(frame(0x80, subscribe[5:])...)
			c.expect("SUBACK", 0x82, 5, 0x90, 3, 0, 1, 1)
		})},
		{"RFC 6455 5.4", "a continuation of nothing is closed with 1002", "a fragment may continue nothing", closes(1002, "continuation", frame(0x80, []byte{0xc0, 0})...)},
		{"RFC 6455 5.4", "a new message inside a fragmented one is closed with 1002", "messages may be interleaved", closes(1002, "data before FIN", slices.Concat(frame(0x02, []byte{0xc0}), frame(0x82, []byte{0}))...)},
		{"RFC 6455 5.5", "a control frame in fragments is closed with 1002", "a control frame may be fragmented", closes(1002, "FIN not set", frame(0x09, []byte("x"))...)},
		{"RFC 6455 5.5", "a control frame of 126 bytes is closed with 1002", "a control frame may be long", closes(1002, "len > 125", frame(0x89, make([]byte, 126))...)},
		{"RFC 6455 5.5.1", "a close frame is answered with its status", "a close frame is answered with 1001", closes(1000, "", frame(0x88, []byte{0x03, 0xe8})...)},
		{"RFC 6455 5.5.1", "a close frame without a status is answered without one", "a close frame is answered with 1001", closes(0, "", frame(0x88, nil)...)},
		{"RFC 6455 5.5.1", "a close frame with a reason is answered", "a close frame is answered with 1001", closes(3000, "", frame(0x88, []byte("\x0b\xb8bye"))...)},
		{"RFC 6455 7.4.1", "status 1005 in a close frame is closed with 1002", "any status may be sent", closes(1002, "bad close code", frame(0x88, []byte{0x03, 0xed})...)},
		{"RFC 6455 7.4.1", "status 1006 in a close frame is closed with 1002", "any status may be sent", closes(1002, "bad close code", frame(0x88, []byte{0x03, 0xee})...)},
		{"RFC 6455 7.4.2", "status 999 in a close frame is closed with 1002", "any status may be sent", closes(1002, "bad close code", frame(0x88, []byte{0x03, 0xe7})...)},
		{"RFC 6455 5.5.1", "a reason that is not UTF-8 is closed with 1002", "any reason may be sent", closes(1002, "utf8", frame(0x88, []byte("\x03\xe8"+surrogate))...)},
		{"RFC 6455 5.5.1", "what follows a close frame is not answered", "a close frame changes nothing", closes(1000, "", slices.Concat(frame(0x88, []byte{0x03, 0xe8}), frame(0x82, []byte{0xc0, 0}))...)},
		{"RFC 6455 5.5.2", "a ping is answered with its payload", "a ping gets no pong", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(frame(0x89, []byte("hello"))...)
			c.expect("pong", append([]byte{0x8a, 5}, "hello"...)...)
		})},
		{"RFC 6455 5.5.2", "an empty ping is answered", "a ping gets no pong", framed(func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(frame(0x89, nil)...)
			c.expect("pong", 0x8a, 0)
		})},
		{"RFC 6455 5.5.3", "an unsolicited pong is ignored", "a pong is an answer to a ping", pinged(frame(0x8a, []byte("x"))...)},
		{"RFC 6455 5.6", "an empty message is passed over", "a message has bytes", pinged(frame(0x82, nil)...)},
		{"RFC 6455 7.4.1", "a breach of MQTT is closed with 1008", "every close frame says 1000", closes(1008, "MQTT-3.1.0-2", frame(0x82, packet(0x10, text("MQTT"), []byte{4, 2, 0, 0}, text("x")))...)},
		{"RFC 6455 7.4.1", "DISCONNECT is closed with 1000", "DISCONNECT changes nothing", closes(1000, "", frame(0x82, []byte{0xe0, 0})...)},
		{"MQTT-3.1.4-2", "a WebSocket takes the client identifier over from a TLS connection", "no connection is taken over", func(t *testing.T) {
			s := start(t, simulator.Options{})
			old := open(t, s, "connect")
			c := dialWebSocket(t, s)
			c.send([]byte(strings.Join(upgradeRequest, "\r\n") + "\r\n\r\n")...)
			if _, err := http.ReadResponse(c.in, nil); err != nil {
				t.Fatal(err)
			}
			c.send(frame(0x82, goodConnect(s, device))...)
			c.unframed("CONNACK", 0x82)
			begin := time.Now()
			old.expectEnd("taken over")
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("after %v", d)
			}
		}},
	}
}

// conformances returns all cases.
func conformances() []conformance { return append(mqttCases(), webSocketCases()...) }

func TestConformance(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range conformances() {
		name := c.clause + ": " + c.name
		if seen[name] {
			t.Errorf("%q exists twice", name)
		}
		seen[name] = true
		bubble(t, name, c.run)
	}
	if len(seen) < 120 {
		t.Errorf("%d cases", len(seen))
	}
}
