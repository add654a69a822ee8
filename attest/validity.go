package attest

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/input"
)

// ErrNotForClients means that the issuer of the leaf certificate has restricted its use to
// purposes that do not include client authentication.
var ErrNotForClients = errors.New("the certificate is not for client authentication")

// notForClients returns ErrNotForClients with the reason.
func notForClients(why string) error {
	return &input.Mistake{What: ErrNotForClients.Error() + ": " + why, Err: ErrNotForClients,
		Then: "Have a certificate issued whose extended key usages include clientAuth."}
}

// CertificateError means that a certificate of the chain is not valid at present.
type CertificateError struct {
	// Position is the position of the certificate in the chain; 1 is the leaf. Of is the
	// length of the chain.
	Position, Of int
	// NotBefore and NotAfter are the bounds of the certificate's validity.
	NotBefore, NotAfter time.Time
	// Err is ErrExpired or ErrNotYetValid.
	Err error
}

// Error names the certificate, unless it is the leaf, and the violated bound, in UTC.
func (e *CertificateError) Error() string {
	what, bound, at := "the certificate", "has expired (not after ", e.NotAfter
	if e.Position > 1 {
		what = fmt.Sprintf("certificate %d of %d in the chain", e.Position, e.Of)
	}
	if errors.Is(e.Err, ErrNotYetValid) {
		bound, at = "is not yet valid (not before ", e.NotBefore
	}
	return what + " " + bound + at.UTC().Format(time.RFC3339) + ")"
}

// Unwrap returns ErrExpired or ErrNotYetValid.
func (e *CertificateError) Unwrap() error { return e.Err }

// issuing returns the indices of the certificates from the leaf, which is the first, to the
// last issuer in the chain. The issuers may be in any order. If two certificates may be the
// issuer, issuing returns the one that is valid longer.
func issuing(chain []*x509.Certificate) (path []int) {
	for at := 0; at >= 0; {
		path = append(path, at)
		current, next := chain[at], -1
		for i, c := range chain {
			if !slices.Contains(path, i) && bytes.Equal(c.RawSubject, current.RawIssuer) && current.CheckSignatureFrom(c) == nil &&
				(next < 0 || c.NotAfter.After(chain[next].NotAfter)) {
				next = i
			}
		}
		at = next
	}
	return path
}

// invalidAt returns an error about the first certificate of the path that is not valid at
// now, or nil if all are valid.
func invalidAt(now time.Time, chain []*x509.Certificate, path []int) error {
	for _, i := range path {
		c := chain[i]
		invalid := &CertificateError{Position: i + 1, Of: len(chain), NotBefore: c.NotBefore, NotAfter: c.NotAfter}
		switch {
		case now.Before(c.NotBefore):
			invalid.Err = ErrNotYetValid
		case now.After(c.NotAfter):
			invalid.Err = ErrExpired
		default:
			continue
		}
		return invalid
	}
	return nil
}

// end returns the time when the path expires and the index of the certificate that expires
// first.
func end(chain []*x509.Certificate, path []int) (at time.Time, index int) {
	for _, i := range path {
		if c := chain[i]; i == 0 || c.NotAfter.Before(at) {
			at, index = c.NotAfter, i
		}
	}
	return at, index
}

// ForClients returns nil if the extended key usages of a certificate include client
// authentication, or if it has none and may be used for any purpose
// (RFC 5280 §4.2.1.12). The error wraps ErrNotForClients.
func ForClients(c *x509.Certificate) error {
	if len(c.ExtKeyUsage)+len(c.UnknownExtKeyUsage) == 0 ||
		slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || slices.Contains(c.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return nil
	}
	if len(c.UnknownExtKeyUsage) == 0 && !slices.ContainsFunc(c.ExtKeyUsage, func(u x509.ExtKeyUsage) bool { return u != x509.ExtKeyUsageServerAuth }) {
		return notForClients("its only extended key usage is serverAuth; it also needs clientAuth")
	}
	return notForClients("its extended key usages do not include clientAuth")
}
