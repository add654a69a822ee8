package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"

	"github.com/google/go-tpm/tpm2"
)

// area is a public area, TPMT_PUBLIC (TPM 2.0 Library, part 2, 12.2.4). This package parses it
// without go-tpm, which allocates as many bytes as a length in the file claims.
type area struct {
	bytes      []byte
	kind       tpm2.TPMAlgID
	attributes uint32
	scheme     tpm2.TPMAlgID // TPMAlgNull: the caller selects it
	hash       tpm2.TPMAlgID // of the scheme
	curve      tpm2.TPMECCCurve
	bits       int // of an RSA key
	key        crypto.PublicKey
}

// The attributes of an object, TPMA_OBJECT (part 2, 8.3).
const (
	attrUserWithAuth = 1 << 6
	attrNoDA         = 1 << 10
	attrRestricted   = 1 << 16
	attrDecrypt      = 1 << 17
	attrSign         = 1 << 18
)

func (a area) userWithAuth() bool { return a.attributes&attrUserWithAuth != 0 }

// storage reports whether the object can be a parent.
func (a area) storage() bool {
	const parent = attrRestricted | attrDecrypt
	return a.attributes&(parent|attrSign) == parent && a.kind != tpm2.TPMAlgKeyedHash
}

var errArea = errors.New("the public part of the key is damaged")

// parseArea reads a TPMT_PUBLIC. If this package does not support the curve, the exponent or the
// size, the key is nil.
func parseArea(b []byte) (area, error) {
	a := area{bytes: b, scheme: tpm2.TPMAlgNull, hash: tpm2.TPMAlgNull}
	r := reader{rest: b}
	a.kind = tpm2.TPMAlgID(r.uint16())
	r.uint16() // nameAlg
	a.attributes = r.uint32()
	r.sized() // authPolicy
	switch a.kind {
	case tpm2.TPMAlgRSA:
		r.symmetric()
		a.scheme, a.hash = r.scheme()
		a.bits = int(r.uint16())
		exponent := r.uint32()
		modulus := r.sized()
		if exponent == 0 {
			exponent = 65537
		}
		if r.bad || len(r.rest) > 0 || len(modulus) != (a.bits+7)/8 || len(modulus) > 0 && modulus[0]&0x80 == 0 && a.bits%8 == 0 {
			return a, errArea
		}
		if exponent&1 == 1 && exponent > 2 && exponent < 1<<31 {
			a.key = &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(exponent)}
		}
	case tpm2.TPMAlgECC:
		r.symmetric()
		a.scheme, a.hash = r.scheme()
		a.curve = tpm2.TPMECCCurve(r.uint16())
		r.scheme() // kdf
		x, y := r.sized(), r.sized()
		if r.bad || len(r.rest) > 0 {
			return a, errArea
		}
		if _, curve := curveOf(a.curve); curve != nil {
			size := (curve.Params().BitSize + 7) / 8
			if len(x) > size || len(y) > size {
				return a, errArea
			}
			point := make([]byte, 1+2*size)
			point[0] = 4
			copy(point[1+size-len(x):], x)
			copy(point[1+2*size-len(y):], y)
			key, err := ecdsa.ParseUncompressedPublicKey(curve, point)
			if err != nil {
				return a, fmt.Errorf("%w: %w", errArea, err)
			}
			a.key = key
		}
	case tpm2.TPMAlgKeyedHash:
		a.scheme, a.hash = r.scheme()
		r.sized()
		if r.bad || len(r.rest) > 0 {
			return a, errArea
		}
	default:
		if r.bad {
			return a, errArea
		}
	}
	return a, nil
}

// curveOf returns the algorithm and the curve for the ID of a curve, or "" and nil.
func curveOf(id tpm2.TPMECCCurve) (Algorithm, elliptic.Curve) {
	switch id {
	case tpm2.TPMECCNistP256:
		return P256, elliptic.P256()
	case tpm2.TPMECCNistP384:
		return P384, elliptic.P384()
	case tpm2.TPMECCNistP521:
		return P521, elliptic.P521()
	}
	return "", nil
}

// usable returns the algorithm of a key that can sign or compute an HMAC. For any other object, it
// returns an error that describes the object.
func (a area) usable() (Algorithm, error) {
	name := a.name()
	switch {
	case name == "":
		return "", unsupported("dpsd does not support this kind of key: %s", a.describe())
	case a.kind == tpm2.TPMAlgKeyedHash && a.attributes&attrSign == 0:
		return "", unsupported("the file contains sealed data, not a key")
	case a.attributes&attrSign == 0:
		return "", unsupported("the key can decrypt, but cannot sign")
	case a.attributes&attrRestricted != 0:
		return "", unsupported("the key is restricted: it can sign only data that the TPM has created")
	}
	return name, nil
}

// name returns the algorithm, or "" if this package does not support it.
func (a area) name() Algorithm {
	switch {
	case a.kind == tpm2.TPMAlgECC && a.key != nil && (a.scheme == tpm2.TPMAlgNull || a.scheme == tpm2.TPMAlgECDSA):
		name, _ := curveOf(a.curve)
		return name
	case a.kind == tpm2.TPMAlgRSA && a.key != nil && (a.scheme == tpm2.TPMAlgNull || a.scheme == tpm2.TPMAlgRSASSA || a.scheme == tpm2.TPMAlgRSAPSS):
		switch a.bits {
		case 2048, 3072, 4096:
			return Algorithm(fmt.Sprintf("rsa-%d", a.bits))
		}
	case a.kind == tpm2.TPMAlgKeyedHash && (a.scheme == tpm2.TPMAlgNull || a.scheme == tpm2.TPMAlgHMAC && a.hash == tpm2.TPMAlgSHA256):
		return HMAC
	}
	return ""
}

// describe describes any kind of key for people.
func (a area) describe() string {
	kind := fmt.Sprintf("algorithm 0x%04x", uint16(a.kind))
	switch a.kind {
	case tpm2.TPMAlgECC:
		kind = fmt.Sprintf("EC on the curve 0x%04x", uint16(a.curve))
		if known, _ := curveOf(a.curve); known != "" {
			kind = string(known)
		}
	case tpm2.TPMAlgRSA:
		kind = fmt.Sprintf("RSA with %d bits", a.bits)
	case tpm2.TPMAlgKeyedHash:
		kind = "keyed hash"
	}
	if a.scheme != tpm2.TPMAlgNull {
		kind += fmt.Sprintf(", scheme 0x%04x", uint16(a.scheme))
	}
	return kind
}

// reader reads the structures of a TPM. After an incomplete structure, it returns zeros.
type reader struct {
	rest []byte
	bad  bool
}

func (r *reader) next(n int) []byte {
	if r.bad || len(r.rest) < n {
		r.bad = true
		return make([]byte, min(n, 4))[:min(n, 4)]
	}
	b := r.rest[:n:n]
	r.rest = r.rest[n:]
	return b
}

func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.next(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.next(4)) }

// sized reads a buffer with its length in 16 bits (TPM2B).
func (r *reader) sized() []byte { return r.next(int(r.uint16())) }

// symmetric skips a TPMT_SYM_DEF_OBJECT.
func (r *reader) symmetric() {
	if tpm2.TPMAlgID(r.uint16()) != tpm2.TPMAlgNull {
		r.next(4) // keyBits, mode
	}
}

// scheme reads a scheme of an asymmetric key, a key derivation or a keyed hash.
func (r *reader) scheme() (scheme, hash tpm2.TPMAlgID) {
	scheme, hash = tpm2.TPMAlgID(r.uint16()), tpm2.TPMAlgNull
	switch scheme {
	case tpm2.TPMAlgNull, tpm2.TPMAlgRSAES:
	case tpm2.TPMAlgECDAA, tpm2.TPMAlgXOR:
		hash = tpm2.TPMAlgID(r.uint16())
		r.next(2) // the counter, or the key derivation
	default:
		hash = tpm2.TPMAlgID(r.uint16())
	}
	return scheme, hash
}

// sized2 returns the content of a TPM2B that fills an element of DER.
func sized2(b []byte, ok bool) ([]byte, bool) {
	r := reader{rest: b}
	content := r.sized()
	return content, ok && !r.bad && len(r.rest) == 0
}

// append16 appends a TPM2B.
func append16(b, content []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(len(content))), content...)
}
