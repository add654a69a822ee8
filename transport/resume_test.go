package transport_test

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/dpsd-project/dpsd/transport"
)

func TestResumption(t *testing.T) {
	root := newAuthority(t, nil)
	one, two := root.issue(t, "gw-1", nil), root.issue(t, "gw-2", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		var seen atomic.Pointer[string]
		config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, MinVersion: version, MaxVersion: version, ClientAuth: tls.RequestClientCert}
		n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: secure(config, func(c *tls.Conn) {
			name := ""
			if shown := c.ConnectionState().PeerCertificates; len(shown) > 0 {
				name = shown[0].Subject.CommonName
			}
			seen.Store(&name)
			echo(c)
		})})
		d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext, Sessions: tls.NewLRUClientSessionCache(4)}
		// connect reports whether a session was resumed.
		connect := func(t *testing.T, d *transport.Dialer, certificate *tls.Certificate, as string) bool {
			t.Helper()
			c := exchange(t, d, certificate)
			if got := *seen.Load(); got != as {
				t.Errorf("the server sees %q, want %q", got, as)
			}
			if len(c.TLS.VerifiedChains) == 0 {
				t.Error("the server's certificate was not verified")
			}
			return c.TLS.DidResume
		}
		t.Run("the second connection resumes the session of the first: "+tls.VersionName(version), func(t *testing.T) {
			if connect(t, d, nil, "") {
				t.Error("the first connection resumed a session")
			}
			if !connect(t, d, nil, "") {
				t.Error("the second connection did not resume the session")
			}
		})
		t.Run("each certificate has separate sessions: "+tls.VersionName(version), func(t *testing.T) {
			if connect(t, d, &one, "gw-1") || connect(t, d, &two, "gw-2") {
				t.Error("a session of another certificate was resumed")
			}
			if !connect(t, d, &one, "gw-1") || !connect(t, d, &two, "gw-2") {
				t.Error("the session of the same certificate was not resumed")
			}
		})
		t.Run("a client that no longer trusts the server resumes no session: "+tls.VersionName(version), func(t *testing.T) {
			distrusting := *d
			distrusting.Roots = newAuthority(t, nil).pool()
			if f := failure(t, &distrusting, nil); f.Stage != transport.StageTLS {
				t.Errorf("%v", f)
			}
		})
		t.Run("without a cache, there are no sessions: "+tls.VersionName(version), func(t *testing.T) {
			forgetful := *d
			forgetful.Sessions = nil
			for range 2 {
				if connect(t, &forgetful, nil, "") {
					t.Error("resumed")
				}
			}
		})
	}
}

// A server that cannot resume its own session fails the handshake in some way.
func TestAHandshakeThatFailsWithASessionIsRepeatedWithoutIt(t *testing.T) {
	root := newAuthority(t, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for name, fail := range map[string]func(net.Conn, *tls.Config){
			"by an alert": func(c net.Conn, config *tls.Config) {
				config.UnwrapSession = func([]byte, tls.ConnectionState) (*tls.SessionState, error) { return nil, errors.New("no such key") }
				tls.Server(c, config).Handshake()
			},
			"by closing":        func(c net.Conn, _ *tls.Config) { io.ReadFull(c, make([]byte, 64)) },
			"by an alert of 42": func(c net.Conn, _ *tls.Config) { io.ReadFull(c, make([]byte, 64)); c.Write(plainAlert(42)); hold(c) },
			"by something else": func(c net.Conn, _ *tls.Config) {
				io.ReadFull(c, make([]byte, 64))
				c.Write([]byte("HTTP/1.1 500 Sorry\r\n\r\n"))
				hold(c)
			},
		} {
			t.Run(name+", "+tls.VersionName(version), func(t *testing.T) {
				config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, MinVersion: version, MaxVersion: version}
				var connections atomic.Int32
				broken := false
				good := secure(config, func(c *tls.Conn) { echo(c) })
				n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: func(c net.Conn) {
					if connections.Add(1); broken {
						broken = false
						fail(c, config.Clone())
						return
					}
					good(c)
				}})
				d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext, Sessions: tls.NewLRUClientSessionCache(4)}
				exchange(t, d, nil)
				broken = true
				if c := exchange(t, d, nil); c.TLS.DidResume || connections.Load() != 3 {
					t.Errorf("resumed %t, %d connections", c.TLS.DidResume, connections.Load())
				}
				if c := exchange(t, d, nil); !c.TLS.DidResume || connections.Load() != 4 {
					t.Errorf("the new session is resumed: %t, %d connections", c.TLS.DidResume, connections.Load())
				}
			})
		}
	}
	t.Run("a failure without a session is not retried", func(t *testing.T) {
		var connections atomic.Int32
		n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: func(c net.Conn) {
			connections.Add(1)
			io.ReadFull(c, make([]byte, 64))
		}})
		failure(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext, Sessions: tls.NewLRUClientSessionCache(4)}, nil)
		if connections.Load() != 1 {
			t.Errorf("%d connections", connections.Load())
		}
	})
}

func TestAfterAFailureWithASessionNoProtocolResumes(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, MaxVersion: tls.VersionTLS12}
	broken := false
	handlers := map[string]func(net.Conn){
		mqttAddress: func(c net.Conn) {
			if broken {
				io.ReadFull(c, make([]byte, 64))
				return
			}
			secure(config, echo)(c)
		},
		webAddress: secure(config, upgraded([]string{"mqtt"}, echoMessages)),
	}
	n := newNetwork(t, false, handlers)
	d := &transport.Dialer{Host: host, Roots: root.pool(), DialContext: n.DialContext, Sessions: tls.NewLRUClientSessionCache(4)}
	for _, p := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		d.Protocols = only(p)
		dial(t, d, nil).Close()
	}
	broken = true
	d.Protocols = nil
	if c := dial(t, d, nil); c.Protocol != transport.WebSocket || c.TLS.DidResume {
		t.Errorf("%s, resumed %t", c.Protocol, c.TLS.DidResume)
	}
	if got := len(n.addresses()); got != 2+3 {
		t.Errorf("%d connections: %v", got, n.addresses())
	}
}

func TestAForgottenSessionIsNotResumed(t *testing.T) {
	root := newAuthority(t, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, MinVersion: version, MaxVersion: version}
		n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: secure(config, echo)})
		d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext, Sessions: tls.NewLRUClientSessionCache(4)}
		connect := func(d *transport.Dialer, forget bool) bool {
			c := dial(t, d, nil)
			defer c.Close()
			if forget {
				c.Forget() // a TLS 1.3 ticket has not arrived yet
			}
			c.Write([]byte("x"))
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			return c.TLS.DidResume
		}
		connect(d, false)
		full := *d
		full.FullHandshake = true
		if connect(&full, false) {
			t.Errorf("%s: resumed although FullHandshake", tls.VersionName(version))
		}
		if !connect(d, true) {
			t.Errorf("%s: the session of the full handshake was not resumed", tls.VersionName(version))
		}
		if connect(d, false) {
			t.Errorf("%s: a forgotten session is resumed", tls.VersionName(version))
		}
	}
}
