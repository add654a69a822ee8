package daemon

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/sas"
)

// deviceClient is an MQTT client that is connected to the hub as the device, with a persistent
// session.
type deviceClient struct {
	t    *testing.T
	conn *tls.Conn
	in   *bufio.Reader
}

// connectToHub connects. The messages for the device wait until the client subscribes.
func (r *reporting) connectToHub() *deviceClient {
	r.t.Helper()
	rec := r.wantAssigned()
	raw, err := r.dial(r.t.Context(), "tcp", rec.AssignedHub+":8883")
	if err != nil {
		r.t.Fatal(err)
	}
	c := &deviceClient{t: r.t, conn: tls.Client(raw, &tls.Config{ServerName: rec.AssignedHub, RootCAs: r.Settings.Dialer.Roots, MinVersion: tls.VersionTLS12})}
	c.in = bufio.NewReader(c.conn)
	identity := hub.Identity{Host: rec.AssignedHub, DeviceID: rec.DeviceID}
	key, err := base64.StdEncoding.DecodeString(r.sim.DeviceKey(device))
	if err != nil {
		r.t.Fatal(err)
	}
	expiry := time.Now().Add(24 * time.Hour)
	token := sas.Token(identity.Resource(false), sas.MAC(key, sas.Statement(identity.Resource(false), expiry)), expiry, "")
	// Clean session 0, a user name and a password [MQTT-3.1.2], and a keep-alive of 20 min.
	c.send(0x10, field("MQTT")+"\x04\xc0\x04\xb0"+field(identity.ClientID())+field(identity.UserName())+field(token))
	c.want("\x20\x02\x00\x00", "CONNACK 0")
	return c
}

// subscribes subscribes to the messages for the device, at QoS 1.
func (c *deviceClient) subscribes() {
	c.t.Helper()
	c.send(0x82, "\x00\x01"+field("devices/"+device+"/messages/devicebound/#")+"\x01")
	c.want("\x90\x03\x00\x01\x01", "SUBACK")
}

// receives expects exactly these messages for the device, and returns their packet identifiers. The
// messages arrive immediately; a message that another program had locked would arrive a minute later.
func (c *deviceClient) receives(messages ...string) (ids []string) {
	c.t.Helper()
	_ = c.conn.SetReadDeadline(time.Now().Add(time.Second))
	defer func() { _ = c.conn.SetReadDeadline(time.Time{}) }()
	for _, want := range messages {
		header, err := c.in.ReadByte()
		if err != nil || header != 0x32 {
			c.t.Fatalf("%#x (%v), want a PUBLISH at QoS 1 without DUP", header, err)
		}
		length, err := binary.ReadUvarint(c.in) // the form is that of the remaining length of MQTT
		if err != nil {
			c.t.Fatal(err)
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(c.in, body); err != nil {
			c.t.Fatal(err)
		}
		topic, rest := body[2:2+binary.BigEndian.Uint16(body)], body[2+binary.BigEndian.Uint16(body):]
		if !strings.HasPrefix(string(topic), "devices/"+device+"/messages/devicebound/") || string(rest[2:]) != want {
			c.t.Fatalf("%q, want the message %q", body, want)
		}
		ids = append(ids, string(rest[:2]))
	}
	c.pings()
	return ids
}

// pings shows that the client is connected, and that nothing else has arrived.
func (c *deviceClient) pings() {
	c.t.Helper()
	synctest.Wait() // until the hub has sent everything
	c.send(0xc0, "")
	c.want("\xd0\x00", "PINGRESP")
}

// ends waits until the hub has ended the connection.
func (c *deviceClient) ends() {
	c.t.Helper()
	if b, err := c.in.ReadByte(); err == nil {
		c.t.Fatalf("%#x, want the end of the connection", b)
	}
}

func field(s string) string { return string([]byte{byte(len(s) >> 8), byte(len(s))}) + s }

func (c *deviceClient) send(header byte, body string) {
	c.t.Helper()
	packet := []byte{header}
	for n := len(body); ; {
		digit := byte(n % 128)
		if n /= 128; n == 0 {
			packet = append(packet, digit)
			break
		}
		packet = append(packet, digit|0x80)
	}
	if _, err := c.conn.Write(append(packet, body...)); err != nil {
		c.t.Fatal(err)
	}
}

func (c *deviceClient) want(packet, what string) {
	c.t.Helper()
	got := make([]byte, len(packet))
	if _, err := io.ReadFull(c.in, got); err != nil || string(got) != packet {
		c.t.Fatalf("%q (%v), want %s", got, err, what)
	}
}

// delivers sends a message that the client has queued, and waits until the hub has received it.
func (c *deviceClient) delivers(id byte) {
	c.t.Helper()
	c.send(0x32, field("devices/"+device+"/messages/events/")+"\x00"+string(rune(id))+"queued")
	c.want("\x40\x02\x00"+string(rune(id)), "PUBACK")
}

// queues sends cloud-to-device messages to the device.
func (r *reporting) queues(messages ...string) {
	r.t.Helper()
	for _, m := range messages {
		if refused := r.sim.SendToDevice(device, []byte(m)); refused != nil {
			r.t.Fatalf("%+v", refused)
		}
	}
}

// checks performs 1,000 checks of the hub, which must send only requests for the module list, or none.
func (r *reporting) checks(https bool) {
	r.t.Helper()
	before := len(r.sim.Log())
	for range 1000 {
		settings := r.Settings
		settings.HubCheck = https
		check := hubCheck{
			reporter:  reporter{r.s.eventLog, make(chan phase, 10), nil, time.Now},
			hubAccess: hubAccess{settings, r.Secrets, r.wantAssigned(), settings.Credentials[0]},
		}
		o := check.run(r.t.Context()).(hubChecked)
		if want := map[bool]refusal.Finding{true: refusal.Accepted, false: refusal.Verified}[https]; o.finding != want || o.err != nil {
			r.t.Fatalf("%s: %v", o.finding, o.err)
		}
	}
	requests := 0
	for _, e := range r.sim.Log()[before:] {
		switch {
		case e.Packet == "REQUEST" && strings.HasPrefix(e.Topic, "GET /devices/"+device+"/modules?"):
			requests++
		case e.Packet == "REQUEST" || e.Packet == "CONNECT":
			// Another request could lock a message for the device, and an MQTT connection would take it.
			r.t.Fatalf("%s %s", e.Packet, e.Topic)
		}
	}
	if want := map[bool]int{true: 1000}[https]; requests != want {
		r.t.Errorf("%d requests, want %d", requests, want)
	}
}

func TestADeviceClientWithQueuedMessagesStaysConnectedThrough1000Checks(t *testing.T) {
	long(t)
	for _, https := range []bool{true, false} {
		t.Run(fmt.Sprintf("hub_check with https: %t", https), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newReporting(t, nil)
				defer r.finish()
				r.queues("1", "2")
				client := r.connectToHub()
				defer client.conn.Close()
				r.queues("3")
				client.delivers(1)
				r.checks(https) // while the messages wait
				client.delivers(2)
				client.subscribes()
				ids := client.receives("1", "2", "3")
				r.queues("4")
				ids = append(ids, client.receives("4")...)
				r.checks(https) // while they await their PUBACK
				client.delivers(3)
				for _, id := range ids {
					client.send(0x40, id)
				}
				client.pings() // nothing has arrived twice, and the hub has read the PUBACKs

				// No message is left at the hub.
				again := r.connectToHub()
				defer again.conn.Close()
				client.ends()
				again.subscribes()
				again.receives()
			})
		})
	}
}

// This is the negative control of TestADeviceClientWithQueuedMessagesStaysConnectedThrough1000Checks:
// a check with MQTT would disconnect the client.
func TestAnMQTTConnectionAsTheDeviceEndsTheOneOfTheClientAndTakesItsMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, nil)
		defer r.finish()
		r.queues("1", "2")
		client := r.connectToHub()
		defer client.conn.Close()
		client.subscribes()
		client.receives("1", "2")
		probe := r.connectToHub()
		defer probe.conn.Close()
		client.ends()
		probe.subscribes()
		for _, id := range probe.receives("1", "2") {
			probe.send(0x40, id)
		}
		probe.pings()

		back := r.connectToHub()
		defer back.conn.Close()
		back.subscribes()
		back.receives() // the client has lost the messages
	})
}
