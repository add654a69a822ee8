package transport_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"github.com/dpsd-project/dpsd/pemfile"
	"github.com/dpsd-project/dpsd/transport"
)

const (
	mqttAddress = host + ":8883"
	webAddress  = host + ":443"
)

func TestStreams(t *testing.T) {
	root := newAuthority(t, nil)
	server := root.issue(t, host, nil)
	device := newAuthority(t, root).issue(t, "gw-1", nil)
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, certificate := range []*tls.Certificate{nil, &device} {
				name := fmt.Sprintf("%s, %s, certificate %v", protocol, tls.VersionName(version), certificate != nil)
				t.Run("large transfers arrive whole in both directions: "+name, func(t *testing.T) {
					hello := make(chan tls.ConnectionState, 1)
					asked := make(chan *http.Request, 1)
					config := &tls.Config{Certificates: []tls.Certificate{server}, MaxVersion: version, ClientAuth: tls.RequestClientCert}
					n := newNetwork(t, false, map[string]func(net.Conn){
						mqttAddress: secure(config, func(c *tls.Conn) { hello <- c.ConnectionState(); echo(c) }),
						webAddress: secure(config, func(c *tls.Conn) {
							hello <- c.ConnectionState()
							upgraded([]string{"mqtt"}, func(ws *websocket.Conn, r *http.Request) { asked <- r; echoMessages(ws, r) })(c)
						}),
					})
					d := &transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), DialContext: n.DialContext}
					c := dial(t, d, certificate)

					want := map[transport.Protocol]string{transport.MQTT: mqttAddress, transport.WebSocket: webAddress}[protocol]
					if c.Protocol != protocol || c.Address != want || c.Proxy != "" || c.TLS.Version != version || len(c.TLS.VerifiedChains) == 0 {
						t.Errorf("the stream is %s %q %q %s", c.Protocol, c.Address, c.Proxy, tls.VersionName(c.TLS.Version))
					}
					if !strings.HasPrefix(c.RemoteAddr().String(), "127.0.0.1:") || !strings.HasPrefix(c.LocalAddr().String(), "127.0.0.1:") {
						t.Errorf("the addresses are %v and %v", c.LocalAddr(), c.RemoteAddr())
					}
					state := <-hello
					if state.ServerName != host {
						t.Errorf("the server was asked for %q", state.ServerName)
					}
					if certificate == nil && len(state.PeerCertificates) != 0 {
						t.Error("a certificate was sent")
					}
					if certificate != nil && (len(state.PeerCertificates) != 2 || state.PeerCertificates[0].Subject.CommonName != "gw-1") {
						t.Errorf("got %d certificates, want leaf and intermediate", len(state.PeerCertificates))
					}
					if protocol == transport.WebSocket {
						r := <-asked
						if r.RequestURI != "/$iothub/websocket" || r.Host != host || r.Proto != "HTTP/1.1" || r.Header.Get("Sec-WebSocket-Protocol") != "mqtt" ||
							r.Header.Get("Sec-WebSocket-Extensions") != "" || r.Header.Get("Authorization") != "" {
							t.Errorf("the upgrade was %s %s %s %v", r.Host, r.RequestURI, r.Proto, r.Header)
						}
					}

					random := rand.New(rand.NewPCG(1, 2))
					data := make([]byte, 3<<20)
					for i := range data {
						data[i] = byte(random.Uint32())
					}
					sent := make(chan error, 1)
					go func() {
						var err error
						for rest := data; len(rest) > 0 && err == nil; {
							k := min(len(rest), 1+random.IntN(200_000))
							_, err = c.Write(rest[:k])
							rest = rest[k:]
						}
						sent <- err
					}()
					got := make([]byte, len(data))
					if _, err := io.ReadFull(c, got); err != nil {
						t.Fatal(err)
					}
					if err := <-sent; err != nil {
						t.Fatal(err)
					}
					if sha256.Sum256(got) != sha256.Sum256(data) {
						t.Error("the echo differs")
					}
					if err := c.Close(); err != nil {
						t.Errorf("Close: %v", err)
					}
					if _, err := c.Read(got); err == nil {
						t.Error("a closed stream reads")
					}
					if err := c.Close(); err != nil {
						t.Errorf("a second Close: %v", err)
					}
				})
			}
		}
	}
}

func TestConfiguredPorts(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	hosts := make(chan string, 1)
	n := newNetwork(t, false, map[string]func(net.Conn){
		host + ":18883": secure(config, echo),
		host + ":10443": secure(config, upgraded([]string{"mqtt"}, func(_ *websocket.Conn, r *http.Request) { hosts <- r.Host })),
	})
	d := &transport.Dialer{Host: host, MQTTPort: 18883, WebSocketPort: 10443, Roots: root.pool(), DialContext: n.DialContext}
	if c := dial(t, d, nil); c.Protocol != transport.MQTT || c.Address != host+":18883" {
		t.Errorf("got %s %s", c.Protocol, c.Address)
	}
	d.Protocols = only(transport.WebSocket)
	if c := dial(t, d, nil); c.Address != host+":10443" {
		t.Errorf("got %s", c.Address)
	}
	if h := <-hosts; h != host+":10443" {
		t.Errorf("a port other than 443 must be in the Host header, which was %q", h)
	}
}

// TestFirstFlight checks that the ClientHello fits one packet, with some space left.
func TestFirstFlight(t *testing.T) {
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		t.Run(string(protocol)+": no post-quantum key share, X25519, P-256 and P-384 offered, server name sent", func(t *testing.T) {
			record := make(chan []byte, 1)
			hello := make(chan *tls.ClientHelloInfo, 1)
			take := func(c net.Conn) {
				header := make([]byte, 5)
				if _, err := io.ReadFull(c, header); err != nil {
					return
				}
				body := make([]byte, binary.BigEndian.Uint16(header[3:]))
				if _, err := io.ReadFull(c, body); err != nil {
					return
				}
				first := slices.Concat(header, body)
				record <- first
				tls.Server(&replay{Conn: c, first: first}, &tls.Config{
					GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
						hello <- info
						return nil, errors.New("seen enough")
					},
				}).Handshake()
			}
			n := newNetwork(t, true, map[string]func(net.Conn){mqttAddress: take, webAddress: take})
			device := newAuthority(t, nil).issue(t, "gw-1", nil)
			failure(t, &transport.Dialer{Host: host, Protocols: only(protocol), DialContext: n.DialContext}, &device)
			if first := <-record; len(first) >= 600 || first[0] != 22 {
				t.Errorf("the first flight has %d bytes", len(first))
			}
			info := <-hello
			curves := slices.Clone(info.SupportedCurves)
			slices.Sort(curves)
			if !slices.Equal(curves, []tls.CurveID{tls.CurveP256, tls.CurveP384, tls.X25519}) {
				t.Errorf("offered are %v", info.SupportedCurves)
			}
			if info.ServerName != host || len(info.SupportedProtos) != 0 {
				t.Errorf("server name %q, ALPN %q", info.ServerName, info.SupportedProtos)
			}
			if slices.Max(info.SupportedVersions) != tls.VersionTLS13 || slices.Min(info.SupportedVersions) != tls.VersionTLS12 {
				t.Errorf("versions %x", info.SupportedVersions)
			}
		})
	}
}

type replay struct {
	net.Conn
	first []byte
}

func (r *replay) Read(p []byte) (int, error) {
	if len(r.first) > 0 {
		n := copy(p, r.first)
		r.first = r.first[n:]
		return n, nil
	}
	return r.Conn.Read(p)
}

func TestPromise7TLSIsVerifiedAlways(t *testing.T) {
	root, other := newAuthority(t, nil), newAuthority(t, nil)
	interceptor := newAuthority(t, nil)
	interceptor.certificate.RawSubject = nil // so that the certificates that it issues contain this name
	interceptor.certificate.Subject = pkix.Name{CommonName: "ACME Inspection\x1b", Organization: []string{"ACME"}}
	day := 24 * time.Hour
	serve := func(certificate tls.Certificate, minVersion, maxVersion uint16) func(net.Conn) {
		return secure(&tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: minVersion, MaxVersion: maxVersion}, echo)
	}
	say := func(text string) func(net.Conn) {
		return func(c net.Conn) {
			io.ReadFull(c, make([]byte, 64))
			io.WriteString(c, text)
			hold(c)
		}
	}
	for _, test := range []struct {
		expect string
		handle func(net.Conn)
		check  func(error) bool
	}{
		{"a certificate for another host", serve(root.issue(t, "elsewhere.test", nil), 0, 0), func(err error) bool {
			var e x509.HostnameError
			return errors.As(err, &e) && e.Host == host
		}},
		{"a certificate that has the name only as common name", serve(root.issue(t, host, func(c *x509.Certificate) { c.DNSNames = nil }), 0, 0), func(err error) bool {
			var e x509.HostnameError
			return errors.As(err, &e)
		}},
		{"an unknown authority", serve(other.issue(t, host, nil), 0, 0), func(err error) bool {
			var e x509.UnknownAuthorityError
			return errors.As(err, &e)
		}},
		{"an interceptor, by name", serve(interceptor.issue(t, host, nil), 0, 0), func(err error) bool {
			var e *transport.CertificateError
			return errors.As(err, &e) && e.Named() && e.Host == host && e.Certificate.Issuer.Organization[0] == "ACME" &&
				strings.Contains(err.Error(), `the certificate is for "CN=service.test" and issued by "CN=ACME Inspection\x1b,O=ACME"`)
		}},
		{"an expired certificate", serve(root.issue(t, host, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(-2*day), time.Now().Add(-day) }), 0, 0), func(err error) bool {
			var e x509.CertificateInvalidError
			return errors.As(err, &e) && e.Reason == x509.Expired && e.Cert.NotAfter.Before(time.Now())
		}},
		{"a certificate that is not yet valid", serve(root.issue(t, host, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = time.Now().Add(day), time.Now().Add(2*day) }), 0, 0), func(err error) bool {
			var e x509.CertificateInvalidError
			return errors.As(err, &e) && e.Reason == x509.Expired && e.Cert.NotBefore.After(time.Now())
		}},
		{"TLS 1.1, by the server's alert", serve(root.issue(t, host, nil), tls.VersionTLS10, tls.VersionTLS11), func(err error) bool {
			alert, ok := transport.RemoteAlert(err)
			return ok && strings.Contains(alert, "protocol version")
		}},
		{"TLS 1.1, chosen by the server nevertheless", func(c net.Conn) {
			io.ReadFull(c, make([]byte, 64))
			// ServerHello: version, random, no session, ECDHE-RSA-AES128-CBC-SHA, no compression.
			body := append(append([]byte{3, 2}, make([]byte, 32)...), 0, 0xC0, 0x13, 0)
			message := append([]byte{2, 0, 0, byte(len(body))}, body...)
			c.Write(append([]byte{22, 3, 2, 0, byte(len(message))}, message...))
			hold(c)
		}, func(err error) bool {
			return strings.Contains(err.Error(), "unsupported protocol version 302")
		}},
		{"HTTP in plain text, as from a portal", say("HTTP/1.1 302 Found\r\nLocation: http://portal.test/login\r\n\r\n"), func(err error) bool {
			var e *transport.NotTLSError
			var header tls.RecordHeaderError
			return errors.As(err, &e) && e.HTTP() && errors.As(err, &header) &&
				strings.HasPrefix(string(e.First), "HTTP/1.1 302 Found\r\nLocation: http://portal.test")
		}},
		{"a page without a header, as from some portals", say("\r\n<!DOCTYPE HTML><title>Log in</title>"), func(err error) bool {
			var e *transport.NotTLSError
			return errors.As(err, &e) && e.HTTP()
		}},
		{"another protocol in plain text", say("SSH-2.0-OpenSSH_9.2p1\r\n"), func(err error) bool {
			var e *transport.NotTLSError
			return errors.As(err, &e) && !e.HTTP() && string(e.First) == "SSH-2.0-OpenSSH_9.2p1\r\n"
		}},
		{"a peer that closes the connection", func(c net.Conn) { io.ReadFull(c, make([]byte, 64)) }, func(err error) bool {
			return errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)
		}},
	} {
		for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
			t.Run(test.expect+" over "+string(protocol), func(t *testing.T) {
				n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: test.handle, webAddress: test.handle})
				e := failure(t, &transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), DialContext: n.DialContext}, nil)
				if e.Stage != transport.StageTLS || e.Protocol != protocol || isTimeout(e) {
					t.Errorf("got %s %s", e.Protocol, e.Stage)
				}
				if !test.check(e) {
					t.Errorf("got %v (%T)", e, e.Err)
				}
			})
		}
	}
}

func TestClientCertificateRequired(t *testing.T) {
	root, devices := newAuthority(t, nil), newAuthority(t, nil)
	server := root.issue(t, host, nil)
	good := devices.issue(t, "gw-1", nil)
	// Its issuer is not in the server's list. It is sent nevertheless, so that the service
	// rejects it.
	stranger := newAuthority(t, nil).issue(t, "gw-1", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := &tls.Config{Certificates: []tls.Certificate{server}, MaxVersion: version,
			ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: devices.pool()}
		for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
			name := fmt.Sprintf(" (%s, %s)", protocol, tls.VersionName(version))
			setUp := func(t *testing.T) *transport.Dialer {
				n := newNetwork(t, false, map[string]func(net.Conn){
					mqttAddress: secure(config, echo), webAddress: secure(config, upgraded([]string{"mqtt"}, echoMessages))})
				return &transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), DialContext: n.DialContext}
			}
			t.Run("a valid one is sent and accepted"+name, func(t *testing.T) {
				c := dial(t, setUp(t), &good)
				if _, err := io.WriteString(c, "ping"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
					t.Fatal(err)
				}
			})
			for what, certificate := range map[string]*tls.Certificate{"none": nil, "a stranger's": &stranger} {
				t.Run(what+" is refused by an alert that can be found"+name, func(t *testing.T) {
					c, err := setUp(t).Dial(t.Context(), certificate)
					if err == nil {
						defer c.Close()
						if protocol != transport.MQTT || version != tls.VersionTLS13 {
							t.Fatal("the dial succeeded")
						}
						// With TLS 1.3 over plain MQTT, only the first read returns the
						// error.
						_, err = c.Read(make([]byte, 1))
					} else if e := (*transport.Error)(nil); !errors.As(err, &e) || e.Stage != transport.StageTLS {
						t.Errorf("the stage is not tls: %v", err)
					}
					words, ok := transport.RemoteAlert(err)
					if !ok || strings.Contains(words, "unknown certificate authority") != (certificate != nil) {
						t.Errorf("got %v", err)
					}
				})
			}
		}
	}
	t.Run("the alert is found even when writing the upgrade failed first", func(t *testing.T) {
		refused := make(chan struct{})
		config := &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAnyClientCert}
		n := newNetwork(t, false, map[string]func(net.Conn){webAddress: func(c net.Conn) {
			tls.Server(c, config).Handshake()
			close(refused)
		}})
		d := &transport.Dialer{Host: host, Protocols: only(transport.WebSocket), Roots: root.pool(),
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				c, err := n.DialContext(ctx, network, address)
				return &failingWrite{Conn: c, after: 2, when: refused}, err
			}}
		e := failure(t, d, nil)
		if _, ok := transport.RemoteAlert(e); !ok || e.Stage != transport.StageTLS {
			t.Errorf("got %v", e)
		}
	})
	t.Run("errors other than alerts of the peer are not recognized as alerts", func(t *testing.T) {
		for _, err := range []error{nil, io.EOF, &net.OpError{Op: "read", Err: syscall.ECONNRESET}, &net.OpError{Op: "local error", Err: io.EOF}} {
			if words, ok := transport.RemoteAlert(err); ok {
				t.Errorf("%v was recognized as %q", err, words)
			}
		}
	})
}

// failingWrite passes some writes and fails the next one after the peer has closed the
// connection.
type failingWrite struct {
	net.Conn
	after int
	when  <-chan struct{}
}

func (f *failingWrite) Write(p []byte) (int, error) {
	if f.after == 0 {
		<-f.when
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: os.NewSyscallError("write", syscall.EPIPE)}
	}
	f.after--
	return f.Conn.Write(p)
}

func TestConnectFailures(t *testing.T) {
	failing := func(errno syscall.Errno) func(context.Context, string, string) (net.Conn, error) {
		d := &net.Dialer{Control: func(string, string, syscall.RawConn) error { return os.NewSyscallError("connect", errno) }}
		return func(ctx context.Context, network, _ string) (net.Conn, error) {
			return d.DialContext(ctx, network, "127.0.0.1:9")
		}
	}
	for _, test := range []struct {
		expect string
		dial   func(context.Context, string, string) (net.Conn, error)
		stage  transport.Stage
		check  func(error) bool
	}{
		{"a refused connection is ECONNREFUSED of stage tcp", newNetwork(t, false, nil).DialContext, transport.StageTCP,
			func(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }},
		{"no route is ENETUNREACH of stage tcp", failing(syscall.ENETUNREACH), transport.StageTCP,
			func(err error) bool { return errors.Is(err, syscall.ENETUNREACH) }},
		{"no neighbour is EHOSTUNREACH of stage tcp", failing(syscall.EHOSTUNREACH), transport.StageTCP,
			func(err error) bool { return errors.Is(err, syscall.EHOSTUNREACH) }},
		{"a resolver that cannot be reached is a DNS error of stage name", (&net.Dialer{Resolver: &net.Resolver{
			PreferGo: true,
			Dial: func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Net: "udp", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
			},
		}}).DialContext, transport.StageName, func(err error) bool {
			var e *net.DNSError
			return errors.As(err, &e) && e.Name == host
		}},
	} {
		t.Run(test.expect, func(t *testing.T) {
			d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), DialContext: test.dial}
			e := failure(t, d, nil)
			if e.Stage != test.stage || !test.check(e) || e.Address != mqttAddress || isTimeout(e) {
				t.Errorf("got %s %q: %v", e.Stage, e.Address, e)
			}
		})
	}
	t.Run("the message contains protocol, stage and address once", func(t *testing.T) {
		e := &transport.Error{Protocol: transport.MQTT, Stage: transport.StageTLS, Address: mqttAddress, Proxy: "proxy.test:3128", Err: io.EOF}
		if got := e.Error(); got != "mqtt: tls service.test:8883 through proxy proxy.test:3128: EOF" {
			t.Errorf("got %s", got)
		}
	})
}

func TestOrderOfProtocols(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	mqtt, web := secure(config, echo), secure(config, upgraded([]string{"mqtt"}, echoMessages))
	hangUp := func(net.Conn) {}
	for _, test := range []struct {
		expect   string
		order    []transport.Protocol
		handlers map[string]func(net.Conn)
		dialed   []string
		got      transport.Protocol
		stages   []transport.Stage
	}{
		{"MQTT comes first, and alone when it works", nil, map[string]func(net.Conn){mqttAddress: mqtt, webAddress: web}, []string{mqttAddress}, transport.MQTT, nil},
		{"WebSocket follows a refused connection", nil, map[string]func(net.Conn){webAddress: web}, []string{mqttAddress, webAddress}, transport.WebSocket, nil},
		{"WebSocket follows a failed handshake", nil, map[string]func(net.Conn){mqttAddress: hangUp, webAddress: web}, []string{mqttAddress, webAddress}, transport.WebSocket, nil},
		{"the configured order holds", []transport.Protocol{transport.WebSocket, transport.MQTT}, map[string]func(net.Conn){mqttAddress: mqtt, webAddress: web}, []string{webAddress}, transport.WebSocket, nil},
		{"MQTT follows a refused upgrade", []transport.Protocol{transport.WebSocket, transport.MQTT},
			map[string]func(net.Conn){mqttAddress: mqtt, webAddress: secure(config, upgraded([]string{"other"}, echoMessages))},
			[]string{webAddress, mqttAddress}, transport.MQTT, nil},
		{"a protocol that is not configured is not tried", only(transport.MQTT), map[string]func(net.Conn){webAddress: web}, []string{mqttAddress}, "", []transport.Stage{transport.StageTCP}},
		{"if all fail, each failure is reported in order", nil, map[string]func(net.Conn){webAddress: secure(config, upgraded(nil, echoMessages))},
			[]string{mqttAddress, webAddress}, "", []transport.Stage{transport.StageTCP, transport.StageWebSocket}},
		{"an unknown protocol is an error", only("amqp"), nil, nil, "", []transport.Stage{transport.StageTCP}},
	} {
		t.Run(test.expect, func(t *testing.T) {
			n := newNetwork(t, false, test.handlers)
			d := &transport.Dialer{Host: host, Protocols: test.order, Roots: root.pool(), DialContext: n.DialContext}
			c, err := d.Dial(t.Context(), nil)
			if !slices.Equal(n.addresses(), test.dialed) {
				t.Errorf("dialled %q, want %q", n.addresses(), test.dialed)
			}
			if c != nil {
				defer c.Close()
				if c.Protocol != test.got {
					t.Errorf("got %s", c.Protocol)
				}
				return
			}
			var all transport.Errors
			var stages []transport.Stage
			if errors.As(err, &all) {
				for _, e := range all {
					stages = append(stages, e.Stage)
					if !strings.Contains(err.Error(), e.Error()) {
						t.Errorf("the message does not contain %q", e.Error())
					}
				}
			}
			if !slices.Equal(stages, test.stages) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("after a stream that ends immediately, no other protocol is tried", func(t *testing.T) {
		n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: secure(config, func(*tls.Conn) {}), webAddress: web})
		c := dial(t, &transport.Dialer{Host: host, Roots: root.pool(), DialContext: n.DialContext}, nil)
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("got %v", err)
		}
		if !slices.Equal(n.addresses(), []string{mqttAddress}) {
			t.Errorf("dialled %q", n.addresses())
		}
	})
}

func TestRoots(t *testing.T) {
	root, added := newAuthority(t, nil), newAuthority(t, nil)
	serve := func(a *authority) *network {
		return newNetwork(t, false, map[string]func(net.Conn){mqttAddress: secure(&tls.Config{Certificates: []tls.Certificate{a.issue(t, host, nil)}}, echo)})
	}
	t.Run("certificates of the file are trusted in addition to Roots", func(t *testing.T) {
		path := write(t, "ca.pem", append([]byte("a comment\n"), added.pem()...))
		for _, a := range []*authority{root, added} {
			dial(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), CAFile: path, DialContext: serve(a).DialContext}, nil)
		}
	})
	t.Run("certificates of the file are trusted in addition to the system's roots", func(t *testing.T) {
		dial(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), CAFile: write(t, "ca.pem", added.pem()), DialContext: serve(added).DialContext}, nil)
	})
	t.Run("the system's roots do not include a test's authority", func(t *testing.T) {
		e := failure(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), DialContext: serve(added).DialContext}, nil)
		if unknown := (x509.UnknownAuthorityError{}); !errors.As(e, &unknown) {
			t.Errorf("got %v", e)
		}
	})
	t.Run("the file is read at each dial", func(t *testing.T) {
		path := write(t, "ca.pem", root.pem())
		d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), CAFile: path, DialContext: serve(added).DialContext}
		if e := failure(t, d, nil); e.Stage != transport.StageTLS {
			t.Fatal(e)
		}
		if err := os.WriteFile(path, append(root.pem(), added.pem()...), 0o600); err != nil {
			t.Fatal(err)
		}
		dial(t, d, nil)
	})
	for expect, text := range map[string]string{
		"without a line feed between two certificates": strings.TrimSpace(string(root.pem())) + string(added.pem()),
		"with a byte order mark":                       "\ufeff" + string(root.pem()) + string(added.pem()),
		"with line ends of Windows":                    strings.ReplaceAll(string(root.pem())+string(added.pem()), "\n", "\r\n"),
	} {
		t.Run("a file "+expect+" is read as a whole", func(t *testing.T) {
			path := write(t, "ca.pem", []byte(text))
			for _, a := range []*authority{root, added} {
				dial(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: x509.NewCertPool(), CAFile: path, DialContext: serve(a).DialContext}, nil)
			}
		})
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := append(root.pem(), "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"...)
	for _, test := range []struct {
		expect, path string
		check        func(error) bool
	}{
		{"a file that is missing", filepath.Join(t.TempDir(), "none.pem"), func(err error) bool { return errors.Is(err, os.ErrNotExist) }},
		{"a file that is empty", write(t, "ca.pem", nil), func(err error) bool { return errors.Is(err, pemfile.ErrNotCertificate) }},
		{"a file with other contents", write(t, "ca.pem", []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")), func(err error) bool { return errors.Is(err, pemfile.ErrNotCertificate) }},
		{"a file with a broken certificate", write(t, "ca.pem", broken), func(err error) bool { return strings.Contains(err.Error(), "certificate 2") }},
		{"a file whose last certificate is cut off", write(t, "ca.pem", append(root.pem(), root.pem()[:200]...)), func(err error) bool {
			return strings.Contains(err.Error(), "has no -----END line") && strings.Contains(err.Error(), ": line ")
		}},
		{"a file with a trusted certificate of openssl", write(t, "ca.pem", bytes.ReplaceAll(root.pem(), []byte(" CERT"), []byte(" TRUSTED CERT"))), func(err error) bool { return strings.Contains(err.Error(), "line 1: a TRUSTED CERTIFICATE") }},
		{"a file in DER", write(t, "ca.pem", root.certificate.Raw), func(err error) bool { return strings.Contains(err.Error(), "the file contains a certificate in DER") }},
		{"a file in UTF-16", write(t, "ca.pem", []byte("\xff\xfe-\x00")), func(err error) bool { return strings.Contains(err.Error(), "UTF-16") }},
		{"a file too large", write(t, "ca.pem", bytes.Repeat([]byte("\n"), 4<<20+1)), func(err error) bool { return strings.Contains(err.Error(), "the limit is 4 MiB") }},
		{"a directory", t.TempDir(), func(err error) bool { return strings.Contains(err.Error(), "not a regular file") }},
		{"a FIFO without a writer", fifo, func(err error) bool { return strings.Contains(err.Error(), "not a regular file") }},
	} {
		t.Run(test.expect+" is an error of stage ca, and nothing is dialled", func(t *testing.T) {
			n := newNetwork(t, false, nil)
			e := failure(t, &transport.Dialer{Host: host, Roots: root.pool(), CAFile: test.path, DialContext: n.DialContext}, nil)
			if e.Stage != transport.StageCA || e.Address != test.path || !test.check(e) {
				t.Errorf("got %v", e)
			}
			if !strings.Contains(e.Error(), test.path) || len(n.addresses()) != 0 {
				t.Errorf("the message is %q, dialled %q", e, n.addresses())
			}
		})
	}
}
