package mqttv3

import (
	"bufio"
	"bytes"
	"context"
	"io"
	"net"
	"testing"
)

func benchmarkMessage() packet {
	return packet{kind: kindPublish, topic: []byte("$dps/registrations/res/202/?$rid=1&retry-after=3"), qos: 1, id: 2, payload: bytes.Repeat([]byte("x"), 200)}
}

func BenchmarkParse(b *testing.B) {
	p := benchmarkMessage()
	wire, err := p.append(nil)
	if err != nil {
		b.Fatal(err)
	}
	first, body := split(b, wire)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.parse(first, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	p := benchmarkMessage()
	var wire []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if wire, err = p.append(wire[:0]); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkTranscodeUp(b *testing.B) {
	for name, size := range map[string]int{"200B": 200, "4KiB": 4 << 10, "64KiB": 64 << 10} {
		b.Run(name, func(b *testing.B) {
			p := benchmarkMessage()
			p.payload = make([]byte, size)
			wire, err := p.append(nil)
			if err != nil {
				b.Fatal(err)
			}
			first, body := split(b, wire)
			t := connected()
			var v5 []byte
			b.ReportAllocs()
			b.SetBytes(int64(len(wire)))
			for b.Loop() {
				if v5, err = t.up(v5[:0], first, body); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkTranscodeDown(b *testing.B) {
	p := benchmarkMessage()
	p.qos, p.id = 0, 0
	first, body := split(b, p.appendV5(nil))
	t := connected()
	var wire []byte
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		var err error
		if wire, err = t.down(wire[:0], first, body); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkExchange measures a whole connection over loopback TCP: CONNECT, SUBSCRIBE,
// PUBLISH at QoS 1, the response at QoS 1, DISCONNECT. The server sends prepared bytes, so
// that the benchmark measures only the client.
func BenchmarkExchange(b *testing.B) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			answer(b, conn)
			conn.Close()
		}
	}()
	defer func() { listener.Close(); <-served }()
	o := Options{ClientID: "gw1", UserName: "0ne00000000/registrations/gw1/api-version=2019-03-31", Password: "SharedAccessSignature"}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		c, err := Connect(ctx, conn, o)
		if err != nil {
			b.Fatal(err)
		}
		if err := c.Subscribe(ctx, "$dps/registrations/res/#", 1); err != nil {
			b.Fatal(err)
		}
		if err := c.Publish(ctx, "$dps/registrations/PUT/iotdps-register/?$rid=1", []byte(`{"registrationId":"gw1"}`), 1); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Receive(ctx); err != nil {
			b.Fatal(err)
		}
		if err := c.Close(ctx); err != nil {
			b.Fatal(err)
		}
	}
}

// answer serves one connection of BenchmarkExchange.
func answer(b *testing.B, conn net.Conn) {
	message := benchmarkMessage()
	response, err := message.append(unhex(b, "4002 0002"))
	if err != nil {
		b.Error(err)
	}
	answers := map[kind][]byte{
		kindConnect: unhex(b, "2002 0000"), kindSubscribe: unhex(b, "9003 0001 01"), kindPublish: response,
	}
	r := bufio.NewReader(conn)
	for {
		first, err := r.ReadByte()
		if err != nil {
			return
		}
		length, err := (&Conn{r: r}).readLength()
		if err != nil {
			b.Error(err)
			return
		}
		io.CopyN(io.Discard, r, int64(length))
		if a := answers[kind(first>>4)]; a != nil {
			conn.Write(a)
		}
	}
}
