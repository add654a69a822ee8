package simulator_test

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"io"
	"net/http"
	"testing"

	"github.com/dpsd-project/dpsd/simulator"
)

func TestAnObserverReceivesEachEntryWithTheBytesOfItsPacket(t *testing.T) {
	bubble(t, "a session", func(t *testing.T) {
		var seen []simulator.Entry
		var out bytes.Buffer
		s := start(t, simulator.Options{PacketLog: &out, Observe: func(e simulator.Entry) { seen = append(seen, e) }})
		c := dial(t, s)
		connect := goodConnect(s, device)
		c.send(connect...)
		c.expect("the CONNACK", 0x20, 2, 0, 0)
		c.subscribe()
		ping := []byte{0xc0, 0}
		c.send(ping...)
		c.expect("the PINGRESP", 0xd0, 0)
		c.send(0xff, 0x80, 0x80) // reserved, and truncated
		c.conn.Close()
		s.Close()

		raw := map[string][]byte{}
		for _, e := range seen {
			raw[e.Packet+" "+e.Direction] = e.Raw
		}
		for packet, want := range map[string][]byte{
			"CONNECT up": connect, "CONNACK down": {0x20, 2, 0, 0},
			"SUBSCRIBE up": subscribePacket(1, 1), "SUBACK down": {0x90, 3, 0, 1, 1},
			"PINGREQ up": ping, "PINGRESP down": {0xd0, 0}, "OPEN ": nil,
		} {
			if got, there := raw[packet]; !there || !bytes.Equal(got, want) {
				t.Errorf("%s: %s, want %s", packet, hex.EncodeToString(got), hex.EncodeToString(want))
			}
		}
		kept := s.Log()
		if len(kept) != len(seen) {
			t.Errorf("%d entries were observed, %d were kept", len(seen), len(kept))
		}
		for _, e := range kept {
			if e.Raw != nil {
				t.Errorf("the log keeps the bytes of %s", e.Packet)
			}
		}
		if written, err := simulator.ReadLog(&out); err != nil || len(written) != len(seen) {
			t.Errorf("%d entries were written: %v", len(written), err)
		}
	})
	bubble(t, "HTTPS", func(t *testing.T) {
		raw := map[string][]byte{}
		s := start(t, simulator.Options{Observe: func(e simulator.Entry) { raw[e.Packet] = e.Raw }})
		a := openAPI(t, s)
		for _, request := range []string{
			"PUT " + a.path("/register") + " HTTP/1.1\r\nHost: localhost\r\nauthorization: " + a.auth + "\r\nContent-Length: 3\r\n\r\n{ }",
			"GET " + a.path("/operations/none") + " HTTP/1.1\r\nHost: localhost\r\nauthorization: " + a.auth + "\r\n\r\n",
		} {
			a.send([]byte(request)...)
			var response bytes.Buffer
			r, err := http.ReadResponse(bufio.NewReader(io.TeeReader(a.in, &response)), nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadAll(r.Body); err != nil {
				t.Fatal(err)
			}
			if got := string(raw["REQUEST"]); got != request {
				t.Errorf("the request is\n%q, want\n%q", got, request)
			}
			if got := string(raw["RESPONSE"]); got != response.String() {
				t.Errorf("the response is\n%q, want\n%q", got, response.String())
			}
		}
	})
	bubble(t, "HTTPS to a hub: each request has its own bytes only", func(t *testing.T) {
		var last []byte
		s := start(t, simulator.Options{DiscardLog: true, Observe: func(e simulator.Entry) {
			if e.Packet == "REQUEST" {
				last = e.Raw
			}
		}})
		a := openAPI(t, s)
		for _, request := range []string{
			"POST /devices/stranger/messages/events HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello",
			"GET /devices/stranger/modules HTTP/1.1\r\nHost: localhost\r\n\r\n",
			"GET " + a.path("/operations/none") + " HTTP/1.1\r\nHost: localhost\r\nauthorization: " + a.auth + "\r\n\r\n",
		} {
			a.send([]byte(request)...)
			r, err := http.ReadResponse(a.in, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r.Body); err != nil {
				t.Fatal(err)
			}
			if string(last) != request {
				t.Errorf("the request is\n%q, want\n%q", last, request)
			}
		}
	})
	bubble(t, "a length of five bytes is observed as far as it was read", func(t *testing.T) {
		var last []byte
		s := start(t, simulator.Options{DiscardLog: true, Observe: func(e simulator.Entry) {
			if e.Direction == "up" {
				last = e.Raw
			}
		}})
		c := dial(t, s)
		c.send(0x10, 0xff, 0xff, 0xff, 0xff, 0x01)
		c.expectEnd("a violation")
		s.Close()
		if !bytes.Equal(last, []byte{0x10, 0xff, 0xff, 0xff, 0xff}) {
			t.Errorf("% x", last)
		}
	})
}
