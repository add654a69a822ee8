package attest_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/pemfile"
)

// Validity of all leaf certificates of this file.
var (
	notBefore = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC)
	midway    = time.Date(2026, 7, 1, 0, 0, 0, 0, time.UTC)
)

// issuer signs certificates.
type issuer struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// issue returns a certificate for key, signed by ca or, if ca is nil, self-signed.
func issue(t testing.TB, ca *issuer, commonName string, key crypto.Signer, authority bool) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             notBefore,
		NotAfter:              notAfter,
		IsCA:                  authority,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:              []string{"dps.test"},
	}
	if authority {
		template.KeyUsage = x509.KeyUsageCertSign
		template.ExtKeyUsage = nil
	}
	parent, signer := template, key
	if ca != nil {
		parent, signer = ca.certificate, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func ecKey(t testing.TB, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func certificatePEM(cs ...*x509.Certificate) string {
	var text string
	for _, c := range cs {
		text += encode("CERTIFICATE", c.Raw)
	}
	return text
}

func pkcs8(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("PRIVATE KEY", der)
}

func sec1(t testing.TB, key *ecdsa.PrivateKey) string {
	t.Helper()
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return encode("EC PRIVATE KEY", der)
}

// pair writes a certificate file and a key file and returns a credential for them.
func pair(t testing.TB, certificate, key string) attest.X509 {
	t.Helper()
	dir := t.TempDir()
	x := attest.X509{
		Certificate: attest.Reference{File: filepath.Join(dir, "device.pem")},
		PrivateKey:  attest.Reference{File: filepath.Join(dir, "device.key")},
	}
	for path, text := range map[string]string{x.Certificate.File: certificate, x.PrivateKey.File: key} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

var gw = attest.Subject{Resource: "0ne00000000/registrations/gw-1", RegistrationID: "gw-1"}

// handshake makes a TLS 1.2 handshake, as with the service, with a server that trusts only
// the root, and returns an error if the server rejects the certificate.
func handshake(t *testing.T, certificate *tls.Certificate, root *x509.Certificate) error {
	t.Helper()
	serverKey := ecKey(t, elliptic.P256())
	serverCertificate := issue(t, nil, "dps.test", serverKey, false)
	roots, clients := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(serverCertificate)
	clients.AddCert(root)
	now := func() time.Time { return midway }

	a, b := net.Pipe()
	server := tls.Server(a, &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{serverCertificate.Raw}, PrivateKey: serverKey}},
		ClientAuth:   tls.RequireAndVerifyClientCert, ClientCAs: clients, Time: now,
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS12,
	})
	client := tls.Client(b, &tls.Config{
		Certificates: []tls.Certificate{*certificate}, RootCAs: roots, ServerName: "dps.test", Time: now,
		MinVersion: tls.VersionTLS12,
	})
	done := make(chan error, 1)
	go func() {
		done <- server.Handshake()
		a.Close()
	}()
	err := client.Handshake()
	b.Close()
	return errors.Join(<-done, err)
}

func TestX509Proof(t *testing.T) {
	root := &issuer{key: ecKey(t, elliptic.P256())}
	root.certificate = issue(t, nil, "root", root.key, true)
	middle := &issuer{key: ecKey(t, elliptic.P256())}
	middle.certificate = issue(t, root, "intermediate", middle.key, true)

	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	smallest, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	p256, p384, p521 := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P384()), ecKey(t, elliptic.P521())
	const ecParameters = "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"

	for _, c := range []struct {
		name string
		key  crypto.Signer
		text string
	}{
		{"RSA in PKCS#8", rsaKey, pkcs8(t, rsaKey)},
		{"RSA of 1024 bits", smallest, pkcs8(t, smallest)},
		{"RSA in PKCS#1", rsaKey, encode("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))},
		{"P-256 in PKCS#8", p256, pkcs8(t, p256)},
		{"P-256 in SEC 1", p256, sec1(t, p256)},
		{"P-256 in SEC 1 after its parameters, as openssl ecparam writes it", p256, ecParameters + sec1(t, p256)},
		{"P-384 in SEC 1", p384, sec1(t, p384)},
		{"P-521 in PKCS#8", p521, pkcs8(t, p521)},
		{"a key with the label of another kind", p256, strings.ReplaceAll(sec1(t, p256), "EC PRIVATE", "PRIVATE")},
		{"text before the key", p256, "# the key of gw-1\n\n" + sec1(t, p256)},
	} {
		t.Run("a server that trusts the root accepts leaf and intermediate with "+c.name, func(t *testing.T) {
			leaf := issue(t, middle, "gw-1", c.key, false)
			x := pair(t, certificatePEM(leaf, middle.certificate), c.text)
			p, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway)
			if err != nil {
				t.Fatal(err)
			}
			if p.Password != "" || !p.Expires.Equal(notAfter) || p.Certificate.Leaf == nil || len(p.Certificate.Certificate) != 2 {
				t.Errorf("password %q, expires %v, %d certificates", p.Password, p.Expires, len(p.Certificate.Certificate))
			}
			if err := handshake(t, p.Certificate, root.certificate); err != nil {
				t.Error(err)
			}
		})
	}

	leaf := issue(t, middle, "gw-1", p256, false)
	t.Run("without the intermediate the server rejects the leaf", func(t *testing.T) {
		p, err := pair(t, certificatePEM(leaf), sec1(t, p256)).Prove(context.Background(), gw, attest.Secrets{}, midway)
		if err != nil {
			t.Fatal(err)
		}
		if handshake(t, p.Certificate, root.certificate) == nil {
			t.Error("the handshake succeeded")
		}
	})
	t.Run("certificate and key may be in the same file", func(t *testing.T) {
		x := pair(t, sec1(t, p256)+certificatePEM(leaf, middle.certificate), "")
		x.PrivateKey = x.Certificate
		if _, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway); err != nil {
			t.Error(err)
		}
		if refs := x.References(); len(refs) != 1 {
			t.Errorf("it refers to %v", refs)
		}
	})
	t.Run("a renewed pair is used by the next proof", func(t *testing.T) {
		x := pair(t, certificatePEM(leaf), sec1(t, p256))
		if _, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway); err != nil {
			t.Fatal(err)
		}
		renewed := issue(t, root, "gw-1", p384, false)
		write(t, x.Certificate.File, certificatePEM(renewed))
		write(t, x.PrivateKey.File, sec1(t, p384))
		p, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(p.Certificate.Certificate[0], renewed.Raw) {
			t.Error("the proof contains the old certificate")
		}
	})
	t.Run("systemd credentials work as well", func(t *testing.T) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "dps-certificate"), certificatePEM(leaf))
		write(t, filepath.Join(dir, "dps-private-key"), sec1(t, p256))
		x := attest.X509{Certificate: attest.Reference{Credential: "dps-certificate"}, PrivateKey: attest.Reference{Credential: "dps-private-key"}}
		if _, err := x.Prove(context.Background(), gw, attest.Secrets{Directories: []string{dir}}, midway); err != nil {
			t.Error(err)
		}
		if got := x.String(); got != "x509 credential:dps-certificate" {
			t.Errorf("it is called %q", got)
		}
		if refs := x.References(); len(refs) != 2 || refs[0] != x.Certificate || refs[1] != x.PrivateKey {
			t.Errorf("it refers to %v", refs)
		}
	})

	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224 := ecKey(t, elliptic.P224())
	// Only with the runtime's check disabled can a test make such a small key.
	t.Setenv("GODEBUG", "rsa1024min=0")
	smallKey, err := rsa.GenerateKey(rand.Reader, 768)
	if err != nil {
		t.Fatal(err)
	}
	smallLeaf := issue(t, nil, "gw-1", smallKey, false)
	t.Setenv("GODEBUG", "")

	legacy := string(pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte("sealed"),
		Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-128-CBC,00"}}))
	other := ecKey(t, elliptic.P256())
	cut := certificatePEM(leaf)
	for _, c := range []struct {
		name             string
		certificate, key string
		want             error
		blames           string // the file that the error must name
	}{
		{"the key of another certificate is rejected", certificatePEM(leaf), sec1(t, other), attest.ErrKeyMismatch, "device.key"},
		{"a key of another kind is rejected", certificatePEM(leaf), pkcs8(t, rsaKey), attest.ErrKeyMismatch, "device.key"},
		{"an intermediate before the leaf is rejected", certificatePEM(middle.certificate, leaf), sec1(t, p256), attest.ErrKeyMismatch, "device.pem"},
		{"Ed25519, which the service does not support, is rejected", certificatePEM(issue(t, nil, "gw-1", edKey, false)), pkcs8(t, edKey), pemfile.ErrUnsupportedKey, "device.key"},
		{"P-224, which TLS does not support, is rejected", certificatePEM(issue(t, nil, "gw-1", p224, false)), sec1(t, p224), pemfile.ErrUnsupportedKey, "device.key"},
		{"RSA of 768 bits is rejected", certificatePEM(smallLeaf), pkcs8(t, smallKey), pemfile.ErrUnsupportedKey, "device.key"},
		{"a key with a passphrase is rejected", certificatePEM(leaf), encode("ENCRYPTED PRIVATE KEY", []byte("x")), pemfile.ErrPassphrase, "device.key"},
		{"a key with a passphrase in the traditional format is rejected", certificatePEM(leaf), legacy, pemfile.ErrPassphrase, "device.key"},
		{"a key file without a key is rejected", certificatePEM(leaf), certificatePEM(leaf), pemfile.ErrNotPrivateKey, "device.key"},
		{"a key that is not DER is rejected", certificatePEM(leaf), encode("PRIVATE KEY", []byte("S3CRET")), pemfile.ErrNotPrivateKey, "device.key"},
		{"a public key is rejected", certificatePEM(leaf), encode("PUBLIC KEY", []byte("x")), pemfile.ErrNotPrivateKey, "device.key"},
		{"a symmetric key in its place is rejected", certificatePEM(leaf), groupKey, pemfile.ErrNotPrivateKey, "device.key"},
		{"an empty key file is rejected", certificatePEM(leaf), "", attest.ErrEmpty, "device.key"},
		{"a certificate file without a certificate is rejected", sec1(t, p256), sec1(t, p256), pemfile.ErrNotCertificate, "device.pem"},
		{"a certificate that is not DER is rejected", encode("CERTIFICATE", []byte("x")), sec1(t, p256), pemfile.ErrNotCertificate, "device.pem"},
		{"a truncated certificate is rejected", cut[:len(cut)/2], sec1(t, p256), pemfile.ErrNotCertificate, "device.pem"},
		{"a certificate in DER is rejected", string(leaf.Raw), sec1(t, p256), pemfile.ErrNotCertificate, "device.pem"},
		{"a request in place of a certificate is rejected", encode("CERTIFICATE REQUEST", []byte("x")), sec1(t, p256), pemfile.ErrNotCertificate, "device.pem"},
		{"a damaged intermediate is rejected", certificatePEM(leaf) + encode("CERTIFICATE", []byte("x")), sec1(t, p256), pemfile.ErrNotCertificate, "device.pem"},
		{"a leaf of another name is rejected", certificatePEM(issue(t, root, "gw-2", p256, false)), sec1(t, p256), attest.ErrCommonName, "device.pem"},
		{"a leaf without a name is rejected", certificatePEM(issue(t, root, "", p256, false)), sec1(t, p256), attest.ErrCommonName, "device.pem"},
		{"a leaf whose name differs in case is rejected", certificatePEM(issue(t, root, "GW-1", p256, false)), sec1(t, p256), attest.ErrCommonName, "device.pem"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := pair(t, c.certificate, c.key)
			p, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway)
			if !errors.Is(err, c.want) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if p.Certificate != nil {
				t.Error("Prove returned a proof")
			}
			var secret *attest.SecretError
			if !errors.As(err, &secret) || filepath.Base(secret.Path) != c.blames {
				t.Errorf("got %#v, which does not blame %s", err, c.blames)
			}
			if strings.Contains(err.Error(), "S3CRET") || strings.Contains(err.Error(), groupKey[:10]) {
				t.Errorf("the error contains the file: %v", err)
			}
		})
	}
	t.Run("the error names the position of the certificate that the key belongs to", func(t *testing.T) {
		_, err := pair(t, certificatePEM(root.certificate, middle.certificate, leaf), sec1(t, p256)).Prove(context.Background(), gw, attest.Secrets{}, midway)
		if err == nil || !strings.Contains(err.Error(), "the key belongs to certificate 3 of 3") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("the error contains the wrong name and the right name", func(t *testing.T) {
		_, err := pair(t, certificatePEM(issue(t, root, "GW-1\n", p256, false)), sec1(t, p256)).Prove(context.Background(), gw, attest.Secrets{}, midway)
		if err == nil || !strings.Contains(err.Error(), `"GW-1\n", not "gw-1"`) {
			t.Errorf("got %v", err)
		}
		_, err = pair(t, certificatePEM(issue(t, root, "GW-1", p256, false)), sec1(t, p256)).Prove(context.Background(), gw, attest.Secrets{}, midway)
		if err == nil || !strings.Contains(err.Error(), "; they differ only in case") {
			t.Errorf("the error does not mention the difference in case: %v", err)
		}
	})
	t.Run("a missing key is reported as a missing file", func(t *testing.T) {
		x := pair(t, certificatePEM(leaf), "")
		x.PrivateKey.File += ".gone"
		if _, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a certificate without a reference to its key is rejected", func(t *testing.T) {
		x := pair(t, certificatePEM(leaf), "")
		x.PrivateKey = attest.Reference{}
		if _, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway); !errors.Is(err, attest.ErrNoReference) {
			t.Errorf("got %v", err)
		}
	})
}

func TestX509Validity(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	x := pair(t, certificatePEM(issue(t, nil, "gw-1", key, false)), sec1(t, key))
	for _, c := range []struct {
		name string
		now  time.Time
		want error
		says string
	}{
		{"it is valid from its first instant", notBefore, nil, ""},
		{"it is valid to its last instant", notAfter, nil, ""},
		{"immediately before it is not yet valid", notBefore.Add(-time.Nanosecond), attest.ErrNotYetValid, "not before 2026-01-01T00:00:00Z"},
		{"immediately after it has expired", notAfter.Add(time.Nanosecond), attest.ErrExpired, "not after 2027-01-01T00:00:00Z"},
		{"a clock without a battery finds it not yet valid", time.Unix(0, 0), attest.ErrNotYetValid, "not before"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := x.Prove(context.Background(), gw, attest.Secrets{}, c.now)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if p.Certificate == nil || !p.Expires.Equal(notAfter) {
				t.Error("the proof is incomplete, so a caller that does not trust its clock cannot try it")
			}
			if err == nil {
				return
			}
			var certificate *attest.CertificateError
			if !errors.As(err, &certificate) || !certificate.NotBefore.Equal(notBefore) || !certificate.NotAfter.Equal(notAfter) {
				t.Fatalf("got %#v", err)
			}
			if !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), x.Certificate.String()) {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("a wrong name is reported before the validity, which depends on the clock", func(t *testing.T) {
		_, err := x.Prove(context.Background(), attest.Subject{RegistrationID: "gw-2"}, attest.Secrets{}, time.Unix(0, 0))
		if !errors.Is(err, attest.ErrCommonName) || errors.Is(err, attest.ErrNotYetValid) {
			t.Errorf("got %v", err)
		}
	})
}

func FuzzX509(f *testing.F) {
	key := ecKey(f, elliptic.P256())
	certificate := certificatePEM(issue(f, nil, "gw-1", key, false))
	f.Add([]byte(certificate), []byte(sec1(f, key)))
	f.Add([]byte(certificate+certificate), []byte(pkcs8(f, key)))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"), []byte("-----BEGIN PRIVATE KEY-----\n-----END PRIVATE KEY-----\n"))
	x := pair(f, "", "")
	f.Fuzz(func(t *testing.T, certificate, key []byte) {
		write(t, x.Certificate.File, string(certificate))
		write(t, x.PrivateKey.File, string(key))
		p, err := x.Prove(context.Background(), gw, attest.Secrets{}, midway)
		if err != nil {
			var secret *attest.SecretError
			if !errors.As(err, &secret) {
				t.Fatalf("the error does not say which secret: %v", err)
			}
			return
		}
		if p.Certificate.Leaf.Subject.CommonName != gw.RegistrationID {
			t.Fatal("a proof for another registration ID")
		}
		if fmt.Sprint(p.Certificate.PrivateKey.(crypto.Signer).Public()) != fmt.Sprint(p.Certificate.Leaf.PublicKey) {
			t.Fatal("a proof with another key")
		}
	})
}
