package simulator_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

const (
	preview = "2025-07-01-preview"
	stable  = "2026-11-01"
)

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// request creates a CSR in DER.
func request(t *testing.T, key crypto.Signer, subject pkix.Name) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: subject}, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func named(name string) pkix.Name { return pkix.Name{CommonName: name} }

func csrBody(t *testing.T, csr any) string {
	t.Helper()
	b, err := json.Marshal(map[string]any{"registrationId": device, "csr": csr})
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// chain parses issuedCertificateChain.
func (p publish) chain(t *testing.T) []*x509.Certificate {
	t.Helper()
	var texts []string
	if err := json.Unmarshal([]byte(p.state(t, "issuedCertificateChain")), &texts); err != nil {
		t.Fatalf("%v in %s", err, p.payload)
	}
	all := make([]*x509.Certificate, 0, len(texts))
	for _, text := range texts {
		der, err := base64.StdEncoding.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	return all
}

func TestIssuing(t *testing.T) {
	base := base64.StdEncoding.EncodeToString
	bubble(t, "a good CSR is answered with a chain to the simulator's own root, for the device's key", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{CertificateLife: 7 * 24 * time.Hour})})
		key := ecKey(t, elliptic.P384())
		p := as(t, s, device, preview).outcome(csrBody(t, base(request(t, key, named(device)))))
		chain := p.chain(t)
		if len(chain) != 3 {
			t.Fatalf("%d certificates", len(chain))
		}
		leaf, ca := chain[0], chain[1]
		if leaf.Subject.CommonName != device || !key.PublicKey.Equal(leaf.PublicKey) || leaf.IsCA {
			t.Errorf("%+v", leaf.Subject)
		}
		if leaf.SignatureAlgorithm != x509.ECDSAWithSHA384 || ca.PublicKey.(*ecdsa.PublicKey).Curve != elliptic.P384() || ca.SignatureAlgorithm != x509.ECDSAWithSHA384 {
			t.Error(leaf.SignatureAlgorithm, ca.SignatureAlgorithm)
		}
		if ca.MaxPathLen != 0 || !ca.MaxPathLenZero {
			t.Error("the issuing CA may sign further authorities")
		}
		// The certificate was issued with the register request, 6 s ago.
		if want := time.Now().Add(7*24*time.Hour - 6*time.Second); !leaf.NotAfter.Equal(want) {
			t.Errorf("valid until %v, want %v", leaf.NotAfter, want)
		}
		root, err := s.IssuingRoot()
		if err != nil {
			t.Fatal(err)
		}
		if string(root) != string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: chain[2].Raw})) {
			t.Error("the chain does not end with the root")
		}
		roots, middle := x509.NewCertPool(), x509.NewCertPool()
		roots.AppendCertsFromPEM(root)
		middle.AddCert(ca)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: middle, CurrentTime: time.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Error(err)
		}
	})
	bubble(t, "the default lifetime is 30 days, and without a csr there is no chain", func(t *testing.T) {
		s := start(t, simulator.Options{})
		p := as(t, s, device, preview).outcome(csrBody(t, base(request(t, ecKey(t, elliptic.P384()), named(device)))))
		if want := time.Now().Add(30*24*time.Hour - 6*time.Second); !p.chain(t)[0].NotAfter.Equal(want) {
			t.Error(p.chain(t)[0].NotAfter)
		}
		for _, body := range []string{"", `{"csr":null}`} {
			if p := as(t, s, device, preview).outcome(body); p.parse(t).Status != "assigned" || strings.Contains(p.payload, "issuedCertificateChain") {
				t.Error(p.payload)
			}
		}
	})
	bubble(t, "every registration issues a new certificate with a new serial number, also under the policy never", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{Reprovision: "never"})})
		body := csrBody(t, base(request(t, ecKey(t, elliptic.P384()), named(device))))
		one, two := as(t, s, device, preview).outcome(body).chain(t), as(t, s, device, "2026-11-02-preview").outcome(body).chain(t)
		if one[0].SerialNumber.Cmp(two[0].SerialNumber) == 0 {
			t.Error(one[0].SerialNumber)
		}
	})
	bubble(t, "a device that authenticates with a certificate is issued one too", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := dial(t, s, deviceCertificate(t, s, device))
		c.send(connectPacket(0x82, 0, device, s.IDScope()+"/registrations/"+device+"/api-version="+preview)...)
		c.expect("CONNECT passes", 0x20, 2, 0, 0)
		p := c.subscribe().outcome(csrBody(t, base(request(t, ecKey(t, elliptic.P384()), named(device)))))
		if len(p.chain(t)) != 3 {
			t.Error(p.payload)
		}
	})

	p384 := ecKey(t, elliptic.P384())
	good := request(t, p384, named(device))
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	rsa3072, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		t.Fatal(err)
	}
	oldRSA, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: named(device), SignatureAlgorithm: x509.SHA1WithRSA}, rsa2048)
	if err != nil {
		t.Fatal(err)
	}
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1
	moved := append([]byte(nil), good...) // signed for another name
	copy(moved[strings.Index(string(moved), device):], "Z")
	old, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: named(device), SignatureAlgorithm: x509.ECDSAWithSHA1}, p384)
	if err != nil {
		t.Fatal(err)
	}
	twoNames := pkix.Name{ExtraNames: []pkix.AttributeTypeAndValue{
		{Type: []int{2, 5, 4, 3}, Value: device}, {Type: []int{2, 5, 4, 3}, Value: device},
	}}
	for _, c := range []struct {
		name string
		csr  any
		want string
	}{
		{"that is not a string", 7, "the csr is not a JSON string"},
		{"that is an array", []string{base(good)}, "the csr is not a JSON string"},
		{"that is empty", "", "the csr is empty"},
		{"that is not base64", "?" + base(good), "the csr is not base64"},
		{"in base64url", strings.NewReplacer("+", "-", "/", "_").Replace(base(append([]byte{0xfb, 0xff}, good...))), "the csr is not base64"},
		{"without its padding", strings.TrimRight(base(append(append([]byte(nil), good...), make([]byte, (4-len(good)%3)%3)...)), "="), "the csr is not base64"},
		{"with line breaks", base(good)[:64] + "\n" + base(good)[64:], "the csr contains line breaks; it must be base64 without line breaks"},
		{"in PEM armour", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good})), "the csr is in PEM format; it must be the base64 of the DER, without header and footer"},
		{"that is PEM in base64", base(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: good})), "the csr is not a PKCS#10 certificate request in DER"},
		{"that is cut", base(good[:len(good)-1]), "the csr is not a PKCS#10 certificate request in DER"},
		{"with a byte too many", base(append(append([]byte(nil), good...), 0)), "the csr is not a PKCS#10 certificate request in DER"},
		{"that is a public key", base(must(x509.MarshalPKIXPublicKey(p384.Public()))), "the csr is not a PKCS#10 certificate request in DER"},
		{"whose signature is wrong", base(forged), "the csr's signature is invalid: it does not prove that the device has the private key"},
		{"whose name was changed after it was signed", base(moved), "the csr's signature is invalid: it does not prove that the device has the private key"},
		{"that is signed with SHA-1", base(old), "the csr is signed with ECDSA-SHA1; it must be signed with SHA-256 or better"},
		{"of an RSA key of 3072 bits", base(request(t, rsa3072, named(device))), "the csr's key is RSA-3072; it must be one of P-256, P-384, RSA-2048"},
		{"of an RSA key that is signed with SHA-1", base(oldRSA), "the csr is signed with SHA1-RSA; it must be signed with SHA-256 or better"},
		{"of an Ed25519 key", base(request(t, edKey, named(device))), "the csr's key is Ed25519; it must be one of P-256, P-384, RSA-2048"},
		{"of a P-521 key", base(request(t, ecKey(t, elliptic.P521()), named(device))), "the csr's key is P-521; it must be one of P-256, P-384, RSA-2048"},
		{"of more than 8192 characters", base(make([]byte, 8193/4*3)) + "AAAA", "the csr has 8196 characters; it must have at most 8192"},
		{"for another device", base(request(t, p384, named("another"))), "the csr's common name is not the registration ID"},
		{"for the device in different case", base(request(t, p384, named("Sample-Device-01"))), "the csr's common name is not the registration ID"},
		{"without a common name", base(request(t, p384, pkix.Name{Organization: []string{device}})), "the csr's subject has 0 common names, not 1"},
		{"with two common names", base(request(t, p384, twoNames)), "the csr's subject has 2 common names, not 1"},
	} {
		bubble(t, "a CSR "+c.name+" is answered 400 with the reason, and no operation begins", func(t *testing.T) {
			s := start(t, simulator.Options{})
			cl := as(t, s, device, preview)
			p := cl.ask(csrBody(t, c.csr))
			if b := p.parse(t); p.topic != "$dps/registrations/res/400/?$rid=1" || b.ErrorCode != 400000 || b.Message != c.want || b.OperationID != "" {
				t.Errorf("%s %s, want %s", p.topic, p.payload, c.want)
			}
			if p := cl.outcome(csrBody(t, base(good))); len(p.chain(t)) != 3 {
				t.Error("a good one after that: " + p.payload)
			}
		})
	}
	bubble(t, "a CSR of an ID that is longer than a common name is answered 400", func(t *testing.T) {
		long := strings.Repeat("a", 65)
		s := start(t, simulator.Options{})
		p := as(t, s, long, preview).ask(`{"csr":"` + base(request(t, p384, named(long))) + `"}`)
		if b := p.parse(t); b.ErrorCode != 400000 || b.Message != "the csr's common name is longer than 64 octets" {
			t.Error(p.payload)
		}
	})
	for _, version := range []string{"2019-03-31", "2021-06-01", "2021-10-01", "2030-01-01"} {
		bubble(t, "a CSR under api-version "+version+" is answered 400", func(t *testing.T) {
			s := start(t, simulator.Options{})
			p := as(t, s, device, version).ask(csrBody(t, base(good)))
			if b := p.parse(t); b.ErrorCode != 400000 || b.Message != "the api-version does not support certificates for a csr" {
				t.Error(p.payload)
			}
		})
	}
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": p384, "RSA-2048": rsa2048} {
		for _, version := range []string{preview, stable, "2026-11-02-preview"} {
			bubble(t, "a CSR of a "+name+" key under api-version "+version+" is answered with a chain for this key that ends with the root", func(t *testing.T) {
				s := start(t, simulator.Options{})
				chain := as(t, s, device, version).outcome(csrBody(t, base(request(t, key, named(device))))).chain(t)
				if len(chain) != 3 || !key.Public().(interface{ Equal(crypto.PublicKey) bool }).Equal(chain[0].PublicKey) {
					t.Fatal(chain)
				}
				for i, c := range chain {
					if err := c.CheckSignatureFrom(chain[min(i+1, 2)]); err != nil {
						t.Error(i, err)
					}
				}
			})
		}
		bubble(t, "with csr_keys for other types, a CSR of a "+name+" key is answered 400", func(t *testing.T) {
			s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{CSRKeys: []string{"P-521", "RSA-3072"}}}})
			p := as(t, s, device, stable).ask(csrBody(t, base(request(t, key, named(device)))))
			if b := p.parse(t); b.Message != "the csr's key is "+name+"; it must be one of P-521, RSA-3072" {
				t.Error(p.payload)
			}
			if p := as(t, s, device, stable).outcome(csrBody(t, base(request(t, rsa3072, named(device))))); len(p.chain(t)) != 3 {
				t.Error(p.payload)
			}
		})
	}
	for format, decode := range map[string]func(string) []byte{
		"":    func(text string) []byte { der, _ := base64.StdEncoding.DecodeString(text); return der },
		"der": func(text string) []byte { der, _ := base64.StdEncoding.DecodeString(text); return der },
		"base64-pem": func(text string) []byte {
			text2, _ := base64.StdEncoding.DecodeString(text)
			block, _ := pem.Decode(text2)
			return block.Bytes
		},
		"pem": func(text string) []byte { block, _ := pem.Decode([]byte(text)); return block.Bytes },
	} {
		bubble(t, "with chain_format \""+format+"\", each element of the chain has this format; with chain_without_root it has two elements", func(t *testing.T) {
			s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{ChainFormat: format, ChainWithoutRoot: true}}})
			p := as(t, s, device, stable).outcome(csrBody(t, base(good)))
			var texts []string
			if err := json.Unmarshal([]byte(p.state(t, "issuedCertificateChain")), &texts); err != nil || len(texts) != 2 {
				t.Fatal(err, texts)
			}
			for _, text := range texts {
				if _, err := x509.ParseCertificate(decode(text)); err != nil {
					t.Error(err, text)
				}
			}
		})
	}
	bubble(t, "with without_policy assign, a CSR to an enrollment that issues nothing is answered without a chain", func(t *testing.T) {
		s := start(t, simulator.Options{
			Enrollments: keys(t, enroll.Grant{NoCertificates: true}),
			Scenario:    &simulator.Scenario{Settings: simulator.Settings{WithoutPolicy: "assign"}},
		})
		p := as(t, s, device, stable).outcome(csrBody(t, base(good)))
		if b := p.parse(t); b.Status != "assigned" || strings.Contains(p.payload, "issuedCertificateChain") {
			t.Error(p.payload)
		}
	})
	bubble(t, "a CSR to an enrollment that issues nothing is answered 400", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{NoCertificates: true})})
		p := as(t, s, device, preview).ask(csrBody(t, base(good)))
		if b := p.parse(t); b.ErrorCode != 400000 || b.Message != "the enrollment does not issue certificates for a csr" {
			t.Error(p.payload)
		}
	})
	t.Run("a directory keeps the issuing authority across restarts", func(t *testing.T) {
		dir := t.TempDir()
		register := func() []*x509.Certificate {
			s := start(t, simulator.Options{Directory: dir})
			defer s.Close()
			root, err := os.ReadFile(filepath.Join(dir, "issuing-root.pem"))
			if own, _ := s.IssuingRoot(); err != nil || string(own) != string(root) {
				t.Error("issuing-root.pem has changed", err)
			}
			p := as(t, s, device, preview).ask(csrBody(t, base(good)))
			operation := p.parse(t).OperationID
			c := as(t, s, device, preview)
			c.puback(c.poll("2", operation).id)
			p = c.poll("3", operation)
			c.puback(p.id)
			return p.chain(t)
		}
		one, two := register(), register()
		if !one[1].Equal(two[1]) || one[0].Equal(two[0]) {
			t.Error("the second start issues with a different authority")
		}
		if info, err := os.Stat(filepath.Join(dir, "issuing-ca.key")); err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info, err)
		}
	})
	for _, name := range []string{"issuing-ca.pem", "issuing-ca.key"} {
		t.Run("without its "+name+" a used directory is refused, not repaired", func(t *testing.T) {
			dir := t.TempDir()
			start(t, simulator.Options{Directory: dir}).Close()
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
			if _, err := simulator.New(simulator.Options{Directory: dir}); err == nil || !strings.Contains(err.Error(), name) {
				t.Error(err)
			}
		})
	}
	t.Run("an issuing CA that another root has signed is refused", func(t *testing.T) {
		dir, other := t.TempDir(), t.TempDir()
		start(t, simulator.Options{Directory: dir}).Close()
		start(t, simulator.Options{Directory: other}).Close()
		if err := os.Rename(filepath.Join(other, "issuing-root.pem"), filepath.Join(dir, "issuing-root.pem")); err != nil {
			t.Fatal(err)
		}
		if _, err := simulator.New(simulator.Options{Directory: dir}); err == nil || !strings.Contains(err.Error(), "issuing-root.pem") {
			t.Error(err)
		}
	})
}

func must(der []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return der
}
