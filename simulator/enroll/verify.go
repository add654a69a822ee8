package enroll

import (
	"bytes"
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
	unauthorized := func(e Explanation) (*Entry, *Refusal) {
		return nil, &Refusal{401000, "Unauthorized", e}
	}
	token, wrong := parseToken(password)
	if wrong != nil {
		return unauthorized(*wrong)
	}
	if wrong := token.check(scope, registrationID, now); wrong != nil {
		return unauthorized(*wrong)
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
	case individual && !keys:
		return unauthorized(Explanation{
			Reason: "the individual enrollment requires a certificate", Expected: "a client certificate and no password", Given: "a SAS token",
		})
	case !keys: // nothing to verify against: the device is unknown
		return nil, &Refusal{404201, "Registration not found.", Explanation{
			Reason:   "no symmetric-key enrollment matches",
			Expected: fmt.Sprintf("an individual enrollment of %s, or a group with the type symmetric-key", Quote(registrationID)),
			Given:    "neither",
		}}
	}
	return unauthorized(entries.explainSignature(token, fitting, scope+"/registrations/"+registrationID, registrationID))
}

// ByCertificate returns the enrollment that trusts the client's certificate.
func (entries Entries) ByCertificate(registrationID string, state tls.ConnectionState, now time.Time) (*Entry, *Refusal) {
	leaf := state.PeerCertificates[0]
	if now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
		return nil, invalid(Explanation{
			Reason:   "the certificate has expired or is not yet valid",
			Expected: "a certificate that is valid at " + now.UTC().Format(time.RFC3339),
			Given:    fmt.Sprintf("one that is valid from %s to %s", leaf.NotBefore.UTC().Format(time.RFC3339), leaf.NotAfter.UTC().Format(time.RFC3339)),
		})
	}
	fitting, individual := entries.of(registrationID)
	refusal := invalid(Explanation{
		Reason:   "there is no x509 group",
		Expected: fmt.Sprintf("an individual enrollment of %s, or a group with the type x509", Quote(registrationID)),
		Given:    "neither",
	})
	if individual {
		refusal = invalid(Explanation{Reason: "the individual enrollment requires a symmetric key", Expected: "a SAS token as the password", Given: "a client certificate"})
	}
	for _, n := range fitting {
		switch {
		case slices.ContainsFunc(thumbprints(leaf), func(t string) bool { return slices.Contains(n.thumbprints, t) }):
			return n, nil
		case len(n.thumbprints) > 0:
			refusal = invalid(Explanation{
				Reason: "the certificate's thumbprint does not match", Expected: strings.Join(n.thumbprints, " or "), Given: strings.Join(thumbprints(leaf), " (SHA-1) or ") + " (SHA-256)",
			})
		case n.roots != nil:
			err := n.verify(state.PeerCertificates, now)
			if err == nil {
				return n, nil
			}
			refusal = invalid(n.explainChain(state.PeerCertificates, err))
		}
	}
	return nil, refusal
}

func invalid(e Explanation) *Refusal { return &Refusal{401002, "Invalid certificate.", e} }

// verify verifies the chain that a device has sent.
func (n *Entry) verify(chain []*x509.Certificate, now time.Time) error {
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: n.roots, Intermediates: intermediates, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
	})
	return err
}

// explainChain explains a chain that leads to none of the enrollment's authorities.
func (n *Entry) explainChain(chain []*x509.Certificate, err error) Explanation {
	last := chain[len(chain)-1]
	e := Explanation{
		Reason:   "the certificate chain is not trusted (" + err.Error() + ")",
		Expected: "a chain to " + Quote(strings.Join(n.issuers, "; ")),
		Given:    fmt.Sprintf("%d certificates, the last one issued by %s", len(chain), Quote(last.Issuer.String())),
	}
	if len(chain) == 1 {
		e.Given = "one certificate, issued by " + Quote(last.Issuer.String())
	}
	switch {
	case !errors.As(err, &x509.UnknownAuthorityError{}):
	case bytes.Equal(last.RawIssuer, last.RawSubject) && len(chain) == 1:
		e.Advice = "The certificate is self-signed. An individual enrollment can name its thumbprint."
	case slices.Contains(n.issuers, last.Issuer.String()):
		e.Advice = "The certificate was issued by an authority with the same name but a different key."
	default:
		e.Advice = "The device must send the intermediate certificates after its own."
	}
	return e
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
