// Package attest proves to the Device Provisioning Service who this gateway is.
//
// It makes SAS tokens from a symmetric key, loads X.509 certificates with their
// private keys, finds the contents of the secrets a configuration refers to, and
// resolves the registration ID. Everything that lies in a file is read afresh each
// time, so a renewed key is used by the next attempt. The present time is always an
// argument. No error, log text or String method shows key material or a token.
package attest

import (
	"crypto/tls"
	"time"
)

// Subject tells for whom a proof is made.
type Subject struct {
	// Resource is what a SAS token grants access to:
	// "{idScope}/registrations/{registrationId}".
	Resource string
	// RegistrationID must equal the common name of an X.509 leaf certificate.
	RegistrationID string
}

// Proof is what one connection needs to show. It is made for one attempt and not kept.
type Proof struct {
	// Certificate is the TLS client certificate with its key and its parsed Leaf;
	// nil with a symmetric key.
	Certificate *tls.Certificate
	// Password is the SAS token for CONNECT; empty with X.509, which leaves the
	// password flag clear.
	Password string
	// Expires is when the token, or the first certificate of the chain, expires.
	Expires time.Time
	// Doubt is a *Doubt about a symmetric key, which explains a refusal; nil for none.
	Doubt error
	// ExpiresFirst is the index in Certificate.Certificate of the certificate that
	// expires first; 0 is the leaf.
	ExpiresFirst int
	// Unrelated are the indices of the certificates that did not issue the leaf, or one
	// that did. They say nothing about it.
	Unrelated []int
}

// Credential is one way to prove the identity.
type Credential interface {
	// Prove reads the key material and makes a proof for sub that is valid at now.
	// Its errors are *SecretError around one of the sentinels of this package or an
	// error of the file system. When nothing but the validity of a certificate is in
	// the way (*CertificateError), the proof is returned whole next to the error: a
	// caller that mistrusts its clock may try it all the same.
	Prove(sub Subject, secrets Secrets, now time.Time) (Proof, error)
	// References lists the secrets the proof is made from, for watching them.
	References() []Reference
	// String names the kind and the reference, such as
	// "symmetric-key credential:dps-primary-key". It holds no secret.
	String() string
}
