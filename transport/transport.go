// Package transport gets a byte stream to the service: TLS on 8883, or MQTT over
// WebSocket on 443, straight or through an HTTP proxy, in a configured order.
//
// Every stream is TLS 1.2 or later and verified against the system's roots and the
// configured ones, with the server's name always sent and always checked; so is the
// connection to an https:// proxy. There is
// no switch to turn that off. Failures are an [Errors], one [Error] for each protocol
// tried, each with the [Stage] where it ended.
package transport

import (
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

// Protocol is a way to carry MQTT.
type Protocol string

// The protocols the service offers.
const (
	MQTT      Protocol = "mqtt"      // MQTT in TLS
	WebSocket Protocol = "websocket" // MQTT in WebSocket in TLS
)

// The defaults of Dialer.
const (
	DefaultMQTTPort      = 8883
	DefaultWebSocketPort = 443
	DefaultTimeout       = 30 * time.Second
)

// Dialer says where the service is and how to get there. The zero value with Host
// set dials straight, MQTT first, trusting the system's roots. It is safe for
// concurrent use when its functions are.
type Dialer struct {
	Host          string     // the service's host name: dialled, sent as server name, verified
	Protocols     []Protocol // tried in this order; empty is MQTT, then WebSocket
	MQTTPort      int        // 0 is DefaultMQTTPort
	WebSocketPort int        // 0 is DefaultWebSocketPort

	// Proxy names the HTTP proxy for a URL "https://host:port", nil for none. A nil
	// function is no proxy. See ProxyFromEnvironment.
	Proxy func(*url.URL) (*url.URL, error)

	// ProxyUser is sent to the proxy as user and password, in place of what its URL
	// holds. nil is what the URL holds.
	ProxyUser *url.Userinfo
	// ProxyCAFile has PEM certificates trusted beside Roots for an https:// proxy; read
	// at each Dial that meets one.
	ProxyCAFile string

	CAFile string         // PEM certificates trusted beside Roots; read at each Dial
	Roots  *x509.CertPool // nil is the system's

	// Sessions remembers TLS sessions from one Dial to the next, each with the device
	// certificate it was begun with. nil remembers none.
	Sessions tls.ClientSessionCache
	// FullHandshake forgets earlier sessions, so that every handshake is a full one. New
	// sessions are remembered.
	FullHandshake bool

	// Timeout bounds each protocol tried: name, TCP, proxy, TLS and upgrade together.
	// 0 is DefaultTimeout.
	Timeout time.Duration

	// DialContext opens a TCP connection. nil is a net.Dialer's.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
}

// Dial opens a stream by the first protocol that works. The next one is tried only
// when there is no stream: what happens on a stream is for the caller to judge.
// certificate, when not nil, is what the device shows if the server asks.
//
// A handshake that fails after a session was offered for resumption is made once more,
// as a full one, and so are those of the protocols after it.
//
// The error is an Errors. When ctx ends, no further protocol is tried.
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
	afresh := d.FullHandshake
	for _, p := range protocols {
		us := client{host: d.Host, trust: t, certificate: certificate}
		us.sessions = newSessions(d.Sessions, afresh, certificate, string(p))
		c, err := d.dial(ctx, p, us)
		if err != nil && us.sessions.doubtful(err) {
			us.sessions.forget()
			afresh = true
			if ctx.Err() == nil {
				us.sessions = newSessions(d.Sessions, afresh, certificate, string(p))
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

// dial tries one protocol, all of it under one deadline.
func (d *Dialer) dial(parent context.Context, p Protocol, us client) (*Conn, *Error) {
	timeout := d.Timeout
	if timeout <= 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(parent, timeout)
	defer cancel()

	a := attempt{dialer: d, protocol: p, client: us}
	c, err := a.run(ctx)
	if err == nil {
		return c, nil
	}
	// What the network says after the deadline is an echo of the deadline ("use of
	// closed network connection"); the deadline is the cause.
	switch {
	case parent.Err() != nil:
		err.Err = context.Cause(parent)
	case ctx.Err() != nil:
		err.Err = &TimeoutError{After: timeout, Err: err.Err}
	}
	return nil, err
}

// attempt is one protocol being tried.
type attempt struct {
	dialer   *Dialer
	protocol Protocol
	client   client
	proxy    string   // the proxy's address, "" for none
	remote   net.Addr // where the service's name has led; nil with a proxy
	raw      net.Conn // the TCP connection

	proxyDate time.Time // by the proxy's clock; zero when it did not state it
}

func (a *attempt) fail(stage Stage, address string, err error) *Error {
	return &Error{Protocol: a.protocol, Stage: stage, Address: address, Proxy: a.proxy, Remote: a.remote, Err: err}
}

func (a *attempt) run(ctx context.Context) (*Conn, *Error) {
	port, err := a.dialer.port(a.protocol)
	if err != nil {
		return nil, a.fail(StageTCP, a.dialer.Host, err)
	}
	address := net.JoinHostPort(a.dialer.Host, strconv.Itoa(port))

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
		ws, date, err := upgrade(ctx, secure, webSocketURL(a.dialer.Host, port))
		if err != nil {
			_ = a.raw.Close()
			// Under TLS 1.3 the server judges the client certificate after the client's
			// handshake is over: its alert arrives in place of the first answer.
			if _, ok := RemoteAlert(err); ok {
				return nil, a.fail(StageTLS, address, err)
			}
			return nil, a.fail(StageWebSocket, address, err)
		}
		c.Conn, c.Date = ws, date
	}
	return c, nil
}

// Route is where a protocol goes.
type Route struct {
	Address string // host:port of the service
	Proxy   string // host:port of the proxy that is dialled in its place, "" for none
}

// Route tells the way of a protocol without going it. The error is an *Error: there
// is no usable proxy, or no such protocol.
func (d *Dialer) Route(p Protocol) (Route, error) {
	a := attempt{dialer: d, protocol: p}
	port, err := d.port(p)
	if err != nil {
		return Route{}, a.fail(StageTCP, d.Host, err)
	}
	r := Route{Address: net.JoinHostPort(d.Host, strconv.Itoa(port))}
	proxy, err := d.proxy(r.Address)
	if err == nil && proxy != nil {
		_, r.Proxy, err = locate(proxy)
	}
	if err != nil {
		return Route{}, a.fail(StageProxy, r.Address, err)
	}
	return r, nil
}

// port is where the service offers the protocol.
func (d *Dialer) port(p Protocol) (int, error) {
	switch p {
	case MQTT:
		return orDefault(d.MQTTPort, DefaultMQTTPort), nil
	case WebSocket:
		return orDefault(d.WebSocketPort, DefaultWebSocketPort), nil
	}
	return 0, fmt.Errorf("unknown protocol %q", string(p))
}

// proxy is the one on the way to address, nil for none.
func (d *Dialer) proxy(address string) (*url.URL, error) {
	if d.Proxy == nil {
		return nil, nil
	}
	return d.Proxy(&url.URL{Scheme: "https", Host: address})
}

// ProxyPassword is what a proxy on the way of any protocol is told, "" for nothing: a
// proxy may repeat it.
func (d *Dialer) ProxyPassword() string {
	if d.ProxyUser != nil {
		password, _ := d.ProxyUser.Password()
		return password
	}
	for _, p := range []Protocol{MQTT, WebSocket} {
		port, _ := d.port(p)
		proxy, err := d.proxy(net.JoinHostPort(d.Host, strconv.Itoa(port)))
		if err == nil && proxy != nil && proxy.User != nil {
			password, _ := proxy.User.Password()
			return password
		}
	}
	return ""
}

// connect opens a stream to address, through the proxy when there is one.
func (a *attempt) connect(ctx context.Context, address string) (net.Conn, *Error) {
	proxy, err := a.dialer.proxy(address)
	if err != nil {
		return nil, a.fail(StageProxy, address, err)
	}
	if proxy != nil {
		return a.connectThrough(ctx, proxy, address)
	}
	if a.raw, err = a.dialer.open(ctx, address); err == nil {
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
	if a.raw, err = a.dialer.open(ctx, proxyAddress); err != nil {
		return nil, a.fail(StageProxy, proxyAddress, Unresolved(err, ResolverFile))
	}
	stream := a.raw
	if secure {
		// The device's certificate is the service's to see, not the proxy's.
		c, err := client{host: proxy.Hostname(), trust: t}.handshake(ctx, a.raw)
		if err != nil {
			_ = a.raw.Close()
			return nil, a.fail(StageProxy, proxyAddress, err)
		}
		stream = &inProxy{Conn: c, raw: a.raw}
	}
	user := proxy.User
	if a.dialer.ProxyUser != nil {
		user = a.dialer.ProxyUser
	}
	tunnel, date, err := openTunnel(ctx, stream, user, address)
	if err != nil {
		_ = a.raw.Close()
		return nil, a.fail(StageProxy, proxyAddress, err)
	}
	a.proxyDate = date
	return tunnel, nil
}

// open opens a TCP connection. A net.Dialer tries IPv6 and IPv4 side by side
// (RFC 6555): when the preferred family is silent, the other has its turn 300 ms later.
func (d *Dialer) open(ctx context.Context, address string) (net.Conn, error) {
	if d.DialContext != nil {
		return d.DialContext(ctx, "tcp", address)
	}
	// MQTT's own keep-alive and the response time-out find a dead peer; TCP's would
	// wake a cellular modem every 15 seconds for nothing.
	return (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", address)
}

// inProxy is a stream in the TLS of a proxy. It closes without that TLS's farewell,
// which would wait for a proxy that reads nothing any more; the TLS of the service,
// inside, has said its own.
type inProxy struct {
	net.Conn
	raw net.Conn
}

func (p *inProxy) Close() error { return p.raw.Close() }

func orDefault(port, otherwise int) int {
	if port == 0 {
		return otherwise
	}
	return port
}

// interruptible runs f, which reads and writes conn. When ctx ends first, the
// deadline of conn ends what f is at, and the error is that of ctx.
func interruptible(ctx context.Context, conn net.Conn, f func() error) error {
	stop := context.AfterFunc(ctx, func() {
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	err := f()
	if !stop() {
		// The deadline has been set, or is being set: the stream cannot be used. err is
		// its echo, and would make a time-out of a cancellation.
		return context.Cause(ctx)
	}
	return err
}
