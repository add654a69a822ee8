// Package token signs with a private key in a PKCS#11 token.
//
// It never recovers from an error of the library, because the state of the library is then
// unknown, and libraries differ in what they allow. The caller exits, and the next process
// initializes the library again.
package token

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"math/big"
	"os"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/dpsd-project/dpsd/pkcs11/uri"
	"github.com/dpsd-project/dpsd/signer"
)

// Key is a private key in a token. Its methods must not be called concurrently, because some
// libraries do not support threads.
type Key struct {
	// Public is the public key, and Schemes lists the schemes that the token supports for the
	// private key.
	Public  crypto.PublicKey
	Schemes []signer.Scheme

	library *pkcs11.Ctx
	slot    uint
	object  pkcs11.ObjectHandle
	confirm func(pkcs11.SessionHandle) error // logs in for a signature, if the token requires that
}

// Open loads the library, logs in to the token, and finds the key. If a person must correct the
// error, it is a *signer.Failure with CodeRefused.
func Open(u uri.URI, pin PIN) (*Key, error) {
	if _, err := os.Stat(u.Module); err != nil {
		return nil, refused("the PKCS#11 library cannot be read: %v", err)
	}
	library := pkcs11.New(u.Module)
	if library == nil {
		return nil, refused("%s cannot be loaded: it is not a PKCS#11 library for this processor, or it needs a library that is missing (see ldd)", u.Module)
	}
	if err := library.Initialize(); err != nil {
		return nil, fmt.Errorf("C_Initialize: %w", err)
	}
	k := &Key{library: library}
	info, err := k.find(u)
	if err != nil {
		return nil, err
	}
	session, err := library.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("C_OpenSession: %w", err)
	}
	if info.Flags&pkcs11.CKF_LOGIN_REQUIRED != 0 {
		// The session stays open: the login ends with the last session.
		if err := pin.login(info, func(text string) error { return library.Login(session, pkcs11.CKU_USER, text) }); err != nil {
			return nil, err
		}
	}
	template := []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY)}
	if u.Object != "" {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_LABEL, u.Object))
	}
	if u.ID != nil {
		template = append(template, pkcs11.NewAttribute(pkcs11.CKA_ID, u.ID))
	}
	keys, err := k.objects(session, template)
	switch {
	case err != nil:
		return nil, err
	case len(keys) == 0:
		return nil, refused("the token %q contains no private key that matches the URI", info.Label)
	case len(keys) > 1:
		return nil, refused("the token %q contains several private keys that match the URI; add the id of the key", info.Label)
	}
	k.object = keys[0]
	if k.always(session) {
		k.confirm = func(session pkcs11.SessionHandle) error {
			return pin.login(info, func(text string) error { return library.Login(session, pkcs11.CKU_CONTEXT_SPECIFIC, text) })
		}
	}
	if k.Public, err = k.public(session); err != nil {
		return nil, err
	}
	for _, s := range signer.Schemes(k.Public) {
		if k.offers(s) {
			k.Schemes = append(k.Schemes, s)
		}
	}
	if len(k.Schemes) == 0 {
		return nil, refused("the token %q cannot sign with this key", info.Label)
	}
	return k, nil
}

// Sign signs a digest.
func (k *Key) Sign(s signer.Scheme, digest []byte) ([]byte, error) {
	session, err := k.library.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return nil, fmt.Errorf("C_OpenSession: %w", err)
	}
	defer func() { _ = k.library.CloseSession(session) }()
	mechanism, input := k.mechanism(s, digest)
	if err := k.library.SignInit(session, mechanism, k.object); err != nil {
		return nil, fmt.Errorf("C_SignInit: %w", err)
	}
	if k.confirm != nil {
		if err := k.confirm(session); err != nil {
			return nil, err
		}
	}
	signature, err := k.library.Sign(session, input)
	if err != nil {
		return nil, fmt.Errorf("C_Sign: %w", err)
	}
	if _, ok := k.Public.(*ecdsa.PublicKey); ok {
		return encodeECDSA(signature)
	}
	return signature, nil
}

// find sets the slot of the token that matches the URI.
func (k *Key) find(u uri.URI) (pkcs11.TokenInfo, error) {
	slots, err := k.library.GetSlotList(true)
	if err != nil {
		return pkcs11.TokenInfo{}, fmt.Errorf("C_GetSlotList: %w", err)
	}
	var found []pkcs11.TokenInfo
	for _, slot := range slots {
		info, err := k.library.GetTokenInfo(slot)
		if errors.Is(err, pkcs11.Error(pkcs11.CKR_TOKEN_NOT_PRESENT)) || errors.Is(err, pkcs11.Error(pkcs11.CKR_TOKEN_NOT_RECOGNIZED)) {
			continue
		}
		if err != nil {
			return info, fmt.Errorf("C_GetTokenInfo: %w", err)
		}
		if matches(u.Token, info.Label) && matches(u.Manufacturer, info.ManufacturerID) && matches(u.Model, info.Model) && matches(u.Serial, info.SerialNumber) &&
			(u.Slot == nil || *u.Slot == slot) && info.Flags&pkcs11.CKF_TOKEN_INITIALIZED != 0 {
			k.slot = slot
			found = append(found, info)
		}
	}
	switch len(found) {
	case 0:
		return pkcs11.TokenInfo{}, errors.New("no token matches the URI: the token is not connected, the user of this program has no access to it, or its label or serial number differs")
	case 1:
		return found[0], nil
	}
	return pkcs11.TokenInfo{}, refused("%d tokens match the URI; add the serial number of the token", len(found))
}

func matches(want, is string) bool { return want == "" || want == is }

// objects returns at most two objects with the attributes.
func (k *Key) objects(session pkcs11.SessionHandle, template []*pkcs11.Attribute) ([]pkcs11.ObjectHandle, error) {
	if err := k.library.FindObjectsInit(session, template); err != nil {
		return nil, fmt.Errorf("C_FindObjectsInit: %w", err)
	}
	all, _, err := k.library.FindObjects(session, 2)
	if err = errors.Join(err, k.library.FindObjectsFinal(session)); err != nil {
		return nil, fmt.Errorf("C_FindObjects: %w", err)
	}
	return all, nil
}

// always reports whether the token requires the PIN for each signature.
func (k *Key) always(session pkcs11.SessionHandle) bool {
	value, err := k.attribute(session, k.object, pkcs11.CKA_ALWAYS_AUTHENTICATE)
	return err == nil && len(value) == 1 && value[0] == 1 // old libraries do not know the attribute
}

func (k *Key) attribute(session pkcs11.SessionHandle, object pkcs11.ObjectHandle, name uint) ([]byte, error) {
	values, err := k.library.GetAttributeValue(session, object, []*pkcs11.Attribute{pkcs11.NewAttribute(name, nil)})
	if err != nil {
		return nil, fmt.Errorf("C_GetAttributeValue: %w", err)
	}
	return values[0].Value, nil
}

// public returns the public key of the private key. A token may store it in the private key,
// in a public key with the same ID, or only in a certificate with the same ID.
func (k *Key) public(session pkcs11.SessionHandle) (crypto.PublicKey, error) {
	if key, err := k.publicRSA(session, k.object); err == nil {
		return key, nil
	}
	id, err := k.attribute(session, k.object, pkcs11.CKA_ID)
	if err != nil {
		return nil, err
	}
	for _, class := range []uint{pkcs11.CKO_PUBLIC_KEY, pkcs11.CKO_CERTIFICATE} {
		if len(id) == 0 {
			break
		}
		same, err := k.objects(session, []*pkcs11.Attribute{pkcs11.NewAttribute(pkcs11.CKA_CLASS, class), pkcs11.NewAttribute(pkcs11.CKA_ID, id)})
		if err != nil {
			return nil, err
		}
		for _, object := range same {
			for _, read := range []func(pkcs11.SessionHandle, pkcs11.ObjectHandle) (crypto.PublicKey, error){k.publicRSA, k.publicECDSA, k.publicOfCertificate} {
				if key, err := read(session, object); err == nil {
					return key, nil
				}
			}
		}
	}
	return nil, refused("the token contains no public key and no certificate with the ID of the private key")
}

func (k *Key) publicRSA(session pkcs11.SessionHandle, object pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	modulus, err := k.attribute(session, object, pkcs11.CKA_MODULUS)
	if err != nil {
		return nil, err
	}
	exponent, err := k.attribute(session, object, pkcs11.CKA_PUBLIC_EXPONENT)
	if err != nil {
		return nil, err
	}
	e := new(big.Int).SetBytes(exponent)
	if len(modulus) == 0 || !e.IsInt64() || e.Int64() < 3 || e.Int64() > 1<<31-1 {
		return nil, errors.New("the RSA public key is not valid")
	}
	return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(e.Int64())}, nil
}

func (k *Key) publicECDSA(session pkcs11.SessionHandle, object pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	params, err := k.attribute(session, object, pkcs11.CKA_EC_PARAMS)
	if err != nil {
		return nil, err
	}
	point, err := k.attribute(session, object, pkcs11.CKA_EC_POINT)
	if err != nil {
		return nil, err
	}
	return parseECDSA(params, point)
}

// parseECDSA returns a public key. The point should be in an ASN.1 OCTET STRING, but some
// libraries omit that.
func parseECDSA(params, point []byte) (crypto.PublicKey, error) {
	var inside []byte
	if rest, err := asn1.Unmarshal(point, &inside); err == nil && len(rest) == 0 {
		point = inside
	}
	der, err := asn1.Marshal(struct {
		Algorithm pkix.AlgorithmIdentifier
		Point     asn1.BitString
	}{
		pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}, Parameters: asn1.RawValue{FullBytes: params}},
		asn1.BitString{Bytes: point, BitLength: 8 * len(point)},
	})
	if err != nil {
		return nil, err
	}
	return x509.ParsePKIXPublicKey(der)
}

func (k *Key) publicOfCertificate(session pkcs11.SessionHandle, object pkcs11.ObjectHandle) (crypto.PublicKey, error) {
	der, err := k.attribute(session, object, pkcs11.CKA_VALUE)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return certificate.PublicKey, nil
}

// offers reports whether the token supports a scheme for the key. It begins a signature, because
// a list of mechanisms does not say whether they work with this key and hash function.
func (k *Key) offers(s signer.Scheme) bool {
	session, err := k.library.OpenSession(k.slot, pkcs11.CKF_SERIAL_SESSION)
	if err != nil {
		return false
	}
	defer func() { _ = k.library.CloseSession(session) }()
	mechanism, _ := k.mechanism(s, make([]byte, s.Options().HashFunc().Size()))
	return k.library.SignInit(session, mechanism, k.object) == nil
}

// mechanism returns the mechanism of a scheme, and its input for a digest.
func (k *Key) mechanism(s signer.Scheme, digest []byte) ([]*pkcs11.Mechanism, []byte) {
	hash := s.Options().HashFunc()
	if key, ok := k.Public.(*ecdsa.PublicKey); ok {
		// Some tokens refuse a digest that is longer than the order of the curve.
		return one(pkcs11.CKM_ECDSA, nil), digest[:min(len(digest), (key.Params().BitSize+7)/8)]
	}
	if _, ok := s.Options().(*rsa.PSSOptions); ok {
		ids := map[crypto.Hash][2]uint{
			crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
			crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
			crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
		}[hash]
		return one(pkcs11.CKM_RSA_PKCS_PSS, pkcs11.NewPSSParams(ids[0], ids[1], uint(hash.Size()))), digest
	}
	return one(pkcs11.CKM_RSA_PKCS, nil), slices.Concat(digestInfo(hash), digest)
}

func one(mechanism uint, parameter any) []*pkcs11.Mechanism {
	return []*pkcs11.Mechanism{pkcs11.NewMechanism(mechanism, parameter)}
}

// digestInfo returns what precedes the digest in the DigestInfo of PKCS#1 v1.5, RFC 8017, 9.2.
func digestInfo(hash crypto.Hash) []byte {
	size := byte(hash.Size())
	number := map[crypto.Hash]byte{crypto.SHA256: 1, crypto.SHA384: 2, crypto.SHA512: 3}[hash]
	return []byte{0x30, size + 17, 0x30, 13, 6, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, number, 5, 0, 4, size}
}

// encodeECDSA converts a signature of PKCS#11, r and s of the same length, to ASN.1.
func encodeECDSA(raw []byte) ([]byte, error) {
	half := len(raw) / 2
	if half == 0 || len(raw)%2 != 0 {
		return nil, fmt.Errorf("the ECDSA signature of the token has %d bytes", len(raw))
	}
	return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:half]), new(big.Int).SetBytes(raw[half:])})
}

// refused returns an error that a person must correct.
func refused(format string, args ...any) error {
	return &signer.Failure{Code: signer.CodeRefused, Message: fmt.Sprintf(format, args...)}
}

// trimmed returns a text without the line end that an editor adds.
func trimmed(text []byte) []byte { return bytes.TrimRight(text, "\r\n") }
