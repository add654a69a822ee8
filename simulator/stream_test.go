package simulator_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// Faults of the stream, by the byte.
func TestStreamFaults(t *testing.T) {
	// received returns what a handshake receives below TLS until the end or the deadline.
	received := func(t *testing.T, s *simulator.Server) (n int, err error) {
		t.Helper()
		conn := pipe(t, s)
		_ = conn.SetDeadline(time.Now().Add(10 * time.Minute))
		counted := &counting{Conn: conn}
		err = tls.Client(counted, clientConfig(s)).Handshake()
		return counted.n, err
	}
	bubble(t, "after_down and silent: so many bytes, and then nothing, for as long as the client stays", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", AfterDown: 400, Silent: true})
		n, err := received(t, s)
		var timeout net.Error
		if n != 400 || !errors.As(err, &timeout) || !timeout.Timeout() {
			t.Errorf("%d bytes, %v", n, err)
		}
		if log := s.Log(); log[len(log)-1].Packet != "STALL" || log[len(log)-1].Size != 400 {
			t.Errorf("%+v", log[len(log)-1])
		}
	})
	bubble(t, "after_down and close: so many bytes, and the end", func(t *testing.T) {
		n, err := received(t, script(t, simulator.Rule{On: "accept", AfterDown: 401, Close: true}))
		if n != 401 || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
	bubble(t, "after_down and garbage: so many bytes, and then those", func(t *testing.T) {
		n, _ := received(t, script(t, simulator.Rule{On: "accept", AfterDown: 50, Garbage: "0123456789"}))
		if n != 60 {
			t.Errorf("%d bytes", n)
		}
	})
	bubble(t, "after_up: what the client sends is taken, and read no more", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", AfterUp: 100, Silent: true})
		n, err := received(t, s)
		if n != 0 || err == nil {
			t.Errorf("%d bytes, %v", n, err)
		}
		if log := s.Log(); log[len(log)-1].Packet != "STALL" || log[len(log)-1].Size != 100 || log[len(log)-1].Direction != "up" {
			t.Errorf("%+v", log[len(log)-1])
		}
	})
	bubble(t, "a stall up does not count as the client's silence", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", AfterUp: 2800, Silent: true})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 10, device, userNameOf(s, device), goodToken(s, device))...)
		c.expect("CONNACK", 0x20, 2, 0, 0)
		for range 40 {
			c.send(0xc0, 0)
			time.Sleep(9 * time.Second)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if log := s.Log(); log[len(log)-1].Packet != "STALL" {
			t.Errorf("%+v", log[len(log)-1])
		}
	})
	bubble(t, "delay_up and delay_down are on every way", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", DelayUp: time.Second, DelayDown: 10 * time.Second})
		c := dial(t, s).connect(s, device)
		begin := time.Now()
		c.lives()
		if d := time.Since(begin); d != 11*time.Second {
			t.Errorf("a ping took %v", d)
		}
	})
	bubble(t, "pace is the time between bytes", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", ByteByByte: true, Pace: time.Second})
		c := dial(t, s)
		begin := time.Now()
		c.connect(s, device)
		if d := time.Since(begin); d != 4*time.Second {
			t.Errorf("CONNACK took %v", d)
		}
	})
	bubble(t, "refuse closes every connection for that time, and not longer", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", Refuse: time.Minute, Times: 1})
		for _, at := range []time.Duration{0, 30 * time.Second, 29 * time.Second} {
			time.Sleep(at)
			if _, err := pipe(t, s).Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		}
		if !s.Refuses("mqtt") || s.Refuses("websocket") {
			t.Error("it is the MQTT listener that is closed")
		}
		time.Sleep(time.Second)
		dial(t, s).connect(s, device)
	})
	bubble(t, "an alert is logged by its name", func(t *testing.T) {
		for name, says := range map[string]string{"handshake_failure": "handshake failure", "internal_error": "internal error", "unknown_ca": "unknown certificate authority"} {
			_, err := received(t, script(t, simulator.Rule{On: "tls", Alert: name}))
			if err == nil || !strings.Contains(err.Error(), says) {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
	bubble(t, "an alert at the certificate comes after the client's part of the handshake", func(t *testing.T) {
		_, err := received(t, script(t, simulator.Rule{On: "tls", Alert: "certificate_revoked", AlertAt: "certificate"}))
		if err == nil || !strings.Contains(err.Error(), "revoked certificate") {
			t.Error(err)
		}
	})
	t.Run("refuse: the kernel refuses, and the port is open again", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "accept", Refuse: 500 * time.Millisecond, Times: 1})
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.AcceptMQTT(l) }()
		first, err := net.Dial("tcp", l.Addr().String())
		if err == nil {
			_, _ = first.Read(make([]byte, 1)) // the RST
			first.Close()
		}
		refused := 0
		for {
			conn, err := tls.Dial("tcp", l.Addr().String(), clientConfig(s))
			if err == nil {
				conn.Close()
				break
			}
			if errors.Is(err, syscall.ECONNREFUSED) {
				refused++
			}
		}
		if refused == 0 {
			t.Error("no connection was refused")
		}
	})
}

// counting counts the bytes that are read.
type counting struct {
	net.Conn
	n int
}

func (c *counting) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.n += n
	return n, err
}

func TestWhenARuleActs(t *testing.T) {
	bubble(t, "from and until bound the time", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "connect", From: time.Minute, Until: 2 * time.Minute, Connack: new(3)})
		for _, want := range []byte{0, 3, 3, 0} { // at 0 s, 60 s, 119 s, 120 s
			c := dial(t, s)
			c.send(goodConnect(s, device)...)
			c.expect("CONNACK", 0x20, 2, 0, want)
			c.conn.Close()
			time.Sleep(map[byte]time.Duration{0: time.Minute, 3: 59 * time.Second}[want])
			if want == 3 {
				synctest.Wait()
			}
		}
	})
	bubble(t, "chance is about as likely as it says", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "ping", Chance: 0.25, Delay: time.Second})
		c := dial(t, s).connect(s, device)
		begin := time.Now()
		for range 1000 {
			c.lives()
		}
		if n := time.Since(begin) / time.Second; n < 200 || n > 300 {
			t.Errorf("%d of 1000", n)
		}
	})
}
