package simulator_test

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// Deviations that shipping clients make and the service accepts.
func TestTolerance(t *testing.T) {
	expiry := func() time.Time { return time.Now().Add(time.Hour) }
	for _, c := range []struct {
		name           string
		flags          byte
		keepAlive      uint16
		user           string // after the registration ID
		token          func(*simulator.Server) string
		qos            byte // first byte of a PUBLISH
		body, pollBody string
		rids           [3]string
		unsubscribe    bool
	}{
		{
			"the Node SDK: sr not escaped, QoS 1, a UUID each, a space as poll body, UNSUBSCRIBE at the end", 0xc2, 180,
			"/api-version=2019-03-31&ClientVersion=azure-iot-provisioning-device%2F1.9.1",
			func(s *simulator.Server) string {
				return token(s.DeviceKey(device), s.IDScope()+"/registrations/"+device, expiry(), "&skn=registration")
			},
			0x32, `{"registrationId":"sample-device-01"}`, " ",
			[3]string{"43fd8f6e-18d9-4047-a4b8-2155548e0a43", "a0af5680-7f6e-488e-85cb-daabe33a996c", "1d4a52d6-1d84-48a9-a6d1-55fde5c3e3a5"}, true,
		},
		{
			"the Python SDK: clean session 0, no skn, a payload of null", 0xc0, 60,
			"/api-version=2019-03-31&ClientVersion=azure-iot-device-provisioning-py%2F2.14.0%28x%29",
			func(s *simulator.Server) string {
				return token(s.DeviceKey(device), resourceOf(s, device), expiry(), "")
			},
			0x32, `{"payload": null, "registrationId": "sample-device-01"}`, " ", [3]string{"a-1", "b-2", "c-3"}, false,
		},
		{
			"the C SDK: lower-case hex, keep-alive 0, QoS 0, the register body as poll body", 0xc2, 0,
			"/api-version=2021-06-01&ClientVersion=1.15.0",
			func(s *simulator.Server) string {
				return token(s.DeviceKey(device), strings.ReplaceAll(resourceOf(s, device), "%2F", "%2f"), expiry(), "&skn=registration")
			},
			0x30, `{"registrationId":"sample-device-01"}`, `{"registrationId":"sample-device-01"}`, [3]string{"1", "2", "3"}, false,
		},
		{
			"the embedded C sample: no ClientVersion, an empty body, the same $rid always", 0xc0, 240,
			"/api-version=2019-03-31",
			func(s *simulator.Server) string {
				return token(s.DeviceKey(device), strings.ReplaceAll(resourceOf(s, device), "%2F", "%2f"), expiry(), "")
			},
			0x32, "", "", [3]string{"1", "1", "1"}, false,
		},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := start(t, simulator.Options{})
			cl := dial(t, s)
			cl.send(connectPacket(c.flags, c.keepAlive, device, s.IDScope()+"/registrations/"+device+c.user, c.token(s))...)
			cl.expect("accepted", 0x20, 2, 0, 0)
			cl.subscribe()
			operation := ""
			var p publish
			for i, rid := range c.rids {
				topic, body := registerTopic(rid), c.body
				if i > 0 {
					topic, body = pollTopic(rid, operation), c.pollBody
				}
				cl.send(publishPacket(c.qos, topic, uint16(100+i), body)...)
				if c.qos == 0x32 {
					cl.expect("the PUBACK comes before the reply", 0x40, 2, 0, byte(100+i))
				}
				p = cl.expectPublish("the reply")
				if !strings.Contains(p.topic, "/?$rid="+rid) {
					t.Errorf("$rid %q is not echoed in %q", rid, p.topic)
				}
				cl.puback(p.id)
				operation = p.parse(t).OperationID
			}
			if b := p.parse(t); b.Status != "assigned" {
				t.Errorf("the third reply: %+v", b)
			}
			if c.unsubscribe {
				cl.send(packet(0xa2, []byte{0, 9}, text("$dps/registrations/res/#"))...)
				cl.expect("UNSUBACK", 0xb0, 2, 0, 9)
			}
			cl.send(0xe0, 0)
			cl.expectEnd("DISCONNECT ends it")
			if v := violations(s); v != "" {
				t.Errorf("violations: %s", v)
			}
		})
	}

	bubble(t, "a subscription at QoS 0 gets replies at QoS 0", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dial(t, s).connect(s, device)
		c.send(subscribePacket(7, 0)...)
		c.expect("granted 0", 0x90, 3, 0, 7, 0)
		if p := c.register("1"); p.flags != 0 || p.id != 0 {
			t.Errorf("%+v", p)
		}
	})
	bubble(t, "a subscription at QoS 2 is granted 1", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dial(t, s).connect(s, device)
		c.send(subscribePacket(7, 2)...)
		c.expect("granted 1", 0x90, 3, 0, 7, 1)
		if p := c.register("1"); p.flags != 0x02 {
			t.Errorf("%+v", p)
		}
	})
	bubble(t, "a percent-encoded $rid is echoed as it came, a percent-encoded operation ID is found", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		p := c.register("a%2Eb")
		c.puback(2)
		if !strings.Contains(p.topic, "$rid=a%2Eb&") {
			t.Error(p.topic)
		}
		encoded := strings.ReplaceAll(url.QueryEscape(p.parse(t).OperationID), ".", "%2E")
		if p := c.poll("2", encoded); !strings.Contains(p.topic, "/202/") {
			t.Error(p.topic, p.payload)
		}
	})
	bubble(t, "a register body may contain the registration ID in any case and a payload", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		c.send(publishPacket(0x30, registerTopic("1"), 0, `{"registrationId":"SAMPLE-DEVICE-01","payload":{"model":"x","new":1},"tpm":null}`)...)
		if p := c.expectPublish("it is accepted"); !strings.Contains(p.topic, "/202/") {
			t.Error(p)
		}
	})
	for name, body := range map[string]string{
		"a member name without quotes":                 `{registrationId:"sample-device-01"}`,
		"a payload with member names without quotes":   `{payload:{model:"x",_a$1:[{b:true}]}}`,
		"quoted and unquoted member names and spaces":  "{\r\n registrationId : \"sample-device-01\",\t\"payload\":{ a : 1 , \"b\" : \"{c:1}\" } }",
		"the payload of null of Microsoft's SDK in it": `{payload:null}`,
	} {
		bubble(t, "a register body with "+name+" is accepted", func(t *testing.T) {
			s := start(t, simulator.Options{})
			c := ready(t, s)
			c.send(publishPacket(0x30, registerTopic("1"), 0, body)...)
			if p := c.expectPublish("it is accepted"); !strings.Contains(p.topic, "/202/") {
				t.Error(p)
			}
		})
		bubble(t, "with strict_json, a register body with "+name+" is answered 400012", func(t *testing.T) {
			s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{StrictJSON: true}}})
			ready(t, s).undecodable(body)
		})
	}
	for name, bad := range map[string]string{
		"JSON that is truncated":             `{"registrationId":`,
		"text":                               `registrationId=sample-device-01`,
		"an array":                           `[]`,
		"a string":                           `"sample-device-01"`,
		"an unknown member":                  `{"registrationId":"sample-device-01","modelId":"dtmi:x;1"}`,
		"an unknown member without quotes":   `{modelId:"dtmi:x;1"}`,
		"a misspelt member":                  `{"payLoadd":{}}`,
		"a member in other case":             `{"Payload":{}}`,
		"the member of an expired preview":   `{"clientCertificateCsr":"AA"}`,
		"a registrationId that is a number":  `{"registrationId":7}`,
		"a payload that is not an object":    `{"payload":"text"}`,
		"a payload that is an array":         `{"payload":[1]}`,
		"data after the object":              `{}{}`,
		"a zero byte after the object":       "{}\x00",
		"single quotes":                      `{'registrationId':'sample-device-01'}`,
		"a comma at the end":                 `{"payload":null,}`,
		"a value without quotes":             `{registrationId:sample-device-01}`,
		"a name that begins with a digit":    `{1a:1}`,
		"a name with a hyphen and no quotes": `{payload:{a-b:1}}`,
	} {
		bubble(t, "a register body of "+name+" is answered 400012 with an empty tracking ID, and no operation begins", func(t *testing.T) {
			s := start(t, simulator.Options{})
			c := ready(t, s)
			c.undecodable(bad)
			if p := c.assign(); p.parse(t).Status != "assigned" {
				t.Error("a good one after that", p)
			}
		})
	}
	bubble(t, "a register body with another registrationId is answered 400000", func(t *testing.T) {
		s := start(t, simulator.Options{})
		p := ready(t, s).ask(`{"registrationId":"another"}`)
		if b := p.parse(t); p.topic != "$dps/registrations/res/400/?$rid=1" || b.ErrorCode != 400000 || b.TrackingID == "" {
			t.Error(p)
		}
	})
	bubble(t, "a $rid without its $ is answered with an empty $rid, on register and poll", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		c.send(publishPacket(0x30, "$dps/registrations/PUT/iotdps-register/?rid=1", 0, "")...)
		p := c.expectPublish("it is accepted")
		c.puback(p.id)
		if p.topic != "$dps/registrations/res/202/?$rid=&retry-after=3" {
			t.Error(p.topic)
		}
		operation := p.parse(t).OperationID
		for _, want := range []string{"202/?$rid=&retry-after=3", "200/?$rid="} {
			c.send(publishPacket(0x30, "$dps/registrations/GET/iotdps-get-operationstatus/?rid=2&operationId="+operation, 0, "")...)
			p = c.expectPublish("a poll is answered")
			c.puback(p.id)
			if p.topic != "$dps/registrations/res/"+want {
				t.Error(p.topic)
			}
		}
		if v := violations(s); v != "" {
			t.Error(v)
		}
	})
	bubble(t, "of a $rid and a rid, the $rid is echoed", func(t *testing.T) {
		s := start(t, simulator.Options{})
		if p := ready(t, s).register("7&rid=1"); p.topic != "$dps/registrations/res/202/?$rid=7&retry-after=3" {
			t.Error(p.topic)
		}
	})
	bubble(t, "a poll of an unknown operation is answered 404203, and the connection remains open", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		p := c.poll("1", "5.0000000000000000.00000000-0000-4000-8000-000000000000")
		if b := p.parse(t); p.topic != "$dps/registrations/res/404/?$rid=1" || b.ErrorCode != 404203 {
			t.Error(p)
		}
		c.puback(p.id)
		if p := c.assign(); p.parse(t).Status != "assigned" {
			t.Error(p)
		}
	})
	bubble(t, "an operation outlives its connection", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		operation := c.register("1").parse(t).OperationID
		c.conn.Close()
		c = ready(t, s)
		p := c.poll("1", operation)
		c.puback(p.id)
		if p = c.poll("2", operation); p.parse(t).Status != "assigned" {
			t.Error(p)
		}
	})
}

// undecodable sends a register request with a body that the service cannot decode.
func (c *client) undecodable(body string) {
	c.t.Helper()
	p := c.ask(body)
	if b := p.parse(c.t); p.topic != "$dps/registrations/res/400/?$rid=1" || b.ErrorCode != 400012 || b.Message != "Deserialization error." ||
		!strings.Contains(p.payload, `"trackingId":""`) || b.OperationID != "" {
		c.t.Errorf("%q: %s %s", body, p.topic, p.payload)
	}
}
