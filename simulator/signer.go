package simulator

import (
	"crypto"
	"crypto/ecdsa"
	"io"
)

// steadySigner signs repeatedly until the signature has the most common length. The length
// of the DER form of an ECDSA signature varies by a few bytes. With a constant length, a
// second run sends as many bytes as the first.
type steadySigner struct{ *ecdsa.PrivateKey }

// Sign signs a digest.
func (s steadySigner) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	// This is the length of a sequence of two integers of which one has its highest bit
	// set and is therefore padded. Half of all signatures have it.
	want := 2 + 2*(2+(s.Curve.Params().BitSize+7)/8) + 1
	for {
		signature, err := s.PrivateKey.Sign(rand, digest, opts)
		if err != nil || len(signature) == want {
			return signature, err
		}
	}
}

// steady returns a signer whose ECDSA signatures have the same length.
func steady(key crypto.Signer) crypto.Signer {
	if ec, ok := key.(*ecdsa.PrivateKey); ok {
		return steadySigner{ec}
	}
	return key
}
