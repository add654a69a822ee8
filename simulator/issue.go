package simulator

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// The common names of the authority that signs certificates for CSRs, and of its root.
const (
	issuerName = "dpsd-sim issuing CA"
	rootName   = "dpsd-sim issuing root"
)

// maxCSR is the maximum size of a CSR in base64 characters.
const maxCSR = 8192

// Issued is a certificate that was issued for a CSR.
type Issued struct {
	RegistrationID string
	// Certificate is what the device receives. A rule with Chain can make it faulty.
	Certificate *x509.Certificate
}

// issuing is the authority that signs certificates for devices: a root and an intermediate, both
// EC P-384. A directory of an earlier version has no key of the root.
type issuing struct {
	root *authority // key may be nil
	ca   *authority
	huge *issuing // for the chain rsa-8192; nil before its first use
}

func newIssuing(now time.Time) (*issuing, error) {
	root, err := newAuthority(elliptic.P384(), rootName, nil, now)
	if err != nil {
		return nil, err
	}
	ca, err := newAuthority(elliptic.P384(), issuerName, root, now)
	if err != nil {
		return nil, err
	}
	return &issuing{root: root, ca: ca}, nil
}

// replaced returns an authority with the same root and a new intermediate. If the key of the
// root is unknown, the root is also new.
func (i *issuing) replaced(now time.Time) (*issuing, error) {
	if i.root.key == nil {
		return newIssuing(now)
	}
	ca, err := newAuthority(elliptic.P384(), issuerName, i.root, now)
	if err != nil {
		return nil, err
	}
	return &issuing{root: i.root, ca: ca}, nil
}

// issuer creates the issuing authority on first use: a server that never issues certificates
// needs no P-384 keys.
type issuer struct {
	create func() (*issuing, error)
	save   func(*issuing) error // nil: in memory only

	mu      sync.Mutex
	current *issuing
}

func (i *issuer) get() (*issuing, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.load()
}

// load does what get does. The caller must have locked i.mu.
func (i *issuer) load() (*issuing, error) {
	if i.current != nil {
		return i.current, nil
	}
	created, err := i.create()
	if err != nil {
		return nil, err
	}
	i.current = created
	return created, nil
}

// replace replaces the intermediate.
func (i *issuer) replace(now time.Time) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	current, err := i.load()
	if err != nil {
		return err
	}
	next, err := current.replaced(now)
	if err == nil && i.save != nil {
		err = i.save(next)
	}
	if err == nil {
		i.current = next
	}
	return err
}

// parseCSR reads the member csr of a register request and checks it like the service:
// PKCS #10 in DER, base64 without armour, of one of the types of keys, with the registration
// ID as its common name (Azure page "Certificate issuance").
func parseCSR(member json.RawMessage, registrationID string, types []string) (*x509.CertificateRequest, error) {
	var text string
	if json.Unmarshal(member, &text) != nil {
		return nil, errors.New("the csr is not a JSON string")
	}
	switch {
	case text == "":
		return nil, errors.New("the csr is empty")
	case len(text) > maxCSR:
		return nil, fmt.Errorf("the csr has %d characters; it must have at most %d", len(text), maxCSR)
	case strings.ContainsAny(text, "\r\n") && !strings.Contains(text, "-----"): // Go's decoder would skip them
		return nil, errors.New("the csr contains line breaks; it must be base64 without line breaks")
	case strings.Contains(text, "-----"):
		return nil, errors.New("the csr is in PEM format; it must be the base64 of the DER, without header and footer")
	}
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("the csr is not base64")
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, errors.New("the csr is not a PKCS#10 certificate request in DER")
	}
	switch name := keyType(csr); {
	case !slices.Contains(types, name):
		return nil, fmt.Errorf("the csr's key is %s; it must be one of %s", name, strings.Join(types, ", "))
	case slices.Contains([]x509.SignatureAlgorithm{x509.ECDSAWithSHA1, x509.SHA1WithRSA, x509.MD5WithRSA}, csr.SignatureAlgorithm):
		return nil, fmt.Errorf("the csr is signed with %s; it must be signed with SHA-256 or better", csr.SignatureAlgorithm)
	case csr.CheckSignature() != nil:
		return nil, errors.New("the csr's signature is invalid: it does not prove that the device has the private key")
	}
	names := 0
	for _, n := range csr.Subject.Names {
		if n.Type.String() == "2.5.4.3" { // id-at-commonName, X.520
			names++
		}
	}
	switch {
	case names != 1:
		return nil, fmt.Errorf("the csr's subject has %d common names, not 1", names)
	case csr.Subject.CommonName != registrationID:
		return nil, errors.New("the csr's common name is not the registration ID")
	case len(registrationID) > MaxCommonName:
		return nil, fmt.Errorf("the csr's common name is longer than %d octets", MaxCommonName)
	}
	return csr, nil
}

// keyType returns the type of a request's key as in Settings.CSRKeys.
func keyType(csr *x509.CertificateRequest) string {
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return key.Curve.Params().Name
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA-%d", key.N.BitLen())
	}
	if csr.PublicKeyAlgorithm == x509.UnknownPublicKeyAlgorithm {
		return "of an unknown type"
	}
	return csr.PublicKeyAlgorithm.String()
}

// order is what a certificate is issued for.
type order struct {
	name        string // common name
	key         any    // public key
	id          string // identifier of the device's certificates, see assignment.CertificateID
	from, until time.Time
}

// template returns the certificate that the order is for.
func (o order) template() *x509.Certificate {
	usage := x509.KeyUsageDigitalSignature
	if _, ok := o.key.(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment // RFC 5246 7.4.2
	}
	return &x509.Certificate{
		Subject:     pkix.Name{CommonName: o.name},
		NotBefore:   o.from,
		NotAfter:    o.until,
		KeyUsage:    usage,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "urn", Opaque: "uuid:" + o.id}},
	}
}

// certificateID returns the identifier in a certificate that was issued for a CSR, or "".
func certificateID(c *x509.Certificate) string {
	if len(c.URIs) == 0 {
		return ""
	}
	return strings.TrimPrefix(c.URIs[0].Opaque, "uuid:")
}

// RevokeDevice revokes all certificates that were issued for the CSRs of a device, and returns
// false if the device is not assigned. Like the service, it replaces the identifier of the
// device's certificates. From the next connection on, the hub refuses a certificate with a
// different identifier. The device stays assigned, and receives a new certificate when it registers
// with a CSR.
func (s *Server) RevokeDevice(registrationID string) bool {
	return s.service.records.renewCertificateID(registrationID)
}

// RevokePolicy revokes all certificates that were issued for CSRs: it replaces the issuing CA.
// Devices receive new certificates when they register with a CSR.
func (s *Server) RevokePolicy() error { return s.material.issuer.replace(s.now()) }

// checkIssued explains why a hub refuses a certificate that was issued for a CSR; the zero value
// means that the hub accepts it. issued is false for any other certificate. The hub knows the
// issuing CA, so the device need not send the certificate of the CA.
func (s *Server) checkIssued(id string, c *x509.Certificate) (issued bool, why enroll.Explanation) {
	if c.Issuer.CommonName != issuerName {
		return false, enroll.Explanation{}
	}
	is, err := s.material.issuer.get()
	if err != nil {
		return true, enroll.Explanation{Reason: err.Error()}
	}
	validity := fmt.Sprintf("one that is valid from %s to %s", c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
	now := s.now()
	const advice = "The device must register again with a CSR."
	switch {
	case c.CheckSignatureFrom(is.ca.certificate) != nil:
		return true, enroll.Explanation{
			Reason: "the issued certificate is not signed by the current issuing CA", Advice: "The policy was revoked, or a different simulator has issued the certificate. " + advice,
		}
	case certificateID(c) != id:
		return true, enroll.Explanation{
			Reason: "the issued certificate was revoked", Expected: "the identifier " + enroll.Quote(id), Given: enroll.Quote(certificateID(c)), Advice: advice,
		}
	case now.After(c.NotAfter):
		return true, enroll.Explanation{
			Reason: "the issued certificate has expired", Expected: "a certificate that is valid at " + now.UTC().Format(time.RFC3339), Given: validity, Advice: advice,
		}
	case now.Before(c.NotBefore):
		return true, enroll.Explanation{
			Reason: "the issued certificate is not yet valid", Expected: "a certificate that is valid at " + now.UTC().Format(time.RFC3339), Given: validity,
			Advice: "The device must wait until its certificate is valid.",
		}
	}
	return true, enroll.Explanation{}
}
