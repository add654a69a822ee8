package simulator_test

import (
	"bytes"
	"encoding/hex"
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
