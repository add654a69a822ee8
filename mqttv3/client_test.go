package mqttv3_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/google/go-cmp/cmp"
	mochi "github.com/mochi-mqtt/server/v2/packets"
)

func TestExchange(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, w := connect(t, mqttv3.Options{ClientID: "gw1", UserName: "u", Password: "p", KeepAlive: time.Minute}, func(s *server) {
			s.accept()
			s.expect(mochi.Subscribe)
			s.write(messageQoS1) // before SUBACK, which the standard allows (§3.8.4)
			s.write(subackQoS1)
			s.expect(mochi.Puback)
			s.expect(mochi.Publish)
			s.write(puback2)
			s.expect(mochi.Publish)
			s.write("3a 09 00 03 72 2f 31 00 02 7b 7d") // the message again, DUP set
			s.expect(mochi.Puback)
			s.expect(mochi.Disconnect)
			s.expectEnd()
		})
		ctx := t.Context()
		if err := c.Subscribe(ctx, "r/#", 1); err != nil {
			t.Fatal(err)
		}
		first, err := c.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // for the PUBACK, which paho sends in a separate goroutine
		if err := c.Publish(ctx, "a/b", []byte("hi"), 1); err != nil {
			t.Fatal(err)
		}
		if err := c.Publish(ctx, "a/b", nil, 0); err != nil {
			t.Fatal(err)
		}
		second, err := c.Receive(ctx)
		if err != nil {
			t.Fatal(err)
		}
		closeClean(t, c)

		want := mqttv3.Message{Topic: "r/1", Payload: []byte("{}"), QoS: 1}
		if diff := cmp.Diff(want, first); diff != "" {
			t.Errorf("first message:\n%s", diff)
		}
		want.Dup = true
		if diff := cmp.Diff(want, second); diff != "" {
			t.Errorf("second message:\n%s", diff)
		}
		synctest.Wait()
		var got []string
		for _, b := range w.written() {
			got = append(got, fmt.Sprintf("%x", b))
		}
		if diff := cmp.Diff([]string{
			"10" + "15" + "00044d515454" + "04" + "c2" + "003c" + "0003677731" + "000175" + "000170",
			"82" + "08" + "0001" + "0003722f23" + "01",
			"40" + "02" + "0002",
			"32" + "09" + "0003612f62" + "0002" + "6869",
			"30" + "05" + "0003612f62",
			"40" + "02" + "0002",
			"e0" + "00",
		}, got); diff != "" {
			t.Errorf("on the wire (-want +got):\n%s", diff)
		}
	})
}

func TestTheTextOfTheOptionsSaysWhetherAPasswordIsSet(t *testing.T) {
	for _, o := range []mqttv3.Options{{}, {UserName: "u", Password: secret}} {
		if want := fmt.Sprintf("password set: %t,", o.Password != ""); !strings.Contains(o.String(), want) {
			t.Errorf("%s does not say %q", o, want)
		}
	}
}

func TestEmptyOptionsAreNotSent(t *testing.T) {
	for _, test := range []struct {
		says string
		o    mqttv3.Options
		want string
	}{
		{"an empty password leaves the password flag clear [MQTT-3.1.2-20]", mqttv3.Options{ClientID: "gw1", UserName: "u"},
			"10 12 00044d515454 04 82 0000 0003677731 000175"},
		{"the keep alive is sent in seconds, up to 65,535 of them", mqttv3.Options{ClientID: "gw1", KeepAlive: 65535 * time.Second},
			"10 0f 00044d515454 04 02 ffff 0003677731"},
		{"without user name both flags are clear [MQTT-3.1.2-18]", mqttv3.Options{ClientID: "gw1"},
			"10 0f 00044d515454 04 02 0000 0003677731"},
		{"an empty client identifier is sent as such [MQTT-3.1.3-3]", mqttv3.Options{},
			"10 0c 00044d515454 04 02 0000 0000"},
	} {
		t.Run(test.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, w := connect(t, test.o, func(s *server) { s.accept(); s.drain() })
				if diff := cmp.Diff(unhex(test.want), w.written()[0]); diff != "" {
					t.Errorf("CONNECT (-want +got):\n%s", diff)
				}
				closeClean(t, c)
			})
		})
	}
}

func TestArgumentsAreRefusedBeforeAnythingIsSent(t *testing.T) {
	long := strings.Repeat("x", 1<<16)
	for _, o := range []mqttv3.Options{
		{ClientID: long},
		{ClientID: "a", UserName: long},
		{ClientID: "a", UserName: "u", Password: long},
		{ClientID: "a", Password: secret}, // [MQTT-3.1.2-22]
		{ClientID: "a\x00"},
		{ClientID: "a\xff"},
		{ClientID: "a", KeepAlive: -time.Second},
		{ClientID: "a", KeepAlive: 1500 * time.Millisecond},
		{ClientID: "a", KeepAlive: 65536 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			w := serve(t, func(s *server) { s.expectEnd() })
			c, err := mqttv3.Connect(t.Context(), w, o)
			if !errors.Is(err, mqttv3.ErrInvalid) || c != nil {
				t.Errorf("Connect(%.80v): %v, want ErrInvalid", o, err)
			}
			if len(w.written()) > 0 {
				t.Errorf("sent %.40x", w.written())
			}
			if _, err := w.Read(make([]byte, 1)); !errors.Is(err, io.ErrClosedPipe) {
				t.Errorf("the connection was left open: %v", err)
			}
		})
	}
	synctest.Test(t, func(t *testing.T) {
		c, w := connect(t, mqttv3.Options{ClientID: "gw1", MaxPacket: 100}, func(s *server) { s.accept(); s.drain() })
		sent := len(w.written())
		for _, test := range []struct {
			says string
			err  error
			want error
		}{
			{"QoS 2", c.Publish(t.Context(), "a", nil, 2), mqttv3.ErrInvalid},
			{"QoS 2", c.Subscribe(t.Context(), "a", 2), mqttv3.ErrInvalid},
			{"an empty topic", c.Publish(t.Context(), "", nil, 0), mqttv3.ErrInvalid},
			{"a wildcard", c.Publish(t.Context(), "a/+", nil, 0), mqttv3.ErrInvalid},
			{"U+0000", c.Publish(t.Context(), "a\x00", nil, 0), mqttv3.ErrInvalid},
			{"no UTF-8", c.Publish(t.Context(), "\xff", nil, 1), mqttv3.ErrInvalid},
			{"a long topic", c.Publish(t.Context(), long, nil, 1), mqttv3.ErrInvalid},
			{"an empty filter", c.Subscribe(t.Context(), "", 1), mqttv3.ErrInvalid},
			{"a long filter", c.Subscribe(t.Context(), long, 1), mqttv3.ErrInvalid},
			{"# in the middle", c.Subscribe(t.Context(), "#/a", 1), mqttv3.ErrInvalid},
			{"a payload above the limit", c.Publish(t.Context(), "a", make([]byte, 101), 1), mqttv3.ErrPacketTooLarge},
			{"a packet above the limit", c.Publish(t.Context(), "a", make([]byte, 94), 1), mqttv3.ErrPacketTooLarge},
			{"a packet at the limit", c.Publish(t.Context(), "a", make([]byte, 95), 0), nil},
		} {
			if !errors.Is(test.err, test.want) {
				t.Errorf("%s: %v, want %v", test.says, test.err, test.want)
			}
		}
		if got := w.written()[sent:]; len(got) != 1 || len(got[0]) != 100 {
			t.Errorf("sent %x, want one packet of 100 bytes", got)
		}
		if c.Err() != nil {
			t.Errorf("a refused argument ended the connection: %v", c.Err())
		}
		closeClean(t, c)
	})
}

// hostile lists packets that a server sends at some point, and the resulting errors.
var hostile = []struct {
	says string
	wire string
	// at: 0 instead of CONNACK, 1 after CONNACK, while a SUBSCRIBE is in flight
	at   int
	want error // matched with errors.Is, or by type if it is a pointer
}{
	{"the first packet is a PUBLISH", messageQoS1, 0, mqttv3.ErrNotMQTT},
	{"the first packet is a SUBACK", subackQoS1, 0, mqttv3.ErrNotMQTT},
	{"the first packet is a CONNACK of version 5", "20 03 00 00 00", 0, mqttv3.ErrNotMQTT},
	{"the first byte is a TLS alert", "15 03 03 00 02 02 28", 0, mqttv3.ErrNotMQTT},
	{"the first packet is a CONNACK of 256 MiB", "20 ff ff ff 7f", 0, mqttv3.ErrNotMQTT},
	{"CONNACK with reserved flags in the fixed header", "22 02 00 00", 0, &mqttv3.ProtocolError{}},
	{"CONNACK with reserved acknowledge flags", "20 02 02 00", 0, &mqttv3.ProtocolError{}},
	{"CONNACK that refuses and keeps a session", "20 02 01 05", 0, &mqttv3.ProtocolError{}},
	{"CONNACK that refuses", "20 02 00 05", 0, &mqttv3.ConnackError{}},
	{"a truncated CONNACK", "20 02 00", 0, io.ErrUnexpectedEOF},
	{"CONNACK truncated after a byte", "20", 0, io.ErrUnexpectedEOF},
	{"nothing at all", "", 0, io.EOF},
	{"CONNACK twice", connackAccepted, 1, &mqttv3.ProtocolError{}},
	{"a packet of 256 MiB", "30 ff ff ff 7f", 1, mqttv3.ErrPacketTooLarge},
	{"a packet one byte above 256 KiB", "30 81 80 10", 1, mqttv3.ErrPacketTooLarge},
	{"a remaining length of five bytes", "30 ff ff ff ff 7f", 1, &mqttv3.ProtocolError{}},
	{"SUBACK with two codes for one filter", "90 04 00 01 01 01", 1, &mqttv3.ProtocolError{}},
	{"SUBACK without codes", "90 02 00 01", 1, &mqttv3.ProtocolError{}},
	{"SUBACK for another request", "90 03 00 07 01", 1, &mqttv3.ProtocolError{}},
	{"SUBACK that grants more than requested", "90 03 00 01 02", 1, &mqttv3.ProtocolError{}},
	{"SUBACK with reserved flags", "9f 03 00 01 01", 1, &mqttv3.ProtocolError{}},
	{"PUBACK for a SUBSCRIBE", "40 02 00 01", 1, &mqttv3.ProtocolError{}},
	{"UNSUBACK for a SUBSCRIBE", "b0 02 00 01", 1, &mqttv3.ProtocolError{}},
	{"PUBLISH with QoS 3", "36 09 00 03 72 2f 31 00 02 7b 7d", 1, &mqttv3.ProtocolError{}},
	{"PUBLISH with QoS 2", "34 09 00 03 72 2f 31 00 02 7b 7d", 1, &mqttv3.ProtocolError{}},
	{"PUBLISH with packet identifier 0", "32 09 00 03 72 2f 31 00 00 7b 7d", 1, &mqttv3.ProtocolError{}},
	{"PUBLISH to a topic that is not UTF-8", "30 04 00 02 c3 28", 1, &mqttv3.ProtocolError{}},
	{"PUBLISH to a topic longer than the packet", "30 04 00 09 61 62", 1, &mqttv3.ProtocolError{}},
	{"PUBREC", "50 02 00 01", 1, &mqttv3.ProtocolError{}},
	{"PUBREL", "62 02 00 01", 1, &mqttv3.ProtocolError{}},
	{"DISCONNECT of version 5", "e0 02 8b 00", 1, &mqttv3.ProtocolError{}},
	{"CONNECT", "10 0c 00 04 4d 51 54 54 04 02 00 00 00 00", 1, &mqttv3.ProtocolError{}},
	{"packet type 0", "00 00", 1, &mqttv3.ProtocolError{}},
	{"packet type 15", "f0 00", 1, &mqttv3.ProtocolError{}},
	{"a packet truncated in its length", "30 80", 1, io.ErrUnexpectedEOF},
	{"a packet truncated in its body", "30 07 00 03 72", 1, io.ErrUnexpectedEOF},
	{"the end", "", 1, io.EOF},
}

func TestHostileServer(t *testing.T) {
	for _, test := range hostile {
		for _, manner := range []string{"in one piece", "one byte at a time"} {
			t.Run(test.says+", "+manner, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					start := time.Now()
					w := serve(t, func(s *server) {
						s.expect(mochi.Connect)
						if test.at == 1 {
							s.write(connackAccepted)
							s.expect(mochi.Subscribe)
						}
						if manner == "in one piece" {
							s.write(test.wire)
							return
						}
						for _, b := range unhex(test.wire) {
							s.conn.Write([]byte{b})
						}
					})
					c, err := mqttv3.Connect(t.Context(), w, options)
					if test.at == 1 && err == nil {
						err = c.Subscribe(t.Context(), "r/#", 1)
						if !errors.Is(err, mqttv3.ErrClosed) {
							t.Errorf("Subscribe: %v, want ErrClosed", err)
						}
						if _, err := c.Receive(t.Context()); !errors.Is(err, mqttv3.ErrClosed) {
							t.Errorf("Receive: %v, want ErrClosed", err)
						}
						closeClean(t, c)
					}
					if !matches(err, test.want) {
						t.Errorf("got %v (%T), want %v (%T)", err, err, test.want, test.want)
					}
					if err != nil && strings.Contains(err.Error(), secret) {
						t.Errorf("the error contains the password: %v", err)
					}
					if d := time.Since(start); d != 0 {
						t.Errorf("took %v, want no time", d)
					}
				})
			})
		}
	}
}

func matches(err error, want any) bool {
	switch want := want.(type) {
	case *mqttv3.ProtocolError:
		var target *mqttv3.ProtocolError
		return errors.As(err, &target) && target.Packet != ""
	case *mqttv3.ConnackError:
		var target *mqttv3.ConnackError
		return errors.As(err, &target) && target.ReturnCode == 5
	case error:
		return errors.Is(err, want)
	}
	return false
}

func TestAWebServerIsRecognised(t *testing.T) {
	const page = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/html\r\n\r\n"
	for _, test := range []struct {
		says string
		then func(*server)
		took time.Duration
	}{
		{"when it closes", func(*server) {}, 0},
		{"when it stays, after a second", func(s *server) { s.drain() }, time.Second},
	} {
		t.Run(test.says, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				w := serve(t, func(s *server) {
					s.expect(mochi.Connect)
					for _, b := range []byte(page) {
						s.conn.Write([]byte{b})
					}
					test.then(s)
				})
				_, err := mqttv3.Connect(t.Context(), w, options)
				var notMQTT *mqttv3.NotMQTTError
				if !errors.As(err, &notMQTT) || string(notMQTT.First) != page {
					t.Errorf("got %v, want a *NotMQTTError with the whole page", err)
				}
				if d := time.Since(start); d != test.took {
					t.Errorf("took %v, want %v", d, test.took)
				}
			})
		})
	}
}

// transcript is a whole session with a conforming server.
var transcript = []struct{ awaits, says string }{
	{"\x01", connackAccepted},
	{"\x08", subackQoS1},
	{"\x03", puback2 + messageQoS1},
}

// TestServerGoneAtEveryByte ends the connection after each byte that a conforming server
// sends. Pending calls return immediately, and complete packets are processed.
func TestServerGoneAtEveryByte(t *testing.T) {
	total := 0
	for _, step := range transcript {
		total += len(unhex(step.says))
	}
	for cut := range total + 1 {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			w := serve(t, func(s *server) {
				left := cut
				for _, step := range transcript {
					s.expect(step.awaits[0])
					b := unhex(step.says)
					if left < len(b) {
						s.conn.Write(b[:left])
						return
					}
					s.conn.Write(b)
					left -= len(b)
				}
			})
			done, err := session(t.Context(), w)
			if err == nil && done != 4 || err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("cut after %d bytes: %v after %d steps", cut, err, done)
			}
			// CONNACK 4 bytes, SUBACK 5, PUBACK 4 (Publish does not wait for it), PUBLISH
			// 11.
			want := 0
			for i, end := range []int{4, 9, 9, 24} {
				if cut >= end {
					want = i + 1
				}
			}
			if done != want {
				t.Errorf("cut after %d bytes: %d steps done, want %d (%v)", cut, done, want, err)
			}
			if d := time.Since(start); d != 0 {
				t.Errorf("cut after %d bytes: took %v, want no time", cut, d)
			}
		})
	}
}

// session returns the number of completed steps: connected, subscribed, published,
// received.
func session(ctx context.Context, conn net.Conn) (done int, err error) {
	c, err := mqttv3.Connect(ctx, conn, options)
	if err != nil {
		return 0, err
	}
	defer c.Close(ctx)
	if err := c.Subscribe(ctx, "r/#", 1); err != nil {
		return 1, err
	}
	if err := c.Publish(ctx, "a/b", nil, 1); err != nil {
		return 2, err
	}
	if _, err := c.Receive(ctx); err != nil {
		return 3, err
	}
	return 4, nil
}

// A server that replies has received the message, even if it did not acknowledge it.
func TestAReplyCountsWithoutThePUBACK(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c, w := connect(t, options, func(s *server) {
			s.accept()
			for range 3 { // the identifiers differ: no message was acknowledged
				s.expect(mochi.Publish)
				s.write(messageQoS1)
				s.expect(mochi.Puback)
			}
			s.expect(mochi.Disconnect)
			s.expectEnd()
		})
		for range 3 {
			if err := c.Publish(t.Context(), "a/b", nil, 1); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Receive(t.Context()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // the PUBACK is sent concurrently with Receive
		}
		closeClean(t, c)
		if d := time.Since(start); d != 0 {
			t.Errorf("took %v, want no time", d)
		}
		synctest.Wait()
		ids := map[string]bool{}
		for _, b := range w.written() {
			if b[0] == 0x32 {
				ids[string(b[7:9])] = true
			}
		}
		if len(ids) != 3 {
			t.Errorf("the packet identifiers are %v", ids)
		}
	})
}

func TestARefusedSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, options, func(s *server) {
			s.accept()
			s.expect(mochi.Subscribe)
			s.write("90 03 00 01 80")
			s.expect(mochi.Disconnect)
			s.expectEnd()
		})
		var refused *mqttv3.SubackError
		if err := c.Subscribe(t.Context(), "r/#", 1); !errors.As(err, &refused) || refused.Filter != "r/#" {
			t.Errorf("got %v, want a *SubackError for r/#", err)
		}
		closeClean(t, c) // a refusal does not end the connection
	})
}

func TestTimeouts(t *testing.T) {
	timely := options
	timely.Timeout = 17 * time.Second // longer than paho's default of 10 s
	for _, test := range []struct {
		exchange string
		script   func(*server)
		call     func(*mqttv3.Client) error
	}{
		{"CONNACK", func(s *server) { s.drain() }, nil},
		{"SUBACK", func(s *server) { s.accept(); s.drain() },
			func(c *mqttv3.Client) error { return c.Subscribe(context.Background(), "r/#", 1) }},
	} {
		t.Run("without "+test.exchange, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				start := time.Now()
				c, err := mqttv3.Connect(t.Context(), serve(t, test.script), timely)
				if test.call != nil && err == nil {
					err = test.call(c)
					closeClean(t, c)
				}
				var timeout *mqttv3.TimeoutError
				if !errors.As(err, &timeout) || timeout.Exchange != test.exchange || !errors.Is(err, mqttv3.ErrTimeout) {
					t.Errorf("got %v, want a *TimeoutError for %s", err, test.exchange)
				}
				var asNet interface{ Timeout() bool }
				if !errors.As(err, &asNet) || !asNet.Timeout() {
					t.Errorf("%v is not a time-out as defined by net.Error", err)
				}
				if d := time.Since(start); d != timely.Timeout {
					t.Errorf("took %v, want %v", d, timely.Timeout)
				}
			})
		})
	}
}

// deaf is a connection whose writes end only some time after it was closed.
type deaf struct{ net.Conn }

func (d deaf) Write([]byte) (int, error) {
	time.Sleep(time.Minute)
	return 0, io.ErrClosedPipe
}

func TestConnectWaitsHalfASecondForAConnectionThatWasClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options
		o.Timeout = 7 * time.Second
		start := time.Now()
		_, err := mqttv3.Connect(t.Context(), deaf{serve(t, func(s *server) { s.drain() })}, o)
		if !errors.Is(err, mqttv3.ErrTimeout) {
			t.Errorf("got %v, want a time-out", err)
		}
		if d := time.Since(start); d != 7500*time.Millisecond {
			t.Errorf("took %v, want 7.5s", d)
		}
		time.Sleep(time.Minute) // until the write has ended
	})
}

func TestTheCallersContextEndsACall(t *testing.T) {
	reason := errors.New("SIGTERM")
	for name, call := range map[string]func(context.Context, *mqttv3.Client) error{
		"Subscribe": func(ctx context.Context, c *mqttv3.Client) error { return c.Subscribe(ctx, "r/#", 1) },
		"Receive":   func(ctx context.Context, c *mqttv3.Client) error { _, err := c.Receive(ctx); return err },
	} {
		t.Run(name+" returns the cause, and the connection stays open", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, w := connect(t, options, func(s *server) { s.accept(); s.drain() })
				ctx, cancel := context.WithCancelCause(t.Context())
				time.AfterFunc(time.Second, func() { cancel(reason) })
				start := time.Now()
				if err := call(ctx, c); !errors.Is(err, reason) {
					t.Errorf("got %v, want %v", err, reason)
				}
				if d := time.Since(start); d != time.Second {
					t.Errorf("took %v, want 1s", d)
				}
				closeClean(t, c)
				if last := w.written()[len(w.written())-1]; last[0] != 0xe0 {
					t.Errorf("the last packet is %x, want DISCONNECT", last)
				}
			})
		})
	}
	t.Run("Connect returns the cause, and the connection is closed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(time.Second, func() { cancel(reason) })
			_, err := mqttv3.Connect(ctx, serve(t, func(s *server) { s.expect(mochi.Connect); s.expectEnd() }), options)
			if !errors.Is(err, reason) {
				t.Errorf("got %v, want %v", err, reason)
			}
		})
	})
}

func TestClose(t *testing.T) {
	t.Run("ends every pending call, and may be called repeatedly and concurrently", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, _ := connect(t, options, func(s *server) { s.accept(); s.drain() })
			pending := make(chan error, 3)
			go func() { pending <- c.Subscribe(context.Background(), "r/#", 1) }()
			go func() { pending <- c.Subscribe(context.Background(), "r/#", 1) }()
			go func() { _, err := c.Receive(context.Background()); pending <- err }()
			synctest.Wait()
			immediately(t, func() {
				go c.Close(context.Background())
				closeClean(t, c)
				closeClean(t, c)
				for range cap(pending) {
					if err := <-pending; !errors.Is(err, mqttv3.ErrClosed) {
						t.Errorf("pending call: %v, want ErrClosed", err)
					}
				}
				<-c.Done()
			})
			if !errors.Is(c.Err(), mqttv3.ErrClosed) {
				t.Errorf("Err: %v, want ErrClosed", c.Err())
			}
			if err := c.Publish(t.Context(), "a", nil, 0); !errors.Is(err, mqttv3.ErrClosed) {
				t.Errorf("Publish after Close: %v, want ErrClosed", err)
			}
		})
	})
	t.Run("returns after 5 s if the peer reads nothing", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			stop := make(chan struct{})
			c, _ := connect(t, options, func(s *server) { s.accept(); <-stop })
			defer close(stop)
			start := time.Now()
			if err := c.Close(context.Background()); err == nil {
				t.Error("DISCONNECT cannot have been sent")
			}
			if d := time.Since(start); d != 5*time.Second {
				t.Errorf("took %v, want 5s", d)
			}
		})
	})
	t.Run("returns when its context ends", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			stop := make(chan struct{})
			c, _ := connect(t, options, func(s *server) { s.accept(); <-stop })
			defer close(stop)
			// A blocked write holds the lock that DISCONNECT needs.
			go c.Publish(context.Background(), "a", nil, 0)
			synctest.Wait()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			if err := c.Close(ctx); err == nil {
				t.Error("DISCONNECT cannot have been sent")
			}
			if d := time.Since(start); d != time.Second {
				t.Errorf("took %v, want 1s", d)
			}
		})
	})
	t.Run("does nothing if the connection is lost", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c, w := connect(t, options, func(s *server) { s.accept() })
			<-c.Done()
			sent := len(w.written())
			immediately(t, func() { closeClean(t, c) })
			if got := w.written()[sent:]; len(got) > 0 && got[0][0] != 0xe0 {
				t.Errorf("sent %x", got)
			}
			wantCause(t, c.Err(), io.EOF)
		})
	})
}

func TestAStalledWriteEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options
		o.Timeout = 7 * time.Second
		stop := make(chan struct{})
		c, _ := connect(t, o, func(s *server) { s.accept(); <-stop })
		defer close(stop)
		start := time.Now()
		if err := c.Publish(t.Context(), "a", nil, 0); err == nil {
			t.Error("a message that was not read was published")
		}
		<-c.Done()
		if d := time.Since(start); d != o.Timeout {
			t.Errorf("took %v, want %v", d, o.Timeout)
		}
		closeClean(t, c)
	})
}

func TestMessagesReadBeforeTheEndAreHandedOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, _ := connect(t, options, func(s *server) {
			s.accept()
			s.write(messageQoS0 + messageQoS0)
		})
		for i := range 2 {
			if _, err := c.Receive(t.Context()); err != nil {
				t.Errorf("message %d: %v", i, err)
			}
		}
		_, err := c.Receive(t.Context())
		wantCause(t, err, io.EOF)
		closeClean(t, c)
	})
}

// With TLS 1.3, the client completes the handshake before the server has seen its
// certificate, so the alert arrives instead of the CONNACK.
func TestARefusedCertificateStaysVisible(t *testing.T) {
	certificate := selfSigned(t)
	listener, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{certificate},
		ClientAuth:   tls.RequireAndVerifyClientCert,
		ClientCAs:    x509.NewCertPool(), // trusts no certificate
	})
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			conn.(*tls.Conn).Handshake()
			conn.Close()
		}
	}()
	conn, err := tls.Dial("tcp", listener.Addr().String(), &tls.Config{
		Certificates: []tls.Certificate{certificate}, InsecureSkipVerify: true, MinVersion: tls.VersionTLS13,
	})
	if err != nil {
		t.Fatalf("handshake: %v", err)
	}
	_, err = mqttv3.Connect(t.Context(), conn, options)
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		t.Errorf("got %v, want the server's alert", err)
	}
}

// brokenOff is a connection that fails all writes but has an error of the peer to read.
type brokenOff struct {
	net.Conn
	remaining error
}

var errBrokenPipe = &net.OpError{Op: "write", Err: syscall.EPIPE}

func (brokenOff) Write([]byte) (int, error)        { return 0, errBrokenPipe }
func (b brokenOff) Read([]byte) (int, error)       { return 0, b.remaining }
func (brokenOff) Close() error                     { return nil }
func (brokenOff) SetReadDeadline(time.Time) error  { return nil }
func (brokenOff) SetWriteDeadline(time.Time) error { return nil }

func TestThePeersFinalErrorExplainsAFailedCONNECT(t *testing.T) {
	alert := &net.OpError{Op: "remote error", Err: errors.New("tls: bad certificate")}
	_, err := mqttv3.Connect(t.Context(), brokenOff{remaining: alert}, options)
	if !errors.Is(err, alert) || !errors.Is(err, syscall.EPIPE) {
		t.Errorf("got %v, want the alert and the broken pipe", err)
	}
}

// selfSigned returns a certificate that is valid according to the clock of the bubble.
func selfSigned(t testing.TB) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}
