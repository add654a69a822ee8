package mqttv3

import (
	"bufio"
	"context"
	"net"
	"testing"
)

// benchReply is a PUBLISH as the service sends it: QoS 0, 94 bytes of JSON.
func benchReply(b *testing.B) []byte {
	p := packet{kind: kindPublish, topic: []byte("$dps/registrations/res/202/?$rid=1&retry-after=3"),
		payload: []byte(`{"operationId":"5.f4826e5877c1e56c.08f5e9a7-4e41-4ab8-bfeb-ea591a9492e0","status":"assigning"}`)}
	wire, err := p.append(nil)
	if err != nil {
		b.Fatal(err)
	}
	return wire
}

func BenchmarkCodecParse(b *testing.B) {
	wire := benchReply(b)
	first, body := split(b, wire)
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	var p packet
	for b.Loop() {
		if err := p.parse(first, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCodecAppend(b *testing.B) {
	p := packet{kind: kindConnect, cleanSession: true, keepAlive: 60, clientID: []byte("gw-1"),
		hasUserName: true, userName: []byte("0ne00000000/registrations/gw-1/api-version=2019-03-31"),
		hasPassword: true, password: make([]byte, 160)}
	var dst []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = p.append(dst[:0]); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(dst)))
}

// BenchmarkTranscoderUp turns a message of the server into version 5.
func BenchmarkTranscoderUp(b *testing.B) {
	wire := benchReply(b)
	first, body := split(b, wire)
	t, dst := connected(), []byte(nil)
	b.SetBytes(int64(len(wire)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = t.up(dst[:0], first, body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkTranscoderDown turns a request of paho, QoS 1, into 3.1.1, and takes
// its acknowledgement.
func BenchmarkTranscoderDown(b *testing.B) {
	publish := unhex(b, "32 0a 0003 612f62 0007 00 6869")
	first, body := split(b, publish)
	t, dst := connected(), []byte(nil)
	b.SetBytes(int64(len(publish)))
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if dst, err = t.down(dst[:0], first, body); err == nil {
			dst, err = t.up(dst[:0], 0x40, []byte{0, 7})
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExchange is MQTT's part of a registration, paho included: CONNECT,
// SUBSCRIBE, three requests at QoS 1 with their replies, DISCONNECT.
func BenchmarkExchange(b *testing.B) {
	reply := benchReply(b)
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		near, far := net.Pipe()
		served := make(chan error, 1)
		go func() { served <- benchServe(far, reply) }()
		c, err := Connect(ctx, near, Options{ClientID: "gw-1", UserName: "u", Password: "p"})
		if err == nil {
			err = c.Subscribe(ctx, "$dps/registrations/res/#", 0)
		}
		for range 3 {
			if err == nil {
				err = c.Publish(ctx, "$dps/registrations/PUT/iotdps-register/?$rid=1", []byte(`{"registrationId":"gw-1"}`), 1)
			}
			if err == nil {
				_, err = c.Receive(ctx)
			}
		}
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Close(ctx); err != nil {
			b.Fatal(err)
		}
		if err := <-served; err != nil {
			b.Fatal(err)
		}
	}
}

// benchServe answers as the service does, until the client disconnects.
func benchServe(conn net.Conn, reply []byte) error {
	defer conn.Close()
	r := bufio.NewReader(conn)
	for {
		if _, err := r.Peek(2); err != nil {
			return err
		}
		// The client writes a packet in one piece, which the pipe hands over as one.
		wire, err := r.Peek(r.Buffered())
		if err != nil {
			return err
		}
		_, n, err := remainingLength(wire[1:])
		if err != nil {
			return err
		}
		var p packet
		if err := p.parse(wire[0], wire[1+n:]); err != nil {
			return err
		}
		var answer []byte
		switch p.kind {
		case kindConnect:
			answer = []byte{0x20, 2, 0, 0}
		case kindSubscribe:
			answer = []byte{0x90, 3, byte(p.id >> 8), byte(p.id), 0}
		case kindPublish:
			answer = append([]byte{0x40, 2, byte(p.id >> 8), byte(p.id)}, reply...)
		case kindDisconnect:
			return nil
		}
		if _, err := r.Discard(len(wire)); err != nil {
			return err
		}
		if _, err := conn.Write(answer); err != nil {
			return err
		}
	}
}
