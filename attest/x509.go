package attest

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/pemfile"
	"github.com/dpsd-project/dpsd/tpm"
)

var (
	// ErrKeyMismatch means that the private key does not belong to the leaf certificate.
	ErrKeyMismatch = errors.New("the private key does not belong to the certificate")
	// ErrCommonName means that the leaf's common name is not the registration ID. The
	// service requires that they are equal.
	ErrCommonName = errors.New("the common name of the certificate is not the registration ID")
	// ErrExpired means that a certificate of the chain has expired.
	ErrExpired = errors.New("the certificate has expired")
	// ErrNotYetValid means that a certificate of the chain is not yet valid. Usually the
	// clock is slow.
	ErrNotYetValid = errors.New("the certificate is not yet valid")
)

// X509 is a certificate with its private key.
type X509 struct {
	// Certificate refers to PEM certificates: the leaf first, then the intermediates up to
	// the one that the service knows.
	Certificate Reference
	// PrivateKey refers to the leaf's key in PEM: PKCS#8, SEC 1 or PKCS#1; RSA of 1024
	// bits or more, or EC on P-256, P-384 or P-521; or a TSS2 key. It may refer to the same
	// file as Certificate, or to a signer.
	PrivateKey Reference
}

// Type returns the type "x509".
func (X509) Type() Type {
	return NewType("x509", func(x *X509) []Key {
		return []Key{{Name: "certificate", Reference: &x.Certificate}, {Name: "private_key", Reference: &x.PrivateKey, Secret: true, Signer: true}}
	}, nil)
}

// Prove loads the certificate and the key. It checks that the key belongs to the leaf, that
// the leaf's common name is sub.RegistrationID, and that each certificate of the chain is
// valid at now. It checks the validity last and returns the proof together with a
// *CertificateError.
func (x X509) Prove(ctx context.Context, sub Subject, secrets Secrets, now time.Time) (Proof, error) {
	chain, err := x.Chain(secrets)
	if err != nil {
		return Proof{}, err
	}
	key, err := x.key(ctx, secrets, chain[0])
	if err != nil {
		return Proof{}, err
	}
	proof, err := x.present(chain, key, sub, secrets, now)
	if hardware, is := key.(*HardwareKey); is && proof.Certificate == nil {
		_ = hardware.Close() // err is the reason why it is not used
	}
	return proof, err
}

// present implements Prove for the given certificates and key.
func (x X509) present(chain []*x509.Certificate, key crypto.Signer, sub Subject, secrets Secrets, now time.Time) (Proof, error) {
	leaf := chain[0]
	aboutCertificate := func(err error) error { return secrets.unusable(x.Certificate, certificates, err) }
	if !belongs(key, leaf) {
		for i, c := range chain[1:] {
			if belongs(key, c) {
				return Proof{}, aboutCertificate(fmt.Errorf("the leaf must come first, but the key belongs to certificate %d of %d: %w", i+2, len(chain), ErrKeyMismatch))
			}
		}
		return Proof{}, secrets.unusable(x.PrivateKey, privateKey, fmt.Errorf("%w %s", ErrKeyMismatch, x.Certificate))
	}
	if cn := leaf.Subject.CommonName; cn != sub.RegistrationID {
		hint := ""
		if strings.EqualFold(cn, sub.RegistrationID) {
			hint = "; they differ only in case"
		}
		// The name is quoted because it may contain any characters.
		return Proof{}, aboutCertificate(fmt.Errorf("%w: %q, not %q%s", ErrCommonName, cn, sub.RegistrationID, hint))
	}
	proof := Proof{Certificate: &tls.Certificate{PrivateKey: key, Leaf: leaf}}
	if hardware, is := key.(*HardwareKey); is {
		// crypto/tls would otherwise choose any scheme for this type of key.
		proof.Certificate.SupportedSignatureAlgorithms = hardware.key.SupportedSchemes()
	}
	path := issuing(chain)
	proof.Expires, proof.ExpiresFirst = end(chain, path)
	for i, c := range chain {
		if !slices.Contains(path, i) {
			proof.Unrelated = append(proof.Unrelated, i)
		}
		proof.Certificate.Certificate = append(proof.Certificate.Certificate, c.Raw)
	}
	if invalid := invalidAt(now, chain, path); invalid != nil {
		return proof, aboutCertificate(invalid)
	}
	return proof, nil
}

// References returns the references of the certificate and the key.
func (x X509) References() []Reference { return references(x.Certificate, x.PrivateKey) }

// String returns the type and the certificate's reference.
func (x X509) String() string { return x.Type().Name + " " + x.Certificate.String() }

// CommonName returns the common name of the leaf certificate unchanged; it may be empty.
// It does not need the private key.
func (x X509) CommonName(secrets Secrets) (string, error) {
	chain, err := x.Chain(secrets)
	if err != nil {
		return "", err
	}
	return chain[0].Subject.CommonName, nil
}

// Chain returns the certificates, at least one, without the private key.
func (x X509) Chain(secrets Secrets) (chain []*x509.Certificate, err error) {
	err = secrets.use(x.Certificate, certificates, func(text []byte) (err error) {
		chain, err = pemfile.Certificates(text)
		return err
	})
	return chain, err
}

// key reads the private key from its file. If a TPM or a signer holds the key, the result is a
// *HardwareKey, unless FilesOnly is set.
func (x X509) key(ctx context.Context, secrets Secrets, leaf *x509.Certificate) (key crypto.Signer, err error) {
	if x.PrivateKey.Signer != "" {
		return secrets.signerKey(ctx, x.PrivateKey, leaf.PublicKey)
	}
	err = secrets.use(x.PrivateKey, privateKey, func(text []byte) (err error) {
		if tpm.Is(text) {
			key, err = secrets.tpmKey(ctx, x.PrivateKey, text)
			return err
		}
		if key, err = pemfile.PrivateKey(text); err == nil {
			err = supported(key)
		}
		return err
	})
	return key, err
}

// supported returns an error if a TLS 1.2 handshake with the service cannot use the key.
func supported(key crypto.Signer) error {
	switch k := key.(type) {
	case *rsa.PrivateKey:
		// crypto/rsa does not sign with a smaller key.
		if bits := k.N.BitLen(); bits < 1024 {
			return pemfile.Unsupported(fmt.Sprintf("an RSA key of %d bits; at least 1024 are needed", bits))
		}
	case *ecdsa.PrivateKey:
		// RFC 8422 §5.1.1 retains these three curves; TLS no longer supports P-224.
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
		default:
			return pemfile.Unsupported("a private key on the curve " + k.Curve.Params().Name + "; DPS accepts P-256, P-384 and P-521")
		}
	}
	return nil
}

// belongs reports whether key is the private key of c.
func belongs(key crypto.Signer, c *x509.Certificate) bool {
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	return ok && public.Equal(c.PublicKey)
}
