package simulator_test

import (
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// writeCA writes NAME.pem and NAME.key of a certificate authority, and returns the path of the
// first.
func writeCA(t *testing.T, dir, name string, key crypto.Signer, parent *x509.Certificate, parentKey crypto.Signer) (string, *x509.Certificate) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if parent == nil {
		parent, parentKey = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for file, block := range map[string]*pem.Block{
		name + ".pem": {Type: "CERTIFICATE", Bytes: der},
		name + ".key": {Type: "PRIVATE KEY", Bytes: private},
	} {
		if err := os.WriteFile(filepath.Join(dir, file), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name+".pem"), certificate
}

func TestCredentialsAreThoseThatTheEnrollmentsAccept(t *testing.T) {
	dir := t.TempDir()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rootKey := ecKey(t, elliptic.P256())
	root, rootCertificate := writeCA(t, dir, "root", rootKey, nil, nil)
	intermediate, _ := writeCA(t, dir, "intermediate", ecKey(t, elliptic.P256()), rootCertificate, rootKey)
	rsaRoot, _ := writeCA(t, dir, "rsa-root", rsaKey, nil, nil)
	const key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	const other = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
	x509Of := func(file string) enroll.Attestation { return enroll.Attestation{Type: "x509", CAFile: file} }
	keys := enroll.Attestation{Type: "symmetric-key", PrimaryKey: key, SecondaryKey: other}

	for _, c := range []struct {
		sentence           string
		enrollments        enroll.Enrollments
		key                string // "" for any
		noKey, certificate string // reasons
		chain              int
	}{
		{
			sentence:    "the key of an individual enrollment is its primary key",
			enrollments: enroll.Enrollments{Individuals: []enroll.Individual{{RegistrationID: "GW-1", Attestation: keys}}},
			key:         key, certificate: `the individual enrollment of "gw-1" requires a symmetric key`,
		},
		{
			sentence:    "the key of a group is derived for the device",
			enrollments: enroll.Enrollments{Groups: []enroll.Group{{Name: "keys", Attestation: keys}}},
			certificate: "no enrollment group trusts a certificate authority",
		},
		{
			sentence:    "a group's root issues the certificate",
			enrollments: enroll.Enrollments{Groups: []enroll.Group{{Name: "certificates", Attestation: x509Of(root)}}},
			noKey:       "no enrollment group has symmetric keys", chain: 1,
		},
		{
			sentence:    "an authority with an RSA key issues the certificate",
			enrollments: enroll.Enrollments{Groups: []enroll.Group{{Name: "certificates", Attestation: x509Of(rsaRoot)}}},
			noKey:       "no enrollment group has symmetric keys", chain: 1,
		},
		{
			sentence:    "a certificate of an intermediate authority is followed by that of the authority",
			enrollments: enroll.Enrollments{Individuals: []enroll.Individual{{RegistrationID: "gw-1", Attestation: x509Of(intermediate)}}},
			noKey:       `the individual enrollment of "gw-1" requires a certificate`, chain: 2,
		},
		{
			sentence: "an individual enrollment takes precedence over a group",
			enrollments: enroll.Enrollments{
				Groups:      []enroll.Group{{Name: "keys", Attestation: keys}},
				Individuals: []enroll.Individual{{RegistrationID: "gw-1", Attestation: x509Of(root)}},
			},
			noKey: `the individual enrollment of "gw-1" requires a certificate`, chain: 1,
		},
	} {
		t.Run(c.sentence, func(t *testing.T) {
			s, err := simulator.New(simulator.Options{Enrollments: &c.enrollments})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			got, err := s.Credentials("gw-1")
			if err != nil {
				t.Fatal(err)
			}
			reason := func(err error) string {
				if err == nil {
					return ""
				}
				return err.Error()
			}
			if reason(got.NoKey) != c.noKey || reason(got.NoCertificate) != c.certificate {
				t.Errorf("no key because %q, no certificate because %q", reason(got.NoKey), reason(got.NoCertificate))
			}
			if c.key != "" && got.Key != c.key {
				t.Errorf("the key is %q", got.Key)
			}
			if n := strings.Count(string(got.Certificate), "BEGIN CERTIFICATE"); n != c.chain {
				t.Errorf("%d certificates, want %d", n, c.chain)
			}
			if got.NoKey == nil {
				cl := dial(t, s)
				cl.send(connectPacket(0xc2, 0, "gw-1", userNameOf(s, "gw-1"), token(got.Key, resourceOf(s, "gw-1"), time.Now().Add(time.Hour), ""))...)
				cl.accepted("gw-1")
			}
			if got.NoCertificate == nil {
				pair, err := tls.X509KeyPair(got.Certificate, got.PrivateKey)
				if err != nil {
					t.Fatal(err)
				}
				with(t, s, "gw-1", pair).accepted("gw-1")
			}
		})
	}
}

func TestCredentialsOfADeviceThatIsNotEnrolledAreRefusedWithBothReasons(t *testing.T) {
	ca, _ := writeCA(t, t.TempDir(), "root", ecKey(t, elliptic.P256()), nil, nil)
	if err := os.Remove(strings.TrimSuffix(ca, ".pem") + ".key"); err != nil {
		t.Fatal(err)
	}
	s, err := simulator.New(simulator.Options{Enrollments: &enroll.Enrollments{Groups: []enroll.Group{
		{Name: "certificates", Attestation: enroll.Attestation{Type: "x509", CAFile: ca}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	_, err = s.Credentials("gw-1")
	if err == nil || !strings.Contains(err.Error(), "no enrollment group has symmetric keys") || !strings.Contains(err.Error(), ca+" has no usable private key") {
		t.Errorf("%v", err)
	}
}

func TestTheHubOfAConnectionStringIsTheOneThatTheEnrollmentAssigns(t *testing.T) {
	for _, c := range []struct {
		options     simulator.Options
		hub, device string
	}{
		{simulator.Options{}, "dpsd-sim.azure-devices.net", "gw-1"},
		{simulator.Options{DefaultHub: "localhost"}, "localhost", "gw-1"},
		{simulator.Options{DefaultHub: "localhost", Enrollments: &enroll.Enrollments{Individuals: []enroll.Individual{{
			RegistrationID: "gw-1", DeviceID: "Press-7",
			Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="},
			Grant:       enroll.Grant{Hubs: []string{"hub-a.azure-devices.net"}},
		}}}}, "hub-a.azure-devices.net", "Press-7"},
	} {
		s, err := simulator.New(c.options)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Credentials("gw-1")
		s.Close()
		if err != nil || got.Hub != c.hub || got.DeviceID != c.device {
			t.Errorf("%s %s, %v, want %s %s", got.Hub, got.DeviceID, err, c.hub, c.device)
		}
	}
}
