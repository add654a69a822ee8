package setup_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/setup"
	"github.com/dpsd-project/dpsd/tpm"
	"github.com/dpsd-project/dpsd/tpm/tpmtest"
)

// dpsd init copies the key without testing it; dpsd check tests it. The machine that runs this test
// needs no TPM.
func TestATPMKeyIsCopiedWithoutATPM(t *testing.T) {
	key, err := (&tpm.Device{Open: new(tpmtest.TPM).Open}).Create(t.Context(), tpm.P256, tpm.Owner)
	if err != nil {
		t.Fatal(err)
	}
	f, err := tpm.Parse(key)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	issue := func(public crypto.PublicKey) []byte {
		authority, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "gw-1"}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, authority)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	file := filepath.Join(t.TempDir(), "device.pem")
	write := func(certificate []byte) {
		t.Helper()
		if err := os.WriteFile(file, append(certificate, key...), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(issue(f.Public()))
	c, id, doubt, err := setup.ReadCertificate(file, file, "", now)
	if err != nil || id != "gw-1" || doubt != nil {
		t.Fatalf("%q, %v, %v", id, doubt, err)
	}
	if !bytes.Equal(c.PrivateKey, key) {
		t.Errorf("the key is\n%s\nwant\n%s", c.PrivateKey, key)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	write(issue(other.Public()))
	if _, _, _, err := setup.ReadCertificate(file, file, "", now); err == nil {
		t.Error("the key of another certificate is accepted")
	}
}
