package transport

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/foreign"
)

// maxHeader limits the header of an HTTP response, in bytes.
const maxHeader = 64 << 10

// ErrProxyAddress is matched if a proxy's address cannot be used. Errors do not contain the
// address, which may include a password.
var ErrProxyAddress = errors.New("unusable proxy address")

// ProxyFromEnvironment returns a function for Dialer.Proxy that uses HTTPS_PROXY and
// NO_PROXY, in upper or lower case. As usual, they do not apply to localhost and loopback
// addresses. net/http reads the environment once per process;
// golang.org/x/net/http/httpproxy, which has the same code, would add a second copy of the
// Unicode tables, 200 KB.
func ProxyFromEnvironment() func(*url.URL) (*url.URL, error) {
	address := cmp.Or(os.Getenv("HTTPS_PROXY"), os.Getenv("https_proxy"))
	return func(target *url.URL) (*url.URL, error) {
		proxy, err := http.ProxyFromEnvironment(&http.Request{URL: target})
		if err == nil && proxy == nil && (address == "" || parses(address)) {
			return nil, nil
		}
		// net/http ignores an address that it cannot parse and would connect directly,
		// contrary to the administrator's intention. It also finds a host in the middle of
		// a password.
		if problem := checkAddress(address); err != nil || problem != "" {
			return nil, fmt.Errorf("HTTPS_PROXY: %w%s", ErrProxyAddress, problem)
		}
		return proxy, nil
	}
}

func parses(address string) bool {
	if _, err := url.Parse(address); err == nil {
		return true
	}
	_, err := url.Parse("http://" + address)
	return err == nil
}

// The problems of a proxy's address, which follow ErrProxyAddress in messages.
const (
	notEncoded = ": the user name or password contains a character that is not allowed in a URL; percent-encode it, or use proxy_user and proxy_password"
	notHost    = ": it must be http://host:port; if it contains a user name and a password, percent-encode them, or use proxy_user and proxy_password"
)

// checkAddress returns the problem of "scheme://user:password@host:port", in which only the
// host is required, or "". It quotes nothing from the address. The user name and the
// password may contain the characters that RFC 3986 §3.2.1 allows, and "@", which is
// commonly accepted.
func checkAddress(address string) (problem string) {
	scheme, rest, found := strings.Cut(address, "://")
	if !found {
		scheme, rest = "http", address
	}
	host := rest[strings.LastIndex(rest, "@")+1:]
	if user := strings.TrimSuffix(rest[:len(rest)-len(host)], "@"); user != "" {
		if _, err := url.PathUnescape(user); err != nil || strings.Trim(user, alphanumeric+"-._~!$&'()*+,;=:@%") != "" {
			return notEncoded
		}
	}
	u, err := url.Parse("http://" + strings.TrimSuffix(host, "/"))
	if err != nil || strings.Trim(scheme, alphanumeric+"+-.") != "" || // RFC 3986 §3.1
		u.Hostname() == "" || "http://"+u.Host != u.String() || strings.HasSuffix(u.Host, ":") {
		return notHost
	}
	if port, err := strconv.ParseUint(cmp.Or(u.Port(), "80"), 10, 16); err != nil || port == 0 {
		return notHost
	}
	return ""
}

const alphanumeric = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"

// locate returns host:port of a proxy, and whether the connection to it uses TLS.
func locate(proxy *url.URL) (secure bool, address string, err error) {
	port := "80"
	switch strings.ToLower(proxy.Scheme) {
	case "http":
	case "https":
		secure, port = true, "443"
	default:
		return false, "", fmt.Errorf("%w: the scheme must be http or https, not %q", ErrProxyAddress, foreign.Line(proxy.Scheme, 32))
	}
	if proxy.Hostname() == "" {
		return false, "", fmt.Errorf("%w: it has no host name", ErrProxyAddress)
	}
	return secure, net.JoinHostPort(proxy.Hostname(), cmp.Or(proxy.Port(), port)), nil
}

// handshakeWithProxy performs the TLS handshake with an https:// proxy. Some proxies that do
// not expect TLS wait for the end of a line, which the random bytes of a ClientHello contain
// only sometimes. If the proxy does not reply, handshakeWithProxy ends the line in the last
// quarter of the time, at most lineTime before ctx ends, and then recognizes a reply in HTTP.
func (c client) handshakeWithProxy(ctx context.Context, raw net.Conn) (*secured, error) {
	if end, limited := ctx.Deadline(); limited {
		_ = raw.SetDeadline(end.Add(-min(time.Until(end)/4, lineTime)))
	}
	secure, err := c.handshake(ctx, raw)
	_ = raw.SetDeadline(time.Time{})
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return secure, err
	}
	reply := make([]byte, 256)
	_ = interruptible(ctx, raw, func() error {
		_, err := io.WriteString(raw, "\r\n\r\n")
		if err == nil {
			var n int
			n, err = io.ReadAtLeast(raw, reply, len("HTTP/"))
			reply = reply[:n]
		}
		return err
	})
	if plain := (&NotTLSError{First: reply, Err: err}); plain.HTTP() {
		return nil, plain
	}
	<-ctx.Done() // any other reply comes too late
	return nil, context.Cause(ctx)
}

// lineTime is the time for the reply of a proxy that waited for the end of a line. It covers
// the round trip over a satellite.
const lineTime = 2 * time.Second

// openTunnel asks the proxy at the other end of stream for a tunnel to address (RFC 9110
// 9.3.6). user is sent as basic authentication (RFC 7617) unless it is nil. The time is the
// proxy's Date header, or zero without one.
func openTunnel(ctx context.Context, stream net.Conn, user *url.Userinfo, address string) (net.Conn, time.Time, error) {
	var date time.Time
	var b strings.Builder
	fmt.Fprintf(&b, "CONNECT %s HTTP/1.1\r\nHost: %s\r\n", address, address)
	if user != nil {
		password, _ := user.Password()
		credentials := base64.StdEncoding.EncodeToString([]byte(user.Username() + ":" + password))
		fmt.Fprintf(&b, "Proxy-Authorization: Basic %s\r\n", credentials)
	}
	b.WriteString("\r\n")

	r := newHTTPReader(stream)
	err := interruptible(ctx, stream, func() error {
		if _, err := io.WriteString(stream, b.String()); err != nil {
			return err
		}
		if first, err := r.buf.Peek(1); err == nil && (first[0] == recordAlert || first[0] == recordHandshake) {
			return ErrProxyExpectsTLS
		}
		//nolint:bodyclose // the body is not read: the stream becomes the tunnel or is closed
		response, err := r.response(&http.Request{Method: http.MethodConnect})
		if err != nil {
			return fmt.Errorf("reading the proxy's reply: %w", err)
		}
		if response.StatusCode/100 == 2 {
			date, _ = http.ParseTime(response.Header.Get("Date"))
			return nil
		}
		if response.StatusCode == http.StatusBadRequest && expectsTLS(stream, response.Body) {
			return ErrProxyExpectsTLS
		}
		_, reason, _ := strings.Cut(response.Status, " ")
		e := &ProxyError{
			Status:   response.StatusCode,
			Reason:   reason,
			Location: response.Header.Get("Location"),
		}
		// Proxies that reply with 401 send the second header, which is meant for servers.
		for _, header := range []string{"Proxy-Authenticate", "WWW-Authenticate"} {
			for _, challenges := range response.Header.Values(header) {
				e.Schemes = append(e.Schemes, schemes(challenges)...)
			}
		}
		return e
	})
	if err != nil {
		return nil, time.Time{}, err
	}
	return r.rest(), date, nil
}

// The first byte of a TLS record, RFC 8446 §5.1.
const (
	recordAlert     = 21
	recordHandshake = 22
)

// pageTime limits the wait for the page of a 400.
const pageTime = time.Second

// expectsTLS reports whether the page of a 400 states that plain HTTP was sent to a TLS port.
// It recognizes the texts of nginx, Go and Apache.
func expectsTLS(stream net.Conn, body io.Reader) bool {
	_ = stream.SetReadDeadline(time.Now().Add(pageTime))
	page, _ := io.ReadAll(io.LimitReader(body, 2<<10)) // as much as there is
	text := strings.ToLower(string(page))
	return slices.ContainsFunc([]string{"http request was sent to https", "http request to an https", "http to an ssl-enabled"},
		func(words string) bool { return strings.Contains(text, words) })
}

// schemes returns the names of the schemes in a list of challenges (RFC 9110 §11.6.1). An
// element of the list begins with a name, unless it is a parameter, which contains "=".
func schemes(challenges string) (names []string) {
	quoted, escaped, start := false, false, 0
	element := func(text string) {
		words := strings.Fields(text)
		if len(words) > 0 && !strings.Contains(words[0], "=") && (len(words) == 1 || words[1][0] != '=') {
			names = append(names, words[0])
		}
	}
	for i, c := range challenges {
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = quoted
		case c == '"':
			quoted = !quoted
		case c == ',' && !quoted:
			element(challenges[start:i])
			start = i + 1
		}
	}
	element(challenges[start:])
	return names
}

// httpReader reads the header of an HTTP response and then returns the stream after it.
type httpReader struct {
	conn  net.Conn
	limit *io.LimitedReader
	buf   *bufio.Reader
}

func newHTTPReader(conn net.Conn) *httpReader {
	limit := &io.LimitedReader{R: conn, N: maxHeader}
	return &httpReader{conn: conn, limit: limit, buf: bufio.NewReaderSize(limit, 4096)}
}

// response reads a final response and skips interim ones (1xx except 101). It does not read
// the body.
func (r *httpReader) response(request *http.Request) (*http.Response, error) {
	for {
		response, err := http.ReadResponse(r.buf, request)
		if err != nil {
			if r.limit.N == 0 {
				return nil, fmt.Errorf("the header has more than %d bytes", maxHeader)
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				// For callers, the end of the connection is the same as before the first
				// byte.
				err = io.EOF
			}
			return nil, err
		}
		if response.StatusCode/100 != 1 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, nil
		}
	}
}

// rest returns the stream after the header, starting with the buffered bytes.
func (r *httpReader) rest() net.Conn {
	r.limit.N = math.MaxInt64
	if r.buf.Buffered() == 0 {
		return r.conn
	}
	ahead, _ := r.buf.Peek(r.buf.Buffered())
	return &prefixed{r.conn, io.MultiReader(bytes.NewReader(ahead), r.conn)}
}

// prefixed is a connection whose first bytes have already been read.
type prefixed struct {
	net.Conn
	all io.Reader
}

func (p *prefixed) Read(b []byte) (int, error) { return p.all.Read(b) }
