package simulator_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestAWrongScenarioMadeInGoIsRefusedAndChangesNothing(t *testing.T) {
	wrong := &simulator.Scenario{Rules: []simulator.Rule{{On: "nowhere"}}}
	if _, err := simulator.New(simulator.Options{Scenario: wrong}); err == nil || !strings.Contains(err.Error(), "rule[0].on") {
		t.Error(err)
	}
	if err := start(t, simulator.Options{}).SetScenario(wrong); err == nil {
		t.Error("accepted")
	}
}

// script creates a server with these rules.
func script(t *testing.T, rules ...simulator.Rule) *simulator.Server {
	return start(t, simulator.Options{Scenario: &simulator.Scenario{Rules: rules}})
}

func TestRuleMatching(t *testing.T) {
	connack := func(t *testing.T, s *simulator.Server, id string, want byte) {
		t.Helper()
		c := dial(t, s)
		c.send(goodConnect(s, id)...)
		c.expect("the CONNACK", 0x20, 2, 0, want)
		c.conn.Close()
	}
	bubble(t, "rules of one stage form a sequence, and times ends each", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Connack: new(1), Times: 2}, simulator.Rule{On: "connect", Connack: new(2), Times: 1})
		for _, want := range []byte{1, 1, 2, 0, 0} {
			connack(t, s, device, want)
		}
	})
	bubble(t, "skip lets the first ones pass", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Connack: new(3), Skip: 1, Times: 1})
		for _, want := range []byte{0, 3, 0} {
			connack(t, s, device, want)
		}
	})
	bubble(t, "a rule counts for each registration ID separately", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Connack: new(3), Times: 1})
		connack(t, s, "a", 3)
		connack(t, s, "b", 3)
		connack(t, s, "a", 0)
		connack(t, s, "b", 0)
	})
	bubble(t, "a pattern chooses devices", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", RegistrationID: "gw-[ab]*", Connack: new(3)})
		connack(t, s, "gw-a1", 3)
		connack(t, s, "gw-c1", 0)
	})
	bubble(t, "a rule for the other listener does not act", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Protocol: "websocket", Connack: new(3)})
		connack(t, s, device, 0)
	})
	bubble(t, "a new scenario counts from the start", func(t *testing.T) {
		sc := &simulator.Scenario{Rules: []simulator.Rule{{On: "connect", Connack: new(3), Times: 1}}}
		s := start(t, simulator.Options{Scenario: sc})
		connack(t, s, device, 3)
		connack(t, s, device, 0)
		if err := s.SetScenario(sc); err != nil {
			t.Fatal(err)
		}
		connack(t, s, device, 3)
	})
}

// Faults before and at CONNACK.
func TestConnectionFaults(t *testing.T) {
	bubble(t, "close at accept: the end before any TLS", func(t *testing.T) {
		conn := pipe(t, script(t, simulator.Rule{On: "accept", Close: true}))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, io.EOF) {
			t.Error(n, err)
		}
	})
	bubble(t, "silent at accept: the handshake stalls until the client disconnects", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", Silent: true})
		conn := pipe(t, s)
		_ = conn.SetDeadline(time.Now().Add(time.Hour))
		err := tls.Client(conn, clientConfig(s)).Handshake()
		var timeout net.Error
		if !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Error(err)
		}
	})
	bubble(t, "delay at accept: the handshake comes later", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", Delay: 7 * time.Second})
		begin := time.Now()
		dial(t, s)
		if d := time.Since(begin); d != 7*time.Second {
			t.Error(d)
		}
	})
	for name, text := range map[string]string{
		"a captive portal":      "HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\nContent-Length: 0\r\n\r\n",
		"a broker on plain TCP": "\x20\x02\x00\x00",
	} {
		bubble(t, "garbage at accept: "+name+" instead of TLS", func(t *testing.T) {
			s := script(t, simulator.Rule{On: "accept", Garbage: text})
			conn := pipe(t, s)
			var record tls.RecordHeaderError
			err := tls.Client(conn, clientConfig(s)).Handshake()
			if !errors.As(err, &record) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Error(err)
			}
		})
	}
	for _, c := range []struct {
		fault string
		is    func(error) bool
	}{
		{"expired", func(err error) bool {
			var e x509.CertificateInvalidError
			return errors.As(err, &e) && e.Reason == x509.Expired && e.Cert.NotAfter.Before(time.Now())
		}},
		{"not-yet-valid", func(err error) bool {
			var e x509.CertificateInvalidError
			return errors.As(err, &e) && e.Reason == x509.Expired && e.Cert.NotBefore.After(time.Now())
		}},
		{"wrong-host", func(err error) bool { var e x509.HostnameError; return errors.As(err, &e) }},
		{"other-ca", func(err error) bool { var e x509.UnknownAuthorityError; return errors.As(err, &e) }},
	} {
		bubble(t, "server_certificate: "+c.fault, func(t *testing.T) {
			s := script(t, simulator.Rule{On: "tls", ServerCertificate: c.fault, Times: 1})
			conn := pipe(t, s)
			if err := tls.Client(conn, clientConfig(s)).Handshake(); !c.is(err) {
				t.Error(err)
			}
			dial(t, s).connect(s, device)
		})
	}
	bubble(t, "the certificate is good for every name it is reached by", func(t *testing.T) {
		s := start(t, simulator.Options{})
		for _, name := range []string{"localhost", "127.0.0.1", "::1", "global.azure-devices-provisioning.net"} {
			config := clientConfig(s)
			config.ServerName = name
			if err := tls.Client(pipe(t, s), config).Handshake(); err != nil {
				t.Error(name, err)
			}
		}
	})
	version := func(set simulator.Settings, rules ...simulator.Rule) func(*testing.T, uint16, uint16) (uint16, error) {
		return func(t *testing.T, low, high uint16) (uint16, error) {
			s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: set, Rules: rules}})
			config := clientConfig(s)
			config.MinVersion, config.MaxVersion = low, high
			conn := tls.Client(pipe(t, s), config)
			err := conn.Handshake()
			return conn.ConnectionState().Version, err
		}
	}
	bubble(t, "TLS 1.2 is the highest version, as the service has it", func(t *testing.T) {
		if v, err := version(simulator.Settings{})(t, tls.VersionTLS12, 0); v != tls.VersionTLS12 || err != nil {
			t.Error(v, err)
		}
	})
	bubble(t, "TLS 1.1 is refused", func(t *testing.T) {
		if _, err := version(simulator.Settings{})(t, tls.VersionTLS10, tls.VersionTLS11); err == nil {
			t.Error("accepted")
		}
	})
	bubble(t, "tls_max 1.3 allows it", func(t *testing.T) {
		if v, err := version(simulator.Settings{TLSMax: "1.3"})(t, tls.VersionTLS12, 0); v != tls.VersionTLS13 || err != nil {
			t.Error(v, err)
		}
	})
	bubble(t, "no session ticket is sent: over a pipe it would wait for ever for a client that writes first", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{TLSMax: "1.3"}}})
		config := clientConfig(s)
		config.ClientSessionCache = tls.NewLRUClientSessionCache(1) // asks for tickets
		conn := tls.Client(pipe(t, s), config)
		_ = conn.SetDeadline(time.Now().Add(time.Minute))
		if _, err := conn.Write(goodConnect(s, device)); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 4)); err != nil {
			t.Error(err)
		}
	})
	bubble(t, "TLS 1.3 only: a client of 1.2 is refused", func(t *testing.T) {
		if _, err := version(simulator.Settings{TLSMin: "1.3", TLSMax: "1.3"})(t, tls.VersionTLS12, tls.VersionTLS12); err == nil {
			t.Error("accepted")
		}
	})
	old := simulator.Rule{On: "tls", TLSMin: "1.0", TLSMax: "1.1"}
	bubble(t, "TLS 1.1 only: a client of 1.2 is refused, one of 1.1 served", func(t *testing.T) {
		if _, err := version(simulator.Settings{}, old)(t, tls.VersionTLS12, 0); err == nil {
			t.Error("accepted")
		}
		if v, err := version(simulator.Settings{}, old)(t, tls.VersionTLS10, 0); v != tls.VersionTLS11 || err != nil {
			t.Error(v, err)
		}
	})
	for name, rule := range map[string]simulator.Rule{"close": {On: "tls", Close: true}, "reset": {On: "tls", Reset: true}} {
		bubble(t, name+" at tls: the end right after the handshake", func(t *testing.T) {
			dial(t, script(t, rule)).expectEnd("the end")
		})
	}
	for name, c := range map[string]struct {
		rule   simulator.Rule
		answer []byte
	}{
		"connack 1":                     {simulator.Rule{Connack: new(1)}, []byte{0x20, 2, 0, 1}},
		"connack 2":                     {simulator.Rule{Connack: new(2)}, []byte{0x20, 2, 0, 2}},
		"connack 3":                     {simulator.Rule{Connack: new(3)}, []byte{0x20, 2, 0, 3}},
		"connack 4":                     {simulator.Rule{Connack: new(4)}, []byte{0x20, 2, 0, 4}},
		"connack 5":                     {simulator.Rule{Connack: new(5)}, []byte{0x20, 2, 0, 5}},
		"close":                         {simulator.Rule{Close: true}, nil},
		"reset":                         {simulator.Rule{Reset: true}, nil},
		"then close, after the CONNACK": {simulator.Rule{Then: "close"}, []byte{0x20, 2, 0, 0}},
		"then reset, after the CONNACK": {simulator.Rule{Then: "reset"}, []byte{0x20, 2, 0, 0}},
		"garbage, under TLS":            {simulator.Rule{Garbage: "HTTP/1.1 400 Bad Request\r\n\r\n"}, []byte("HTTP/1.1 400 Bad Request\r\n\r\n")},
		"byte by byte, then close":      {simulator.Rule{ByteByByte: true, Then: "close"}, []byte{0x20, 2, 0, 0}},
		"a session present, then close": {simulator.Rule{SessionPresent: true, Then: "close"}, []byte{0x20, 2, 1, 0}},
		"a delay, and then CONNACK 3":   {simulator.Rule{Delay: time.Minute, Connack: new(3)}, []byte{0x20, 2, 0, 3}},
	} {
		bubble(t, "at connect: "+name, func(t *testing.T) {
			c.rule.On = simulator.OnConnect
			s := script(t, c.rule)
			begin := time.Now()
			cl := dial(t, s)
			cl.send(goodConnect(s, device)...)
			cl.expect("the answer", c.answer...)
			if d := time.Since(begin); d != c.rule.Delay {
				t.Errorf("after %v, want %v", d, c.rule.Delay)
			}
			cl.expectEnd("the end")
		})
	}
	bubble(t, "silent at connect: nothing more is sent, and the connection stays open", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Silent: true, Times: 1})
		c := dial(t, s)
		c.send(goodConnect(s, device)...)
		time.Sleep(time.Hour)
		c.send(0xc0, 0)
		synctest.Wait()
		for _, e := range s.Log() {
			if e.Direction == "down" || e.Packet == "CLOSE" {
				t.Errorf("%+v", e)
			}
		}
		dial(t, s).connect(s, device)
	})
	bubble(t, "a broker that is not DPS accepts anybody and grants nothing", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", Connack: new(0)}, simulator.Rule{On: "subscribe", Suback: new(0x80)})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 0, "whoever", "nobody", "nothing")...)
		c.expect("accepted", 0x20, 2, 0, 0)
		c.send(subscribePacket(1, 1)...)
		c.expect("refused", 0x90, 3, 0, 1, 0x80)
	})
}

// Faults of a session.
func TestSessionFaults(t *testing.T) {
	bubble(t, "close at subscribe, and after the SUBACK", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "subscribe", Close: true, Times: 1}, simulator.Rule{On: "subscribe", Then: "close"})
		c := dial(t, s).connect(s, device)
		c.send(subscribePacket(1, 1)...)
		c.expectEnd("no SUBACK")
		c = dial(t, s).connect(s, device).subscribe()
		c.expectEnd("a SUBACK only")
	})
	bubble(t, "silent at subscribe leaves the SUBACK out, but pings are answered", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "subscribe", Silent: true})
		c := dial(t, s).connect(s, device)
		c.send(subscribePacket(1, 1)...)
		c.send(0xc0, 0)
		c.expect("PINGRESP next", 0xd0, 0)
	})
	bubble(t, "before_suback sends an unsolicited reply", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "subscribe", BeforeSuback: true})
		c := dial(t, s).connect(s, device)
		c.send(subscribePacket(1, 1)...)
		p := c.expectPublish("a reply first")
		if p.topic != "$dps/registrations/res/200/?$rid=1" || p.parse(t).Status != "assigned" {
			t.Error(p)
		}
		c.expect("then the SUBACK", 0x90, 3, 0, 1, 1)
	})
	// All of these at register, QoS 1: PUBACK 0x40 2 0 9, then a reply.
	acknowledged := []byte{0x40, 2, 0, 9}
	type check func(*testing.T, *simulator.Server, *client)
	ends := func(answer ...byte) check {
		return func(_ *testing.T, _ *simulator.Server, c *client) {
			c.expect("the answer", answer...)
			c.expectEnd("the end")
		}
	}
	reply := func(topic, payload string) check {
		return func(t *testing.T, _ *simulator.Server, c *client) {
			c.expect("PUBACK", acknowledged...)
			p := c.expectPublish("the reply")
			if p.topic != topic || payload != "" && p.payload != payload {
				t.Errorf("got %s %s, want %s %s", p.topic, p.payload, topic, payload)
			}
		}
	}
	state := func(topic string, look func(body) bool) check {
		return func(t *testing.T, _ *simulator.Server, c *client) {
			c.expect("PUBACK", acknowledged...)
			p := c.expectPublish("the reply")
			if p.topic != topic || !look(p.parse(t)) {
				t.Errorf("%s %s", p.topic, p.payload)
			}
		}
	}
	for _, c := range []struct {
		name  string
		rule  simulator.Rule
		check check
	}{
		{"close: no PUBACK", simulator.Rule{Close: true}, ends()},
		{"reset: no PUBACK", simulator.Rule{Reset: true}, ends()},
		{"after_puback, close: a PUBACK only", simulator.Rule{AfterPuback: true, Close: true}, ends(acknowledged...)},
		{"after_puback, garbage", simulator.Rule{AfterPuback: true, Garbage: "\xff\xff"}, ends(0x40, 2, 0, 9, 0xff, 0xff)},
		{"then close: all answers and the end", simulator.Rule{Then: "close", Body: new("x"), Topic: "t"}, ends(0x40, 2, 0, 9, 0x32, 6, 0, 1, 't', 0, 2, 'x')},
		{"silent: neither PUBACK nor reply, but a PINGRESP", simulator.Rule{Silent: true}, func(_ *testing.T, _ *simulator.Server, c *client) {
			c.send(0xc0, 0)
			c.expect("PINGRESP", 0xd0, 0)
		}},
		{"after_puback, silent: a PUBACK, no reply", simulator.Rule{AfterPuback: true, Silent: true}, func(_ *testing.T, _ *simulator.Server, c *client) {
			c.expect("PUBACK", acknowledged...)
			c.send(0xc0, 0)
			c.expect("PINGRESP", 0xd0, 0)
		}},
		{"before_puback: the reply first", simulator.Rule{BeforePuback: true}, func(_ *testing.T, _ *simulator.Server, c *client) {
			c.expectPublish("the reply")
			c.expect("PUBACK", acknowledged...)
		}},
		{"delay: everything later", simulator.Rule{Delay: 40 * time.Second}, func(t *testing.T, _ *simulator.Server, c *client) {
			begin := time.Now()
			c.expect("PUBACK", acknowledged...)
			if d := time.Since(begin); d != 40*time.Second {
				t.Error(d)
			}
		}},
		{"after_puback, delay: only the reply later", simulator.Rule{AfterPuback: true, Delay: 40 * time.Second}, func(t *testing.T, _ *simulator.Server, c *client) {
			begin := time.Now()
			c.expect("PUBACK", acknowledged...)
			if d := time.Since(begin); d != 0 {
				t.Error(d)
			}
			c.expectPublish("the reply")
			if d := time.Since(begin); d != 40*time.Second {
				t.Error(d)
			}
		}},
		{"retry_after: any text", simulator.Rule{RetryAfter: "-1e9 soon"}, reply("$dps/registrations/res/202/?$rid=r&retry-after=-1e9 soon", "")},
		{"retry_after none omits it", simulator.Rule{RetryAfter: "none"}, reply("$dps/registrations/res/202/?$rid=r", "")},
		{"429 with retry-after", simulator.Rule{Status: 429, ErrorCode: 429001, RetryAfter: "600", ErrorMessage: "Too many requests."}, state("$dps/registrations/res/429/?$rid=r&retry-after=600", func(b body) bool {
			return b.ErrorCode == 429001 && b.Message == "Too many requests." && len(b.TrackingID) == 36
		})},
		{"500", simulator.Rule{Status: 500}, state("$dps/registrations/res/500/?$rid=r", func(b body) bool { return b.ErrorCode == 500000 && b.OperationID == "" })},
		{"404 with a code", simulator.Rule{Status: 404, ErrorCode: 404201}, state("$dps/registrations/res/404/?$rid=r", func(b body) bool { return b.ErrorCode == 404201 })},
		{"401", simulator.Rule{Status: 401}, state("$dps/registrations/res/401/?$rid=r", func(b body) bool { return b.ErrorCode == 401000 })},
		{"an error without a body", simulator.Rule{Status: 503, Body: new("")}, reply("$dps/registrations/res/503/?$rid=r", "")},
		{"failed", simulator.Rule{State: "failed", ErrorCode: 400208, ErrorMessage: "no hub"}, state("$dps/registrations/res/200/?$rid=r", func(b body) bool {
			return b.Status == "failed" && string(b.RegistrationState["errorCode"]) == "400208" && string(b.RegistrationState["errorMessage"]) == `"no hub"`
		})},
		{"failed on 500", simulator.Rule{State: "failed", Status: 500}, state("$dps/registrations/res/500/?$rid=r", func(b body) bool { return b.Status == "failed" })},
		{"disabled", simulator.Rule{State: "disabled"}, reply("$dps/registrations/res/200/?$rid=r", `{"operationId":"","status":"disabled","registrationState":{"registrationId":"sample-device-01","status":"disabled"}}`)},
		{"unassigned", simulator.Rule{State: "unassigned"}, state("$dps/registrations/res/200/?$rid=r", func(b body) bool { return b.Status == "unassigned" })},
		{"assigning on 200", simulator.Rule{State: "assigning", Status: 200, RetryAfter: "none"}, state("$dps/registrations/res/200/?$rid=r", func(b body) bool { return b.Status == "assigning" && b.OperationID != "" })},
		{"assigned immediately", simulator.Rule{State: "assigned", DeviceID: "d", Substatus: "deviceDataMigrated", Payload: `{"a":1}`}, state("$dps/registrations/res/200/?$rid=r", func(b body) bool {
			return string(b.RegistrationState["deviceId"]) == `"d"` && string(b.RegistrationState["substatus"]) == `"deviceDataMigrated"` && string(b.RegistrationState["payload"]) == `{"a":1}`
		})},
		{"assigned without a hub", simulator.Rule{State: "assigned", Omit: []string{"assignedHub"}}, state("$dps/registrations/res/200/?$rid=r", func(b body) bool {
			_, there := b.RegistrationState["assignedHub"]
			return b.Status == "assigned" && !there
		})},
		{"a hub with control characters", simulator.Rule{State: "assigned", AssignedHub: "a\nb\x07"}, state("$dps/registrations/res/200/?$rid=r", func(b body) bool {
			return string(b.RegistrationState["assignedHub"]) == `"a\nb\u0007"`
		})},
		{"no operation ID", simulator.Rule{Omit: []string{"operationId"}}, reply("$dps/registrations/res/202/?$rid=r&retry-after=3", `{"status":"assigning"}`)},
		{"a truncated body", simulator.Rule{Cut: 14}, reply("$dps/registrations/res/202/?$rid=r&retry-after=3", `{"operationId"`)},
		{"any body", simulator.Rule{Body: new("<html>")}, reply("$dps/registrations/res/202/?$rid=r&retry-after=3", "<html>")},
		{"another $rid", simulator.Rule{RequestID: "someone-else"}, reply("$dps/registrations/res/202/?$rid=someone-else&retry-after=3", "")},
		{"any topic", simulator.Rule{Topic: "$dps/registrations/res/202/?retry-after=9&$rid=r"}, reply("$dps/registrations/res/202/?retry-after=9&$rid=r", "")},
		{"two replies, each with its own identifier", simulator.Rule{Replies: 2}, func(t *testing.T, _ *simulator.Server, c *client) {
			c.expect("PUBACK", acknowledged...)
			a, b := c.expectPublish("one"), c.expectPublish("another")
			if a.topic != b.topic || a.id != 2 || b.id != 3 || b.flags != 0x02 {
				t.Error(a, b)
			}
		}},
		{"a duplicate, which may be acknowledged twice", simulator.Rule{Duplicate: true}, func(t *testing.T, s *simulator.Server, c *client) {
			c.expect("PUBACK", acknowledged...)
			a, b := c.expectPublish("one"), c.expectPublish("again")
			if a.payload != b.payload || a.id != 2 || b.id != 2 || a.flags != 0x02 || b.flags != 0x0a {
				t.Error(a, b)
			}
			c.puback(2)
			c.puback(2)
			c.send(0xe0, 0)
			c.expectEnd("the end")
			if v := violations(s); v != "" {
				t.Error(v)
			}
		}},
		{"byte by byte", simulator.Rule{ByteByByte: true}, reply("$dps/registrations/res/202/?$rid=r&retry-after=3", "")},
	} {
		bubble(t, "at register: "+c.name, func(t *testing.T) {
			c.rule.On, c.rule.Times = simulator.OnRegister, 1
			s := script(t, c.rule)
			cl := ready(t, s)
			cl.send(publishPacket(0x32, registerTopic("r"), 9, "")...)
			c.check(t, s, cl)
		})
	}
	bubble(t, "a failing poll keeps the operation", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "poll", Status: 500, RetryAfter: "3", Times: 2})
		c := ready(t, s)
		p := c.register("1")
		c.puback(2)
		operation := p.parse(t).OperationID
		var seen []string
		for i := range 4 {
			p = c.poll(string(rune('2'+i)), operation)
			c.puback(2)
			seen = append(seen, strings.Split(p.topic, "/")[3])
		}
		if got := strings.Join(seen, " "); got != "500 500 202 200" {
			t.Error(got)
		}
	})
	bubble(t, "a refused register request starts no operation", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "register", Status: 429, Times: 1})
		c := ready(t, s)
		p := c.register("1")
		c.puback(p.id)
		if p := c.assign(); p.parse(t).Status != "assigned" {
			t.Error(p)
		}
	})
	bubble(t, "close at puback, at ping, at disconnect, at unsubscribe", func(t *testing.T) {
		for on, send := range map[simulator.Stage][]byte{
			"puback": {0x40, 2, 0, 2}, "ping": {0xc0, 0}, "disconnect": {0xe0, 0},
			"unsubscribe": packet(0xa2, []byte{0, 9}, text("$dps/registrations/res/#")),
		} {
			s := script(t, simulator.Rule{On: on, Reset: true})
			c := ready(t, s)
			c.register("1")
			c.send(send...)
			c.expectEnd("at " + string(on))
			synctest.Wait()
			log := s.Log()
			if last := log[len(log)-1]; last.Detail != "scenario: reset" {
				t.Errorf("%s: %+v", on, last)
			}
		}
	})
	bubble(t, "the settings polls, retry_after and reply_delay apply to a successful registration", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: new(1), RetryAfter: "120", ReplyDelay: time.Second}}})
		c := ready(t, s)
		begin := time.Now()
		c.send(publishPacket(0x32, registerTopic("1"), 9, "")...)
		c.expect("PUBACK immediately", acknowledged...)
		if d := time.Since(begin); d != 0 {
			t.Error(d)
		}
		p := c.expectPublish("the reply")
		if d := time.Since(begin); d != time.Second || !strings.HasSuffix(p.topic, "&retry-after=120") {
			t.Error(d, p.topic)
		}
		c.puback(2)
		if p = c.poll("2", p.parse(t).OperationID); p.parse(t).Status != "assigned" {
			t.Error(p)
		}
	})
	bubble(t, "polls 0 assigns in the answer to the register request", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: new(0)}}})
		if p := ready(t, s).register("1"); p.parse(t).Status != "assigned" {
			t.Error(p)
		}
	})
	bubble(t, "pings are answered during a long delay", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "register", AfterPuback: true, Delay: time.Hour})
		c := ready(t, s)
		c.send(publishPacket(0x30, registerTopic("1"), 0, "")...)
		c.send(0xc0, 0)
		c.expect("PINGRESP", 0xd0, 0)
		c.expectPublish("the reply, an hour later")
	})
}
