package transport_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/transport"
)

const proxyAddress = "proxy.test:3128"

func through(address string) func(*url.URL) (*url.URL, error) {
	return func(*url.URL) (*url.URL, error) { return url.Parse(address) }
}

// proxy replies to CONNECT with head and then forwards bytes to n's handler for the target.
func proxy(n *network, seen chan<- *http.Request, head string) func(net.Conn) {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		request, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		if seen != nil {
			seen <- request
		}
		if _, err := io.WriteString(c, head); err != nil || !strings.Contains(head, " 200 ") {
			return
		}
		server, err := n.DialContext(request.Context(), "tcp", request.RequestURI)
		if err != nil {
			return
		}
		defer server.Close()
		go func() { io.Copy(server, r); server.Close() }()
		io.Copy(c, server)
	}
}

func TestProxy(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	setUp := func(t *testing.T, head string) (*network, *transport.Dialer, chan *http.Request) {
		seen := make(chan *http.Request, 4)
		handlers := map[string]func(net.Conn){
			mqttAddress: secure(config, echo),
			webAddress:  secure(config, upgraded([]string{"mqtt"}, echoMessages)),
		}
		n := newNetwork(t, false, handlers)
		handlers[proxyAddress] = proxy(n, seen, head)
		return n, &transport.Dialer{Host: host, Roots: root.pool(), Proxy: through("http://" + proxyAddress), DialContext: n.DialContext}, seen
	}
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		for expect, head := range map[string]string{
			"a tunnel carries ": "HTTP/1.1 200 Connection established\r\n\r\n",
			"a tunnel of an HTTP/1.0 proxy with a meaningless length carries ": "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n",
			"an interim response is skipped by ":                               "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
		} {
			t.Run(expect+string(protocol), func(t *testing.T) {
				n, d, seen := setUp(t, head)
				d.Protocols = only(protocol)
				d.Proxy = through("http://gateway:s3cret%40@" + proxyAddress)
				c := dial(t, d, nil)
				want := map[transport.Protocol]string{transport.MQTT: mqttAddress, transport.WebSocket: webAddress}[protocol]
				if c.Proxy != proxyAddress || c.Address != want {
					t.Errorf("the connection is to %q through %q", c.Address, c.Proxy)
				}
				request := <-seen
				if request.Method != http.MethodConnect || request.RequestURI != want || request.Host != want {
					t.Errorf("the request was %s %s, Host %s", request.Method, request.RequestURI, request.Host)
				}
				// RFC 7617: base64 of "gateway:s3cret@".
				if got := request.Header.Get("Proxy-Authorization"); got != "Basic Z2F0ZXdheTpzM2NyZXRA" {
					t.Errorf("Proxy-Authorization is %q", got)
				}
				if dialed := n.addresses(); !slices.Equal(dialed, []string{proxyAddress, want}) {
					t.Errorf("dialled %q, want the proxy, then the service through it", dialed)
				}
				if _, err := io.WriteString(c, "ping"); err != nil {
					t.Fatal(err)
				}
				if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
					t.Fatal(err)
				}
			})
		}
	}
	t.Run("without a user name and password, no authorization is sent", func(t *testing.T) {
		_, d, seen := setUp(t, "HTTP/1.1 200 OK\r\n\r\n")
		dial(t, d, nil)
		if _, sent := (<-seen).Header["Proxy-Authorization"]; sent {
			t.Error("authorization was sent")
		}
	})
	t.Run("ProxyUser takes precedence over the user of the address", func(t *testing.T) {
		_, d, seen := setUp(t, "HTTP/1.1 200 OK\r\n\r\n")
		d.Proxy = through("http://other:0ther@" + proxyAddress)
		d.ProxyUser = url.UserPassword("gateway", "s3cret@")
		dial(t, d, nil)
		if got := (<-seen).Header.Get("Proxy-Authorization"); got != "Basic Z2F0ZXdheTpzM2NyZXRA" {
			t.Errorf("Proxy-Authorization is %q", got)
		}
	})
	t.Run("the function is called for each protocol with scheme https and the port", func(t *testing.T) {
		var asked []string
		n := newNetwork(t, false, nil)
		d := &transport.Dialer{Host: host, DialContext: n.DialContext, Proxy: func(u *url.URL) (*url.URL, error) {
			asked = append(asked, u.String())
			return nil, nil
		}}
		if _, err := d.Dial(t.Context(), nil); err == nil {
			t.Fatal("the dial succeeded")
		}
		if !slices.Equal(asked, []string{"https://" + mqttAddress, "https://" + webAddress}) || !slices.Equal(n.addresses(), []string{mqttAddress, webAddress}) {
			t.Errorf("called for %q, dialled %q", asked, n.addresses())
		}
	})

	status := func(want int, check func(*transport.ProxyError) bool) func(error) bool {
		return func(err error) bool {
			var e *transport.ProxyError
			return errors.As(err, &e) && e.Status == want && (check == nil || check(e))
		}
	}
	for _, test := range []struct {
		expect, head string
		check        func(error) bool
	}{
		{"407 contains the accepted schemes", "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 9\r\n\r\nforbidden",
			status(407, func(e *transport.ProxyError) bool {
				return slices.Equal(e.Schemes, []string{"Negotiate", "Basic"}) && strings.Contains(e.Error(), "407 Proxy Authentication Required (it accepts Negotiate, Basic)")
			})},
		{"407 with a list of challenges", "HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate, NTLM\r\nProxy-Authenticate: Digest realm=\"a, b\", qop=\"auth\", nonce = \"x\", Basic realm=\"Basic\"\r\n\r\n",
			status(407, func(e *transport.ProxyError) bool {
				return slices.Equal(e.Schemes, []string{"Negotiate", "NTLM", "Digest", "Basic"})
			})},
		{"401 contains them in the header for servers", "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: NEGOTIATE\r\nWWW-Authenticate: ntlm\r\n\r\n",
			status(401, func(e *transport.ProxyError) bool { return slices.Equal(e.Schemes, []string{"NEGOTIATE", "ntlm"}) })},
		{"401 of a proxy with the header of a 407", "HTTP/1.1 401 Unauthorized\r\nPROXY-AUTHENTICATE: NTLM\r\n\r\n",
			status(401, func(e *transport.ProxyError) bool { return slices.Equal(e.Schemes, []string{"NTLM"}) })},
		{"a token, a blank element, a tab and an escaped quote neither hide nor add a scheme", "HTTP/1.1 407 No\r\nProxy-Authenticate: Negotiate dG9rZW4==,,\tNTLM\t,\tDigest\trealm=\"a\\\", Basic, \\\\\", Bearer\r\n\r\n",
			status(407, func(e *transport.ProxyError) bool {
				return slices.Equal(e.Schemes, []string{"Negotiate", "NTLM", "Digest", "Bearer"})
			})},
		{"an alert instead of the reply", "\x15\x03\x01\x00\x02\x02\x28", func(err error) bool { return errors.Is(err, transport.ErrProxyExpectsTLS) }},
		{"400 of nginx to plain HTTP", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<center>The plain HTTP request was sent to HTTPS port</center>", func(err error) bool { return errors.Is(err, transport.ErrProxyExpectsTLS) }},
		{"400 of Go to plain HTTP", "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n", func(err error) bool { return errors.Is(err, transport.ErrProxyExpectsTLS) }},
		{"400 of Apache to plain HTTP", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nReason: You're speaking plain HTTP to an SSL-enabled server port.<br />", func(err error) bool { return errors.Is(err, transport.ErrProxyExpectsTLS) }},
		{"another 400", "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\nno https:// here", status(400, nil)},
		{"403 is a refusal by the proxy", "HTTP/1.1 403 Forbidden\r\n\r\n", status(403, nil)},
		{"503 is a failure of the proxy", "HTTP/1.1 503 Service Unavailable\r\n\r\n", status(503, nil)},
		{"a redirection shows a portal", "HTTP/1.1 302 Found\r\nLocation: http://portal.test/\r\n\r\n",
			status(302, func(e *transport.ProxyError) bool { return e.Location == "http://portal.test/" })},
		{"control characters in a reason are escaped", "HTTP/1.1 500 \x1b[31mred\r\n\r\n",
			status(500, func(e *transport.ProxyError) bool { return !strings.Contains(e.Error(), "\x1b") })},
		{"a peer that is not an HTTP proxy", "220 mail.test ESMTP\r\n\r\n", func(err error) bool { return strings.Contains(err.Error(), "malformed HTTP") }},
		{"a truncated header", "HTTP/1.1 200 OK\r\nVia: ", func(err error) bool { return errors.Is(err, io.EOF) }},
		{"a header without end", "HTTP/1.1 200 OK\r\n" + strings.Repeat("X: "+strings.Repeat("x", 1000)+"\r\n", 100), func(err error) bool { return strings.Contains(err.Error(), "more than 65536 bytes") }},
		{"interim answers without end", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 4000), func(err error) bool { return strings.Contains(err.Error(), "more than 65536 bytes") }},
		{"a proxy that closes the connection", "", func(err error) bool { return errors.Is(err, io.EOF) }},
	} {
		t.Run(test.expect, func(t *testing.T) {
			n, d, _ := setUp(t, test.head)
			d.Protocols = only(transport.MQTT)
			d.Proxy = through("http://gateway:s3cret@" + proxyAddress)
			if strings.HasPrefix(test.expect, "interim") || strings.HasPrefix(test.expect, "a header without") || strings.HasPrefix(test.expect, "a truncated") {
				// This proxy closes the connection after its reply and opens no tunnel.
				n.handlers[proxyAddress] = func(c net.Conn) {
					if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
						io.WriteString(c, test.head)
					}
				}
			}
			e := failure(t, d, nil)
			if e.Stage != transport.StageProxy || e.Address != proxyAddress || !test.check(e) {
				t.Errorf("got %s %q: %v", e.Stage, e.Address, e)
			}
			if strings.Contains(e.Error(), "s3cret") || strings.Contains(e.Error(), "Z2F0") {
				t.Errorf("the password is in %q", e)
			}
		})
	}
	t.Run("a proxy that cannot be reached is a failure of stage proxy", func(t *testing.T) {
		n := newNetwork(t, false, nil)
		e := failure(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Proxy: through("http://u:s3cret@proxy.test"), DialContext: n.DialContext}, nil)
		if e.Stage != transport.StageProxy || e.Address != "proxy.test:80" || e.Proxy != "proxy.test:80" || !errors.Is(e, syscall.ECONNREFUSED) || strings.Contains(e.Error(), "s3cret") {
			t.Errorf("got %v", e)
		}
	})
	t.Run("bytes that arrive with the proxy's header are not lost", func(t *testing.T) {
		n, d, _ := setUp(t, "")
		n.handlers[proxyAddress] = func(c net.Conn) {
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nSSH-2.0-early\r\n")
				hold(c)
			}
		}
		d.Protocols = only(transport.MQTT)
		var e *transport.NotTLSError
		if err := failure(t, d, nil); err.Stage != transport.StageTLS || err.Proxy != proxyAddress || !errors.As(err, &e) || string(e.First) != "SSH-2.0-early\r\n" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the service's certificate is also verified through the tunnel", func(t *testing.T) {
		_, d, _ := setUp(t, "HTTP/1.1 200 OK\r\n\r\n")
		d.Protocols, d.Roots = only(transport.MQTT), newAuthority(t, nil).pool()
		if e := failure(t, d, nil); e.Stage != transport.StageTLS {
			t.Errorf("got %v", e)
		}
	})
	for expect, address := range map[string]string{
		"a SOCKS proxy is refused":          "socks5://u:s3cret@" + proxyAddress,
		"a proxy without a name is refused": "http://u:s3cret@:3128",
	} {
		t.Run(expect+", and nothing is dialled", func(t *testing.T) {
			n := newNetwork(t, false, nil)
			e := failure(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Proxy: through(address), DialContext: n.DialContext}, nil)
			if e.Stage != transport.StageProxy || !errors.Is(e, transport.ErrProxyAddress) || strings.Contains(e.Error(), "s3cret") || len(n.addresses()) != 0 {
				t.Errorf("got %v, dialled %q", e, n.addresses())
			}
		})
	}
}

// TestSecureProxy checks that the connection to an https:// proxy is verified separately,
// and that its failures are not attributed to the service.
func TestSecureProxy(t *testing.T) {
	const name = "proxy.test"
	root, proxyRoot := newAuthority(t, nil), newAuthority(t, nil)
	service := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}}
	setUp := func(t *testing.T, certificate tls.Certificate) (*network, *transport.Dialer, chan *http.Request, chan tls.ConnectionState) {
		seen, hello := make(chan *http.Request, 4), make(chan tls.ConnectionState, 4)
		handlers := map[string]func(net.Conn){
			mqttAddress: secure(service, echo),
			webAddress:  secure(service, upgraded([]string{"mqtt"}, echoMessages)),
		}
		n := newNetwork(t, false, handlers)
		tunnel := proxy(n, seen, "HTTP/1.1 200 Connection established\r\n\r\n")
		handlers[proxyAddress] = secure(&tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequestClientCert}, func(c *tls.Conn) {
			hello <- c.ConnectionState()
			tunnel(c)
		})
		return n, &transport.Dialer{Host: host, Roots: root.pool(), Proxy: through("https://gateway:s3cret@" + proxyAddress),
			ProxyCAFile: write(t, "proxy-ca.pem", proxyRoot.pem()), DialContext: n.DialContext}, seen, hello
	}
	for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
		t.Run("a tunnel in TLS transports "+string(protocol), func(t *testing.T) {
			_, d, seen, hello := setUp(t, proxyRoot.issue(t, name, nil))
			d.Protocols = only(protocol)
			device := newAuthority(t, nil).issue(t, "gw-1", nil)
			c := dial(t, d, &device)
			if c.Proxy != proxyAddress {
				t.Errorf("the proxy of the connection is %q", c.Proxy)
			}
			state := <-hello
			if state.ServerName != name || state.Version < tls.VersionTLS12 {
				t.Errorf("the proxy was asked for %q in TLS %x", state.ServerName, state.Version)
			}
			if len(state.PeerCertificates) != 0 {
				t.Error("the device certificate was sent to the proxy")
			}
			if got := (<-seen).Header.Get("Proxy-Authorization"); !strings.HasPrefix(got, "Basic ") {
				t.Errorf("Proxy-Authorization is %q", got)
			}
			if !strings.HasPrefix(c.RemoteAddr().String(), "127.0.0.1:") {
				t.Errorf("the remote address is %v", c.RemoteAddr())
			}
			if _, err := io.WriteString(c, "ping"); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(c, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("the roots of the proxy are not those of the service", func(t *testing.T) {
		_, d, _, _ := setUp(t, proxyRoot.issue(t, name, nil))
		d.Protocols, d.Roots = only(transport.MQTT), newAuthority(t, nil).pool()
		if e := failure(t, d, nil); e.Stage != transport.StageTLS {
			t.Errorf("got %v", e)
		}
	})
	for _, test := range []struct {
		expect      string
		certificate tls.Certificate
		file        string // the proxy's roots
		check       func(error) bool
	}{
		{"a proxy with a certificate of an unknown authority", newAuthority(t, nil).issue(t, name, nil), "", func(err error) bool {
			var e x509.UnknownAuthorityError
			var who *transport.CertificateError
			return errors.As(err, &e) && errors.As(err, &who) && who.Host == name && who.Named()
		}},
		{"a proxy with a certificate for another name", proxyRoot.issue(t, host, nil), "", func(err error) bool {
			var e x509.HostnameError
			var who *transport.CertificateError
			return errors.As(err, &e) && e.Host == name && errors.As(err, &who) && !who.Named()
		}},
		{"a file of roots that is missing", proxyRoot.issue(t, name, nil), "/nonexistent/proxy-ca.pem", func(err error) bool {
			return errors.Is(err, os.ErrNotExist) && strings.Contains(err.Error(), "/nonexistent/proxy-ca.pem")
		}},
	} {
		t.Run(test.expect+" is a failure of stage proxy, and no password is sent", func(t *testing.T) {
			_, d, seen, _ := setUp(t, test.certificate)
			d.Protocols = only(transport.MQTT)
			if test.file != "" {
				d.ProxyCAFile = test.file
			}
			e := failure(t, d, nil)
			if e.Stage != transport.StageProxy || e.Address != proxyAddress || !test.check(e) || strings.Contains(e.Error(), "s3cret") {
				t.Errorf("got %s %q: %v", e.Stage, e.Address, e)
			}
			if len(seen) != 0 {
				t.Error("CONNECT was sent to the proxy")
			}
		})
	}
	t.Run("a file of roots is not read for a proxy without TLS", func(t *testing.T) {
		n, d, _, _ := setUp(t, proxyRoot.issue(t, name, nil))
		n.handlers[proxyAddress] = proxy(n, nil, "HTTP/1.1 200 OK\r\n\r\n")
		d.Proxy, d.ProxyCAFile = through("http://"+proxyAddress), "/nonexistent/proxy-ca.pem"
		dial(t, d, nil)
	})
	t.Run("a proxy that does not use TLS is a failure of stage proxy", func(t *testing.T) {
		n, d, _, _ := setUp(t, proxyRoot.issue(t, name, nil))
		n.handlers[proxyAddress] = func(c net.Conn) {
			io.ReadFull(c, make([]byte, 64))
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
			hold(c)
		}
		d.Protocols = only(transport.MQTT)
		var foreign *transport.NotTLSError
		if e := failure(t, d, nil); e.Stage != transport.StageProxy || !errors.As(e, &foreign) {
			t.Errorf("got %v", e)
		}
	})
}

// TestASecureProxyThatSpeaksPlainHTTPIsRecognizedRegardlessOfTheBytesOfTheHandshake also checks
// that no attempt exceeds its time-out, and that a slow proxy is not disturbed.
func TestASecureProxyThatSpeaksPlainHTTPIsRecognizedRegardlessOfTheBytesOfTheHandshake(t *testing.T) {
	const timeout = 30 * time.Second
	with := func(hello []byte) { hello[11] = '\n' } // the first random byte
	without := func(hello []byte) {
		for i := range hello {
			if hello[i] == '\n' {
				hello[i] = 'x'
			}
		}
	}
	// lines replies to a complete line, as tinyproxy does. edit changes the ClientHello.
	lines := func(edit func(hello []byte), reply string) func(net.Conn) {
		return func(c net.Conn) {
			header := make([]byte, 5)
			io.ReadFull(c, header)
			body := make([]byte, int(header[3])<<8|int(header[4]))
			io.ReadFull(c, body)
			hello := slices.Concat(header, body)
			edit(hello)
			from := bufio.NewReader(io.MultiReader(bytes.NewReader(hello), c))
			if _, err := from.ReadString('\n'); err == nil && reply != "" {
				go hold(c)
				io.WriteString(c, reply)
			}
		}
	}
	attempt := func(t *testing.T, handle func(net.Conn)) (*transport.Dialer, *authority) {
		root := newAuthority(t, nil)
		n := newNetwork(t, true, map[string]func(net.Conn){proxyAddress: handle})
		return &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Proxy: through("https://" + proxyAddress),
			Roots: root.pool(), Timeout: timeout, DialContext: n.DialContext}, root
	}
	const refused = "HTTP/1.0 400 Bad Request\r\nServer: tinyproxy/1.11.1\r\n\r\n"
	for _, test := range []struct {
		expect string
		handle func(net.Conn)
		after  time.Duration
		plain  bool
	}{
		{"with a line feed in the ClientHello, the reply comes immediately", lines(with, refused), 0, true},
		{"without a line feed, the reply comes after the line", lines(without, refused), timeout - 2*time.Second, true},
		{"a proxy that never replies is a time-out", hold[net.Conn], timeout, false},
		{"an alert after the line is a time-out", lines(without, "\x15\x03\x01\x00\x02\x02\x28"), timeout, false},
		{"a proxy that closes the connection after the line is a time-out", lines(without, ""), timeout, false},
	} {
		t.Run(test.expect, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, _ := attempt(t, test.handle)
				start := time.Now()
				e := failure(t, d, nil)
				var plain *transport.NotTLSError
				cause := "timed out after 30s (context deadline exceeded)"
				if test.plain {
					cause = `the peer does not speak TLS; its reply begins with "HTTP/1.0 400 Bad Request\r\nServer"`
				}
				if after := time.Since(start); after != test.after || e.Stage != transport.StageProxy || errors.As(e, &plain) != test.plain ||
					errors.Is(e, context.DeadlineExceeded) == test.plain || !strings.HasSuffix(e.Error(), cause) {
					t.Errorf("after %v: %v; want %q after %v", after, e, cause, test.after)
				}
			})
		})
	}
	t.Run("a proxy whose handshake takes almost the whole time is used", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			var certificate tls.Certificate
			asked := false
			d, root := attempt(t, func(c net.Conn) {
				time.Sleep(timeout - 3*time.Second)
				secure(&tls.Config{Certificates: []tls.Certificate{certificate}}, func(c *tls.Conn) {
					r, err := http.ReadRequest(bufio.NewReader(c))
					asked = err == nil && r.Method == http.MethodConnect
				})(c)
			})
			certificate = root.issue(t, "proxy.test", nil)
			if e := failure(t, d, nil); !asked || !errors.Is(e, io.EOF) {
				t.Errorf("asked for a tunnel: %t; %v", asked, e)
			}
		})
	})
	t.Run("the end of the context ends the wait for the reply", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			d, _ := attempt(t, hold[net.Conn])
			ctx, cancel := context.WithTimeout(t.Context(), timeout-time.Second)
			defer cancel()
			start := time.Now()
			if _, err := d.Dial(ctx, nil); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != timeout-time.Second {
				t.Errorf("after %v: %v", time.Since(start), err)
			}
		})
	})
}

// targetVariable makes the test binary print the proxy for a target. This needs a process
// because net/http reads the environment only once.
const targetVariable = "DPSD_TEST_TARGET"

func printProxy(target string) {
	proxy, err := transport.ProxyFromEnvironment()(&url.URL{Scheme: "https", Host: target})
	switch {
	case err != nil:
		fmt.Print(err)
	case proxy != nil:
		fmt.Print(proxy)
	}
}

func TestProxyFromEnvironment(t *testing.T) {
	for _, test := range []struct {
		expect      string
		environment map[string]string
		target      string
		want        string // "" for none
		fails       bool
	}{
		{"without variables, there is no proxy", nil, mqttAddress, "", false},
		{"HTTPS_PROXY", map[string]string{"HTTPS_PROXY": "http://p.test:3128"}, mqttAddress, "http://p.test:3128", false},
		{"HTTPS_PROXY with TLS, user and password", map[string]string{"HTTPS_PROXY": "https://u:p%40@p.test:3129"}, mqttAddress, "https://u:p%40@p.test:3129", false},
		{"https_proxy, without a scheme", map[string]string{"https_proxy": "p.test:3128"}, mqttAddress, "http://p.test:3128", false},
		{"HTTP_PROXY is ignored", map[string]string{"HTTP_PROXY": "http://p.test:3128"}, mqttAddress, "", false},
		{"NO_PROXY by domain", map[string]string{"HTTPS_PROXY": "http://p.test:3128", "NO_PROXY": ".test"}, mqttAddress, "", false},
		{"an invalid address is ignored if NO_PROXY applies", map[string]string{"HTTPS_PROXY": "http://gw:83920174#Plant@proxy:3128", "NO_PROXY": ".test"}, mqttAddress, "", false},
		{"NO_PROXY by port", map[string]string{"HTTPS_PROXY": "http://p.test:3128", "NO_PROXY": "service.test:8883"}, webAddress, "http://p.test:3128", false},
		{"a number sign in the password is an error", map[string]string{"HTTPS_PROXY": "http://gw:83920174#Plant@proxy:3128"}, mqttAddress, "", true},
		{"a slash", map[string]string{"HTTPS_PROXY": "http://gw:83920174/Plant@proxy:3128"}, mqttAddress, "", true},
		{"a question mark", map[string]string{"HTTPS_PROXY": "http://gw:83920174?Plant@proxy:3128"}, mqttAddress, "", true},
		{"a backslash", map[string]string{"HTTPS_PROXY": `http://gw:83920174\Plant@proxy:3128`}, mqttAddress, "", true},
		{"a blank", map[string]string{"HTTPS_PROXY": "http://gw:83920174 Plant@proxy:3128"}, mqttAddress, "", true},
		{"a quote", map[string]string{"HTTPS_PROXY": `http://gw:83920174"Plant@proxy:3128`}, mqttAddress, "", true},
		{"quotes around it all", map[string]string{"HTTPS_PROXY": `"http://gw:83920174Plant@proxy:3128"`}, mqttAddress, "", true},
		{"a letter of another script", map[string]string{"HTTPS_PROXY": "http://gw:83920174é@proxy:3128"}, mqttAddress, "", true},
		{"a control character", map[string]string{"HTTPS_PROXY": "http://gw:83920174\x1b@proxy:3128"}, mqttAddress, "", true},
		{"a percent sign alone", map[string]string{"HTTPS_PROXY": "http://gw:83920174%@proxy:3128"}, mqttAddress, "", true},
		{"brackets", map[string]string{"HTTPS_PROXY": "http://gw:83920174[Plant]@proxy:3128"}, mqttAddress, "", true},
		{"the same without a scheme", map[string]string{"https_proxy": "gw:83920174#Plant@proxy:3128"}, mqttAddress, "", true},
		{"no host after the password", map[string]string{"HTTPS_PROXY": "http://gw:83920174@"}, mqttAddress, "", true},
		{"a user name and a password without a host", map[string]string{"HTTPS_PROXY": "http://gw:83920174"}, mqttAddress, "", true},
		{"a port above 65535", map[string]string{"HTTPS_PROXY": "http://gw:s3cret@proxy:83920"}, mqttAddress, "", true},
		{"a path", map[string]string{"HTTPS_PROXY": "http://gw:s3cret@proxy:3128/s3cret"}, mqttAddress, "", true},
		{"every character that an address may contain is accepted", map[string]string{"HTTPS_PROXY": "http://gw:a-._~!$&'()*+,;=:@%23@p.test:3128"}, mqttAddress, "http://gw:a-._~%21$&%27%28%29%2A+,;=%3A%40%23@p.test:3128", false},
		{"an IPv6 address with a port", map[string]string{"HTTPS_PROXY": "http://[2001:db8::7]:3128"}, mqttAddress, "http://[2001:db8::7]:3128", false},
		{"a slash after the port", map[string]string{"HTTPS_PROXY": "http://p.test:3128/"}, mqttAddress, "http://p.test:3128/", false},
		{"an unreadable address is an error and does not bypass the proxy", map[string]string{"HTTPS_PROXY": "http://u:s3cret%zz@p.test:port"}, mqttAddress, "", true},
	} {
		t.Run(test.expect, func(t *testing.T) {
			program, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(program)
			// The race detector would wait a second at each exit.
			cmd.Env = []string{targetVariable + "=" + test.target, "GORACE=atexit_sleep_ms=0"}
			for name, value := range test.environment {
				cmd.Env = append(cmd.Env, name+"="+value)
			}
			out, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			if test.fails {
				if text := string(out); !strings.HasPrefix(text, "HTTPS_PROXY: "+transport.ErrProxyAddress.Error()) || !strings.Contains(text, "percent-encode") {
					t.Errorf("got %q", text)
				}
				for _, part := range []string{"s3cret", "8392", "Plant", "gw", "3128"} {
					if strings.Contains(string(out), part) {
						t.Errorf("the output contains %q: %q", part, out)
					}
				}
			} else if string(out) != test.want {
				t.Errorf("got %q, want %q", out, test.want)
			}
		})
	}
}
