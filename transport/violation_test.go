package transport_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/dpsd-project/dpsd/transport"
)

func TestAWebSocketProtocolViolationIsReported(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	for name, test := range map[string]struct{ sent, problem string }{
		"RSV1 without an extension":         {"\xC2\x01x", "rsv bits"},
		"RSV2":                              {"\xA2\x01x", "rsv bits"},
		"RSV3":                              {"\x92\x01x", "rsv bits"},
		"a reserved opcode":                 {"\x83\x01x", "unknown opcode"},
		"a reserved control opcode":         {"\x8B\x00", "unknown opcode"},
		"a continuation without a message":  {"\x80\x01x", "continuation frame without"},
		"a message within another":          {"\x02\x01x\x82\x01y", "without finishing the previous message"},
		"a negative length":                 {"\x82\x7F\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF", "negative payload length"},
		"a long control frame":              {"\x89\x7E\x00\x7E" + strings.Repeat("x", 126), "invalid length: 126"},
		"a fragmented control frame":        {"\x09\x00", "fragmented control frame"},
		"a masked frame":                    {"\x82\x81\x00\x00\x00\x00x", "masks its frames"},
		"a masked frame in a message":       {"\x02\x01x\x80\x81\x00\x00\x00\x00y", "masks its frames"},
		"a masked control frame":            {"\x89\x80\x00\x00\x00\x00", "masks its frames"},
		"a close frame of one byte":         {"\x88\x01x", "close payload"},
		"a close frame with a wrong status": {"\x88\x02\x03\xED", "close payload"},
	} {
		for how, then := range map[string]func(net.Conn){
			"and waits":                 func(c net.Conn) { io.Copy(io.Discard, c) },
			"and closes the connection": func(c net.Conn) { c.Close() },
		} {
			t.Run(name+" "+how, func(t *testing.T) {
				n := newNetwork(t, false, map[string]func(net.Conn){webAddress: secure(config, upgraded([]string{"mqtt"}, func(ws *websocket.Conn, _ *http.Request) {
					raw := ws.NetConn()
					raw.Write([]byte(test.sent))
					then(raw)
				}))})
				c := dial(t, &transport.Dialer{Host: host, Protocols: only(transport.WebSocket), Roots: root.pool(), DialContext: n.DialContext}, nil)
				_ = c.SetReadDeadline(time.Now().Add(10 * time.Second)) // if the violation is not detected, the read would wait
				_, err := io.Copy(io.Discard, c)
				var broken *transport.FrameError
				if !errors.As(err, &broken) || !strings.Contains(err.Error(), test.problem) {
					t.Errorf("got %v (%T)", err, err)
				}
				if said := err.Error(); !strings.HasPrefix(said, "WebSocket protocol violation: ") || strings.Contains(said, "failed to") {
					t.Errorf("the violation does not appear exactly once: %s", said)
				}
			})
		}
	}
}

func TestAnEndWithinAFrameIsNotAViolation(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	for _, sent := range []string{"", "\x82", "\x82\x05xy", "\x82\x7E\x01", "\x02\x01x", "\x89\x05xy"} {
		n := newNetwork(t, false, map[string]func(net.Conn){webAddress: secure(config, upgraded([]string{"mqtt"}, func(ws *websocket.Conn, _ *http.Request) {
			ws.NetConn().Write([]byte(sent))
		}))})
		c := dial(t, &transport.Dialer{Host: host, Protocols: only(transport.WebSocket), Roots: root.pool(), DialContext: n.DialContext}, nil)
		_, err := io.ReadFull(c, make([]byte, 10))
		if err == nil || errors.As(err, new(*transport.FrameError)) {
			t.Errorf("after %q: %v", sent, err)
		}
	}
}
