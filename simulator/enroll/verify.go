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

// Refusal is why the service does not serve a device: its error code and its text.
type Refusal struct {
	Code    int
	Message string
	Reason  string // for the packet log only
}

// find returns the individual enrollment of a device.
func (entries Entries) find(registrationID string) *Entry {
	for i := range entries {
		if entries[i].individual != "" && strings.EqualFold(entries[i].individual, registrationID) {
			return &entries[i]
		}
	}
	return nil
}

// ByToken finds the enrollment whose key has signed the token.
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
	if n := entries.find(registrationID); n != nil {
		for _, key := range n.keys {
			if token.signedBy(key) {
				return n, nil
			}
		}
		return unauthorized("no key of the individual enrollment has signed the token")
	}
	groups := false
	for i := range entries {
		n := &entries[i]
		if n.individual != "" {
			continue
		}
		for _, key := range n.keys {
			groups = true
			if token.signedBy(DeriveKey(key, registrationID)) {
				return n, nil
			}
		}
	}
	if !groups {
		// Nothing to verify against: the device is unknown.
		return nil, &Refusal{404201, "Registration not found.", "no symmetric-key enrollment fits"}
	}
	return unauthorized("no group key has signed the token")
}

// ByCertificate finds the enrollment that trusts the client's certificate.
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
		return invalid("the certificate is not valid now")
	}
	if n := entries.find(registrationID); n != nil {
		switch {
		case n.thumbprint != "":
			if slices.Contains(thumbprints(leaf), n.thumbprint) {
				return n, nil
			}
			return invalid("the certificate's thumbprint is another")
		case n.roots != nil:
			if err := verify(n.roots); err != nil {
				return invalid(err.Error())
			}
			return n, nil
		}
		return invalid("the individual enrollment is for a symmetric key")
	}
	reason := "there is no x509 group"
	for i := range entries {
		if n := &entries[i]; n.individual == "" && n.roots != nil {
			err := verify(n.roots)
			if err == nil {
				return n, nil
			}
			reason = err.Error()
		}
	}
	return invalid(reason)
}

// Certificates reads all certificates of a PEM text.
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
		return nil, errors.New("no certificate in PEM form")
	}
	return all, nil
}

// thumbprints are the SHA-1 and the SHA-256 of a certificate in hex: an enrollment names it
// by either.
func thumbprints(c *x509.Certificate) []string {
	//nolint:gosec // the portal names certificates by SHA-1; nothing is signed with it
	return []string{fmt.Sprintf("%x", sha1.Sum(c.Raw)), fmt.Sprintf("%x", sha256.Sum256(c.Raw))}
}
