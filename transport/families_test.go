package transport_test

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/dpsd-project/dpsd/transport"
)

// TestFamilies dials a name with addresses of both families, ::1 and 127.0.0.1, with the
// default of Dialer.
func TestFamilies(t *testing.T) {
	const name = "families.test"
	resolving(t, map[dnsmessage.Type]dnsmessage.ResourceBody{
		dnsmessage.TypeA:    &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
		dnsmessage.TypeAAAA: &dnsmessage.AAAAResource{AAAA: [16]byte{15: 1}},
	})
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, name, nil)}}
	const six, four = "::1", "127.0.0.1"
	for _, test := range []struct {
		expect string
		dead   string // the family that does not answer
		alive  string // the family that serves
	}{
		{"IPv6 is used when it works", "", six},
		{"IPv4 is used if nothing listens on IPv6", "", four},
		{"a dead IPv6 does not delay IPv4", six, four},
		{"a dead IPv4 does not delay IPv6", four, six},
	} {
		for _, proxied := range []bool{false, true} {
			what := map[bool]string{false: " to the service", true: " to the proxy"}[proxied]
			t.Run(test.expect+what, func(t *testing.T) {
				var l net.Listener
				var port int
				for free := false; !free; {
					var err error
					if l, err = net.Listen("tcp", net.JoinHostPort(test.alive, "0")); err != nil {
						if os.Getenv("CI") == "true" {
							t.Fatal(err)
						}
						t.Skipf("cannot listen on %s: %v", test.alive, err)
					}
					port = l.Addr().(*net.TCPAddr).Port
					if free = test.dead == "" || unanswered(t, test.dead, port); !free {
						l.Close() // another program uses this port in the other family
					}
				}
				n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: secure(config, echo), name + ":8883": secure(config, echo)})
				serve := secure(config, echo)
				if proxied {
					serve = proxy(n, nil, "HTTP/1.1 200 OK\r\n\r\n")
				}
				served := make(chan struct{})
				go func() {
					defer close(served)
					for {
						c, err := l.Accept()
						if err != nil {
							return
						}
						n.wg.Go(func() { defer c.Close(); serve(c) })
					}
				}()
				defer func() { l.Close(); <-served }()
				// If the dial waited for one family before it tried the other, it would
				// wait for half of the hour; the 20 s only limit the test.
				d := &transport.Dialer{Host: name, Protocols: only(transport.MQTT), MQTTPort: port, Roots: root.pool(), Timeout: time.Hour}
				if proxied {
					d.MQTTPort, d.Proxy = 8883, through("http://"+net.JoinHostPort(name, strconv.Itoa(port)))
				}
				// A deadline in ctx would also be split between the families.
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				defer time.AfterFunc(20*time.Second, cancel).Stop()
				c, err := d.Dial(ctx, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if got := c.RemoteAddr().(*net.TCPAddr).IP.String(); got != test.alive {
					t.Errorf("the connection is to %s", got)
				}
			})
		}
	}
}

// resolving makes every name resolve to these addresses for the rest of the test.
func resolving(t *testing.T, addresses map[dnsmessage.Type]dnsmessage.ResourceBody) {
	t.Helper()
	var servers sync.WaitGroup
	before := net.DefaultResolver
	t.Cleanup(func() { net.DefaultResolver = before; servers.Wait() })
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe() // a stream: the resolver uses it like TCP
		servers.Go(func() {
			defer theirs.Close()
			for {
				length := make([]byte, 2)
				if _, err := io.ReadFull(theirs, length); err != nil {
					return
				}
				query := make([]byte, binary.BigEndian.Uint16(length))
				if _, err := io.ReadFull(theirs, query); err != nil {
					return
				}
				var m dnsmessage.Message
				if err := m.Unpack(query); err != nil || len(m.Questions) != 1 {
					t.Errorf("the query %x: %v", query, err)
					return
				}
				q := m.Questions[0]
				m.Response, m.Additionals = true, nil
				if body := addresses[q.Type]; body != nil {
					m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 60}, Body: body}}
				}
				answer, err := m.Pack()
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := theirs.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
					return
				}
			}
		})
		return ours, nil
	}}
}

// unanswered makes connections to a port of a loopback address block: it fills the backlog
// of a socket, after which Linux drops connections. It reports whether the port was free.
func unanswered(t *testing.T, address string, port int) (free bool) {
	t.Helper()
	var family int
	var at syscall.Sockaddr
	if ip := net.ParseIP(address); ip.To4() != nil {
		family, at = syscall.AF_INET, &syscall.SockaddrInet4{Port: port, Addr: [4]byte(ip.To4())}
	} else {
		family, at = syscall.AF_INET6, &syscall.SockaddrInet6{Port: port, Addr: [16]byte(ip)}
	}
	fd, err := syscall.Socket(family, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if family == syscall.AF_INET6 {
		if err := syscall.SetsockoptInt(fd, syscall.IPPROTO_IPV6, syscall.IPV6_V6ONLY, 1); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Bind(fd, at); errors.Is(err, syscall.EADDRINUSE) {
		return false
	} else if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for range 16 {
		c, err := net.DialTimeout("tcp", net.JoinHostPort(address, strconv.Itoa(port)), 200*time.Millisecond)
		if timeout := (net.Error)(nil); errors.As(err, &timeout) && timeout.Timeout() {
			return true
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatalf("the backlog of %s is never full", address)
	return false
}
