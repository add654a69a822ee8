package signer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"errors"
	"fmt"
)

// Scheme is the name of a signature algorithm with a hash function.
type Scheme string

// The schemes. An ECDSA signature is an ASN.1 sequence of r and s, on the curve of the key.
// The salt of a PSS signature is as long as the digest, and MGF1 uses the same hash function.
const (
	ECDSAWithSHA256 Scheme = "ecdsa-sha256"
	ECDSAWithSHA384 Scheme = "ecdsa-sha384"
	ECDSAWithSHA512 Scheme = "ecdsa-sha512"
	PKCS1WithSHA256 Scheme = "rsa-pkcs1-sha256"
	PKCS1WithSHA384 Scheme = "rsa-pkcs1-sha384"
	PKCS1WithSHA512 Scheme = "rsa-pkcs1-sha512"
	PSSWithSHA256   Scheme = "rsa-pss-sha256"
	PSSWithSHA384   Scheme = "rsa-pss-sha384"
	PSSWithSHA512   Scheme = "rsa-pss-sha512"
)

type algorithm uint8

const (
	algorithmECDSA algorithm = iota + 1
	algorithmPKCS1
	algorithmPSS
)

// schemes describes the schemes. The name of a TLS scheme for ECDSA includes a curve, which TLS 1.2
// ignores. With TLS 1.3, crypto/tls selects only the scheme for the curve of the key.
var schemes = map[Scheme]struct {
	algorithm algorithm
	hash      crypto.Hash
	tls       tls.SignatureScheme
}{
	ECDSAWithSHA256: {algorithmECDSA, crypto.SHA256, tls.ECDSAWithP256AndSHA256},
	ECDSAWithSHA384: {algorithmECDSA, crypto.SHA384, tls.ECDSAWithP384AndSHA384},
	ECDSAWithSHA512: {algorithmECDSA, crypto.SHA512, tls.ECDSAWithP521AndSHA512},
	PKCS1WithSHA256: {algorithmPKCS1, crypto.SHA256, tls.PKCS1WithSHA256},
	PKCS1WithSHA384: {algorithmPKCS1, crypto.SHA384, tls.PKCS1WithSHA384},
	PKCS1WithSHA512: {algorithmPKCS1, crypto.SHA512, tls.PKCS1WithSHA512},
	PSSWithSHA256:   {algorithmPSS, crypto.SHA256, tls.PSSWithSHA256},
	PSSWithSHA384:   {algorithmPSS, crypto.SHA384, tls.PSSWithSHA384},
	PSSWithSHA512:   {algorithmPSS, crypto.SHA512, tls.PSSWithSHA512},
}

// Schemes lists all schemes for a key, or none if its type is not supported.
func Schemes(public crypto.PublicKey) []Scheme {
	switch public.(type) {
	case *ecdsa.PublicKey:
		return []Scheme{ECDSAWithSHA256, ECDSAWithSHA384, ECDSAWithSHA512}
	case *rsa.PublicKey:
		return []Scheme{PSSWithSHA256, PSSWithSHA384, PSSWithSHA512, PKCS1WithSHA256, PKCS1WithSHA384, PKCS1WithSHA512}
	}
	return nil
}

// Options returns the options with which a [crypto.Signer] signs a digest with this scheme, or
// nil if the scheme is not known.
func (s Scheme) Options() crypto.SignerOpts {
	known, ok := schemes[s]
	if !ok {
		return nil
	}
	if known.algorithm == algorithmPSS {
		return &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: known.hash}
	}
	return known.hash
}

// signs reports whether the scheme is known, and is for keys of this type.
func (s Scheme) signs(public crypto.PublicKey) bool {
	_, isRSA := public.(*rsa.PublicKey)
	known, ok := schemes[s]
	return ok && isRSA == (known.algorithm != algorithmECDSA)
}

// verify checks a signature. A PSS salt must be as long as the digest.
func (s Scheme) verify(public crypto.PublicKey, digest, signature []byte) error {
	known := schemes[s]
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(key, digest, signature) {
			return nil
		}
	case *rsa.PublicKey:
		if known.algorithm == algorithmPSS {
			return rsa.VerifyPSS(key, known.hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
		}
		return rsa.VerifyPKCS1v15(key, known.hash, digest, signature)
	}
	return errors.New("ecdsa: verification error")
}

// schemeFor returns the scheme that a caller of Sign wants.
func schemeFor(public crypto.PublicKey, opts crypto.SignerOpts) (Scheme, error) {
	want := algorithmPKCS1
	if _, isECDSA := public.(*ecdsa.PublicKey); isECDSA {
		want = algorithmECDSA
	} else if pss, ok := opts.(*rsa.PSSOptions); ok {
		if pss.SaltLength != rsa.PSSSaltLengthEqualsHash && pss.SaltLength != opts.HashFunc().Size() {
			return "", errors.New("a PSS salt must be as long as the digest")
		}
		want = algorithmPSS
	}
	for name, known := range schemes {
		if known.algorithm == want && known.hash == opts.HashFunc() {
			return name, nil
		}
	}
	return "", fmt.Errorf("the protocol has no signature with %v", opts.HashFunc())
}

// usable returns an error if dpsd cannot use a key of this type or size.
func usable(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P224() {
			return errors.New("the curve P-224 is not supported; use P-256 or P-384")
		}
		return nil
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("an RSA key of %d bits is not supported; use one of 2048 to 8192 bits", bits)
		}
		return nil
	}
	return fmt.Errorf("a key of type %T is not supported; use ECDSA or RSA", public)
}
