package pemfile

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"github.com/dpsd-project/dpsd/input"
)

// ErrNotCertificate means that a file does not contain a certificate in PEM, or contains
// something else in addition.
var ErrNotCertificate = errors.New("not a PEM certificate")

// Certificates returns the certificates of a PEM file, at least one, in the order of the
// file. It ignores private keys, which often are in the same file, and EC PARAMETERS.
// Everything else is an error: a *input.Mistake that wraps ErrNotCertificate.
func Certificates(text []byte) ([]*x509.Certificate, error) {
	blocks, err := Blocks(text)
	if err != nil {
		return nil, kind(err, ErrNotCertificate)
	}
	var certificates []*x509.Certificate
	keys := 0
	for _, b := range blocks {
		switch {
		case b.Type == "CERTIFICATE":
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, unreadable(b, len(certificates)+1, err)
			}
			certificates = append(certificates, c)
		case isPrivateKey(b.Type):
			keys++
			clear(b.Bytes)
		case b.Type == "EC PARAMETERS":
		default:
			return nil, otherBlock(b)
		}
	}
	switch {
	case len(certificates) > 0:
		return certificates, nil
	case keys > 0:
		return nil, &input.Mistake{What: "the file contains a private key but no certificate", Command: findCertificate, Then: "use that file", Err: ErrNotCertificate}
	}
	return nil, kind(found(text).asCertificate(), ErrNotCertificate)
}

// labels are the labels of RFC 7468 and of openssl, except those of private keys.
var labels = map[string]what{
	"CERTIFICATE": certificate, "TRUSTED CERTIFICATE": certificate, "X509 CERTIFICATE": certificate,
	"CERTIFICATE REQUEST": request, "NEW CERTIFICATE REQUEST": request,
	"PUBLIC KEY": publicKey, "RSA PUBLIC KEY": publicKey, "EC PUBLIC KEY": publicKey, "SSH2 PUBLIC KEY": publicKey,
	"PKCS7": p7b, "PKCS #7 SIGNED DATA": p7b, "CMS": p7b,
}

func isPrivateKey(label string) bool { return strings.HasSuffix(label, "PRIVATE KEY") }

// unreadable explains a certificate that cannot be parsed.
func unreadable(b Block, number int, err error) error {
	m := &input.Mistake{Err: ErrNotCertificate}
	m.What = fmt.Sprintf("line %d: certificate %d cannot be read: %v", b.Line, number, err)
	if curve := curveIn(b.Bytes); curve != "" {
		m.What = fmt.Sprintf("line %d: certificate %d is for a key on %s; DPS accepts RSA and EC on P-256, P-384 and P-521", b.Line, number, curve)
		m.Then = "have a certificate issued for a key on P-256"
	} else if what := kindOf(b.Bytes); what != unknown && what != certificate {
		m.What = fmt.Sprintf("line %d: the block is labelled CERTIFICATE, but it contains %s", b.Line, names[what])
	}
	return m
}

// otherBlock explains a block that is not a certificate.
func otherBlock(b Block) error {
	m := &input.Mistake{Err: ErrNotCertificate}
	at := fmt.Sprintf("line %d: ", b.Line)
	switch labels[b.Type] {
	case certificate:
		m.What, m.Command = at+"a TRUSTED CERTIFICATE, which only openssl reads", rewriteCertificates
		if b.Type == "X509 CERTIFICATE" {
			m.What = at + "a certificate with the old label X509 CERTIFICATE"
		}
	case p7b:
		m.What = at + names[p7b]
		m.Command = "cp -p FILE FILE.orig && openssl pkcs7 -in FILE.orig -print_certs -out FILE"
	case request:
		m.What = at + names[request] + ", which a CA has yet to sign"
		m.Command, m.Then = findCertificate, "use that file"
	case publicKey:
		m.What = at + names[publicKey] + ", not a certificate"
		m.Command, m.Then = findCertificate, "use that file"
	default:
		m.What = at + fmt.Sprintf("a block %q, which is not a certificate", shown(b.Type))
		m.Then = "remove it from the file"
	}
	return m
}

const (
	rewriteCertificates = "cp -p FILE FILE.orig && openssl crl2pkcs7 -nocrl -certfile FILE.orig | openssl pkcs7 -print_certs -out FILE"
	// The commands find the files in the same directory that contain the missing part.
	findCertificate = "grep -ls 'BEGIN CERTIFICATE-' DIR/*"
	findPrivateKey  = "grep -ls 'PRIVATE KEY-' DIR/*"
)

// kind sets the kind of a mistake.
func kind(err error, is error) error {
	if m, ok := errors.AsType[*input.Mistake](err); ok && m.Err == nil {
		m.Err = is
	}
	return err
}
