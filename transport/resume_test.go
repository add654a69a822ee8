package transport_test

import (
	"crypto/tls"
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
		// connect exchanges a byte, with which a ticket of TLS 1.3 arrives, and tells
		// whether a session was resumed.
		connect := func(t *testing.T, d *transport.Dialer, certificate *tls.Certificate, as string) bool {
			t.Helper()
			c := dial(t, d, certificate)
			if _, err := c.Write([]byte("x")); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			if got := *seen.Load(); got != as {
				t.Errorf("the server sees %q, want %q", got, as)
			}
			if len(c.TLS.VerifiedChains) == 0 {
				t.Error("the server's certificate was not verified")
			}
			c.Close()
			return c.TLS.DidResume
		}
		t.Run("the second connection resumes the session of the first: "+tls.VersionName(version), func(t *testing.T) {
			if connect(t, d, nil, "") {
				t.Error("the first is resumed")
			}
			if !connect(t, d, nil, "") {
				t.Error("the second is not")
			}
		})
		t.Run("each certificate has sessions of its own: "+tls.VersionName(version), func(t *testing.T) {
			if connect(t, d, &one, "gw-1") || connect(t, d, &two, "gw-2") {
				t.Error("a session of another certificate was resumed")
			}
			if !connect(t, d, &one, "gw-1") || !connect(t, d, &two, "gw-2") {
				t.Error("not resumed with the same certificate")
			}
		})
		t.Run("who trusts the server no more resumes nothing: "+tls.VersionName(version), func(t *testing.T) {
			distrusting := *d
			distrusting.Roots = newAuthority(t, nil).pool()
			if f := failure(t, &distrusting, nil); f.Stage != transport.StageTLS {
				t.Errorf("%v", f)
			}
		})
		t.Run("without a place to keep them there are none: "+tls.VersionName(version), func(t *testing.T) {
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
