package transport_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"net"
	"testing"

	"github.com/dpsd-project/dpsd/transport"
)

// TLS 1.3 does not allow PKCS #1 v1.5 signatures, and allows only one hash function for each curve.
func TestAKeyThatCannotSignInTLS13UsesTLS12(t *testing.T) {
	root := newAuthority(t, nil)
	config := &tls.Config{Certificates: []tls.Certificate{root.issue(t, host, nil)}, MinVersion: tls.VersionTLS12}
	n := newNetwork(t, false, map[string]func(net.Conn){mqttAddress: secure(config, func(c *tls.Conn) { echo(c) })})
	d := &transport.Dialer{Host: host, Protocols: only(transport.MQTT), Roots: root.pool(), DialContext: n.DialContext}
	modulus, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	curve := func(c elliptic.Curve) crypto.Signer {
		key, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	for _, row := range []struct {
		key     crypto.Signer
		schemes []tls.SignatureScheme
		want    uint16
	}{
		{modulus, nil, tls.VersionTLS13},
		{modulus, []tls.SignatureScheme{tls.PSSWithSHA256, tls.PKCS1WithSHA256}, tls.VersionTLS13},
		{modulus, []tls.SignatureScheme{tls.PKCS1WithSHA256, tls.PKCS1WithSHA384, tls.PKCS1WithSHA512}, tls.VersionTLS12},
		{curve(elliptic.P256()), nil, tls.VersionTLS13},
		{curve(elliptic.P256()), []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, tls.VersionTLS13},
		{curve(elliptic.P256()), []tls.SignatureScheme{tls.ECDSAWithP384AndSHA384, tls.ECDSAWithP521AndSHA512}, tls.VersionTLS12},
		{curve(elliptic.P384()), []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256}, tls.VersionTLS12}, // firmware without SHA-384
		{curve(elliptic.P384()), []tls.SignatureScheme{tls.ECDSAWithP384AndSHA384}, tls.VersionTLS13},
		{curve(elliptic.P521()), nil, tls.VersionTLS13},
	} {
		certificate := root.issue(t, "gw-1", nil)
		certificate.PrivateKey, certificate.SupportedSignatureAlgorithms = row.key, row.schemes
		if c := exchange(t, d, &certificate); c.TLS.Version != row.want {
			t.Errorf("with %T and %v, the version is %s", row.key, row.schemes, tls.VersionName(c.TLS.Version))
		}
	}
}
