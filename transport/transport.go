// Package transport opens a byte stream to the service: TLS on port 8883 or MQTT over
// WebSocket on port 443, directly or through an HTTP proxy, in a configured order.
//
// Every stream uses TLS 1.2 or later, and the server is verified with the system's roots
// and the configured ones; its name is always sent and checked. The same applies to the
// connection to an https:// proxy. Verification cannot be disabled. A failure is an
// [Errors] value with one [Error] for each protocol that was tried and the [Stage] in which
// it failed.
package transport

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strconv"
	"time"
)

// Protocol is a way to reach the service.
type Protocol string

// The protocols of the service.
const (
	MQTT      Protocol = "mqtt"      // MQTT in TLS
	WebSocket Protocol = "websocket" // MQTT in WebSocket in TLS
	// HTTPS is TLS for HTTP on port 443, without MQTT. Do uses it, and Dial only if Protocols
	// contains it.
	HTTPS Protocol = "https"
)

// The defaults of Dialer.
const (
	DefaultMQTTPort      = 8883
	DefaultWebSocketPort = 443
	httpsPort            = 443
	DefaultTimeout       = 30 * time.Second
)

// Dialer contains the options for connecting to the service. The zero value with Host set
// connects directly, tries MQTT first and trusts the system's roots. A Dialer is safe for
// concurrent use if its functions are.
type Dialer struct {
	Host          string     // the service's host name, which is dialled, sent as server name and verified
	Protocols     []Protocol // tried in this order; empty means MQTT, then WebSocket
	MQTTPort      int        // 0 means DefaultMQTTPort
	WebSocketPort int        // 0 means DefaultWebSocketPort

	// Proxy returns the HTTP proxy for a URL "https://host:port", or nil for none. A nil
	// function means no proxy. See ProxyFromEnvironment.
	Proxy func(*url.URL) (*url.URL, error)

	// ProxyUser is sent to the proxy as user name and password instead of those in its URL.
	// nil means those in the URL.
	ProxyUser *url.Userinfo
	// ProxyCAFile contains PEM certificates that are trusted in addition to Roots for an
	// https:// proxy. Each Dial through one reads the file.
	ProxyCAFile string

	CAFile string         // PEM certificates trusted in addition to Roots; read at each Dial
	Roots  *x509.CertPool // nil means the system's roots

	// Sessions caches TLS sessions between Dials, separately for each device certificate.
	// nil disables resumption.
	Sessions tls.ClientSessionCache
	// FullHandshake discards cached sessions, so that every handshake is a full one. New
	// sessions are cached.
	FullHandshake bool

	// Timeout limits each protocol: name resolution, TCP, proxy, TLS and upgrade together.
	// 0 means DefaultTimeout.
	Timeout time.Duration

	// Now returns the time at which the certificate of the service must be valid. nil means
	// time.Now.
	Now func() time.Time

	// DialContext opens a TCP connection. nil means that of net.Dialer.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial opens a stream with the first protocol that works. It tries the next one only if
// there is no stream; callers handle later errors on a stream. certificate is the device
// certificate for servers that request one; it may be nil.
//
// If a handshake fails after a session was offered for resumption, Dial repeats it as a
// full handshake, and uses full handshakes for the remaining protocols.
//
// The error is an Errors value. After ctx has ended, Dial tries no further protocol.
func (d *Dialer) Dial(ctx context.Context, certificate *tls.Certificate) (*Conn, error) {
	protocols := d.Protocols
	if len(protocols) == 0 {
		protocols = []Protocol{MQTT, WebSocket}
	}
	t, err := d.trust(d.CAFile)
	if err != nil {
		return nil, Errors{{Stage: StageCA, Address: d.CAFile, Err: err}}
	}
	var failures Errors
	full := d.FullHandshake
	for _, p := range protocols {
		us := client{host: d.Host, trust: t, certificate: certificate, now: d.Now}
		us.sessions = newSessions(d.Sessions, full, certificate, string(p))
		c, err := d.dial(ctx, p, us)
		if err != nil && us.sessions.doubtful(err) {
			us.sessions.forget()
			full = true
			if ctx.Err() == nil {
				us.sessions = newSessions(d.Sessions, full, certificate, string(p))
				c, err = d.dial(ctx, p, us)
			}
		}
		if err == nil {
			return c, nil
		}
		failures = append(failures, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failures
}

// dial tries one protocol with one deadline for all steps.
func (d *Dialer) dial(parent context.Context, p Protocol, us client) (*Conn, *Error) {
	timeout := cmp.Or(d.Timeout, DefaultTimeout)
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()

	a := attempt{dialer: d, protocol: p, client: us}
	c, err := a.run(ctx)
	if err == nil {
		return c, nil
	}
	// Network errors after the deadline ("use of closed network connection") are its
	// consequence; the deadline is the cause.
	switch {
	case parent.Err() != nil:
		err.Err = context.Cause(parent)
	case ctx.Err() != nil:
		err.Err = &TimeoutError{After: timeout, Err: err.Err}
	}
	return nil, err
}

// attempt is an attempt with one protocol.
type attempt struct {
	dialer   *Dialer
	protocol Protocol
	client   client
	proxy    string   // the proxy's address, "" for none
	remote   net.Addr // resolved address of the service; nil with a proxy
	raw      net.Conn // the TCP connection

	proxyDate time.Time // the proxy's Date header; zero if there was none
}

func (a *attempt) fail(stage Stage, address string, err error) *Error {
	return &Error{Protocol: a.protocol, Stage: stage, Address: address, Proxy: a.proxy, Remote: a.remote, Err: err}
}

func (a *attempt) run(ctx context.Context) (*Conn, *Error) {
	address, err := a.dialer.address(a.protocol)
	if err != nil {
		return nil, a.fail(StageTCP, a.dialer.Host, err)
	}
	stream, failure := a.connect(ctx, address)
	if failure != nil {
		return nil, failure
	}
	secure, err := a.client.handshake(ctx, stream)
	if err != nil {
		_ = a.raw.Close()
		return nil, a.fail(StageTLS, address, err)
	}
	c := &Conn{
		Conn:     secure,
		Protocol: a.protocol,
		Address:  address,
		Proxy:    a.proxy,
		TLS:      secure.ConnectionState(),
		raw:      a.raw,
		sessions: a.client.sessions,

		ProxyDate: a.proxyDate,
	}
	c.TLS.VerifiedChains = secure.server.chains
	if a.protocol == WebSocket {
		ws, date, err := upgrade(ctx, secure, webSocketURL(address))
		if err != nil {
			_ = a.raw.Close()
			// With TLS 1.3, the server checks the client certificate after the client has
			// finished the handshake: its alert arrives instead of the first response.
			if _, ok := RemoteAlert(err); ok {
				return nil, a.fail(StageTLS, address, err)
			}
			return nil, a.fail(StageWebSocket, address, err)
		}
		c.Conn, c.Date = ws, date
	}
	return c, nil
}

// Route describes the connection of a protocol.
type Route struct {
	Address string // host:port of the service
	Proxy   string // host:port of the proxy that is dialled instead; "" for none
}

// Route returns the route of a protocol without connecting. The error is an *Error if the
// proxy is unusable or the protocol is unknown.
func (d *Dialer) Route(p Protocol) (r Route, err error) {
	a := attempt{dialer: d, protocol: p}
	if r.Address, err = d.address(p); err != nil {
		return Route{}, a.fail(StageTCP, d.Host, err)
	}
	proxy, err := d.proxy(r.Address)
	if err == nil && proxy != nil {
		_, r.Proxy, err = locate(proxy)
	}
	if err != nil {
		return Route{}, a.fail(StageProxy, r.Address, err)
	}
	return r, nil
}

// address returns the service's host:port for the protocol.
func (d *Dialer) address(p Protocol) (string, error) {
	port := cmp.Or(d.MQTTPort, DefaultMQTTPort)
	switch p {
	case MQTT:
	case WebSocket:
		port = cmp.Or(d.WebSocketPort, DefaultWebSocketPort)
	case HTTPS:
		port = httpsPort
	default:
		return "", fmt.Errorf("unknown protocol %q", string(p))
	}
	return net.JoinHostPort(d.Host, strconv.Itoa(port)), nil
}

// proxy returns the proxy for address, or nil.
func (d *Dialer) proxy(address string) (*url.URL, error) {
	if d.Proxy == nil {
		return nil, nil
	}
	return d.Proxy(&url.URL{Scheme: "https", Host: address})
}

// ProxyPassword returns the password that is sent to the proxy of any protocol, or "". A
// proxy may repeat it.
func (d *Dialer) ProxyPassword() string {
	user := d.ProxyUser
	for _, p := range []Protocol{MQTT, WebSocket} {
		address, _ := d.address(p)
		if proxy, err := d.proxy(address); err == nil && proxy != nil {
			user = cmp.Or(user, proxy.User)
		}
	}
	password, _ := user.Password() // "" without a user
	return password
}

// connect opens a stream to address, through the proxy if there is one.
func (a *attempt) connect(ctx context.Context, address string) (net.Conn, *Error) {
	proxy, err := a.dialer.proxy(address)
	if err != nil {
		return nil, a.fail(StageProxy, address, err)
	}
	if proxy != nil {
		return a.connectThrough(ctx, proxy, address)
	}
	if a.raw, err = a.dialer.DialTCP(ctx, address); err == nil {
		a.remote = a.raw.RemoteAddr()
		return a.raw, nil
	}
	if op := (*net.OpError)(nil); errors.As(err, &op) {
		a.remote = op.Addr
	}
	err = Unresolved(err, ResolverFile)
	stage := StageTCP
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		stage = StageName
	}
	return nil, a.fail(stage, address, err)
}

// connectThrough opens a stream to address through the proxy.
func (a *attempt) connectThrough(ctx context.Context, proxy *url.URL, address string) (net.Conn, *Error) {
	secure, proxyAddress, err := locate(proxy)
	if err != nil {
		return nil, a.fail(StageProxy, address, err)
	}
	a.proxy = proxyAddress
	var t trust
	if secure {
		if t, err = a.dialer.trust(a.dialer.ProxyCAFile); err != nil {
			return nil, a.fail(StageProxy, proxyAddress, err)
		}
	}
	if a.raw, err = a.dialer.DialTCP(ctx, proxyAddress); err != nil {
		return nil, a.fail(StageProxy, proxyAddress, Unresolved(err, ResolverFile))
	}
	stream := a.raw
	if secure {
		// The device certificate is for the service, not for the proxy.
		c, err := client{host: proxy.Hostname(), trust: t}.handshakeWithProxy(ctx, a.raw)
		if err != nil {
			_ = a.raw.Close()
			return nil, a.fail(StageProxy, proxyAddress, err)
		}
		stream = &inProxy{Conn: c, raw: a.raw}
	}
	tunnel, date, err := openTunnel(ctx, stream, cmp.Or(a.dialer.ProxyUser, proxy.User), address)
	if err != nil {
		_ = a.raw.Close()
		return nil, a.fail(StageProxy, proxyAddress, err)
	}
	a.proxyDate = date
	return tunnel, nil
}

// DialTCP opens a TCP connection. A net.Dialer tries IPv6 and IPv4 in parallel (RFC 6555): if
// the preferred family does not respond, it starts with the other after 300 ms.
func (d *Dialer) DialTCP(ctx context.Context, address string) (net.Conn, error) {
	if d.DialContext != nil {
		return d.DialContext(ctx, "tcp", address)
	}
	// The MQTT keep-alive and the response time-out detect a dead peer; TCP keep-alive
	// would unnecessarily wake a cellular modem every 15 seconds.
	return (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", address)
}

// inProxy is a stream within the TLS connection to a proxy. It closes without that
// connection's close_notify, which would wait for a proxy that no longer reads; the inner
// TLS connection to the service has sent its own.
type inProxy struct {
	net.Conn
	raw net.Conn
}

func (p *inProxy) Close() error { return p.raw.Close() }

// interruptible runs f, which reads and writes conn. If ctx ends first, interruptible ends
// f's operation with a deadline of conn and returns the error of ctx.
func interruptible(ctx context.Context, conn net.Conn, f func() error) error {
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	err := f()
	if !stop() {
		// The deadline has been or is being set, so the stream cannot be used. err is a
		// consequence and would turn a cancellation into a time-out.
		return context.Cause(ctx)
	}
	return err
}
