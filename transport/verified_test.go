package transport_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"testing"

	"github.com/dpsd-project/dpsd/transport"
)

// Each path is dialled with the right roots first, which shows that it is the intended
// path, and then with other roots.
func TestEveryPathVerifiesTheServer(t *testing.T) {
	root, proxyRoot, other := newAuthority(t, nil), newAuthority(t, nil), newAuthority(t, nil)
	untrusted := func(err error) bool { return errors.As(err, new(x509.UnknownAuthorityError)) }
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, protocol := range []transport.Protocol{transport.MQTT, transport.WebSocket} {
			for _, scheme := range []string{"", "http", "https"} {
				for _, resumed := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %s, proxy %q, resumed %t", tls.VersionName(version), protocol, scheme, resumed), func(t *testing.T) {
						config := func(c tls.Certificate) *tls.Config {
							return &tls.Config{Certificates: []tls.Certificate{c}, MinVersion: version, MaxVersion: version}
						}
						service := config(root.issue(t, host, nil))
						handlers := map[string]func(net.Conn){
							mqttAddress: secure(service, echo),
							webAddress:  secure(service, upgraded([]string{"mqtt"}, echoMessages)),
						}
						n := newNetwork(t, false, handlers)
						d := &transport.Dialer{Host: host, Protocols: only(protocol), Roots: root.pool(), DialContext: n.DialContext}
						connections := 1 // for each Dial
						if scheme != "" {
							d.Proxy, d.ProxyCAFile = through(scheme+"://"+proxyAddress), write(t, "proxy.pem", proxyRoot.pem())
							tunnel := proxy(n, nil, "HTTP/1.1 200 OK\r\n\r\n")
							handlers[proxyAddress] = tunnel
							if scheme == "https" {
								handlers[proxyAddress] = secure(config(proxyRoot.issue(t, "proxy.test", nil)), func(c *tls.Conn) { tunnel(c) })
							}
							connections = 2
						}
						if resumed {
							d.Sessions = tls.NewLRUClientSessionCache(4)
							exchange(t, d, nil)
						}
						if c := exchange(t, d, nil); c.TLS.DidResume != resumed || c.TLS.Version != version || c.Protocol != protocol || (c.Proxy != "") != (scheme != "") {
							t.Fatalf("unexpected path: %s over %s, proxy %q, resumed %t", tls.VersionName(c.TLS.Version), c.Protocol, c.Proxy, c.TLS.DidResume)
						} else if len(c.TLS.VerifiedChains) == 0 {
							t.Error("the connection has no verified chain")
						}

						before := len(n.addresses())
						distrusting := *d
						distrusting.Roots = other.pool()
						if e := failure(t, &distrusting, nil); e.Stage != transport.StageTLS || !untrusted(e) {
							t.Errorf("the service's authority is not trusted: %v", e)
						}
						// A handshake that fails with a session is repeated without it.
						if resumed {
							connections *= 2
						}
						if made := len(n.addresses()) - before; made != connections {
							t.Errorf("%d connections, want %d: was the session offered?", made, connections)
						}
						if scheme == "https" {
							distrusting := *d
							distrusting.ProxyCAFile = ""
							if e := failure(t, &distrusting, nil); e.Stage != transport.StageProxy || !untrusted(e) {
								t.Errorf("the proxy's authority is not trusted: %v", e)
							}
						}
					})
				}
			}
		}
	}
}
