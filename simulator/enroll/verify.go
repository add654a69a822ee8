package enroll

import (
	"crypto/sha1" //nolint:gosec // see thumbprints
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Refusal is why the service refuses a device: its error code and its text.
type Refusal struct {
	Code    int
	Message string
	Reason  string // for the packet log only
}

// of returns the enrollments that may apply to a device: its individual enrollment, or else all
// groups.
func (entries Entries) of(registrationID string) (fitting []*Entry, individual bool) {
	for i := range entries {
		switch n := &entries[i]; {
		case n.individual == "":
			fitting = append(fitting, n)
		case strings.EqualFold(n.individual, registrationID):
			return []*Entry{n}, true
		}
	}
	return fitting, false
}

// ByToken returns the enrollment whose key has signed the token.
func (entries Entries) ByToken(scope, registrationID, password string, now time.Time) (*Entry, *Refusal) {
	unauthorized := func(reason string) (*Entry, *Refusal) {
		return nil, &Refusal{401000, "Unauthorized", reason}
	}
	token, err := parseToken(password)
	if err != nil {
		return unauthorized(err.Error())
	}
	if err := token.check(scope, registrationID, now); err != nil {
		return unauthorized(err.Error())
	}
	fitting, individual := entries.of(registrationID)
	keys := false
	for _, n := range fitting {
		for _, key := range n.keys {
			keys = true
			if !individual {
				key = DeriveKey(key, registrationID)
			}
			if token.signedBy(key) {
				return n, nil
			}
		}
	}
	switch {
	case individual:
		return unauthorized("the token is not signed with a key of the individual enrollment")
	case !keys: // nothing to verify against: the device is unknown
		return nil, &Refusal{404201, "Registration not found.", "no symmetric-key enrollment matches"}
	}
	return unauthorized("the token is not signed with the key of a group")
}

// ByCertificate returns the enrollment that trusts the client's certificate.
func (entries Entries) ByCertificate(registrationID string, state tls.ConnectionState, now time.Time) (*Entry, *Refusal) {
	invalid := func(reason string) (*Entry, *Refusal) {
		return nil, &Refusal{401002, "Invalid certificate.", reason}
	}
	leaf := state.PeerCertificates[0]
	verify := func(roots *x509.CertPool) error {
		intermediates := x509.NewCertPool()
		for _, c := range state.PeerCertificates[1:] {
			intermediates.AddCert(c)
		}
		_, err := leaf.Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: intermediates, CurrentTime: now,
			KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
		})
		return err
	}
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return invalid("the certificate has expired or is not yet valid")
	}
	fitting, individual := entries.of(registrationID)
	reason := "there is no x509 group"
	if individual {
		reason = "the individual enrollment is for a symmetric key"
	}
	for _, n := range fitting {
		switch {
		case slices.ContainsFunc(thumbprints(leaf), func(t string) bool { return slices.Contains(n.thumbprints, t) }):
			return n, nil
		case len(n.thumbprints) > 0:
			reason = "the certificate's thumbprint does not match"
		case n.roots != nil:
			err := verify(n.roots)
			if err == nil {
				return n, nil
			}
			reason = err.Error()
		}
	}
	return invalid(reason)
}

// Certificates parses all certificates of a PEM text.
func Certificates(text []byte) ([]*x509.Certificate, error) {
	var all []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, errors.New("no PEM certificate found")
	}
	return all, nil
}

// thumbprints returns the SHA-1 and SHA-256 hashes of a certificate in hexadecimal. An
// enrollment uses either of them.
func thumbprints(c *x509.Certificate) []string {
	//nolint:gosec // the portal names certificates by SHA-1; nothing is signed with it
	return []string{fmt.Sprintf("%x", sha1.Sum(c.Raw)), fmt.Sprintf("%x", sha256.Sum256(c.Raw))}
}
