package certificate

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

const (
	// maxText and maxCertificates limit a chain. The service's chains have two to five
	// certificates, of less than 2 KiB of text each.
	maxText         = 64 << 10
	maxCertificates = 8

	// maxRSA limits the keys that signatures are verified with, in bits: the time that a
	// verification takes grows with the square of the length.
	maxRSA = 4096

	// maxAhead is how far in the future the validity of a certificate may begin. The clocks of
	// the authority and the gateway may differ, and the gateway can wait.
	maxAhead = time.Hour
)

// RejectedError is the reason why a chain must not be used. It contains text from the peer,
// which must be escaped before it is displayed.
type RejectedError struct{ Reason string }

func (e *RejectedError) Error() string { return "the issued certificate is unusable: " + e.Reason }

// ErrNotIssued means that DPS has assigned the gateway without a chain.
var ErrNotIssued = errors.New("DPS has assigned the gateway without a certificate")

// RefusedError means that DPS refused a registration with a certificate request.
type RefusedError struct{ Err error }

func (e *RefusedError) Error() string {
	return "DPS refused the registration with a certificate request: " + e.Err.Error()
}

// Unwrap returns the error of the registration.
func (e *RefusedError) Unwrap() error { return e.Err }

func rejected(format string, a ...any) error { return &RejectedError{fmt.Sprintf(format, a...)} }

// Accept parses a chain as DPS returns it (the JSON of issuedCertificateChain) and checks
// that it belongs to the public key and the registration ID, and is valid at now or becomes valid
// within an hour. The root may be absent. The error is ErrNotIssued if there is no chain, and
// otherwise a *RejectedError.
func Accept(raw json.RawMessage, key crypto.PublicKey, registrationID string, now time.Time) (Chain, error) {
	chain, err := parse(raw)
	for _, check := range []func() error{
		func() error { return chain.checkLeaf(key, registrationID) },
		chain.checkEach,
		func() error { return chain.checkTimes(now) },
		chain.checkSignatures, // the last check, because it takes the most time
	} {
		if err == nil {
			err = check()
		}
	}
	if err != nil {
		return nil, err
	}
	return chain, nil
}

// parse parses the certificates of a chain.
func parse(raw json.RawMessage) (Chain, error) {
	var texts []string
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return nil, ErrNotIssued
	case len(raw) > maxText:
		return nil, rejected("the chain has %d bytes; at most %d are allowed", len(raw), maxText)
	case json.Unmarshal(raw, &texts) != nil:
		return nil, rejected("the chain is not a list of strings")
	case len(texts) == 0:
		return nil, rejected("the chain is empty")
	case len(texts) > maxCertificates:
		return nil, rejected("the chain has %d certificates; at most %d are allowed", len(texts), maxCertificates)
	}
	chain := make(Chain, len(texts))
	for i, text := range texts {
		der, problem := decode(text)
		if problem == "" {
			one, err := x509.ParseCertificate(der)
			if err == nil {
				chain[i] = one
				continue
			}
			problem = fmt.Sprintf("is malformed: %.100s", strings.TrimPrefix(err.Error(), "x509: "))
		}
		return nil, rejected("certificate %d of %d %s", i+1, len(texts), problem)
	}
	return chain, nil
}

// decode returns the DER of a certificate in one of the three forms that have been observed:
// base64 of DER, base64 of PEM, and PEM. Otherwise, it returns what is wrong.
func decode(text string) (der []byte, problem string) {
	const begin = "-----BEGIN "
	text = strings.TrimSpace(text)
	data, err := base64.StdEncoding.DecodeString(text)
	switch {
	case text == "":
		return nil, "is empty"
	case err == nil && !bytes.HasPrefix(data, []byte(begin)):
		return data, ""
	case err == nil:
		text = string(data)
	case !strings.HasPrefix(text, begin):
		return nil, "is neither base64 nor PEM"
	}
	block, rest := pem.Decode([]byte(text))
	switch {
	case block == nil || block.Type != "CERTIFICATE":
		return nil, "is not a certificate in PEM"
	case len(bytes.TrimSpace(rest)) > 0:
		return nil, "is followed by other text"
	}
	return block.Bytes, ""
}

// rejected returns an error about the certificate with this index.
func (c Chain) rejected(i int, format string, a ...any) error {
	return rejected("certificate %d of %d %s", i+1, len(c), fmt.Sprintf(format, a...))
}

// checkLeaf checks that the first certificate is the gateway's.
func (c Chain) checkLeaf(public crypto.PublicKey, registrationID string) error {
	own, _ := public.(interface{ Equal(crypto.PublicKey) bool }) // all keys of the standard library
	switch i := slices.IndexFunc(c, func(one *x509.Certificate) bool { return own.Equal(one.PublicKey) }); {
	case i < 0:
		return c.rejected(0, "is for a different key than the request")
	case i > 0:
		return c.rejected(i, "is the gateway's certificate, which must be the first")
	}
	var names []string
	for _, attribute := range c[0].Subject.Names {
		if attribute.Type.Equal(asn1.ObjectIdentifier{2, 5, 4, 3}) {
			names = append(names, fmt.Sprint(attribute.Value))
		}
	}
	switch {
	case len(names) != 1:
		return c.rejected(0, "has %d common names instead of one", len(names))
	case names[0] != registrationID:
		return c.rejected(0, "has the common name %.64q instead of the registration ID", names[0])
	case c[0].IsCA:
		return c.rejected(0, "is a CA certificate, not an end-entity certificate")
	case selfIssued(c[0]):
		return c.rejected(0, "is self-signed")
	}
	return nil
}

// selfIssued reports whether a certificate names itself as the issuer.
func selfIssued(one *x509.Certificate) bool { return bytes.Equal(one.RawIssuer, one.RawSubject) }

// checkEach checks what can be checked without the other certificates and the time.
func (c Chain) checkEach() error {
	for i, one := range c {
		key, isRSA := one.PublicKey.(*rsa.PublicKey)
		switch {
		case slices.ContainsFunc(c[:i], one.Equal):
			return c.rejected(i, "is in the chain twice")
		case i > 0 && !one.IsCA:
			return c.rejected(i, "is not a CA certificate")
		case isRSA && key.N.BitLen() > maxRSA:
			return c.rejected(i, "has an RSA key of %d bits; at most %d are allowed", key.N.BitLen(), maxRSA)
		case outdated(one.SignatureAlgorithm) && !selfIssued(one): // the signature of a root is not verified
			return c.rejected(i, "has an insecure signature: %s", one.SignatureAlgorithm)
		}
	}
	return nil
}

// outdated reports whether TLS peers refuse signatures with an algorithm. This package checks
// the algorithm even if it cannot verify a signature, because the chain does not contain the
// issuer.
func outdated(a x509.SignatureAlgorithm) bool {
	return slices.Contains([]x509.SignatureAlgorithm{
		x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
	}, a)
}

// checkTimes checks that the whole chain is valid now or soon.
func (c Chain) checkTimes(now time.Time) error {
	clock := "the clock of this gateway shows " + now.UTC().Format(time.RFC3339)
	for i, one := range c {
		switch {
		case !now.Before(one.NotAfter):
			return c.rejected(i, "expired at %s; %s", one.NotAfter.UTC().Format(time.RFC3339), clock)
		case one.NotBefore.After(now.Add(maxAhead)):
			return c.rejected(i, "is not valid before %s; %s", one.NotBefore.UTC().Format(time.RFC3339), clock)
		}
	}
	if notBefore, notAfter, first := c.Validity(); !notBefore.Before(notAfter) {
		return c.rejected(first, "expires before the whole chain becomes valid")
	}
	return nil
}

// checkSignatures checks that each certificate is issued by the next.
func (c Chain) checkSignatures() error {
	for i, one := range c[:len(c)-1] {
		if issuer := c[i+1]; !bytes.Equal(one.RawIssuer, issuer.RawSubject) {
			return c.rejected(i, "names a different issuer than certificate %d", i+2)
		} else if err := one.CheckSignatureFrom(issuer); err != nil {
			return c.rejected(i, "is not signed by certificate %d: %.100s", i+2, strings.TrimPrefix(err.Error(), "x509: "))
		}
	}
	return nil
}
