package daemon

import (
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
	"github.com/dpsd-project/dpsd/simulator"
)

// intermediate is a certificate that expires at that time, in PEM.
func intermediate(t *testing.T, until time.Time) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Plant CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: until.AddDate(-1, 0, 0), NotAfter: until,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// chained gives the gateway a device certificate whose chain has another one, which
// expires at that time.
func (g *gateway) chained(until time.Time) {
	g.t.Helper()
	x := g.certificate(device).(attest.X509)
	leaf, err := os.ReadFile(x.Certificate.File)
	if err != nil {
		g.t.Fatal(err)
	}
	g.write(filepath.Base(x.Certificate.File), string(leaf)+intermediate(g.t, until))
	g.Settings.Credentials = []attest.Credential{x}
}

func TestAnExpiredIntermediateExplainsA401(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"})
		g.chained(time.Now().Add(-time.Hour))
		g.run()
		g.until("fault", 1)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults(fault.CertificateExpired)
		entry := g.log.FilterMessage("fault").All()[0].ContextMap()
		if cause := entry["cause"].(string); !strings.Contains(cause, "certificate 2 of 2 in the chain has expired (not after 1999-12-31T23:00:00Z)") {
			t.Errorf("the cause is %q", cause)
		}
	})
}

// The metric is made of the status.
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
		if n, _ := g.told("; the device certificate expires on 2000-01-21, because certificate 2 of 2 in its chain does"); n == 0 {
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
}
