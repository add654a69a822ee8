// Package certificate creates the keys and requests for the certificates that DPS issues
// with an assignment, and checks the chains that DPS returns. It does no I/O.
//
// DPS returns a chain for the PKCS #10 request in the member csr of a registration (Azure
// pages "Certificate issuance" and "Certificate renewal"; api-version 2026-11-01).
package certificate

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"time"
)

// KeyType is the type of the private key of an issued certificate.
type KeyType string

// The key types. The service's pages name P-256, P-384 and RSA with 2048 bits, and
// contradict each other. Which of these types are accepted depends on the policy.
const (
	P256    KeyType = "ec-p256"
	P384    KeyType = "ec-p384"
	RSA2048 KeyType = "rsa-2048"
)

// KeyStore is where the private key of an issued certificate is.
type KeyStore string

// The key stores. "" means InFile.
const (
	InFile KeyStore = "file"
	InTPM  KeyStore = "tpm" // the file contains a TSS2 key, which only the TPM can use
)

// maxCommonName is the maximum length of a common name (RFC 5280, ub-common-name), in
// characters. DPS limits registration IDs to this length if a certificate contains them
// (Azure page "X.509 certificate attestation"). crypto/x509 and OpenSSL read longer names,
// but OpenSSL does not create them.
const maxCommonName = 64

// NewKey returns a new private key in PEM (PKCS #8).
func NewKey(t KeyType) ([]byte, error) {
	var key crypto.Signer
	var err error
	switch t {
	case P256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case RSA2048:
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		err = fmt.Errorf("%q is not a key type", t)
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// ParseKey parses a key in the form of NewKey. The error does not quote the text.
func ParseKey(text []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, errors.New("the file contains no key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, errors.New("the file contains no private key in PKCS #8")
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("the private key cannot sign")
	}
	return signer, nil
}

// RegistrationIDError means that a registration ID is too long for a certificate.
type RegistrationIDError struct{ Length int }

func (e *RegistrationIDError) Error() string {
	return fmt.Sprintf("the registration ID has %d characters; it becomes the common name of the issued certificate, which may have at most %d", e.Length, maxCommonName)
}

// Remedy says what to do.
func (e *RegistrationIDError) Remedy() string {
	return fmt.Sprintf("Use a registration ID of at most %d characters, or remove [certificate] from dpsd.toml.", maxCommonName)
}

// CheckRegistrationID reports whether a certificate can contain a registration ID as its
// common name. The error is a *RegistrationIDError.
func CheckRegistrationID(id string) error {
	if len(id) > maxCommonName {
		return &RegistrationIDError{len(id)}
	}
	return nil
}

// Request returns a PKCS #10 certificate request in DER. Its common name is the
// registration ID, byte for byte, as the service requires. The error is that of
// CheckRegistrationID, or one of the key.
func Request(key crypto.Signer, registrationID string) ([]byte, error) {
	if err := CheckRegistrationID(registrationID); err != nil {
		return nil, err
	}
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: registrationID}}, key)
}

// Chain is an accepted chain: the certificate of the gateway first, each certificate
// followed by that of its issuer.
type Chain []*x509.Certificate

// PEM returns the chain in PEM, as the content of a file.
func (c Chain) PEM() (text []byte) {
	for _, one := range c {
		text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Raw})...)
	}
	return text
}

// Validity returns the period in which the whole chain is valid, from the latest NotBefore
// to the earliest NotAfter of its certificates, and the index of the certificate that
// expires first.
func (c Chain) Validity() (notBefore, notAfter time.Time, first int) {
	notBefore, notAfter = c[0].NotBefore, c[0].NotAfter
	for i, one := range c {
		if one.NotBefore.After(notBefore) {
			notBefore = one.NotBefore
		}
		if one.NotAfter.Before(notAfter) {
			notAfter, first = one.NotAfter, i
		}
	}
	return notBefore, notAfter, first
}

// Fingerprint returns the SHA-256 of the gateway's certificate in hexadecimal digits.
func (c Chain) Fingerprint() string {
	sum := sha256.Sum256(c[0].Raw)
	return hex.EncodeToString(sum[:])
}

// Serial returns the serial number of the gateway's certificate in hexadecimal digits, two
// for each byte, as openssl prints it.
func (c Chain) Serial() string {
	digits := c[0].SerialNumber.Text(16)
	if len(digits)%2 == 1 {
		digits = "0" + digits
	}
	return digits
}

// Issuer returns the distinguished name of the issuer of the gateway's certificate.
func (c Chain) Issuer() string { return c[0].Issuer.String() }

// RenewAt returns when a certificate is renewed: after percent of its lifetime, or up to 5 %
// of the lifetime earlier, so that the gateways of a fleet do not renew at the same time.
// The reduction depends only on the fingerprint, so it stays the same across restarts.
func RenewAt(notBefore, notAfter time.Time, percent int, fingerprint string) time.Time {
	life := notAfter.Sub(notBefore)
	sum := sha256.Sum256([]byte(fingerprint))
	share := time.Duration(sum[0])<<8 | time.Duration(sum[1]) // of 65535
	return notBefore.Add(life/100*time.Duration(percent) - life/20/65535*share)
}
