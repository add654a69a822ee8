package tpm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"

	"github.com/google/go-tpm/tpm2"
)

// The limits for the length of an HMAC key in bytes. DPS allows 16 to 64, and a TPM allows at most
// the block size of SHA-256, which is 64.
const (
	minSecret = 16
	maxSecret = 64
)

// Create creates a signing key in the TPM, and returns its TSS2 file. The key has no password, and
// is not subject to the lockout of the TPM.
func (d *Device) Create(ctx context.Context, a Algorithm, p Parent) ([]byte, error) {
	var text []byte
	err := d.do(ctx, "create a key", func(l *link) error {
		s := session{l, d}
		attributes := signingAttributes()
		attributes.FixedTPM, attributes.FixedParent, attributes.SensitiveDataOrigin = true, true, true
		template, fromRSA, err := s.template(a, attributes)
		if err != nil {
			return err
		}
		return s.withParent(p, fromRSA, func(parent parent) error {
			response, err := tpm2.Create{ParentHandle: parent, InPublic: tpm2.New2B(template)}.Execute(s)
			if err == nil {
				text = encode(p, fromRSA, response.OutPublic.Bytes(), response.OutPrivate.Buffer)
			}
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return text, nil
}

// Import encrypts a private key, *ecdsa.PrivateKey or *rsa.PrivateKey, for the TPM, tests it, and
// returns its TSS2 file. It cannot protect the original and other copies of the key.
func (d *Device) Import(ctx context.Context, key crypto.PrivateKey, p Parent) ([]byte, error) {
	var text []byte
	err := d.do(ctx, "import the key", func(l *link) error {
		s := session{l, d}
		a, sensitive, unique, err := split(key)
		if err != nil {
			return err
		}
		template, fromRSA, err := s.template(a, signingAttributes())
		if err != nil {
			return err
		}
		template.Unique = unique
		if k, ok := key.(*rsa.PrivateKey); ok {
			template.Parameters = rsaParameters(len(k.N.Bytes())*8, uint32(k.E))
		}
		return s.withParent(p, fromRSA, func(parent parent) error {
			private, err := s.importBelow(parent, template, sensitive)
			if k, ok := key.(*rsa.PrivateKey); ok && k.E != 65537 && aboutParameter(err) {
				return fail(Unsupported, "the TPM does not support RSA keys with the public exponent %d; all TPMs support 65537: %w", k.E, err)
			}
			if err != nil {
				return err
			}
			text = encode(p, fromRSA, tpm2.Marshal(template), private)
			return s.check(parent, text, func(object tpm2.AuthHandle, f *File) error {
				digest := sha256.Sum256([]byte(f.Algorithm))
				scheme, err := f.public.sigScheme(digest[:], crypto.SHA256, pssUnknown)
				if err != nil {
					return err
				}
				signature, err := s.sign(object, digest[:], scheme)
				if err != nil {
					return err
				}
				return verify(key.(crypto.Signer).Public(), crypto.SHA256, digest[:], signature, crypto.SHA256)
			})
		})
	})
	if err != nil {
		return nil, err
	}
	return text, nil
}

// Seal encrypts an HMAC key of 16 to 64 bytes for the TPM, tests it, and returns its TSS2 file. The
// key is encrypted on its way to the TPM.
func (d *Device) Seal(ctx context.Context, secret []byte, p Parent) ([]byte, error) {
	if len(secret) < minSecret || len(secret) > maxSecret {
		return nil, explain("seal the key", fail(Unsupported, "it has %d bytes; DPS and TPMs accept %d to %d", len(secret), minSecret, maxSecret))
	}
	secret = bytes.Clone(secret) // the caller may clear its own before the TPM has answered
	var text []byte
	err := d.do(ctx, "seal the key", func(l *link) error {
		defer clear(secret)
		s := session{l, d}
		algorithms, err := s.algorithms()
		if err != nil {
			return err
		}
		attributes := signingAttributes()
		attributes.FixedTPM, attributes.FixedParent = true, true
		template := tpm2.TPMTPublic{
			Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes,
			Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
				Scheme:  tpm2.TPMAlgHMAC,
				Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
			}}),
		}
		fromRSA := !algorithms[tpm2.TPMAlgECC]
		return s.withParent(p, fromRSA, func(parent parent) error {
			public, err := parent.raw.Contents()
			if err != nil {
				return err
			}
			// If the command cannot be sent, go-tpm does not remove its own sessions from the TPM.
			salted, _, err := tpm2.HMACSession(s, tpm2.TPMAlgSHA256, 16, tpm2.AESEncryption(128, tpm2.EncryptIn), tpm2.Salted(parent.Handle, *public))
			if err != nil {
				return err
			}
			defer s.flush(salted.Handle())
			response, err := tpm2.Create{
				ParentHandle: parent, InPublic: tpm2.New2B(template),
				InSensitive: tpm2.TPM2BSensitiveCreate{Sensitive: &tpm2.TPMSSensitiveCreate{
					Data: tpm2.NewTPMUSensitiveCreate(&tpm2.TPM2BSensitiveData{Buffer: secret}),
				}},
			}.Execute(s, salted)
			if err != nil {
				return err
			}
			text = encode(p, fromRSA, response.OutPublic.Bytes(), response.OutPrivate.Buffer)
			return s.check(parent, text, func(object tpm2.AuthHandle, _ *File) error {
				const message = "dpsd"
				sum, err := s.hmac(object, []byte(message))
				if err != nil {
					return err
				}
				mac := hmac.New(sha256.New, secret)
				mac.Write([]byte(message))
				if !hmac.Equal(sum, mac.Sum(nil)) {
					return errInvalid
				}
				return nil
			})
		})
	})
	if err != nil {
		return nil, err
	}
	return text, nil
}

// Persist makes the parent of later files persistent, so that the TPM does not have to derive it
// whenever a key is loaded, and returns its handle. If there is already a persistent parent,
// Persist returns its handle.
func (d *Device) Persist(ctx context.Context) (Parent, error) {
	var handle Parent
	err := d.do(ctx, "make a parent persistent", func(l *link) error {
		s := session{l, d}
		objects, err := s.list()
		if err != nil {
			return err
		}
		if handle = persistent(objects); handle != 0 {
			return nil
		}
		if err := s.needNoPassword(); err != nil {
			return err
		}
		used := make(map[Parent]bool)
		for _, o := range objects {
			used[o.Handle] = true
		}
		handle = ownerStorage
		for used[handle] {
			handle++
		}
		algorithms, err := s.algorithms()
		if err != nil {
			return err
		}
		return s.withParent(Owner, !algorithms[tpm2.TPMAlgECC], func(parent parent) error {
			_, err := tpm2.EvictControl{
				Auth:             tpm2.AuthHandle{Handle: tpm2.TPMRHOwner, Auth: tpm2.PasswordAuth(nil)},
				ObjectHandle:     tpm2.NamedHandle{Handle: parent.Handle, Name: parent.Name},
				PersistentHandle: tpm2.TPMHandle(handle),
			}.Execute(s)
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	return handle, nil
}

// ErrOwnerPassword means that a key cannot be created, because the owner of the TPM has a password
// and there is no persistent parent.
var ErrOwnerPassword = errors.New("the owner of the TPM has a password, and the TPM has no persistent parent key")

// Parent returns the parent for a new key. The parent is Owner if the owner has no password.
// Otherwise, it is a persistent parent, because deriving a parent requires the password. If there
// is no persistent parent, the error wraps ErrOwnerPassword.
func (d *Device) Parent(ctx context.Context) (Parent, error) {
	p := Owner
	err := d.do(ctx, "choose the parent of a key", func(l *link) error {
		s := session{l, d}
		needed := s.needNoPassword()
		if !errors.Is(needed, ErrOwnerPassword) {
			return needed
		}
		objects, err := s.list()
		if err != nil {
			return err
		}
		if p = persistent(objects); p == 0 {
			return needed
		}
		return nil
	})
	if err != nil {
		return 0, err
	}
	return p, nil
}

// needNoPassword returns an error that wraps ErrOwnerPassword if the owner has a password.
func (s session) needNoPassword() error {
	permanent, err := s.properties(tpm2.TPMPTPermanent)
	if err == nil && permanent[tpm2.TPMPTPermanent]&ownerAuthSet != 0 {
		return fail(Protected, "%w", ErrOwnerPassword)
	}
	return err
}

// persistent returns the persistent parent of the owner, or 0. The handles from 0x81010000 belong
// to endorsement keys (TCG Registry of Reserved TPM 2.0 Handles, 2.3.1).
func persistent(objects []Object) (p Parent) {
	for _, o := range objects {
		if o.Storage && o.Handle>>16 == 0x8100 && (p == 0 || o.Handle == ownerStorage) {
			p = o.Handle
		}
	}
	return p
}

// ownerStorage is the usual handle of the storage key of the owner.
const ownerStorage Parent = 0x81000001

func signingAttributes() tpm2.TPMAObject {
	return tpm2.TPMAObject{UserWithAuth: true, NoDA: true, SignEncrypt: true}
}

// template returns the public area of a new key, and whether the TPM needs an RSA parent. It
// returns an error if the TPM does not support the algorithm.
func (s session) template(a Algorithm, attributes tpm2.TPMAObject) (template tpm2.TPMTPublic, fromRSA bool, err error) {
	all, err := s.supported()
	if err != nil {
		return template, false, err
	}
	if !slices.Contains(all, a) {
		names := make([]string, 0, len(all))
		for _, a := range all {
			names = append(names, string(a))
		}
		return template, false, fail(Unsupported, "the TPM does not support keys of type %s; it supports %s", a, strings.Join(names, ", "))
	}
	template = tpm2.TPMTPublic{NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: attributes}
	if curve := a.curve(); curve != 0 {
		template.Type = tpm2.TPMAlgECC
		template.Parameters = eccParameters(curve)
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{})
	} else {
		template.Type = tpm2.TPMAlgRSA
		template.Parameters = rsaParameters(a.bits(), 0)
		template.Unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{})
	}
	return template, !slices.Contains(all, P256), nil
}

func eccParameters(curve tpm2.TPMECCCurve) tpm2.TPMUPublicParms {
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{CurveID: curve})
}

func rsaParameters(bits int, exponent uint32) tpm2.TPMUPublicParms {
	if exponent == 65537 {
		exponent = 0 // the default
	}
	return tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{KeyBits: tpm2.TPMKeyBits(bits), Exponent: exponent})
}

// curve returns the curve of an algorithm, or 0.
func (a Algorithm) curve() tpm2.TPMECCCurve {
	switch a {
	case P256:
		return tpm2.TPMECCNistP256
	case P384:
		return tpm2.TPMECCNistP384
	case P521:
		return tpm2.TPMECCNistP521
	}
	return 0
}

// bits returns the length of an RSA key, or 0.
func (a Algorithm) bits() int {
	switch a {
	case RSA2048:
		return 2048
	case RSA3072:
		return 3072
	case RSA4096:
		return 4096
	}
	return 0
}

// split returns the algorithm, the private part (TPMT_SENSITIVE) and the public part of a private
// key.
func split(key crypto.PrivateKey) (a Algorithm, sensitive []byte, unique tpm2.TPMUPublicID, err error) {
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		id := map[int]tpm2.TPMECCCurve{256: tpm2.TPMECCNistP256, 384: tpm2.TPMECCNistP384, 521: tpm2.TPMECCNistP521}[k.Curve.Params().BitSize]
		a, curve := curveOf(id)
		if curve != k.Curve {
			return "", nil, unique, fail(Unsupported, "the key is on the curve %s", k.Curve.Params().Name)
		}
		d, err := k.Bytes()
		if err != nil {
			return "", nil, unique, fail(Damaged, "%w", err)
		}
		point, err := k.PublicKey.Bytes()
		if err != nil {
			return "", nil, unique, fail(Damaged, "%w", err)
		}
		x, y := point[1:1+len(point)/2], point[1+len(point)/2:]
		unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{X: tpm2.TPM2BECCParameter{Buffer: x}, Y: tpm2.TPM2BECCParameter{Buffer: y}})
		return a, tpm2.Marshal(tpm2.TPMTSensitive{
			SensitiveType: tpm2.TPMAlgECC,
			Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgECC, &tpm2.TPM2BECCParameter{Buffer: d}),
		}), unique, nil
	case *rsa.PrivateKey:
		a := area{kind: tpm2.TPMAlgRSA, scheme: tpm2.TPMAlgNull, bits: k.N.BitLen(), key: &k.PublicKey}.name()
		if a == "" || len(k.Primes) != 2 {
			return "", nil, unique, fail(Unsupported, "an RSA key with %d bits and %d primes", k.N.BitLen(), len(k.Primes))
		}
		unique = tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{Buffer: k.N.Bytes()})
		return a, tpm2.Marshal(tpm2.TPMTSensitive{
			SensitiveType: tpm2.TPMAlgRSA,
			Sensitive:     tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgRSA, &tpm2.TPM2BPrivateKeyRSA{Buffer: k.Primes[0].FillBytes(make([]byte, k.N.BitLen()/16))}),
		}), unique, nil
	}
	return "", nil, unique, fail(Unsupported, "a key of type %T", key)
}

// importBelow encrypts a private key for a parent, and has the TPM import it.
func (s session) importBelow(p parent, template tpm2.TPMTPublic, sensitive []byte) ([]byte, error) {
	defer clear(sensitive)
	public, err := p.raw.Contents()
	if err != nil {
		return nil, err
	}
	encapsulation, err := tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, err
	}
	name, err := tpm2.ObjectName(&template)
	if err != nil {
		return nil, err
	}
	duplicate, seed, err := tpm2.CreateDuplicate(rand.Reader, encapsulation, name.Buffer, sensitive)
	if err != nil {
		return nil, err
	}
	response, err := tpm2.Import{
		ParentHandle: p, ObjectPublic: tpm2.New2B(template),
		Duplicate: tpm2.TPM2BPrivate{Buffer: duplicate}, InSymSeed: tpm2.TPM2BEncryptedSecret{Buffer: seed},
	}.Execute(s)
	if err != nil {
		return nil, err
	}
	return response.OutPrivate.Buffer, nil
}

// check loads the key of a new file and uses it once.
func (s session) check(p parent, text []byte, use func(tpm2.AuthHandle, *File) error) error {
	f, err := Parse(text)
	if err != nil {
		return err
	}
	object, err := s.loadBelow(p, f)
	if err != nil {
		return err
	}
	defer s.flush(object.Handle)
	return use(object, f)
}
