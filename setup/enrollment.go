package setup

import (
	"crypto/sha1" //nolint:gosec // the portal shows SHA-1 thumbprints; nothing is signed with it
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"strings"
	"time"
)

// Enrollment describes a gateway to the person who creates its individual enrollment.
type Enrollment struct {
	RegistrationID string
	// Chain is the certificate of the gateway and its intermediates. It is empty for a
	// symmetric key.
	Chain []*x509.Certificate
}

// Thumbprints returns the hashes by which the portal shows a certificate, in upper-case hex.
func Thumbprints(c *x509.Certificate) (sha1Hash, sha256Hash string) {
	one, two := sha1.Sum(c.Raw), sha256.Sum256(c.Raw) //nolint:gosec // see the import
	return strings.ToUpper(hex.EncodeToString(one[:])), strings.ToUpper(hex.EncodeToString(two[:]))
}

// attestation returns the name of the attestation mechanism in the service API.
func (e *Enrollment) attestation() string {
	if len(e.Chain) > 0 {
		return "x509"
	}
	return "symmetricKey"
}

// CSV returns a header line and a line of values (RFC 4180).
func (e *Enrollment) CSV() string {
	const columns = "registrationId,attestation,sha1Thumbprint,sha256Thumbprint,issuer,notAfter\r\n"
	values := []string{e.RegistrationID, e.attestation(), "", "", "", ""}
	if len(e.Chain) > 0 {
		leaf := e.Chain[0]
		values[2], values[3] = Thumbprints(leaf)
		values[4], values[5] = leaf.Issuer.String(), leaf.NotAfter.UTC().Format(time.RFC3339)
	}
	for n, v := range values {
		if strings.ContainsAny(v, ",\"\r\n") {
			values[n] = `"` + strings.ReplaceAll(v, `"`, `""`) + `"`
		}
	}
	return columns + strings.Join(values, ",") + "\r\n"
}

// JSON returns an individual enrollment as the service API of DPS accepts it, on one line. It
// contains the certificate, but never a key: DPS generates the keys if an enrollment has none.
func (e *Enrollment) JSON() ([]byte, error) {
	type certificate struct {
		Certificate []byte `json:"certificate"`
	}
	type clientCertificates struct {
		Primary certificate `json:"primary"`
	}
	type certificates struct {
		ClientCertificates clientCertificates `json:"clientCertificates"`
	}
	type attestation struct {
		Type         string        `json:"type"`
		X509         *certificates `json:"x509,omitempty"`
		SymmetricKey *struct{}     `json:"symmetricKey,omitempty"`
	}
	a := attestation{Type: e.attestation()}
	if len(e.Chain) > 0 {
		a.X509 = &certificates{clientCertificates{certificate{e.Chain[0].Raw}}}
	} else {
		a.SymmetricKey = &struct{}{}
	}
	text, err := json.Marshal(struct {
		RegistrationID string      `json:"registrationId"`
		Attestation    attestation `json:"attestation"`
	}{e.RegistrationID, a})
	return append(text, '\n'), err
}
