package transport_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gorilla/websocket"

	"github.com/dpsd-project/dpsd/transport"
)

// drip writes text at one byte per second, like a peer that delays its reply.
func drip(c net.Conn, text string) {
	for i := range len(text) {
		time.Sleep(time.Second) // on the bubble's clock
		if _, err := c.Write([]byte{text[i]}); err != nil {
			return
		}
	}
	hold(c)
}

// deaf neither reads nor writes until the test ends.
func deaf(over <-chan struct{}) func(net.Conn) { return func(net.Conn) { <-over } }

// alsoProxy makes a certificate valid for the proxy too.
func alsoProxy(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "proxy.test") }

// TestTimeout checks that one deadline covers a protocol from name resolution to the
// upgrade, to the nanosecond, wherever the peer stops responding.
func TestTimeout(t *testing.T) {
	const timeout = 7 * time.Second
	for _, test := range []struct {
		expect   string
		protocol transport.Protocol
		proxied  bool
		stage    transport.Stage
		// handle serves the dialled address; if it is nil, the dial itself blocks.
		handle func(config *tls.Config, over <-chan struct{}) func(net.Conn)
	}{
		{"a connection that is not established", transport.MQTT, false, transport.StageTCP, nil},
		{"a proxy to which no connection is established", transport.MQTT, true, transport.StageProxy, nil},
		{"a peer that does not read", transport.MQTT, false, transport.StageTLS,
			func(_ *tls.Config, over <-chan struct{}) func(net.Conn) { return deaf(over) }},
		{"a peer that does not answer", transport.MQTT, false, transport.StageTLS,
			func(*tls.Config, <-chan struct{}) func(net.Conn) { return hold[net.Conn] }},
		{"a peer that does not answer, over websocket", transport.WebSocket, false, transport.StageTLS,
			func(*tls.Config, <-chan struct{}) func(net.Conn) { return hold[net.Conn] }},
		{"a peer that sends one byte of the handshake per second", transport.MQTT, false, transport.StageTLS,
			func(*tls.Config, <-chan struct{}) func(net.Conn) {
				return func(c net.Conn) {
					io.ReadFull(c, make([]byte, 64))
					go hold(c)
					drip(c, "\x16\x03\x03\x00\x40\x02\x00\x00\x3c\x03\x03")
				}
			}},
		{"a proxy that does not read", transport.MQTT, true, transport.StageProxy,
			func(_ *tls.Config, over <-chan struct{}) func(net.Conn) { return deaf(over) }},
		{"a proxy that does not answer", transport.MQTT, true, transport.StageProxy,
			func(*tls.Config, <-chan struct{}) func(net.Conn) { return hold[net.Conn] }},
		{"a proxy that sends one byte of its reply per second", transport.WebSocket, true, transport.StageProxy,
			func(*tls.Config, <-chan struct{}) func(net.Conn) {
				return func(c net.Conn) { go hold(c); drip(c, "HTTP/1.1 200 Connection established\r\n\r\n") }
			}},
		{"a proxy that sends nothing after its 200", transport.MQTT, true, transport.StageTLS,
			func(*tls.Config, <-chan struct{}) func(net.Conn) {
				return func(c net.Conn) {
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
						hold(c)
					}
				}
			}},
		{"a proxy that does not answer the handshake", transport.MQTT, true, transport.StageProxy,
			func(*tls.Config, <-chan struct{}) func(net.Conn) { return hold[net.Conn] }},
		{"a proxy in TLS that does not read", transport.MQTT, true, transport.StageProxy,
			func(config *tls.Config, over <-chan struct{}) func(net.Conn) {
				return secure(config, func(*tls.Conn) { <-over })
			}},
		{"a proxy in TLS that does not read after its 200", transport.WebSocket, true, transport.StageTLS,
			func(config *tls.Config, over <-chan struct{}) func(net.Conn) {
				return secure(config, func(c *tls.Conn) {
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
						c.Read(make([]byte, 4096)) // otherwise, close_notify would fail
						<-over
					}
				})
			}},
		{"a server that does not answer the upgrade", transport.WebSocket, false, transport.StageWebSocket,
			func(config *tls.Config, _ <-chan struct{}) func(net.Conn) { return secure(config, hold) }},
		{"a server that does not read the upgrade", transport.WebSocket, false, transport.StageWebSocket,
			func(config *tls.Config, over <-chan struct{}) func(net.Conn) {
				return secure(config, func(*tls.Conn) { <-over })
			}},
		{"a server that sends one byte of its reply to the upgrade per second", transport.WebSocket, false, transport.StageWebSocket,
			func(config *tls.Config, _ <-chan struct{}) func(net.Conn) {
				return secure(config, func(c *tls.Conn) { go hold(c); drip(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n") })
			}},
		{"a server that refuses the upgrade with an endless body", transport.WebSocket, false, "",
			func(config *tls.Config, _ <-chan struct{}) func(net.Conn) {
				return secure(config, answering(func(*http.Request) string { return "HTTP/1.1 403 Forbidden\r\nContent-Length: 99\r\n\r\n" }, hold))
			}},
	} {
		t.Run(test.expect+" ends at the time-out", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := newAuthority(t, nil)
				over := make(chan struct{})
				address := map[transport.Protocol]string{transport.MQTT: mqttAddress, transport.WebSocket: webAddress}[test.protocol]
				d := &transport.Dialer{Host: host, Protocols: only(test.protocol), Roots: root.pool(), Timeout: timeout}
				if test.proxied {
					address = proxyAddress
					d.Proxy = through("http://" + proxyAddress)
					if strings.Contains(test.expect, "TLS") || strings.Contains(test.expect, "handshake") {
						d.Proxy, d.ProxyCAFile = through("https://"+proxyAddress), write(t, "proxy-ca.pem", root.pem())
					}
				}
				n := newNetwork(t, true, map[string]func(net.Conn){})
				t.Cleanup(func() { close(over) }) // is called before the network waits for its handlers
				if test.handle != nil {
					n.handlers[address] = test.handle(&tls.Config{Certificates: []tls.Certificate{root.issue(t, host, alsoProxy)}, SessionTicketsDisabled: true}, over)
					d.DialContext = n.DialContext
				} else {
					d.DialContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
						<-ctx.Done()
						return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
					}
				}
				start := time.Now()
				e := failure(t, d, nil)
				took := time.Since(start)
				if test.stage == "" {
					// The first line contains the refusal, so the dial does not wait.
					if took != 0 || e.Stage != transport.StageWebSocket || isTimeout(e) {
						t.Errorf("after %v: %v", took, e)
					}
					return
				}
				var timedOut *transport.TimeoutError
				if took != timeout || e.Stage != test.stage || !isTimeout(e) || !errors.As(e, &timedOut) || timedOut.After != timeout || !errors.Is(e, context.DeadlineExceeded) {
					t.Errorf("after %v, stage %s: %v", took, e.Stage, e)
				}
			})
		})
	}
	t.Run("a resolver that does not answer is a time-out of stage name", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			// The resolver of package net cannot run in a bubble; this is its error.
			d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Timeout: 3 * time.Second,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					<-ctx.Done()
					return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "i/o timeout", Name: host, IsTimeout: true}}
				}}
			start := time.Now()
			e := failure(t, d, nil)
			var dns *net.DNSError
			if took := time.Since(start); took != d.Timeout || e.Stage != transport.StageName || !isTimeout(e) || !errors.As(e, &dns) {
				t.Errorf("after %v: %v", took, e)
			}
		})
	})
	t.Run("each protocol has the whole time-out, 30 s by default", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t, true, map[string]func(net.Conn){mqttAddress: hold[net.Conn], webAddress: hold[net.Conn]})
			start := time.Now()
			_, err := (&transport.Dialer{Host: host, DialContext: n.DialContext}).Dial(t.Context(), nil)
			var all transport.Errors
			if !errors.As(err, &all) || len(all) != 2 || !isTimeout(all[0]) || !isTimeout(all[1]) || time.Since(start) != time.Minute {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
			if !strings.Contains(err.Error(), "timed out after 30s") {
				t.Errorf("the message is %q", err)
			}
		})
	})
	t.Run("the deadline does not apply to an open stream", func(t *testing.T) {
		for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
			synctest.Test(t, func(t *testing.T) {
				root := newAuthority(t, nil)
				config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
				n := newNetwork(t, true, map[string]func(net.Conn){
					mqttAddress: secure(config, echo), webAddress: secure(config, upgraded([]string{"mqtt"}, echoMessages))})
				c, err := (&transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), Timeout: time.Second, DialContext: n.DialContext}).Dial(t.Context(), nil)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				time.Sleep(30 * time.Minute) // on the bubble's clock
				go io.WriteString(c, "ping")
				if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
					t.Errorf("after half an hour: %v", err)
				}
			})
		}
	})
}

func TestCancel(t *testing.T) {
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		t.Run("a cancelled dial ends immediately and tries no other protocol: "+string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				root := newAuthority(t, nil)
				config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
				n := newNetwork(t, true, map[string]func(net.Conn){mqttAddress: hold[net.Conn], webAddress: secure(config, hold)})
				order := []transport.Protocol{protocol, transport.MQTT, transport.WebSocket}
				ctx, cancel := context.WithCancel(t.Context())
				time.AfterFunc(2*time.Second, cancel)
				start := time.Now()
				_, err := (&transport.Dialer{Host: host, Protocols: order, Roots: root.pool(), DialContext: n.DialContext}).Dial(ctx, nil)
				var e *transport.Error
				if !errors.Is(err, context.Canceled) || !errors.As(err, &e) || isTimeout(e) || time.Since(start) != 2*time.Second || len(n.addresses()) != 1 {
					t.Errorf("after %v, dialled %q: %v", time.Since(start), n.addresses(), err)
				}
			})
		})
	}
	t.Run("a caller's deadline also ends it", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t, true, map[string]func(net.Conn){mqttAddress: hold[net.Conn]})
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			start := time.Now()
			_, err := (&transport.Dialer{Host: host, DialContext: n.DialContext}).Dial(ctx, nil)
			if !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != 2*time.Second || len(n.addresses()) != 1 {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
	})
}

// TestClose checks that closing waits neither for the peer's close frame nor for its
// receive window.
func TestClose(t *testing.T) {
	const grace = 250 * time.Millisecond
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		setUp := func(t *testing.T, handle func(*tls.Conn)) *transport.Conn {
			root := newAuthority(t, nil)
			// Session tickets would be written after the handshake to a pipe that is not
			// read yet.
			config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, SessionTicketsDisabled: true}
			n := newNetwork(t, true, map[string]func(net.Conn){
				mqttAddress: secure(config, handle),
				webAddress: secure(config, func(c *tls.Conn) {
					upgraded([]string{"mqtt"}, func(*websocket.Conn, *http.Request) { handle(c) })(c)
				}),
			})
			c, err := (&transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), DialContext: n.DialContext}).Dial(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		t.Run("closing takes no time with a peer that reads but does not answer: "+string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := setUp(t, func(c *tls.Conn) { hold(c.NetConn()) })
				start := time.Now()
				c.Close()
				if took := time.Since(start); took != 0 {
					t.Errorf("Close took %v", took)
				}
			})
		})
		t.Run("closing takes a quarter of a second with a peer that does not read: "+string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				c := setUp(t, func(*tls.Conn) { <-over })
				t.Cleanup(func() { close(over) })
				start := time.Now()
				c.Close()
				if took := time.Since(start); took > grace {
					t.Errorf("Close took %v", took)
				}
			})
		})
		t.Run("Close ends a blocked Read and a blocked Write: "+string(protocol), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				over := make(chan struct{})
				c := setUp(t, func(*tls.Conn) { <-over })
				t.Cleanup(func() { close(over) })
				ended := make(chan error, 2)
				go func() { _, err := c.Read(make([]byte, 1)); ended <- err }()
				go func() { _, err := c.Write(make([]byte, 100_000)); ended <- err }()
				synctest.Wait()
				start := time.Now()
				done := make(chan struct{})
				for range 3 {
					go func() { c.Close(); done <- struct{}{} }()
				}
				for range 3 {
					<-done
				}
				for range 2 {
					if err := <-ended; err == nil {
						t.Error("it succeeded")
					}
				}
				if took := time.Since(start); took > grace {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}
