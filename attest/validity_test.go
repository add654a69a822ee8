package attest_test

import (
	"context"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
)

// change returns a modified copy of c with the same key and issuer.
func change(t *testing.T, ca *issuer, c *x509.Certificate, to func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: c.Subject.CommonName},
		NotBefore: c.NotBefore, NotAfter: c.NotAfter, IsCA: c.IsCA, BasicConstraintsValid: true, KeyUsage: c.KeyUsage,
	}
	to(template)
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, c.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	changed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return changed
}

func TestAChainIsValidWhileAllOfItsCertificatesAreValid(t *testing.T) {
	root := &issuer{key: ecKey(t, elliptic.P256())}
	root.certificate = issue(t, nil, "root", root.key, true)
	middleKey, key := ecKey(t, elliptic.P256()), ecKey(t, elliptic.P256())
	early, late := midway.AddDate(0, -2, 0), midway.AddDate(0, 2, 0)
	middle := &issuer{key: middleKey}
	middle.certificate = change(t, root, issue(t, root, "middle", middleKey, true), func(c *x509.Certificate) { c.NotBefore, c.NotAfter = early, late })
	leaf := issue(t, middle, "gw-1", key, false)
	x := pair(t, certificatePEM(leaf)+certificatePEM(middle.certificate)+certificatePEM(root.certificate), sec1(t, key))
	for _, c := range []struct {
		name string
		now  time.Time
		want error
		says string
	}{
		{"an intermediate that is still valid is not an error", midway, nil, ""},
		{"an expired intermediate is an error that names it", late.Add(time.Second), attest.ErrExpired, "certificate 2 of 3 in the chain has expired (not after 2026-09-01T00:00:00Z)"},
		{"an intermediate that is not yet valid is an error that names it", early.Add(-time.Second), attest.ErrNotYetValid, "certificate 2 of 3 in the chain is not yet valid (not before 2026-05-01T00:00:00Z)"},
		{"an error about the leaf comes first", notAfter.Add(time.Second), attest.ErrExpired, "the certificate has expired (not after 2027-01-01T00:00:00Z)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := x.Prove(context.Background(), gw, attest.Secrets{}, c.now)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got %v, want %v", err, c.want)
			}
			if err != nil && !strings.HasSuffix(err.Error(), c.says) {
				t.Errorf("got %v, want %s", err, c.says)
			}
			if p.Certificate == nil || len(p.Certificate.Certificate) != 3 || !p.Expires.Equal(late) || p.ExpiresFirst != 1 {
				t.Errorf("the proof ends %v with certificate %d, want %v with 1", p.Expires, p.ExpiresFirst, late)
			}
		})
	}
}

func TestACertificateThatIsOnlyForServersIsNotForClients(t *testing.T) {
	root := &issuer{key: ecKey(t, elliptic.P256())}
	root.certificate = issue(t, nil, "root", root.key, true)
	leaf := issue(t, root, "gw-1", ecKey(t, elliptic.P256()), false)
	for _, c := range []struct {
		name    string
		usages  []x509.ExtKeyUsage
		unknown []asn1.ObjectIdentifier
		says    string // "": it is valid for clients
	}{
		{"a certificate without extended key usages may be used for any purpose", nil, nil, ""},
		{"clientAuth is sufficient", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, nil, ""},
		{"clientAuth with another usage is sufficient", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, nil, ""},
		{"any extended key usage includes clientAuth", []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, nil, ""},
		{"serverAuth alone is not sufficient", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, nil, "its only extended key usage is serverAuth; it also needs clientAuth"},
		{"serverAuth and an unknown usage are not sufficient", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 1}}, "its extended key usages do not include clientAuth"},
		{"another usage is not sufficient", []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}, nil, "its extended key usages do not include clientAuth"},
		{"an unknown usage is not sufficient", nil, []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 311, 1}}, "its extended key usages do not include clientAuth"},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := attest.ForClients(change(t, root, leaf, func(l *x509.Certificate) { l.ExtKeyUsage, l.UnknownExtKeyUsage = c.usages, c.unknown }))
			if (err == nil) != (c.says == "") {
				t.Fatalf("got %v", err)
			}
			if err != nil && (!errors.Is(err, attest.ErrNotForClients) || !strings.HasSuffix(err.Error(), c.says)) {
				t.Errorf("got %v, want %s", err, c.says)
			}
		})
	}
}

func TestACertificateThatDidNotIssueTheLeafDoesNotAffectItsValidity(t *testing.T) {
	root, stranger := &issuer{key: ecKey(t, elliptic.P256())}, ecKey(t, elliptic.P256())
	root.certificate = issue(t, nil, "root", root.key, true)
	middle, key := &issuer{key: ecKey(t, elliptic.P256())}, ecKey(t, elliptic.P256())
	middle.certificate = issue(t, root, "middle", middle.key, true)
	leaf := issue(t, middle, "gw-1", key, false)
	expired := func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = midway.AddDate(-2, 0, 0), midway.AddDate(-1, 0, 0)
	}
	other := change(t, root, issue(t, root, "other", stranger, true), expired)
	namesake := change(t, root, issue(t, root, "middle", stranger, true), expired) // with another key
	for name, unrelated := range map[string]*x509.Certificate{"another issuer": other, "an issuer of the same name": namesake} {
		for order, certificates := range map[string][]*x509.Certificate{
			"after the chain":  {leaf, middle.certificate, root.certificate, unrelated},
			"within the chain": {leaf, unrelated, middle.certificate, root.certificate},
			"out of order":     {leaf, root.certificate, unrelated, middle.certificate},
		} {
			text := ""
			for _, c := range certificates {
				text += certificatePEM(c)
			}
			p, err := pair(t, text, sec1(t, key)).Prove(context.Background(), gw, attest.Secrets{}, midway)
			if err != nil {
				t.Errorf("%s, %s: %v", name, order, err)
			}
			if len(p.Unrelated) != 1 || certificates[p.Unrelated[0]] != unrelated || p.Expires.Before(midway) || len(p.Certificate.Certificate) != 4 {
				t.Errorf("%s, %s: unrelated %v, until %s", name, order, p.Unrelated, p.Expires)
			}
		}
	}
}
