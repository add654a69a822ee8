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
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// defaultCertificateLife is the lifetime of an issued certificate. The service issues
// certificates for 7 to 90 days.
const defaultCertificateLife = 30 * 24 * time.Hour

// issuing is the authority that signs certificates for devices: a root and an
// intermediate, both EC P-384. The key of the root is not kept.
type issuing struct {
	root *x509.Certificate
	ca   *authority
}

func newIssuing(now time.Time) (*issuing, error) {
	root, err := newAuthority(elliptic.P384(), "dpsd-sim issuing root", nil, now)
	if err != nil {
		return nil, err
	}
	ca, err := newAuthority(elliptic.P384(), "dpsd-sim issuing CA", root, now)
	if err != nil {
		return nil, err
	}
	return &issuing{root.certificate, ca}, nil
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

// issue signs a certificate for the key of a request and returns its chain: the device's
// certificate, the issuing CA, and the root unless the settings omit it.
func (i *issuing) issue(csr *x509.CertificateRequest, life time.Duration, set Settings, now time.Time) ([]string, error) {
	usage := x509.KeyUsageDigitalSignature
	if _, ok := csr.PublicKey.(*rsa.PublicKey); ok {
		usage |= x509.KeyUsageKeyEncipherment // RFC 5246 7.4.2
	}
	leaf, err := i.ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: csr.Subject.CommonName},
		NotBefore:   now.Add(-early),
		NotAfter:    now.Add(life),
		KeyUsage:    usage,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, csr.PublicKey)
	if err != nil {
		return nil, err
	}
	chain := []*x509.Certificate{leaf, i.ca.certificate}
	if !set.ChainWithoutRoot {
		chain = append(chain, i.root)
	}
	texts := make([]string, 0, len(chain))
	for _, c := range chain {
		texts = append(texts, chainElement(c, set.ChainFormat))
	}
	return texts, nil
}

// chainElement writes a certificate in a format of Settings.ChainFormat.
func chainElement(c *x509.Certificate, format string) string {
	switch format {
	case scenario.ChainPEM:
		return string(certificatePEM(c.Raw))
	case scenario.ChainBase64PEM:
		return base64.StdEncoding.EncodeToString(certificatePEM(c.Raw))
	}
	return base64.StdEncoding.EncodeToString(c.Raw)
}
