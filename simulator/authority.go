package simulator

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
	"net"
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Lifetimes. A certificate is valid from an hour before its creation, so that a peer whose
// clock is slightly slow can use it immediately.
const (
	early      = time.Hour
	caLife     = 20 * 365 * 24 * time.Hour
	leafLife   = 2 * 365 * 24 * time.Hour
	globalName = "global.azure-devices-provisioning.net"
	wrongName  = "wrong-host.example"
)

// MaxCommonName is the maximum length of a common name in octets, X.520
// ub-common-name. A longer registration ID cannot have a certificate.
const MaxCommonName = 64

// authority is a certificate authority with its key.
type authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
}

// newAuthority creates an authority that is signed by its parent or, without one, self-signed.
func newAuthority(curve elliptic.Curve, name string, parent *authority, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		return nil, err
	}
	template := authorityTemplate(name, now)
	signer := &authority{template, key}
	if parent != nil {
		signer = parent
		template.MaxPathLenZero = true // it signs devices, but no other authority
	}
	certificate, err := signer.sign(template, key.Public())
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key}, nil
}

func authorityTemplate(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		Subject:               pkix.Name{CommonName: name, Organization: []string{"dpsd-sim"}},
		NotBefore:             now.Add(-early),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
}

// sign creates the certificate of a public key.
func (a *authority) sign(template *x509.Certificate, public any) (*x509.Certificate, error) {
	template.SerialNumber = serial()
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, public, steady(a.key))
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// serial returns 126 random bits. The number is positive, as RFC 5280 4.1.2.2 requires, and
// always has 16 bytes.
func serial() *big.Int {
	b := randomBytes("serial", 16)
	b[0] = b[0]&0x3f | 0x40
	return new(big.Int).SetBytes(b)
}

// issue creates a key and its certificate.
func (a *authority) issue(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	leaf, err := a.sign(template, key.Public())
	return leaf, key, err
}

// server issues the certificate of the listeners, or a faulty one of a kind in
// Rule.ServerCertificate. names are host names and IP addresses that it has beside its own.
func (a *authority) server(fault string, names []string, now time.Time) (*tls.Certificate, error) {
	today := now.Truncate(day) // a device gets the same dates from two connections
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: globalName, Organization: []string{"dpsd-sim"}},
		NotBefore:   now.Add(-early),
		NotAfter:    now.Add(leafLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{"localhost", globalName, enroll.DefaultHub},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	for _, name := range names {
		switch ip := net.ParseIP(name); {
		case ip != nil:
			template.IPAddresses = append(template.IPAddresses, ip)
		case !slices.Contains(template.DNSNames, name):
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	switch fault {
	case "expired":
		template.NotBefore, template.NotAfter = today.Add(-2*day), today.Add(-day)
	case "not-yet-valid":
		template.NotBefore = now.Add(47 * time.Hour).Truncate(24 * time.Hour) // in 23 to 47 hours
	case "wrong-host":
		template.Subject.CommonName, template.DNSNames, template.IPAddresses = wrongName, []string{wrongName}, nil
	case "other-ca":
		other, err := newAuthority(elliptic.P256(), "dpsd-sim unknown root", nil, now)
		if err != nil {
			return nil, err
		}
		a = other
	}
	leaf, key, err := a.issue(template)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: steadySigner{key}, Leaf: leaf}, nil
}

// device issues a client certificate whose common name is the registration ID, and returns
// the certificate and its key as PEM.
func (a *authority) device(registrationID string, now time.Time) (certificate, key []byte, err error) {
	if !enroll.IsRegistrationID(registrationID) {
		return nil, nil, fmt.Errorf("%q is not a registration ID", registrationID)
	}
	if len(registrationID) > MaxCommonName {
		return nil, nil, fmt.Errorf("%q is longer than the %d octets that a common name allows", registrationID, MaxCommonName)
	}
	leaf, private, err := a.issue(&x509.Certificate{
		Subject:     pkix.Name{CommonName: registrationID},
		NotBefore:   now.Add(-early),
		NotAfter:    now.Add(leafLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil, nil, err
	}
	key, err = keyPEM(private)
	return certificatePEM(leaf.Raw), key, err
}

func certificatePEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func keyPEM(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// material is what a simulator keeps across restarts.
type material struct {
	scope      string
	groupKey   []byte
	serviceKey []byte
	server     *authority
	device     *authority
	issuer     *issuer
}

// newMaterial derives the scope and the group key from the seed for a server in memory, and
// creates them at random otherwise.
func newMaterial(draw func(purpose string, n int) []byte, now time.Time) (*material, error) {
	server, err := newAuthority(elliptic.P256(), "dpsd-sim server root", nil, now)
	if err != nil {
		return nil, err
	}
	device, err := newAuthority(elliptic.P256(), "dpsd-sim device root", nil, now)
	if err != nil {
		return nil, err
	}
	return &material{
		scope:      fmt.Sprintf("0ne%08X", draw("id-scope", 4)),
		groupKey:   draw("group-key", 64),
		serviceKey: draw("service-key", 64),
		server:     server,
		device:     device,
		issuer:     &issuer{create: func() (*issuing, error) { return newIssuing(now) }},
	}, nil
}

func randomBytes(_ string, n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails: crypto/rand.Read
	return b
}
