package check_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

var today = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// chain writes a device certificate for gw-1, the certificate of its issuer, which are valid
// for the given times from today, and the device's key.
func chain(t *testing.T, leafFor, issuerFor time.Duration, usages ...x509.ExtKeyUsage) attest.X509 {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	text := func(kind string, der []byte, err error) []byte {
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	certificate := func(name string, valid time.Duration, authority bool) *x509.Certificate {
		return &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: authority, BasicConstraintsValid: true,
			NotBefore: today.AddDate(-1, 0, 0), NotAfter: today.Add(valid), ExtKeyUsage: usages}
	}
	make := func(c, parent *x509.Certificate, public crypto.PublicKey, by *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, c, parent, public, by)
		return text("CERTIFICATE", der, err)
	}
	issuerKey, key := newKey(), newKey()
	issuer, leaf := certificate("Plant CA", issuerFor, true), certificate("gw-1", leafFor, false)
	issuer.KeyUsage = x509.KeyUsageCertSign
	der, err := x509.MarshalPKCS8PrivateKey(key)
	dir := t.TempDir()
	x := attest.X509{
		Certificate: attest.Reference{File: filepath.Join(dir, "device.pem")},
		PrivateKey:  attest.Reference{File: filepath.Join(dir, "device.key")},
	}
	for path, data := range map[string][]byte{
		x.Certificate.File: append(make(leaf, issuer, key.Public(), issuerKey), make(issuer, issuer, issuerKey.Public(), issuerKey)...),
		x.PrivateKey.File:  text("PRIVATE KEY", der, err),
	} {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return x
}

// beside returns x with the issuer of another chain appended to its certificates.
func beside(t *testing.T, x, other attest.X509) attest.X509 {
	t.Helper()
	ours, err := os.ReadFile(x.Certificate.File)
	theirs, otherErr := os.ReadFile(other.Certificate.File)
	if err := errors.Join(err, otherErr); err != nil {
		t.Fatal(err)
	}
	issuer := theirs[bytes.LastIndex(theirs, []byte("-----BEGIN")):]
	if err := os.WriteFile(x.Certificate.File, append(ours, issuer...), 0o600); err != nil {
		t.Fatal(err)
	}
	return x
}

// credentials returns the results about a credential of a gateway with that registration ID.
func credentials(t *testing.T, registrationID string, c attest.Credential) []check.Result {
	t.Helper()
	return run(t, &check.Gateway{
		Settings: &daemon.Settings{
			IDScope: "0ne00000000", RegistrationID: attest.RegistrationID{Template: registrationID},
			Credentials: []attest.Credential{c}, Dialer: &transport.Dialer{Host: "localhost"},
		},
		StateDirectory: t.TempDir(), Now: func() time.Time { return today },
	}, check.Credential)
}

func TestTheWholeChainIsChecked(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name       string
		credential attest.X509
		last       check.Status // status of the last result
		code       fault.Code
		detail     string
		advice     string
	}{
		{"a chain that is valid for a long time is ok", chain(t, 400*day, 300*day), check.OK, "", `certificate for "gw-1", 2 in the chain, valid until 2027-09-25`, ""},
		{"an expired issuer is a failure that names it", chain(t, 400*day, -day), check.Failed, fault.CertificateExpired, "certificate 2 of 2 in the chain has expired (not after 2026-11-28T12:00:00Z)", "renew the certificate named in the cause"},
		{"an issuer that expires soon is a warning that names it", chain(t, 400*day, 10*day), check.Warning, "", `certificate 2 of 2, "Plant CA", expires in 10 days, on 2026-12-09 12:00:00 UTC`, "Have the issuer renew that certificate"},
		{"a leaf that expires soon is a warning", chain(t, 10*day, 400*day), check.Warning, "", "the certificate expires in 10 days", "Install a renewed certificate"},
		{"an expired certificate that is not in the leaf's issuing path is a warning to remove it", beside(t, chain(t, 400*day, 400*day), chain(t, 400*day, -day)), check.Warning, "", `certificate 3 of 3, "Plant CA", did not issue any certificate in the chain of the device certificate`, "Remove it."},
		{"a leaf whose only extended key usage is serverAuth is a warning", chain(t, 400*day, 400*day, x509.ExtKeyUsageServerAuth), check.Warning, "", "serverAuth", "include clientAuth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := credentials(t, "gw-1", c.credential)
			r := all[len(all)-1]
			if r.Status != c.last || r.Code != c.code || !strings.Contains(r.Detail, c.detail) || !strings.Contains(r.Advice, c.advice) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestUpperCaseLettersInTheRegistrationIDAreAWarningWithAKey(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte(base64.StdEncoding.EncodeToString([]byte("of thirty-two bytes, none of them"))), 0o600); err != nil {
		t.Fatal(err)
	}
	key := attest.SymmetricKey{Key: attest.Reference{File: file}}
	all := credentials(t, "GW-1", key)
	if r := all[len(all)-1]; r.Status != check.Warning || !strings.Contains(r.Detail, "the registration ID GW-1 has upper-case letters") || !strings.HasSuffix(r.Advice, "dpsd derive-key --registration-id gw-1") {
		t.Errorf("%+v", r)
	}
	for _, r := range credentials(t, "gw-1", key) {
		if r.Status != check.OK {
			t.Errorf("without them: %+v", r)
		}
	}
}
