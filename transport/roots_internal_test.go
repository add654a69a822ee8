package transport

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// bundle writes a bundle with one root, and returns its path and contents.
func bundle(t *testing.T) (string, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	path := filepath.Join(t.TempDir(), "bundle.crt")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		t.Fatal("the bundle cannot be read")
	}
	return path, pool
}

// every selects all certificates of a bundle.
func every([]byte) bool { return true }

func TestSystemRoots(t *testing.T) {
	path, inIt := bundle(t)
	other, inOther := bundle(t)
	none := filepath.Join(t.TempDir(), "none.crt")
	empty := filepath.Join(t.TempDir(), "empty.crt")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	system, err := x509.SystemCertPool()
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		says      string
		file, dir string // environment variables
		bundles   []string
		want      *x509.CertPool
	}{
		{"only the first existing bundle is trusted", "", "", []string{none, path, other}, inIt},
		{"a bundle without a certificate is skipped", "", "", []string{empty, other}, inOther},
		{"without a bundle, crypto/x509 finds the roots", "", "", []string{none}, system},
		{"crypto/x509 handles SSL_CERT_FILE", "/any/file", "", []string{path}, system},
		{"crypto/x509 handles SSL_CERT_DIR", "", "/any/directory", []string{path}, system},
	} {
		t.Run(test.says, func(t *testing.T) {
			t.Setenv("SSL_CERT_FILE", test.file)
			t.Setenv("SSL_CERT_DIR", test.dir)
			got, err := systemTrust(test.bundles)
			if err != nil {
				t.Fatal(err)
			}
			if all, err := got.roots(every); err != nil || !all.Equal(test.want) {
				t.Errorf("other roots are trusted (%v)", err)
			}
		})
	}
	t.Run("a replaced bundle is read at the next Dial", func(t *testing.T) {
		t.Setenv("SSL_CERT_FILE", "")
		t.Setenv("SSL_CERT_DIR", "")
		if _, err := systemTrust([]string{path}); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(other, path); err != nil {
			t.Fatal(err)
		}
		got, err := systemTrust([]string{path})
		if err != nil {
			t.Fatal(err)
		}
		if all, err := got.roots(every); err != nil || !all.Equal(inOther) {
			t.Errorf("the old roots are still trusted (%v)", err)
		}
	})
}
