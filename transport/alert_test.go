package transport_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/dpsd-project/dpsd/transport"
)

// refusals are the alerts with which a server can reject a certificate, see RFC 5246 and
// RFC 8446.
var refusals = []byte{42, 43, 44, 45, 46, 48, 49, 116}

// plainAlert returns an unencrypted alert, which anyone on the path can send.
func plainAlert(code byte) []byte { return []byte{21, 3, 3, 0, 2, 2, code} }

func TestAnAlertBeforeTheServerIsVerifiedIsNotARefusal(t *testing.T) {
	root := newAuthority(t, nil)
	certificate := root.issue(t, "gw-1", nil)
	for _, code := range refusals {
		for name, shown := range map[string]*tls.Certificate{"without a certificate": nil, "with a certificate": &certificate} {
			t.Run(fmt.Sprintf("alert %d, %s", code, name), func(t *testing.T) {
				n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: func(c net.Conn) {
					io.ReadFull(c, make([]byte, 64))
					c.Write(plainAlert(code))
					hold(c)
				}})
				e := failure(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext}, shown)
				if _, alert := transport.RemoteAlert(e); !alert || errors.As(e, new(*transport.RefusedError)) || e.Stage != transport.StageTLS {
					t.Errorf("got %v (%T)", e, e.Err)
				}
			})
		}
	}
}

// breaking passes a server's first flight and replaces the second with an unencrypted
// alert, as anyone on the path can do with TLS 1.2.
type breaking struct {
	net.Conn
	flights int
}

func (b *breaking) Write(p []byte) (int, error) {
	if b.flights++; b.flights > 1 {
		if _, err := b.Conn.Write(plainAlert(42)); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	return b.Conn.Write(p)
}

func TestOnlyAVerifiedServerThatAskedForTheCertificateCanRefuseIt(t *testing.T) {
	root, strangers := newAuthority(t, nil), newAuthority(t, nil)
	certificate := strangers.issue(t, "gw-1", nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, test := range []struct {
			name        string
			auth        tls.ClientAuthType
			certificate *tls.Certificate
			refused     bool
		}{
			{"a requested certificate that was sent", tls.RequireAndVerifyClientCert, &certificate, true},
			{"no certificate although one was requested", tls.RequireAndVerifyClientCert, nil, false},
		} {
			t.Run(test.name+", "+tls.VersionName(version), func(t *testing.T) {
				config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, ClientAuth: test.auth, ClientCAs: root.pool(), MinVersion: version, MaxVersion: version}
				n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: secure(config, echo)})
				c, err := (&transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext}).Dial(t.Context(), test.certificate)
				if err == nil { // TLS 1.3
					defer c.Close()
					_, err = c.Read(make([]byte, 1))
				}
				var refused *transport.RefusedError
				if !errors.As(err, &refused) || refused.Certificate != test.refused || refused.Host != host {
					t.Errorf("got %#v", err)
				}
			})
		}
	}
	t.Run("a certificate that was not requested", func(t *testing.T) {
		// The alert replaces the server's end of the handshake, when the server has been
		// verified.
		config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, MaxVersion: tls.VersionTLS12}
		n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: func(c net.Conn) {
			tls.Server(&breaking{Conn: c}, config).Handshake()
			hold(c)
		}})
		e := failure(t, &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext}, &certificate)
		var refused *transport.RefusedError
		if !errors.As(e, &refused) || refused.Certificate {
			t.Errorf("got %v (%T)", e, e.Err)
		}
	})
}
