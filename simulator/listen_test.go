package simulator_test

import (
	"crypto/tls"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// dialLocal opens TLS to a listener by its host name.
func dialLocal(t *testing.T, l *simulator.Local, port int) *client {
	t.Helper()
	config := clientConfig(l.Server)
	config.ServerName = l.Host
	conn, err := tls.Dial("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port)), config)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

// failing is a test whose Fatal can be checked.
type failing struct {
	fatal    string
	cleanups []func()
}

func (*failing) Helper()            {}
func (f *failing) Cleanup(c func()) { f.cleanups = append(f.cleanups, c) }
func (f *failing) Fatal(a ...any)   { f.fatal = fmt.Sprint(a...); panic(f) }

func TestStart(t *testing.T) {
	t.Run("it listens for MQTT and for WebSocket, and ends with the test", func(t *testing.T) {
		var ports []int
		t.Run("inner", func(t *testing.T) {
			l := simulator.Start(t, simulator.Options{})
			ports = []int{l.MQTTPort, l.WebSocketPort}
			c := dialLocal(t, l, l.MQTTPort).connect(l.Server, device).subscribe()
			if p := c.register("1"); !strings.Contains(p.topic, "/202/") {
				t.Error(p)
			}
			ws := dialLocal(t, l, l.WebSocketPort)
			ws.send([]byte("GET /$iothub/websocket HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
				"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n")...)
			if line, err := ws.in.ReadString('\n'); err != nil || !strings.HasPrefix(line, "HTTP/1.1 101 ") {
				t.Error(line, err)
			}
		})
		for _, port := range ports {
			if conn, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", fmt.Sprint(port))); err == nil {
				conn.Close()
				t.Errorf("port %d is still served", port)
			}
		}
	})
	t.Run("many in one process share nothing: neither scope nor devices nor faults", func(t *testing.T) {
		refuse := 3
		one := simulator.Start(t, simulator.Options{Seed: 1, Scenario: &simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnConnect, Connack: &refuse}}}})
		var all []*simulator.Local
		for seed := range uint64(8) {
			all = append(all, simulator.Start(t, simulator.Options{Seed: seed + 2}))
		}
		scopes := map[string]bool{one.IDScope(): true}
		for _, l := range all {
			scopes[l.IDScope()] = true
			dialLocal(t, l, l.MQTTPort).connect(l.Server, device)
		}
		if len(scopes) != 9 {
			t.Error(scopes)
		}
		c := dialLocal(t, one, one.MQTTPort)
		c.send(goodConnect(one.Server, device)...)
		c.expect("the first one's fault is its own", 0x20, 2, 0, 3)
		c = dialLocal(t, all[0], all[0].MQTTPort)
		c.send(goodConnect(all[1].Server, device)...)
		c.expect("a device of another scope is a stranger", 0x20, 2, 0, 3)
	})
	t.Run("a server that cannot start fails the test", func(t *testing.T) {
		f := &failing{}
		func() {
			defer func() { _ = recover() }()
			simulator.Start(f, simulator.Options{Enrollments: &enroll.Enrollments{Groups: []enroll.Group{{}}}})
		}()
		if !strings.Contains(f.fatal, "group[0].name") || len(f.cleanups) != 0 {
			t.Errorf("%q", f.fatal)
		}
	})
	t.Run("a listening server may be closed twice", func(t *testing.T) {
		l, err := simulator.Listen(simulator.Options{})
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		l.Close()
	})
}
