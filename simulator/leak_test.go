package simulator_test

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/simulator"
)

var connections = flag.Int("connections", 400, "how many connections come and go before the simulator is looked at")

// arrival is one connection, from TCP to its end on both sides.
type arrival struct {
	protocol string
	leave    func(s *simulator.Server, id string, tcp net.Conn) error
}

// arrivals are the ways in which devices connect and disconnect.
var arrivals = []arrival{
	{"mqtt", func(s *simulator.Server, id string, tcp net.Conn) error {
		conn, err := subscribed(s, id, tcp)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := conn.Write(publishPacket(0x30, registerTopic("1"), 0, "")); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil { // the reply has more
			return err
		}
		_, err = conn.Write([]byte{0x40, 2, 0, 2, 0xe0, 0})
		return err
	}},
	{"mqtt", func(s *simulator.Server, id string, tcp net.Conn) error { // disconnects without DISCONNECT
		_, err := subscribed(s, id, tcp)
		_ = tcp.(*net.TCPConn).SetLinger(0)
		return err
	}},
	{"mqtt", func(s *simulator.Server, _ string, tcp net.Conn) error { // a different violation each time
		conn := tls.Client(tcp, clientConfig(s))
		if err := conn.Handshake(); err != nil {
			return err
		}
		_, err := conn.Write([]byte("\x30\x05hello"))
		_, _ = io.Copy(io.Discard, conn)
		return err
	}},
	{"mqtt", func(_ *simulator.Server, _ string, tcp net.Conn) error { // no TLS
		_, err := tcp.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
		return err
	}},
	{"mqtt", func(*simulator.Server, string, net.Conn) error { return nil }},
	{"websocket", func(s *simulator.Server, id string, tcp net.Conn) error {
		conn := tls.Client(tcp, clientConfig(s))
		defer conn.Close()
		_, err := conn.Write([]byte("GET /$iothub/websocket HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + subprotocol + "\r\n"))
		if err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil { // of the upgrade
			return err
		}
		_, err = conn.Write(frame(0x82, goodConnect(s, id)))
		return err
	}},
}

// subscribed is a device that has received its SUBACK.
func subscribed(s *simulator.Server, id string, tcp net.Conn) (*tls.Conn, error) {
	conn := tls.Client(tcp, clientConfig(s))
	if _, err := conn.Write(append(goodConnect(s, id), subscribePacket(1, 1)...)); err != nil {
		return nil, err
	}
	_, err := io.ReadFull(conn, make([]byte, 4+5))
	return conn, err
}

// run makes the connection, and returns when neither side still holds it.
func (v arrival) run(s *simulator.Server, id string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	mine, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	theirs, err := l.Accept()
	if err != nil {
		return err
	}
	var server sync.WaitGroup
	server.Go(func() {
		if v.protocol == "mqtt" {
			s.ServeMQTT(theirs)
		} else {
			s.ServeWebSocket(theirs)
		}
	})
	_ = mine.SetDeadline(time.Now().Add(patience))
	err = v.leave(s, id, mine)
	_ = mine.Close()
	server.Wait()
	return err
}

// A simulator may run for months. The state that connections leave must not accumulate.
func TestConnectionsLeaveNoGoroutineAndNoMemory(t *testing.T) {
	none := 0
	s := start(t, simulator.Options{DiscardLog: true, Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &none}}})
	come := func(n int) {
		const atOnce = 10
		var all sync.WaitGroup
		for worker := range atOnce {
			all.Go(func() {
				for i := worker; i < n; i += atOnce {
					// The devices of each worker are already known: the server keeps known devices on purpose.
					if err := arrivals[i/atOnce%len(arrivals)].run(s, fmt.Sprintf("leak-%d", worker)); err != nil {
						t.Errorf("arrival %d: %v", i/atOnce%len(arrivals), err)
						return
					}
				}
			})
		}
		all.Wait()
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC() // objects in a sync.Pool survive the first collection
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	come(120)
	before, others := heap(), goleak.IgnoreCurrent()
	come(*connections)
	t.Run("no goroutine is left", func(t *testing.T) {
		if err := goleak.Find(others); err != nil {
			t.Error(err)
		}
	})
	t.Run("no memory is left", func(t *testing.T) {
		// One session uses ten times as much.
		limit := int64(128<<10 + 100**connections)
		if left := heap() - before; left > limit {
			t.Errorf("%d bytes after %d connections, more than %d", left, *connections, limit)
		} else {
			t.Logf("%d bytes after %d connections", left, *connections)
		}
	})
}
