package mqttv3_test

// Known pitfalls of paho.golang with MQTT 3.1.1, and how the package avoids each. The tests
// below use the numbers.
//
//	 1  in-flight calls hang when the connection is lost   TestPitfall01
//	 2  Publish at QoS 1 ignores write errors              TestPitfall02
//	 3  a blocked handler makes Disconnect hang            TestPitfall03
//	 4  memory for 65,535 messages is allocated            TestPitfall04
//	 5  a PINGREQ is sent immediately after CONNACK        TestPitfall05
//	 6  the error of a refusal is empty                    TestPitfall06
//	 7  Disconnect before Connect panics                   by construction: a Client comes only from an accepted CONNECT
//	 8  the context does not limit the CONNECT write       TestPitfall08
//	 9  errors are reported after a clean Disconnect       TestPitfall09
//	10  a server of 3.1.1 closes without DISCONNECT        TestPitfall10
//	11  the announced length is allocated without a limit  TestPitfall11
//	12  String of a CONNECT shows the password             TestPitfall12
//	13  long strings are silently truncated                TestPitfall13
//	14  a packet takes several writes                      TestPitfall14
//	15  a PUBACK may follow DISCONNECT                     TestPitfall15
//	16  version 5 options have no meaning in 3.1.1         TestPitfall16, and TestDown case by case
//	17  QoS 2 and retained messages must not be sent       TestPitfall17
//	18  a client must be used once                         by construction: Connect creates a client, a session and
//	                                                       a Conn for each connection, which cannot be replaced

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/eclipse/paho.golang/paho"
	mochi "github.com/mochi-mqtt/server/v2/packets"
)

func TestPitfall01CallsInFlightEndWithTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, options, func(s *server) {
			s.accept()
			for range 3 {
				s.next()
			}
			time.Sleep(time.Second)
		})
		pending := make(chan error, 4)
		go func() { pending <- c.Subscribe(context.Background(), "r/#", 1) }()
		go func() { pending <- c.Subscribe(context.Background(), "s/#", 1) }()
		go func() { pending <- c.Subscribe(context.Background(), "t/#", 1) }()
		go func() { _, err := c.Receive(context.Background()); pending <- err }()
		<-c.Done()
		immediately(t, func() {
			for range cap(pending) {
				wantCause(t, <-pending, io.EOF)
			}
		})
		closeClean(t, c)
	})
}

// failing is a connection whose writes fail from some point on, while reads continue to
// work.
type failing struct {
	net.Conn
	mu    sync.Mutex
	after int
}

func (f *failing) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.after--; f.after < 0 {
		return 0, &net.OpError{Op: "write", Err: syscall.EPIPE}
	}
	return f.Conn.Write(b)
}

func TestPitfall02AFailedWriteEndsPublish(t *testing.T) {
	for qos := range byte(2) {
		synctest.Test(t, func(t *testing.T) {
			w := serve(t, func(s *server) { s.accept(); s.drain() })
			c, err := mqttv3.Connect(t.Context(), &failing{Conn: w, after: 1}, options)
			if err != nil {
				t.Fatal(err)
			}
			immediately(t, func() {
				wantCause(t, c.Publish(t.Context(), "a", nil, qos), syscall.EPIPE)
				closeClean(t, c)
			})
		})
	}
}

func TestPitfall03UnreadMessagesDoNotBlockClose(t *testing.T) {
	t.Run("16 of them are acknowledged and wait", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := connect(t, options, func(s *server) {
				s.accept()
				for range 16 {
					s.write(messageQoS1)
					s.expect(mochi.Puback)
				}
				s.expect(mochi.Disconnect)
				s.expectEnd()
			})
			synctest.Wait()
			immediately(t, func() { closeClean(t, c) })
			for i := range 16 {
				if _, err := c.Receive(t.Context()); err != nil {
					t.Errorf("message %d: %v", i, err)
				}
			}
			if _, err := c.Receive(t.Context()); !errors.Is(err, mqttv3.ErrClosed) {
				t.Errorf("after the last message: %v, want ErrClosed", err)
			}
		})
	})
	t.Run("the 17th ends the connection", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := connect(t, options, func(s *server) {
				s.accept()
				s.write(strings.Repeat(messageQoS0, 17))
				s.drain()
			})
			<-c.Done()
			var violation *mqttv3.ProtocolError
			if !errors.As(c.Err(), &violation) || violation.Packet != "PUBLISH" {
				t.Errorf("got %v, want a *ProtocolError", c.Err())
			}
			immediately(t, func() { closeClean(t, c) })
		})
	})
}

func TestPitfall04AConnectionIsSmall(t *testing.T) {
	var before, after runtime.MemStats
	const n = 10
	runtime.ReadMemStats(&before)
	for range n {
		c, _ := connect(t, options, func(s *server) { s.accept(); s.drain() })
		closeClean(t, c)
	}
	runtime.ReadMemStats(&after)
	// With paho's default, each would allocate 512 KiB.
	if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 64<<10 {
		t.Errorf("a connection takes %d bytes, want at most 64 KiB", each)
	}
}

func TestPitfall05PINGREQOnlyAfterSilence(t *testing.T) {
	o := options
	o.KeepAlive, o.Timeout = 60*time.Second, 7*time.Second
	t.Run("the first is sent after one keep-alive interval, the next after another", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			var at []time.Duration
			c, _ := connect(t, o, func(s *server) {
				s.accept()
				for range 3 {
					s.expect(mochi.Pingreq)
					at = append(at, time.Since(start))
					s.write(pingresp)
				}
				s.expect(mochi.Disconnect)
			})
			time.Sleep(181 * time.Second)
			closeClean(t, c)
			if fmt.Sprint(at) != "[1m0s 2m0s 3m0s]" {
				t.Errorf("PINGREQ at %v", at)
			}
		})
	})
	t.Run("traffic postpones it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			c, _ := connect(t, o, func(s *server) {
				s.accept()
				s.expect(mochi.Publish)
				s.write(puback2[:9] + "01")
				s.expect(mochi.Pingreq)
				if d := time.Since(start); d != 90*time.Second {
					s.t.Errorf("PINGREQ after %v, want 1m30s", d)
				}
				s.write(pingresp)
				s.drain()
			})
			time.Sleep(30 * time.Second)
			if err := c.Publish(t.Context(), "a", nil, 1); err != nil {
				t.Error(err)
			}
			time.Sleep(61 * time.Second)
			closeClean(t, c)
		})
	})
	t.Run("a missing PINGRESP ends the connection after the time-out, not after a keep-alive interval", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			c, _ := connect(t, o, func(s *server) { s.accept(); s.drain() })
			_, err := c.Receive(t.Context())
			var timeout *mqttv3.TimeoutError
			if !errors.As(err, &timeout) || timeout.Exchange != "PINGRESP" {
				t.Errorf("got %v, want a *TimeoutError for PINGRESP", err)
			}
			if d := time.Since(start); d != 67*time.Second {
				t.Errorf("after %v, want 1m7s", d)
			}
			closeClean(t, c)
		})
	})
	t.Run("without a keep-alive interval, none is sent", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, w := connect(t, options, func(s *server) { s.accept(); s.drain() })
			time.Sleep(24 * time.Hour)
			if n := len(w.written()); n != 1 || c.Err() != nil {
				t.Errorf("%d packets sent, want CONNECT alone; %v", n, c.Err())
			}
			closeClean(t, c)
		})
	})
}

func TestPitfall06ARefusalSaysWhy(t *testing.T) {
	for code, text := range map[byte]string{
		1: "protocol version", 2: "identifier", 3: "unavailable", 4: "user name or password", 5: "not authorized", 0x97: "reserved",
	} {
		synctest.Test(t, func(t *testing.T) {
			_, err := mqttv3.Connect(t.Context(), serve(t, func(s *server) {
				s.expect(mochi.Connect)
				s.write(fmt.Sprintf("20 02 00 %02x", code))
				s.expectEnd()
			}), options)
			var refused *mqttv3.ConnackError
			if !errors.As(err, &refused) || refused.ReturnCode != code || !strings.Contains(err.Error(), text) {
				t.Errorf("CONNACK %d: %v", code, err)
			}
		})
	}
}

func TestPitfall08TheTimeOutBoundsTheCONNECTWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options
		o.Timeout = 7 * time.Second
		start := time.Now()
		stop := make(chan struct{})
		defer close(stop)
		_, err := mqttv3.Connect(t.Context(), serve(t, func(*server) { <-stop }), o)
		if !errors.Is(err, mqttv3.ErrTimeout) {
			t.Errorf("got %v, want a time-out", err)
		}
		if d := time.Since(start); d != o.Timeout {
			t.Errorf("took %v, want %v", d, o.Timeout)
		}

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		start = time.Now()
		_, err = mqttv3.Connect(ctx, serve(t, func(*server) { <-stop }), o)
		if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("got %v after %v, want the context's end after 1s", err, time.Since(start))
		}
	})
}

// slow is a connection that the server closes before the write of DISCONNECT returns.
type slow struct{ net.Conn }

func (s slow) Write(b []byte) (int, error) {
	n, err := s.Conn.Write(b)
	if b[0] == 0xe0 {
		time.Sleep(time.Second)
	}
	return n, err
}

func TestPitfall09ACleanCloseIsNoError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serve(t, func(s *server) { s.accept(); s.expect(mochi.Disconnect) })
		c, err := mqttv3.Connect(t.Context(), slow{w}, options)
		if err != nil {
			t.Fatal(err)
		}
		closeClean(t, c)
		synctest.Wait()
		if !errors.Is(c.Err(), mqttv3.ErrClosed) || c.Err().Error() != mqttv3.ErrClosed.Error() {
			t.Errorf("Err: %v, want only ErrClosed", c.Err())
		}
	})
}

func TestPitfall10AnEndWithoutDISCONNECTIsNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, options, func(s *server) { s.accept(); time.Sleep(time.Minute) })
		if c.Err() != nil {
			t.Errorf("Err: %v before the end", c.Err())
		}
		<-c.Done()
		wantCause(t, c.Err(), io.EOF)
		closeClean(t, c)
	})
}

func TestPitfall11NoMemoryIsAllocatedForAHugePacket(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, options, func(s *server) { s.accept(); s.write("30 ff ff ff 7f"); s.drain() })
		<-c.Done()
		wantCause(t, c.Err(), mqttv3.ErrPacketTooLarge)
		closeClean(t, c)
	})
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes allocated for a packet that was refused", n)
	}

	t.Run("a packet at the limit is read", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			const payload = 256<<10 - 3
			c, _ := connect(t, options, func(s *server) {
				s.accept()
				s.conn.Write(append(unhex("30 80 80 10 00 01 61"), make([]byte, payload)...))
				s.drain()
			})
			m, err := c.Receive(t.Context())
			if err != nil || len(m.Payload) != payload {
				t.Errorf("%d bytes, %v", len(m.Payload), err)
			}
			closeClean(t, c)
		})
	})
}

func TestPitfall12ThePasswordIsNeverShown(t *testing.T) {
	for _, verb := range []string{"%v", "%+v", "%s", "%#v", "%q"} {
		if text := fmt.Sprintf(verb, options); strings.Contains(text, secret) || !strings.Contains(text, "gw1") {
			t.Errorf("%s of the options: %s", verb, text)
		}
	}
	// paho passes whole packets to its loggers, so they are not set.
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(name, "_test.go") && bytes.Contains(text, []byte(".SetDebugLogger(")) {
			t.Errorf("%s sets paho's debug logger", name)
		}
	}
	// TestHostileServer checks that no error contains the password.
}

func TestPitfall13LongStringsAreRefusedNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := connect(t, options, func(s *server) { s.accept(); s.drain() })
		for _, err := range []error{
			c.Publish(t.Context(), strings.Repeat("a", 1<<16), nil, 0),
			c.Publish(t.Context(), strings.Repeat("a", 1<<16), nil, 1),
			c.Subscribe(t.Context(), strings.Repeat("a", 1<<16), 1),
		} {
			if !errors.Is(err, mqttv3.ErrInvalid) {
				t.Errorf("got %v, want ErrInvalid", err)
			}
		}
		longest := strings.Repeat("a", 1<<16-1)
		if err := c.Publish(t.Context(), longest, nil, 0); err != nil {
			t.Errorf("the longest topic: %v", err)
		}
		if last := w.written()[1]; len(w.written()) != 2 || !bytes.Contains(last, []byte(longest)) {
			t.Errorf("%d packets sent, the last of %d bytes", len(w.written()), len(last))
		}
		closeClean(t, c)
	})
}

func TestPitfall14EachPacketIsOneWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const senders = 16 // the number of messages that may be unread
		c, w := connect(t, options, func(s *server) {
			s.accept()
			go s.write(strings.Repeat(messageQoS1, senders)) // paho writes each PUBACK in a separate goroutine
			s.drain()
		})
		var all sync.WaitGroup
		for i := range senders {
			all.Go(func() {
				if err := c.Publish(context.Background(), "a/b", bytes.Repeat([]byte{byte(i)}, 1000*i), 0); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		synctest.Wait()
		closeClean(t, c)
		writes := w.written()
		if want := 1 + senders + senders + 1; len(writes) != want {
			t.Errorf("%d writes for %d packets", len(writes), want)
		}
		for _, b := range writes {
			if _, err := mqttv3.DecodeMochi(b); err != nil {
				t.Errorf("a write of %d bytes is not a whole packet: %v", len(b), err)
			}
		}
	})
}

func TestPitfall15NothingFollowsDISCONNECT(t *testing.T) {
	t.Run("pending acknowledgements are sent before it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			publishing, read := make(chan struct{}), make(chan struct{})
			c, _ := connect(t, options, func(s *server) {
				s.accept()
				<-publishing
				s.write(messageQoS1 + messageQoS1)
				<-read
				s.expect(mochi.Publish)
				s.expect(mochi.Puback)
				s.expect(mochi.Puback)
				s.expect(mochi.Disconnect)
				s.expectEnd()
			})
			// A blocked write holds the lock. The first PUBACK waits for it, and the second
			// does not exist yet when Close is called.
			go c.Publish(context.Background(), "a", nil, 0)
			synctest.Wait()
			close(publishing)
			synctest.Wait()
			closed := make(chan struct{})
			go func() { defer close(closed); closeClean(t, c) }()
			synctest.Wait()
			close(read)
			<-closed
		})
	})
	t.Run("a later packet is not sent [MQTT-3.14.4-1]", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			w := serve(t, func(s *server) {
				s.accept()
				s.expect(mochi.Disconnect)
				s.expectEnd()
			})
			conn := mqttv3.NewConn(w, 256<<10, time.Minute)
			conn.Write(unhex("10 10 00 04 4d515454 05 02 003c 00 00 03 677731"))
			io.ReadFull(conn, make([]byte, 13))
			conn.Write(unhex("e0 02 00 00"))
			if _, err := conn.Write(unhex("40 04 0002 00 00")); !errors.Is(err, mqttv3.ErrClosed) {
				t.Errorf("a PUBACK after DISCONNECT: %v, want ErrClosed", err)
			}
			conn.Close()
			synctest.Wait()
		})
	})
}

// onConn connects paho over a Conn, as the Client does.
func onConn(t testing.TB, w *wire) *paho.Client {
	t.Helper()
	c := paho.NewClient(paho.ClientConfig{Conn: mqttv3.NewConn(w, 256<<10, time.Minute), PingHandler: noPing{paho.NewDefaultPinger()}})
	if _, err := c.Connect(context.Background(), &paho.Connect{ClientID: "gw1", CleanStart: true}); err != nil {
		t.Fatal(err)
	}
	return c
}

// noPing sends no PINGREQ.
type noPing struct{ *paho.DefaultPinger }

func (noPing) Run(context.Context, net.Conn, uint16) error { return nil }

func TestPitfall16OptionsOfVersion5AreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, s := range []paho.SubscribeOptions{
			{Topic: "a", NoLocal: true}, {Topic: "a", RetainAsPublished: true}, {Topic: "a", RetainHandling: 1}, {Topic: "a", QoS: 2},
		} {
			w := serve(t, func(s *server) { s.accept(); s.expectEnd() })
			c := onConn(t, w)
			var violation *mqttv3.ProtocolError
			if _, err := c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{s}}); !errors.As(err, &violation) {
				t.Errorf("%+v: %v, want a *ProtocolError", s, err)
			}
			<-c.Done()
		}
		w := serve(t, func(s *server) { s.accept(); s.expectEnd() })
		c := onConn(t, w)
		_, err := c.Publish(t.Context(), &paho.Publish{Topic: "a", Properties: &paho.PublishProperties{ContentType: "text/plain"}})
		var violation *mqttv3.ProtocolError
		if !errors.As(err, &violation) {
			t.Errorf("a property: %v, want a *ProtocolError", err)
		}
		<-c.Done()
	})
}

func TestPitfall17PahoRefusesQoS2AndRetain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := serve(t, func(s *server) { s.accept(); s.expect(mochi.Disconnect); s.expectEnd() })
		c := onConn(t, w)
		for _, p := range []*paho.Publish{{Topic: "a", QoS: 2}, {Topic: "a", Retain: true}} {
			if _, err := c.Publish(t.Context(), p); !errors.Is(err, paho.ErrInvalidArguments) {
				t.Errorf("%+v: %v, want it refused", p, err)
			}
		}
		if _, err := c.Subscribe(t.Context(), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "$share/a/b"}}}); !errors.Is(err, paho.ErrInvalidArguments) {
			t.Errorf("a shared subscription: %v, want it refused", err)
		}
		c.Disconnect(&paho.Disconnect{})
	})
}
