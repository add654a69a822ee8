package simulator_test

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// Each of these ends the connection, and the packet log contains the reason.
func TestStrict(t *testing.T) {
	const good = registerPath + "1"
	connect := func(s *simulator.Server) []byte { return goodConnect(s, device) }
	change := func(at int, to byte) func(*simulator.Server) []byte {
		return func(s *simulator.Server) []byte {
			b := goodConnect(s, device)
			n := bytes.Index(b, []byte("MQTT")) // the length before it has one or two bytes
			b[n+at] = to
			return b
		}
	}
	fixed := func(b ...byte) func(*simulator.Server) []byte { return func(*simulator.Server) []byte { return b } }
	longer := func(b []byte) []byte { // one surplus byte
		return packet(b[0], b[2:], []byte{0})
	}

	for _, c := range []struct {
		name   string
		after  string // "", "connect" or "subscribe": the state of the session
		send   func(*simulator.Server) []byte
		answer []byte // before the end
		says   string // in the violation
	}{
		{"a first packet that is not CONNECT [MQTT-3.1.0-1]", "", fixed(0xc0, 0), nil, "before CONNECT"},
		{"a second CONNECT [MQTT-3.1.0-2]", "connect", connect, nil, "second CONNECT"},
		{"a protocol name that is not MQTT [MQTT-3.1.2-1]", "", change(3, 'X'), nil, "protocol name"},
		{"protocol level 5 gets CONNACK 1 [MQTT-3.1.2-2]", "", change(4, 5), []byte{0x20, 2, 0, 1}, "protocol level"},
		{"protocol level 3 gets CONNACK 1 [MQTT-3.1.2-2]", "", change(4, 3), []byte{0x20, 2, 0, 1}, "protocol level"},
		{"MQTT 3.1 gets CONNACK 1 [MQTT-3.1.2-2]", "", fixed(packet(0x10, text("MQIsdp"), []byte{3, 2, 0, 0}, text("x"))...), []byte{0x20, 2, 0, 1}, "protocol level"},
		{"the reserved flag of CONNECT [MQTT-3.1.2-3]", "", change(5, 0xc3), nil, "reserved"},
		{"a will", "", func(s *simulator.Server) []byte {
			return connectPacket(0xc6, 0, device, "topic", "gone", userNameOf(s, device), goodToken(s, device))
		}, nil, "will"},
		{"a will QoS without a will [MQTT-3.1.2-13]", "", change(5, 0xca), nil, "without a will"},
		{"a will retain without a will [MQTT-3.1.2-15]", "", change(5, 0xe2), nil, "without a will"},
		{"a password without a user name [MQTT-3.1.2-22]", "", func(s *simulator.Server) []byte {
			return connectPacket(0x42, 0, device, goodToken(s, device))
		}, nil, "without a user name"},
		{"a user name that is not UTF-8 [MQTT-1.5.3-1]", "", func(s *simulator.Server) []byte {
			return connectPacket(0xc2, 0, device, "\xff\xfe", goodToken(s, device))
		}, nil, "UTF-8"},
		{"a user name with U+0000 [MQTT-1.5.3-2]", "", func(s *simulator.Server) []byte {
			return connectPacket(0xc2, 0, device, "a\x00b", goodToken(s, device))
		}, nil, "UTF-8"},
		{"a client identifier that is not UTF-8 [MQTT-3.1.3-4]", "", func(s *simulator.Server) []byte {
			return connectPacket(0xc2, 0, "\xc0\x80", userNameOf(s, device), goodToken(s, device))
		}, nil, "CONNECT"},
		{"no client identifier with clean session 0 gets CONNACK 2 [MQTT-3.1.3-8]", "", func(s *simulator.Server) []byte {
			return connectPacket(0xc0, 0, "", userNameOf(s, device), goodToken(s, device))
		}, []byte{0x20, 2, 0, 2}, "client identifier"},
		{"a user-name flag without a user name [MQTT-3.1.2-19]", "", func(*simulator.Server) []byte {
			return connectPacket(0x82, 0, device)
		}, nil, "CONNECT"},
		{"a byte after the password", "", func(s *simulator.Server) []byte {
			return packet(0x10, goodConnect(s, device)[3:], []byte{0})
		}, nil, "trailing bytes"},
		{"flags in the first byte of CONNECT [MQTT-2.2.2-2]", "", func(s *simulator.Server) []byte {
			b := goodConnect(s, device)
			b[0] = 0x11
			return b
		}, nil, "flags"},
		{"packet type 0", "connect", fixed(0x00, 0), nil, "RESERVED"},
		{"packet type 15", "connect", fixed(0xf0, 0), nil, "AUTH"},
		{"a packet only a server sends", "connect", fixed(0x20, 2, 0, 0), nil, "CONNACK"},
		{"a remaining length of five bytes [MQTT-2.2.3]", "connect", fixed(0x30, 0x80, 0x80, 0x80, 0x80, 0x01), nil, "remaining length"},
		{"a packet of 256 MiB", "connect", fixed(0x30, 0xff, 0xff, 0xff, 0x7f), nil, "the packet is too large"},
		{"the message is larger than 96 KB", "subscribe", fixed(publishPacket(0x30, good, 0, strings.Repeat(" ", 96<<10+1))...), nil, "96 KB"},

		{"SUBSCRIBE with flags 0 [MQTT-3.8.1-1]", "connect", fixed(append([]byte{0x80}, subscribePacket(1, 1)[1:]...)...), nil, "flags"},
		{"SUBSCRIBE with packet identifier 0 [MQTT-2.3.1-1]", "connect", fixed(subscribePacket(0, 1)...), nil, "SUBSCRIBE"},
		{"SUBSCRIBE without a filter [MQTT-3.8.3-3]", "connect", fixed(0x82, 2, 0, 1), nil, "no filter"},
		{"SUBSCRIBE at QoS 3 [MQTT-3.8.3-4]", "connect", fixed(subscribePacket(1, 3)...), nil, "SUBSCRIBE"},
		{"SUBSCRIBE with reserved bits [MQTT-3.8.3-4]", "connect", fixed(subscribePacket(1, 0x81)...), nil, "SUBSCRIBE"},
		{"SUBSCRIBE to another filter", "connect", fixed(packet(0x82, []byte{0, 1}, text("#"), []byte{1})...), nil, "the filter is not"},
		{"SUBSCRIBE to one filter more", "connect", fixed(packet(0x82, []byte{0, 1}, text("$dps/registrations/res/#"), []byte{1}, text("a"), []byte{1})...), nil, "the filter is not"},
		{"SUBSCRIBE that is cut", "connect", fixed(packet(0x82, []byte{0, 1}, []byte{0, 99, 'a'})...), nil, "SUBSCRIBE"},
		{"UNSUBSCRIBE without a filter [MQTT-3.10.3-2]", "connect", fixed(0xa2, 2, 0, 1), nil, "no filter"},
		{"UNSUBSCRIBE from another filter", "connect", fixed(packet(0xa2, []byte{0, 1}, text("a"))...), nil, "the filter is not"},
		{"UNSUBSCRIBE with flags 0 [MQTT-3.10.1-1]", "connect", fixed(packet(0xa0, []byte{0, 1}, text("$dps/registrations/res/#"))...), nil, "flags"},

		{"PUBLISH before SUBSCRIBE", "connect", fixed(publishPacket(0x30, good, 0, "")...), nil, "there is no subscription"},
		{"PUBLISH to another topic", "subscribe", fixed(publishPacket(0x30, "devices/x/messages/events/", 0, "")...), nil, "the topic is unknown to the service"},
		{"PUBLISH without the slash before the question mark", "subscribe", fixed(publishPacket(0x30, "$dps/registrations/PUT/iotdps-register?$rid=1", 0, "")...), nil, "the topic is unknown to the service"},
		{"PUBLISH with an unknown parameter", "subscribe", fixed(publishPacket(0x30, good+"&id=1", 0, "")...), nil, "unknown parameter"},
		{"PUBLISH without $rid", "subscribe", fixed(publishPacket(0x30, "$dps/registrations/PUT/iotdps-register/?", 0, "")...), nil, "no value"},
		{"PUBLISH of a poll without $rid", "subscribe", fixed(publishPacket(0x30, "$dps/registrations/GET/iotdps-get-operationstatus/?operationId=1", 0, "")...), nil, "no $rid"},
		{"PUBLISH with an empty $rid", "subscribe", fixed(publishPacket(0x30, registerPath, 0, "")...), nil, "$rid"},
		{"PUBLISH with $rid twice", "subscribe", fixed(publishPacket(0x30, good+"&$rid=2", 0, "")...), nil, "repeated"},
		{"PUBLISH of a poll without operationId", "subscribe", fixed(publishPacket(0x30, "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=1", 0, "")...), nil, "operationId"},
		{"PUBLISH with a wildcard [MQTT-3.3.2-2]", "subscribe", fixed(publishPacket(0x30, good+"+", 0, "")...), nil, "wildcard"},
		{"PUBLISH at QoS 2", "subscribe", fixed(publishPacket(0x34, good, 1, "")...), nil, "QoS 2"},
		{"PUBLISH at QoS 3 [MQTT-3.3.1-4]", "subscribe", fixed(publishPacket(0x36, good, 1, "")...), nil, "PUBLISH"},
		{"PUBLISH with DUP at QoS 0 [MQTT-3.3.1-2]", "subscribe", fixed(publishPacket(0x38, good, 0, "")...), nil, "PUBLISH"},
		{"PUBLISH with retain", "subscribe", fixed(publishPacket(0x31, good, 0, "")...), nil, "retain"},
		{"PUBLISH with packet identifier 0 [MQTT-2.3.1-1]", "subscribe", fixed(publishPacket(0x32, good, 0, "")...), nil, "PUBLISH"},
		{"PUBLISH whose topic is longer than the packet", "subscribe", fixed(0x30, 3, 0, 9, 'a'), nil, "PUBLISH"},
		{"PUBLISH whose topic is not UTF-8 [MQTT-3.3.2-1]", "subscribe", fixed(publishPacket(0x30, "\xff", 0, "")...), nil, "PUBLISH"},
		{"PUBACK with a byte left over", "subscribe", fixed(longer([]byte{0x40, 2, 0, 2})...), nil, "trailing bytes"},
		{"PUBACK with flags [MQTT-2.2.2-2]", "subscribe", fixed(0x42, 2, 0, 2), nil, "flags"},
		{"PUBREC, which QoS 2 would need", "subscribe", fixed(0x50, 2, 0, 2), nil, "PUBREC"},
		{"PINGREQ with a payload", "connect", fixed(0xc0, 1, 0), nil, "payload"},
		{"DISCONNECT with a payload", "connect", fixed(0xe0, 1, 0), nil, "payload"},
		{"DISCONNECT with flags [MQTT-3.14.1-1]", "connect", fixed(0xe1, 0), nil, "flags"},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := start(t, simulator.Options{})
			cl := dial(t, s)
			if c.after != "" {
				cl.connect(s, device)
			}
			if c.after == "subscribe" {
				cl.subscribe()
			}
			cl.send(c.send(s)...)
			cl.expect("the answer before the end", c.answer...)
			cl.expectEnd("the connection is closed")
			synctest.Wait()
			if v := violations(s); !strings.Contains(v, c.says) {
				t.Errorf("violation %q, want one that says %q", v, c.says)
			}
		})
	}
}

const registerPath = "$dps/registrations/PUT/iotdps-register/?$rid="

// An invalid value in a CONNECT is answered with a return code.
func TestConnack(t *testing.T) {
	type change struct{ clientID, user, password string }
	for _, c := range []struct {
		name   string
		change func(*simulator.Server, *change)
		code   byte
	}{
		{"an unknown ID scope is CONNACK 3", func(_ *simulator.Server, c *change) {
			c.user = "0neFFFFFFFF/registrations/" + device + "/api-version=2019-03-31"
		}, 3},
		{"a client identifier other than the registration ID is CONNACK 5", func(_ *simulator.Server, c *change) { c.clientID = "another" }, 5},
		{"a client identifier in other case is CONNACK 5", func(_ *simulator.Server, c *change) { c.clientID = strings.ToUpper(device) }, 5},
		{"no client identifier with clean session is CONNACK 5", func(_ *simulator.Server, c *change) { c.clientID = "" }, 5},
		{"no api-version is CONNACK 5", func(s *simulator.Server, c *change) {
			c.user = s.IDScope() + "/registrations/" + device
		}, 5},
		{"the hub's form with /? is CONNACK 5", func(s *simulator.Server, c *change) {
			c.user = s.IDScope() + "/registrations/" + device + "/?api-version=2019-03-31"
		}, 5},
		{"an api-version that is not a date is CONNACK 5", func(s *simulator.Server, c *change) {
			c.user = s.IDScope() + "/registrations/" + device + "/api-version=latest"
		}, 5},
		{"a part too many is CONNACK 5", func(s *simulator.Server, c *change) { c.user += "/x" }, 5},
		{"another literal than registrations is CONNACK 5", func(s *simulator.Server, c *change) {
			c.user = s.IDScope() + "/devices/" + device + "/api-version=2019-03-31"
		}, 5},
		{"a registration ID that ends with a dot is CONNACK 5", func(s *simulator.Server, c *change) {
			c.clientID, c.user = "gw.", userNameOf(s, "gw.")
		}, 5},
		{"a registration ID of 129 characters is CONNACK 5", func(s *simulator.Server, c *change) {
			c.clientID = strings.Repeat("a", 129)
			c.user = userNameOf(s, c.clientID)
		}, 5},
		{"an empty password without a certificate is CONNACK 5", func(_ *simulator.Server, c *change) { c.password = "" }, 5},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := start(t, simulator.Options{})
			ch := change{device, userNameOf(s, device), goodToken(s, device)}
			c.change(s, &ch)
			cl := dial(t, s)
			cl.send(connectPacket(0xc2, 0, ch.clientID, ch.user, ch.password)...)
			cl.expect("the CONNACK", 0x20, 2, 0, c.code)
			cl.expectEnd("then the connection is closed [MQTT-3.2.2-5]")
		})
	}
	bubble(t, "an api-version that is not among those served is CONNACK 5", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{APIVersions: []string{"2021-06-01"}}}})
		cl := dial(t, s)
		cl.send(goodConnect(s, device)...)
		cl.expect("the CONNACK", 0x20, 2, 0, 5)
	})
}

func TestSessionRules(t *testing.T) {
	bubble(t, "silence for 1.5 keep-alive intervals ends the connection, not earlier [MQTT-3.1.2-24]", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 60, device, userNameOf(s, device), goodToken(s, device))...)
		c.expect("accepted", 0x20, 2, 0, 0)
		begin := time.Now()
		time.Sleep(89 * time.Second)
		c.send(0xc0, 0)
		c.expect("a ping is answered [MQTT-3.12.4-1]", 0xd0, 0)
		c.expectEnd("the server gives up")
		if d := time.Since(begin); d != 89*time.Second+90*time.Second {
			t.Errorf("after %v", d)
		}
		if v := violations(s); !strings.Contains(v, "MQTT-3.1.2-24") {
			t.Error(v)
		}
	})
	bubble(t, "keep-alive 0 is never given up [MQTT-3.1.2-24]", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		time.Sleep(24 * time.Hour)
		c.send(0xc0, 0)
		c.expect("a ping is answered", 0xd0, 0)
	})
	bubble(t, "a client that does not say CONNECT is given up after a minute", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dial(t, s)
		begin := time.Now()
		c.expectEnd("the server gives up")
		if d := time.Since(begin); d != time.Minute {
			t.Errorf("after %v", d)
		}
	})
	bubble(t, "a client identifier is taken over by the newer connection [MQTT-3.1.4-2]", func(t *testing.T) {
		s := start(t, simulator.Options{})
		first := ready(t, s)
		second := ready(t, s)
		first.expectEnd("the older one is closed")
		if p := second.assign(); !strings.Contains(p.topic, "/200/") {
			t.Error(p)
		}
	})
	bubble(t, "DISCONNECT before a reply's PUBACK is noted", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		c.register("1")
		c.send(0xe0, 0)
		c.expectEnd("the connection is closed")
		if v := violations(s); !strings.Contains(v, "not acknowledged") {
			t.Error(v)
		}
	})
	bubble(t, "a reply's packet identifier is 2 again once it was acknowledged, and not before", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		if p := c.register("1"); p.id != 2 {
			t.Error(p)
		}
		if p := c.register("2"); p.id != 3 {
			t.Error(p)
		}
		c.puback(2)
		c.puback(3)
		if p := c.register("3"); p.id != 2 {
			t.Error(p)
		}
	})
}
