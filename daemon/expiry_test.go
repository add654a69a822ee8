package daemon

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// chained sets the certificate of enroll as the credential of the gateway.
func (g *gateway) chained(until time.Time) {
	g.t.Helper()
	g.Settings.Credentials = []attest.Credential{g.certificate(device)}
	g.enroll(until)
}

// enroll makes the service trust a new authority, and writes a device certificate and its key.
// The chain has an intermediate that expires at the given time.
func (g *gateway) enroll(until time.Time) {
	g.t.Helper()
	issue := func(name string, from, until time.Time, parent *x509.Certificate, signer crypto.Signer) (*x509.Certificate, crypto.Signer) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			g.t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: until,
			IsCA: name != device, BasicConstraintsValid: true,
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			g.t.Fatal(err)
		}
		certificate, err := x509.ParseCertificate(der)
		if err != nil {
			g.t.Fatal(err)
		}
		return certificate, key
	}
	text := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	now := time.Now()
	root, rootKey := issue("Plant Root", now.AddDate(-10, 0, 0), now.AddDate(10, 0, 0), nil, nil)
	intermediate, intermediateKey := issue("Plant CA", until.AddDate(-1, 0, 0), until, root, rootKey)
	leaf, key := issue(device, now.AddDate(-1, 0, 0), now.AddDate(1, 0, 0), intermediate, intermediateKey)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.sim.SetEnrollments(&enroll.Enrollments{Groups: []enroll.Group{{
		Name: "plant", Attestation: enroll.Attestation{Type: "x509", CA: text("CERTIFICATE", root.Raw)},
	}}}); err != nil {
		g.t.Fatal(err)
	}
	g.write("device.pem", text("CERTIFICATE", leaf.Raw)+text("CERTIFICATE", intermediate.Raw))
	g.write("device-key.pem", text("PRIVATE KEY", private))
}

// The metric is derived from the status.
func TestEventStatusAndMetricHaveTheEndOfTheChain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		until := time.Now().AddDate(0, 0, 20).Truncate(time.Second)
		g.chained(until)
		g.MetricsFile = filepath.Join(g.dir, "dpsd.prom")
		g.run()
		g.until("certificate-expires", 1)
		synctest.Wait()
		entry := g.log.FilterMessage("certificate-expires").All()[0].ContextMap()
		if !entry["notAfter"].(time.Time).Equal(until) || entry["because"] != "certificate 2 of 2 in its chain" || !strings.HasPrefix(entry["advice"].(string), "Have the issuer renew that certificate") {
			t.Errorf("the event is %v", entry)
		}
		if n, _ := g.notified("; the device certificate expires on 2000-01-21, because certificate 2 of 2 in its chain does"); n == 0 {
			t.Errorf("STATUS= is %q", g.lastNote())
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(g.MetricsFile)
		if want := fmt.Sprintf("\ndpsd_certificate_expiry_timestamp_seconds %d\n", until.Unix()); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("the metrics lack %q: %v", want, err)
		}
	})
}

func TestACertificateThatIsNotForClientsExplainsARefusal(t *testing.T) {
	s := (&Daemon{}).supervisor()
	r := registered{err: classify.At(fault.StageRegister, unauthorized)}
	r.request.Proof.Certificate = &tls.Certificate{Leaf: &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}}
	f := s.classify(r, time.Now())
	if f.Code != fault.Unauthorized || !strings.Contains(f.Error(), "its only extended key usage is serverAuth; it also needs clientAuth") {
		t.Errorf("got %v", f)
	}
	if want := "Have a certificate issued whose extended key usages include clientAuth."; f.Advice() != want {
		t.Errorf("the advice is %q, want %q", f.Advice(), want)
	}
}
