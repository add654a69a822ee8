package simulator_test

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/hub"
)

const (
	messageFilter = "devices/" + device + "/messages/devicebound/#"
	messageTopic  = "devices/" + device + "/messages/devicebound/%24.to=%2Fdevices%2F" + device + "%2Fmessages%2FdeviceBound"
	messagePath   = "/devices/" + device + "/messages/deviceBound"
	messageAPI    = "?api-version=2020-03-13"
)

// sends sends cloud-to-device messages to the device.
func sends(t *testing.T, s *simulator.Server, messages ...string) {
	t.Helper()
	for _, m := range messages {
		if refused := s.SendToDevice(device, []byte(m)); refused != nil {
			t.Fatalf("%+v", refused)
		}
	}
	synctest.Wait() // until they have been sent or queued
}

// listens subscribes to cloud-to-device messages.
func (c *client) listens(qos byte) *client {
	c.t.Helper()
	c.send(packet(0x82, []byte{0, 9}, text(messageFilter), []byte{qos})...)
	c.expect("SUBACK", 0x90, 3, 0, 9, qos)
	synctest.Wait() // until the queued messages have been sent
	return c
}

// gets expects cloud-to-device messages, and returns their packet identifiers.
func (c *client) gets(qos byte, want ...string) []uint16 {
	c.t.Helper()
	var ids []uint16
	for _, payload := range want {
		p := c.expectPublish(payload)
		if p.payload != payload || p.topic != messageTopic || p.flags != qos<<1 {
			c.t.Fatalf("%+v, want %q at QoS %d", p, payload, qos)
		}
		ids = append(ids, p.id)
	}
	return ids
}

// receive sends a request for a message over HTTPS, and returns the lock of the message.
func receive(t *testing.T, s *simulator.Server, want string, deliveries string) string {
	t.Helper()
	status, header, body := dialWebSocket(t, s).askHub("GET", messagePath+messageAPI, hubName, hubToken(s.DeviceKey(device), hubName, device), "")
	switch {
	case want == "" && status == 204:
		return ""
	case status != 200 || body != want || header.Get("Iothub-Deliverycount") != deliveries || header.Get("Iothub-To") != messagePath:
		t.Fatalf("%d %v %q, want %q", status, header, body, want)
	}
	return strings.Trim(header.Get("ETag"), `"`)
}

// settle completes or abandons a message over HTTPS.
func settle(t *testing.T, s *simulator.Server, method, rest string, want int) {
	t.Helper()
	status, _, body := dialWebSocket(t, s).askHub(method, messagePath+"/"+rest+messageAPI, hubName, hubToken(s.DeviceKey(device), hubName, device), "")
	if status != want {
		t.Errorf("%s %s: %d %s, want %d", method, rest, status, body, want)
	}
}

func TestCloudToDeviceMessagesStayQueuedUntilTheDeviceAcknowledgesThem(t *testing.T) {
	bubble(t, "they wait for the subscription, and then arrive in order", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := online(t, s, device)
		sends(t, s, "a", "b")
		c.lives() // nothing arrives
		c.listens(1)
		ids := c.gets(1, "a", "b")
		sends(t, s, "c")
		ids = append(ids, c.gets(1, "c")...)
		for _, id := range ids {
			c.puback(id)
		}
		c.lives()
		c.send(packet(0xa2, []byte{0, 10}, text(messageFilter))...)
		c.expect("UNSUBACK", 0xb0, 2, 0, 10)
		sends(t, s, "d")
		c.lives()
		if lock := receive(t, s, "d", "0"); lock == "" {
			t.Error("acknowledged messages have not been removed")
		}
		if v := hubViolations(s); v != "" {
			t.Error(v)
		}
		down := 0
		for _, e := range s.Log() {
			if e.Packet == "PUBLISH" && e.Direction == "down" && e.Service == "hub" && e.DeviceID == device && e.Topic == messageTopic && e.QoS == 1 {
				down++
			}
		}
		if down != 3 {
			t.Errorf("%d messages in the packet log", down)
		}
	})
	bubble(t, "a new connection receives the unacknowledged messages", func(t *testing.T) {
		s := start(t, simulator.Options{})
		first := online(t, s, device).listens(1)
		sends(t, s, "a", "b")
		first.puback(first.gets(1, "a", "b")[0])
		first.lives() // the hub has the PUBACK
		second := call(t, s, hubConnect(s, hubName, device), 0).listens(1)
		first.expectEnd("taken over")
		second.gets(1, "b")
		second.conn.Close()
		time.Sleep(time.Minute)
		third := call(t, s, hubConnect(s, hubName, device), 0).listens(1)
		third.puback(third.gets(1, "b")[0])
		third.lives()
		third.conn.Close()
		time.Sleep(time.Minute)
		receive(t, s, "", "")
	})
	bubble(t, "at QoS 0, they are removed when they are sent", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := online(t, s, device)
		sends(t, s, "a")
		c.listens(0)
		c.gets(0, "a")
		c.conn.Close()
		time.Sleep(time.Minute)
		receive(t, s, "", "")
	})
	bubble(t, "after ten unsuccessful deliveries, the hub discards a message", func(t *testing.T) {
		s := start(t, simulator.Options{})
		online(t, s, device).conn.Close()
		sends(t, s, "a", "b")
		for i := range 10 {
			settle(t, s, "POST", receive(t, s, "a", fmt.Sprint(i))+"/abandon", 204)
		}
		receive(t, s, "b", "0")
	})
}

func TestAMessageOverHTTPSIsLockedForOneMinute(t *testing.T) {
	bubble(t, "and is then available again, even to an MQTT connection", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := online(t, s, device)
		receive(t, s, "", "")
		sends(t, s, "a", "b")
		lost := receive(t, s, "a", "0")
		b := receive(t, s, "b", "0")
		receive(t, s, "", "")
		settle(t, s, "POST", b+"/abandon", 204)
		c.listens(1)
		c.puback(c.gets(1, "b")[0])
		time.Sleep(time.Minute - time.Second)
		c.lives() // still locked
		time.Sleep(time.Second)
		c.gets(1, "a")
		settle(t, s, "DELETE", lost, 412)
		settle(t, s, "DELETE", "x", 412)
		settle(t, s, "DELETE", "", 404)
		settle(t, s, "PUT", lost, 404)
		settle(t, s, "DELETE", lost+"/abandon", 404)
	})
	bubble(t, "and a completed message is removed", func(t *testing.T) {
		s := start(t, simulator.Options{})
		online(t, s, device)
		sends(t, s, "a")
		settle(t, s, "DELETE", receive(t, s, "a", "0"), 204)
		time.Sleep(2 * time.Minute)
		receive(t, s, "", "")
	})
}

func TestTheHubRefusesMessagesThatItCannotQueue(t *testing.T) {
	bubble(t, "an unknown device, the 51st message, and a large message", func(t *testing.T) {
		s := start(t, simulator.Options{})
		code := func(id string, payload []byte) int {
			if refused := s.SendToDevice(id, payload); refused != nil {
				return refused.Code
			}
			return 0
		}
		if got := code(device, nil); got != 404001 {
			t.Error(got)
		}
		c := online(t, s, device).listens(1)
		if got := code(device, make([]byte, hub.MaxCloudMessage+1)); got != 413001 {
			t.Error(got)
		}
		for i := range hub.MaxQueued {
			if got := code(device, []byte(fmt.Sprint(i))); got != 0 {
				t.Fatal(i, got)
			}
		}
		ids := make([]uint16, 0, hub.MaxQueued)
		for i := range hub.MaxQueued {
			ids = append(ids, c.gets(1, fmt.Sprint(i))...)
		}
		if got := code(device, nil); got != 403004 {
			t.Error(got)
		}
		c.puback(ids[7])
		c.lives()
		if got := code(device, make([]byte, hub.MaxCloudMessage)); got != 0 {
			t.Error(got)
		}
		s.DeleteDevice(device)
		online(t, s, device)
		receive(t, s, "", "")
	})
}
