package transport

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// issued is a certificate with its key.
type issued struct {
	*x509.Certificate
	key *ecdsa.PrivateKey
}

func issue(t *testing.T, name string, parent *issued, change func(*x509.Certificate)) *issued {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return sign(t, name, parent, key, change)
}

func sign(t *testing.T, name string, parent *issued, key *ecdsa.PrivateKey, change func(*x509.Certificate)) *issued {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(template)
	}
	by, byKey := template, key
	if parent != nil {
		by, byKey = parent.Certificate, parent.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by, &key.PublicKey, byKey)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issued{c, key}
}

func leaf(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.KeyUsage = false, false, x509.KeyUsageDigitalSignature
	c.DNSNames, c.ExtKeyUsage = []string{"dps.test"}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
}

// Parsing only some of the roots must not change any result: each chain is verified with
// these roots, and by crypto/x509 with all of them.
func TestTheRootsOfAChainGiveTheSameResultAsAllRoots(t *testing.T) {
	root, other := issue(t, "root", nil, nil), issue(t, "other", nil, nil)
	twin := issue(t, "root", nil, nil) // same name, different key
	old := issue(t, "old", nil, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })
	stranger := issue(t, "stranger", nil, nil)
	first := issue(t, "first", root, nil)
	second := issue(t, "second", first, nil)
	crossed := sign(t, "other", stranger, other.key, nil) // other, with a second issuer
	trusted := []*issued{other, twin, root, old}
	var bundle []byte
	for _, c := range trusted {
		bundle = append(bundle, "# "+c.Subject.CommonName+"\n"...)
		bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	bundle = append(bundle, "-----BEGIN CERTIFICATE-----\nbm8gY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n"...)
	path := filepath.Join(t.TempDir(), "bundle.crt")
	if err := os.WriteFile(path, bundle, 0o600); err != nil {
		t.Fatal(err)
	}

	for _, c := range []struct {
		says    string
		chain   []*issued
		trusted bool
	}{
		{"a leaf of a root", []*issued{issue(t, "leaf", root, leaf)}, true},
		{"through two intermediates", []*issued{issue(t, "leaf", second, leaf), second, first}, true},
		{"in disorder, with other certificates", []*issued{issue(t, "leaf", second, leaf), stranger, first, second}, true},
		{"with the root itself", []*issued{issue(t, "leaf", first, leaf), first, root}, true},
		{"a root that is cross-signed by an unknown authority whose certificate is sent too", []*issued{issue(t, "leaf", other, leaf), crossed, stranger}, true},
		{"a leaf that a root has signed under its own name", []*issued{sign(t, "other", nil, other.key, leaf)}, true},
		{"of the twin", []*issued{issue(t, "leaf", twin, leaf)}, true},
		{"without its intermediate", []*issued{issue(t, "leaf", second, leaf), first}, false},
		{"of an unknown authority", []*issued{issue(t, "leaf", stranger, leaf), stranger}, false},
		{"of an unknown authority with a root's name", []*issued{issue(t, "leaf", issue(t, "root", nil, nil), leaf)}, false},
		{"of a root that has expired", []*issued{issue(t, "leaf", old, leaf)}, false},
		{"for another name", []*issued{issue(t, "leaf", root, func(c *x509.Certificate) { leaf(c); c.DNSNames = []string{"evil.test"} })}, false},
		{"for clients only", []*issued{issue(t, "leaf", root, func(c *x509.Certificate) { leaf(c); c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} })}, false},
		{"not valid yet", []*issued{issue(t, "leaf", root, func(c *x509.Certificate) { leaf(c); c.NotBefore = time.Now().Add(time.Minute) })}, false},
	} {
		t.Run(c.says, func(t *testing.T) {
			var presented []*x509.Certificate
			intermediates := x509.NewCertPool()
			for i, p := range c.chain {
				presented = append(presented, p.Certificate)
				if i > 0 {
					intermediates.AddCert(p.Certificate)
				}
			}
			all := x509.NewCertPool()
			all.AppendCertsFromPEM(bundle)
			_, want := presented[0].Verify(x509.VerifyOptions{DNSName: "dps.test", Roots: all, Intermediates: intermediates})
			if (want == nil) != c.trusted {
				t.Fatalf("crypto/x509 returns %v", want)
			}
			for name, tr := range map[string]trust{
				"the bundle": {bundle: path}, "a pool": {pool: all},
				"a bundle and a pool": {bundle: path, pool: trust{}.with([]*x509.Certificate{issue(t, "further", nil, nil).Certificate})},
			} {
				v := &verifier{trust: tr, host: "dps.test"}
				err := v.verify(tls.ConnectionState{PeerCertificates: presented})
				if (err == nil) != c.trusted || (len(v.chains) > 0) != c.trusted {
					t.Errorf("%s: %v, and %d chains", name, err, len(v.chains))
				}
				if verify := (*tls.CertificateVerificationError)(nil); err != nil && !errors.As(err, &verify) {
					t.Errorf("%s: %T", name, err)
				}
			}
		})
	}
	t.Run("an empty trust does not fall back to the system's roots", func(t *testing.T) {
		system := issue(t, "leaf", root, leaf)
		v := &verifier{host: "dps.test"}
		if err := v.verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{system.Certificate}}); err == nil {
			t.Error("verified")
		}
	})
	t.Run("unreadable roots are reported", func(t *testing.T) {
		v := &verifier{trust: trust{bundle: filepath.Join(t.TempDir(), "none")}, host: "dps.test"}
		err := v.verify(tls.ConnectionState{PeerCertificates: []*x509.Certificate{root.Certificate}})
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v", err)
		}
	})
	t.Run("a missing certificate is an error", func(t *testing.T) {
		if err := (&verifier{}).verify(tls.ConnectionState{}); err == nil {
			t.Error("verified")
		}
	})
}

// Reading the bundle block by block must give the same certificates as reading it as a
// whole.
func TestEachCertificate(t *testing.T) {
	certificate := func(length int) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: bytes.Repeat([]byte{byte(length)}, length)})
	}
	join := func(pieces ...[]byte) []byte { return bytes.Join(pieces, nil) }
	for _, c := range []struct {
		says string
		text []byte
	}{
		{"nothing", nil},
		{"one", certificate(700)},
		{"one without a line end", bytes.TrimSpace(certificate(700))},
		{"with line ends of another system", bytes.ReplaceAll(join(certificate(300), certificate(40)), []byte("\n"), []byte("\r\n"))},
		{"with comments between", join([]byte("# one\n"), certificate(900), []byte("\n# two -----\n"), certificate(901), []byte("# end"))},
		{"of another label at the end, and a stray one", join(bytes.Replace(certificate(30), []byte("END CERT"), []byte("END OTHER"), 1), certificate(31), []byte("-----END CERTIFICATE-----\n"), certificate(32))},
		{"without a line end between", join(bytes.TrimSpace(certificate(30)), certificate(31), certificate(32))},
		{"larger than the read buffer", join(certificate(50000), certificate(3), certificate(70000))},
		{"other things", join(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: []byte("crl")}), certificate(5))},
		{"with headers, which are ignored", join(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: []byte("x")}), certificate(6))},
		{"cut off at the end", join(certificate(30), certificate(40)[:60])},
		{"that is not base64", join([]byte("-----BEGIN CERTIFICATE-----\n*\n-----END CERTIFICATE-----\n"), certificate(50))},
		{"whose base64 is one long line", join([]byte("-----BEGIN CERTIFICATE-----\n"), bytes.Repeat([]byte("QUJD"), 30000), []byte("\n-----END CERTIFICATE-----\n"), certificate(9))},
		{"very many", bytes.Repeat(certificate(1200), 300)},
	} {
		t.Run(c.says, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "bundle.crt")
			if err := os.WriteFile(path, c.text, 0o600); err != nil {
				t.Fatal(err)
			}
			var got, want []string
			if err := eachCertificate(path, func(der []byte) bool { got = append(got, string(der)); return true }); err != nil {
				t.Fatal(err)
			}
			for text := c.text; ; {
				var block *pem.Block
				if block, text = pem.Decode(text); block == nil {
					break
				}
				if block.Type == "CERTIFICATE" && len(block.Headers) == 0 {
					want = append(want, string(block.Bytes))
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("%d certificates, want %d, or others", len(got), len(want))
			}
		})
	}
}

// The savings: go test -bench Roots -benchmem ./transport
func BenchmarkRoots(b *testing.B) {
	text, err := os.ReadFile(bundles()[0])
	if err != nil {
		b.Skip(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		b.Fatal(err)
	}
	for name, wanted := range map[string]func([]byte) bool{
		"named": func(der []byte) bool { return bytes.Contains(der, c.RawIssuer) },
		"all":   every,
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := (trust{bundle: bundles()[0]}).roots(wanted); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
