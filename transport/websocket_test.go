package transport_test

import (
	"bufio"
	"bytes"
	"crypto/sha1"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/dpsd-project/dpsd/transport"
)

// answering serves the upgrade with a reply that answer returns for the request.
func answering(answer func(*http.Request) string, then func(*tls.Conn)) func(*tls.Conn) {
	return func(c *tls.Conn) {
		request, err := http.ReadRequest(bufio.NewReader(c))
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, answer(request)); err == nil && then != nil {
			then(c)
		}
	}
}

// switching returns a valid reply to the upgrade with an additional header line.
func switching(line string) func(*http.Request) string {
	return func(r *http.Request) string {
		sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
		return "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: " +
			base64.StdEncoding.EncodeToString(sum[:]) + "\r\n" + line + "\r\n"
	}
}

func TestUpgrade(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	setUp := func(t *testing.T, handle func(*tls.Conn)) *transport.Dialer {
		n := newNetwork(t, false, map[string]func(net.Conn){webAddress: secure(config, handle)})
		return &transport.Dialer{Host: host, Protocols: only(transport.WebSocket), Roots: root.pool(), DialContext: n.DialContext}
	}
	fixed := func(text string) func(*http.Request) string { return func(*http.Request) string { return text } }
	refused := func(status int, location string) func(error) bool {
		return func(err error) bool {
			var e *transport.UpgradeError
			return errors.As(err, &e) && e.Status == status && e.Location == location
		}
	}
	for _, test := range []struct {
		expect string
		answer func(*http.Request) string
		check  func(error) bool
	}{
		{"400 is a refused upgrade", fixed("HTTP/1.1 400 Bad Request\r\nContent-Length: 3\r\n\r\nno!"), refused(400, "")},
		{"403 with a body that never comes", fixed("HTTP/1.1 403 Forbidden\r\nContent-Length: 1000\r\n\r\n"), refused(403, "")},
		{"503 is a refused upgrade", fixed("HTTP/1.1 503 Busy\r\n\r\n"), refused(503, "")},
		{"200 is not a WebSocket", fixed("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), refused(200, "")},
		{"an HTML page is recognized", fixed("HTTP/1.1 200 OK\r\nContent-Type: Text/HTML; charset=utf-8\r\nContent-Length: 6\r\n\r\n<html>"), func(err error) bool {
			var e *transport.UpgradeError
			return errors.As(err, &e) && e.Status == 200 && e.HTML() && strings.Contains(err.Error(), "with status 200, content type Text/HTML; charset=utf-8")
		}},
		{"JSON is not an HTML page", fixed("HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"), func(err error) bool {
			var e *transport.UpgradeError
			return errors.As(err, &e) && e.Status == 404 && !e.HTML()
		}},
		{"a redirection is reported but not followed", fixed("HTTP/1.1 302 Found\r\nLocation: https://elsewhere.test/\r\nContent-Length: 0\r\n\r\n"), refused(302, "https://elsewhere.test/")},
		{"no subprotocol [MQTT-6.0.0-4]", switching(""), refused(101, "")},
		{"another subprotocol", switching("Sec-WebSocket-Protocol: mqttv5\r\n"), func(err error) bool { return strings.Contains(err.Error(), "mqttv5") }},
		{"an extension that was not requested", switching("Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"), func(err error) bool {
			return refused(101, "")(err) && strings.Contains(err.Error(), "an extension that was not offered: permessage-deflate")
		}},
		{"a wrong accept key", fixed("HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: AAAA\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"), func(err error) bool { return strings.Contains(err.Error(), "Sec-WebSocket-Accept") }},
		{"a reply in another protocol", fixed("\x20\x02\x00\x00\r\n\r\n"), func(err error) bool { return strings.Contains(err.Error(), "malformed HTTP") }},
		{"a truncated reply", fixed("HTTP/1.1 101 Switching"), func(err error) bool { return errors.Is(err, io.EOF) }},
		{"the end of the connection instead of a reply", fixed(""), func(err error) bool { return errors.Is(err, io.EOF) }},
		{"a header without end", fixed("HTTP/1.1 101 S\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 100)), func(err error) bool { return strings.Contains(err.Error(), "more than 65536 bytes") }},
	} {
		t.Run(test.expect, func(t *testing.T) {
			e := failure(t, setUp(t, answering(test.answer, nil)), nil)
			if e.Stage != transport.StageWebSocket || e.Address != webAddress || !test.check(e) {
				t.Errorf("got %s %q: %v", e.Stage, e.Address, e)
			}
		})
	}
	t.Run("a subprotocol in capitals is accepted", func(t *testing.T) {
		dial(t, setUp(t, answering(switching("Sec-WebSocket-Protocol: MQTT\r\n"), hold)), nil)
	})
	t.Run("an empty list of extensions is accepted", func(t *testing.T) {
		for _, list := range []string{"", " ", ", ,"} {
			dial(t, setUp(t, answering(switching("Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Extensions:"+list+"\r\n"), hold)), nil)
		}
	})
	t.Run("the connection has the time of the server's Date header (RFC 9110 6.6.1)", func(t *testing.T) {
		for line, want := range map[string]time.Time{
			"":               {},
			"Date: soon\r\n": {},
			"Date: Wed, 25 Nov 2026 22:31:17 GMT\r\n": time.Date(2026, 11, 25, 22, 31, 17, 0, time.UTC),
		} {
			if c := dial(t, setUp(t, answering(switching("Sec-WebSocket-Protocol: mqtt\r\n"+line), hold)), nil); !c.Date.Equal(want) {
				t.Errorf("%q is %v", line, c.Date)
			}
		}
	})
	t.Run("a message that arrives with the reply is not lost", func(t *testing.T) {
		c := dial(t, setUp(t, answering(func(r *http.Request) string {
			return switching("Sec-WebSocket-Protocol: mqtt\r\n")(r) + "\x82\x04\x20\x02\x00\x00"
		}, hold)), nil)
		got := make([]byte, 4)
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, []byte{0x20, 2, 0, 0}) {
			t.Errorf("got %x, %v", got, err)
		}
	})

	mqtt := []string{"mqtt"}
	t.Run("messages are a stream, independent of frames, fragments and empty messages [MQTT-6.0.0-2]", func(t *testing.T) {
		c := dial(t, setUp(t, upgraded(mqtt, func(ws *websocket.Conn, _ *http.Request) {
			raw := ws.NetConn()
			raw.Write([]byte{0x02, 2, 'a', 'b'})               // binary, first fragment
			raw.Write([]byte{0x89, 1, '!'})                    // a ping between
			raw.Write([]byte{0x00, 0})                         // empty continuation
			raw.Write([]byte{0x80, 3, 'c', 'd', 'e'})          // last continuation
			raw.Write([]byte{0x82, 0})                         // an empty message
			raw.Write([]byte{0x82, 2, 'f', 'g', 0x82, 1, 'h'}) // two frames in one record
			raw.Write([]byte{0x88, 2, 0x03, 0xE8})             // close 1000
			io.Copy(io.Discard, raw)
		})), nil)
		got, err := io.ReadAll(c)
		if err != nil || string(got) != "abcdefgh" {
			t.Errorf("got %q, %v", got, err)
		}
	})
	t.Run("a ping is answered with its pong", func(t *testing.T) {
		pong := make(chan string, 1)
		c := dial(t, setUp(t, upgraded(mqtt, func(ws *websocket.Conn, _ *http.Request) {
			ws.SetPongHandler(func(text string) error { pong <- text; return nil })
			ws.WriteControl(websocket.PingMessage, []byte("are you there"), time.Now().Add(time.Minute))
			ws.ReadMessage()
		})), nil)
		go c.Read(make([]byte, 1))
		if got := <-pong; got != "are you there" {
			t.Errorf("got %q", got)
		}
	})
	t.Run("each Write is one binary message", func(t *testing.T) {
		type message struct {
			kind int
			text string
		}
		messages := make(chan message, 2)
		c := dial(t, setUp(t, upgraded(mqtt, func(ws *websocket.Conn, _ *http.Request) {
			for range 2 {
				kind, text, _ := ws.ReadMessage()
				messages <- message{kind, string(text)}
			}
		})), nil)
		large := strings.Repeat("x", 100_000)
		io.WriteString(c, "\x10\x00")
		io.WriteString(c, large)
		if a, b := <-messages, <-messages; a != (message{websocket.BinaryMessage, "\x10\x00"}) || b != (message{websocket.BinaryMessage, large}) {
			t.Errorf("got %v, %d bytes", a, len(b.text))
		}
	})
	t.Run("a text message ends the stream [MQTT-6.0.0-1]", func(t *testing.T) {
		c := dial(t, setUp(t, upgraded(mqtt, func(ws *websocket.Conn, _ *http.Request) {
			ws.WriteMessage(websocket.TextMessage, []byte("\x20\x02\x00\x00"))
			ws.ReadMessage()
		})), nil)
		if n, err := c.Read(make([]byte, 10)); n != 0 || err == nil || errors.Is(err, io.EOF) {
			t.Errorf("got %d, %v", n, err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("the stream can still be written to")
		}
	})
	t.Run("a message of two MiB is read, and a larger one ends the stream", func(t *testing.T) {
		for _, size := range []int{2 << 20, 2<<20 + 2} {
			c := dial(t, setUp(t, upgraded(mqtt, func(ws *websocket.Conn, _ *http.Request) {
				ws.WriteMessage(websocket.BinaryMessage, make([]byte, size))
				ws.ReadMessage()
			})), nil)
			n, err := io.CopyN(io.Discard, c, int64(size))
			if (err == nil) != (size == 2<<20) || errors.Is(err, io.EOF) {
				t.Errorf("of %d bytes %d were read: %v", size, n, err)
			}
		}
	})
	for expect, end := range map[string]struct {
		frame []byte
		eof   bool
	}{
		"a normal close is an end":                           {websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), true},
		"a close because the server is going away is an end": {websocket.FormatCloseMessage(websocket.CloseGoingAway, ""), true},
		"a close without a status is an end":                 {nil, true},
		"a close for a violation is not an end":              {websocket.FormatCloseMessage(websocket.ClosePolicyViolation, "no"), false},
		"a close for an internal error is not an end":        {websocket.FormatCloseMessage(websocket.CloseInternalServerErr, ""), false},
	} {
		t.Run(expect, func(t *testing.T) {
			c := dial(t, setUp(t, upgraded(mqtt, func(ws *websocket.Conn, _ *http.Request) {
				ws.WriteControl(websocket.CloseMessage, end.frame, time.Now().Add(time.Minute))
				ws.ReadMessage()
			})), nil)
			//nolint:errorlint // bufio and io.ReadFull also compare it with ==
			if _, err := c.Read(make([]byte, 1)); err == nil || (err == io.EOF) != end.eof {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestStreamDeadlines(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	n := newNetwork(t, false, map[string]func(net.Conn){
		mqttAddress: secure(config, func(c *tls.Conn) { hold(c) }),
		webAddress:  secure(config, upgraded([]string{"mqtt"}, func(ws *websocket.Conn, _ *http.Request) { ws.ReadMessage() })),
	})
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		t.Run("a read deadline is a time-out error, over "+string(protocol), func(t *testing.T) {
			c := dial(t, &transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), DialContext: n.DialContext}, nil)
			if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
		t.Run("a write deadline is a time-out error, over "+string(protocol), func(t *testing.T) {
			c := dial(t, &transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), DialContext: n.DialContext}, nil)
			if err := c.SetWriteDeadline(time.Unix(1, 0)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Write(make([]byte, 10)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		})
	}
}
