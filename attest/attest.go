// Package attest proves the identity of this gateway to the Device Provisioning Service.
//
// It makes SAS tokens from a symmetric key, loads X.509 certificates with their
// private keys, reads the secrets that a configuration refers to, and resolves the
// registration ID. It reads every file again for each attempt, so the next attempt uses
// a renewed key. The current time is always an argument. No error, log text or String
// method shows key material or a token.
package attest

import (
	"context"
	"crypto/tls"
	"time"
)

// Subject identifies the device that a proof is for.
type Subject struct {
	// Resource is what a SAS token grants access to:
	// "{idScope}/registrations/{registrationId}".
	Resource string
	// RegistrationID must equal the common name of an X.509 leaf certificate.
	RegistrationID string
}

// Proof contains what one connection presents to the service. It is made for one attempt
// and not kept. Close it when the attempt ends, because a TPM or a signer may hold the key.
type Proof struct {
	// Certificate is the TLS client certificate with its key and its parsed Leaf;
	// nil with a symmetric key.
	Certificate *tls.Certificate
	// Password is the SAS token for CONNECT; empty with X.509, which leaves the
	// password flag clear.
	Password string
	// Expires is when the token, or the first certificate of the chain, expires.
	Expires time.Time
	// Doubt is a *Doubt about a symmetric key, or nil. It explains a rejection.
	Doubt error
	// ExpiresFirst is the index in Certificate.Certificate of the certificate that
	// expires first; 0 is the leaf.
	ExpiresFirst int
	// Unrelated lists the indices of the certificates that are not in the leaf's chain of
	// issuers. They do not affect its validity.
	Unrelated []int
}

// key returns the private key if a TPM or a signer holds it, or nil.
func (p *Proof) key() *HardwareKey {
	if p.Certificate == nil {
		return nil
	}
	key, _ := p.Certificate.PrivateKey.(*HardwareKey)
	return key
}

// Hardware reports whether a TPM or a signer, which may be slow, creates the signatures.
func (p *Proof) Hardware() bool { return p.key() != nil }

// KeyError returns the *SecretError of a TPM or a signer that failed to sign, or nil. The error of
// the TLS handshake contains only its text.
func (p *Proof) KeyError() error {
	if key := p.key(); key != nil {
		return key.failed()
	}
	return nil
}

// Close releases the key. It does nothing if no TPM or signer holds it.
func (p *Proof) Close() error {
	if key := p.key(); key != nil {
		return key.Close()
	}
	return nil
}

// Credential is one way to prove the identity.
type Credential interface {
	// Prove reads the key material and makes a proof for sub that is valid at now.
	// Its errors are *SecretError and wrap one of the sentinels of this package or an
	// error of the file system, or a *HardwareError. If the validity of a certificate is the
	// only obstacle (*CertificateError), Prove returns the complete proof together with the
	// error: a caller that does not trust its clock may still try it. ctx also limits later
	// uses of a key that a TPM or a signer holds.
	Prove(ctx context.Context, sub Subject, secrets Secrets, now time.Time) (Proof, error)
	// References lists the secrets that the proof is made from, so that they can be watched.
	References() []Reference
	// Type describes credentials of this type to the configuration and "dpsd check".
	Type() Type
	// String names the type and the reference, such as
	// "symmetric-key credential:dps-primary-key". It contains no secret.
	String() string
}
