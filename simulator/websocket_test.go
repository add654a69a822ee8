package simulator_test

import (
	"bufio"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// dialWebSocket opens TLS to the WebSocket listener.
func dialWebSocket(t *testing.T, s *simulator.Server) *client {
	t.Helper()
	mine, theirs := net.Pipe()
	go s.ServeWebSocket(theirs)
	conn := tls.Client(mine, clientConfig(s))
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	return newClient(t, conn)
}

// webSocket opens TLS and sends an upgrade request that is written by hand.
func webSocket(t *testing.T, s *simulator.Server, path, more string) (*client, *http.Response) {
	t.Helper()
	c := dialWebSocket(t, s)
	c.send([]byte("GET " + path + " HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + more + "\r\n")...)
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

const subprotocol = "Sec-WebSocket-Protocol: mqtt\r\n"

// frame returns a masked frame. The masking key of zeros does not change the bytes.
func frame(first byte, payload []byte) []byte {
	b := []byte{first}
	if len(payload) < 126 {
		b = append(b, 0x80|byte(len(payload)))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0x80|126), uint16(len(payload)))
	}
	return append(append(b, 0, 0, 0, 0), payload...)
}

// unframed returns the payload of the next frame.
func (c *client) unframed(why string, want byte) []byte {
	c.t.Helper()
	head := make([]byte, 2)
	if _, err := io.ReadFull(c.in, head); err != nil || head[0] != want {
		c.t.Fatalf("%s: a frame of % x (%v), want %#x", why, head, err, want)
	}
	n := int(head[1])
	if n == 126 {
		var long [2]byte
		_, _ = io.ReadFull(c.in, long[:])
		n = int(binary.BigEndian.Uint16(long[:]))
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.in, b); err != nil {
		c.t.Fatal(why, err)
	}
	return b
}

func TestWebSocket(t *testing.T) {
	for _, c := range []struct{ name, path, header, echo string }{
		{"the documented path and subprotocol", "/$iothub/websocket", subprotocol, "mqtt"},
		{"no path, as C# and Java do it", "/", subprotocol, "mqtt"},
		{"the path /mqtt, as the Paho libraries use it by default", "/mqtt", subprotocol, "mqtt"},
		{"the documented path with its $ percent-encoded", "/%24iothub/websocket", subprotocol, "mqtt"},
		{"a whole URL as the request target (RFC 9112 3.2.2)", "wss://localhost/mqtt", subprotocol, "mqtt"},
		{"a whole URL without a path", "wss://localhost", subprotocol, "mqtt"},
		{"a query, as the C SDK sends it to hubs", "/$iothub/websocket?iothub-no-client-cert=true", subprotocol, "mqtt"},
		{"the subprotocol in capitals, as the C SDK sends it", "/$iothub/websocket", "Sec-WebSocket-Protocol: MQTT\r\n", "MQTT"},
		{"mqtt among others", "/", "Sec-WebSocket-Protocol: mqttv5, mqtt\r\n", "mqtt"},
	} {
		bubble(t, c.name+" is accepted, and a registration goes through", func(t *testing.T) {
			s := start(t, simulator.Options{})
			cl, r := webSocket(t, s, c.path, c.header)
			// The answer to this key is the example of RFC 6455 1.3.
			if r.StatusCode != http.StatusSwitchingProtocols || r.Header.Get("Sec-WebSocket-Protocol") != c.echo || r.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
				t.Fatal(r.Status, r.Header)
			}
			cl.send(frame(0x82, goodConnect(s, device))...)
			if b := cl.unframed("CONNACK", 0x82); string(b) != "\x20\x02\x00\x00" {
				t.Errorf("% x", b)
			}
			cl.send(frame(0x82, subscribePacket(1, 1))...)
			cl.unframed("SUBACK", 0x82)
			cl.send(frame(0x82, publishPacket(0x32, registerTopic("1"), 9, ""))...)
			b := cl.unframed("PUBACK and reply in one frame", 0x82)
			if !strings.HasPrefix(string(b), "\x40\x02\x00\x09\x32") || !strings.Contains(string(b), "/202/") {
				t.Errorf("%q", b)
			}
			cl.send(frame(0x82, []byte{0x40, 2, 0, 2, 0xe0, 0})...)
			if b := cl.unframed("a close frame", 0x88); string(b) != "\x03\xe8" {
				t.Errorf("% x", b)
			}
			cl.expectEnd("the end")
			if v := violations(s); v != "" {
				t.Error(v)
			}
		})
	}
	for _, c := range []struct {
		name, path, header, says string
		status                   int
	}{
		{"another path", "/mqtt5", subprotocol, "path", 400},
		{"a path below one that is served", "/mqtt/", subprotocol, "path", 400},
		{"a path in other case", "/MQTT", subprotocol, "path", 400},
		{"no subprotocol [MQTT-6.0.0-3]", "/", "", "MQTT-6.0.0-3", 400},
		{"another subprotocol", "/", "Sec-WebSocket-Protocol: mqttv3.1\r\n", "MQTT-6.0.0-3", 400},
	} {
		bubble(t, c.name+" is refused", func(t *testing.T) {
			s := start(t, simulator.Options{})
			cl, r := webSocket(t, s, c.path, c.header)
			_, _ = io.Copy(io.Discard, r.Body)
			if v := violations(s); r.StatusCode != c.status || !strings.Contains(v, c.says) {
				t.Error(r.Status, v)
			}
			cl.expectEnd("the end")
		})
	}
	for path, want := range map[string]int{"/$iothub/websocket": 101, "/%24iothub/websocket": 101, "/": 400, "/mqtt": 400} {
		bubble(t, fmt.Sprintf("with strict_paths, %s is answered %d", path, want), func(t *testing.T) {
			s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{StrictPaths: true}}})
			if _, r := webSocket(t, s, path, subprotocol); r.StatusCode != want {
				t.Error(r.Status)
			}
		})
	}
	upgraded := func(t *testing.T) (*simulator.Server, *client) {
		s := start(t, simulator.Options{})
		c, r := webSocket(t, s, "/", subprotocol)
		if r.StatusCode != http.StatusSwitchingProtocols {
			t.Fatal(r.Status)
		}
		return s, c
	}
	bubble(t, "a packet may span frames, and a frame may hold several packets [MQTT-6.0.0-2]", func(t *testing.T) {
		s, c := upgraded(t)
		connect := goodConnect(s, device)
		for _, b := range connect {
			c.send(frame(0x82, []byte{b})...)
		}
		c.unframed("CONNACK", 0x82)
		c.send(frame(0x82, append([]byte{0xc0, 0, 0xc0, 0}, subscribePacket(1, 1)...))...)
		for _, want := range []string{"\xd0\x00", "\xd0\x00", "\x90\x03\x00\x01\x01"} {
			if b := c.unframed("an answer", 0x82); string(b) != want {
				t.Errorf("% x, want % x", b, want)
			}
		}
	})
	bubble(t, "a fragmented message is one stream of bytes", func(t *testing.T) {
		s, c := upgraded(t)
		connect := goodConnect(s, device)
		c.send(frame(0x02, connect[:9])...)
		c.send(frame(0x80, connect[9:])...)
		c.unframed("CONNACK", 0x82)
	})
	bubble(t, "a ping is answered with its payload", func(t *testing.T) {
		_, c := upgraded(t)
		c.send(frame(0x89, []byte("hello"))...)
		if b := c.unframed("a pong", 0x8a); string(b) != "hello" {
			t.Errorf("%q", b)
		}
	})
	for _, c := range []struct {
		name  string
		bytes func(*simulator.Server) []byte
		says  string
	}{
		{"a text frame [MQTT-6.0.0-1]", func(s *simulator.Server) []byte { return frame(0x81, goodConnect(s, device)) }, "MQTT-6.0.0-1"},
		{"a frame without a mask (RFC 6455 5.1)", func(*simulator.Server) []byte { return []byte{0x82, 2, 0xc0, 0} }, "MASK"},
		{"a reserved bit (RFC 6455 5.2)", func(*simulator.Server) []byte { return frame(0xc2, []byte{0xc0, 0}) }, "RSV"},
	} {
		bubble(t, c.name+" ends the connection", func(t *testing.T) {
			s, cl := upgraded(t)
			cl.send(c.bytes(s)...)
			_, _ = io.Copy(io.Discard, cl.in)
			synctest.Wait()
			if v := violations(s); !strings.Contains(v, c.says) {
				t.Errorf("violation %q", v)
			}
		})
	}
	bubble(t, "a close frame with the text 1000, as Microsoft's SDK for Java sends it, is not a violation", func(t *testing.T) {
		s, c := upgraded(t)
		c.send(frame(0x88, []byte("1000"))...)
		_, _ = io.Copy(io.Discard, c.in)
		if v := violations(s); v != "" {
			t.Error(v)
		}
	})
	bubble(t, "a close frame ends the connection without a violation", func(t *testing.T) {
		s, c := upgraded(t)
		c.send(frame(0x88, []byte{0x03, 0xe8})...)
		c.unframed("a close frame", 0x88)
		_, _ = io.Copy(io.Discard, c.in)
		if v := violations(s); v != "" {
			t.Error(v)
		}
	})
}

func TestUpgradeFaults(t *testing.T) {
	for _, c := range []struct {
		name     string
		rule     simulator.Rule
		status   int
		location string
		body     string
	}{
		{"status 403", simulator.Rule{Status: 403}, 403, "", ""},
		{"a redirect to a portal", simulator.Rule{Location: "http://portal.example/"}, 302, "http://portal.example/", ""},
		{"a page instead of a socket", simulator.Rule{Body: new("<html>")}, 200, "", "<html>"},
	} {
		bubble(t, "at upgrade: "+c.name, func(t *testing.T) {
			c.rule.On = simulator.OnUpgrade
			s := script(t, c.rule)
			_, r := webSocket(t, s, "/", subprotocol)
			b, _ := io.ReadAll(r.Body)
			if r.StatusCode != c.status || r.Header.Get("Location") != c.location || string(b) != c.body {
				t.Error(r.Status, r.Header, string(b))
			}
		})
	}
	bubble(t, "at upgrade: close", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "upgrade", Close: true})
		mine, theirs := net.Pipe()
		go s.ServeWebSocket(theirs)
		conn := tls.Client(mine, clientConfig(s))
		if err := conn.Handshake(); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\r\n")
		if _, err := bufio.NewReader(conn).ReadByte(); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
		conn.Close()
	})
}
