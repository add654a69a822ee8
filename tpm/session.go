package tpm

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// session sends the commands of one job.
type session struct {
	*link
	device *Device
}

// parent is a key that can load other keys.
type parent struct {
	tpm2.AuthHandle
	area      area
	raw       tpm2.TPM2BPublic
	transient bool
}

// withParent calls f with a parent, and flushes the parent if it was derived.
func (s session) withParent(p Parent, fromRSA bool, f func(parent) error) error {
	id := "parent " + p.String()
	if s.device.refused(id) {
		return fail(Protected, "the parent %v has a password; dpsd does not try again until it is restarted, because wrong passwords can lock the TPM", p)
	}
	loaded, err := s.parent(p, fromRSA)
	if err != nil {
		return err
	}
	if loaded.transient {
		defer s.flush(loaded.Handle)
	}
	err = f(loaded)
	if p.Persistent() && isWrongPassword(err) {
		s.device.refuse(id)
		return fail(Protected, "the parent %v has a password: %w", p, err)
	}
	return err
}

func (s session) parent(p Parent, fromRSA bool) (parent, error) {
	if p == 0 {
		p = Owner
	}
	if p.Persistent() {
		response, err := tpm2.ReadPublic{ObjectHandle: tpm2.TPMHandle(p)}.Execute(s)
		if errors.Is(err, tpm2.TPMRCHandle) {
			return parent{}, fail(Unusable, "the TPM does not contain the parent, the persistent key %v: the TPM was cleared or replaced, or the file is from another machine: %w", p, err)
		}
		if err != nil {
			return parent{}, err
		}
		a, err := parseArea(response.OutPublic.Bytes())
		if err != nil || !a.storage() {
			return parent{}, fail(Unusable, "the persistent key %v of the TPM cannot be a parent", p)
		}
		return parent{tpm2.AuthHandle{Handle: tpm2.TPMHandle(p), Name: response.Name, Auth: tpm2.PasswordAuth(nil)}, a, response.OutPublic, false}, nil
	}
	template := eccParent()
	if fromRSA {
		template = rsaParent()
	}
	response, err := tpm2.CreatePrimary{
		PrimaryHandle: tpm2.AuthHandle{Handle: tpm2.TPMHandle(p), Auth: tpm2.PasswordAuth(nil)},
		InPublic:      tpm2.New2B(template),
	}.Execute(s)
	if isWrongPassword(err) {
		return parent{}, fail(Protected, "the owner of the TPM has a password; dpsd can use only keys with a persistent parent: %w", err)
	}
	if err != nil {
		return parent{}, err
	}
	a, err := parseArea(response.OutPublic.Bytes())
	if err != nil {
		s.flush(response.ObjectHandle)
		return parent{}, err
	}
	return parent{tpm2.AuthHandle{Handle: response.ObjectHandle, Name: response.Name, Auth: tpm2.PasswordAuth(nil)}, a, response.OutPublic, true}, nil
}

// storageAttributes returns the attributes in the templates H-1 and H-2 of the TCG EK Credential
// Profile, B.4.4 and B.4.5, which TSS2 files require for a derived parent.
func storageAttributes() tpm2.TPMAObject {
	return tpm2.TPMAObject{FixedTPM: true, FixedParent: true, SensitiveDataOrigin: true, UserWithAuth: true, NoDA: true, Restricted: true, Decrypt: true}
}

func aes128() tpm2.TPMTSymDefObject {
	return tpm2.TPMTSymDefObject{
		Algorithm: tpm2.TPMAlgAES,
		KeyBits:   tpm2.NewTPMUSymKeyBits(tpm2.TPMAlgAES, tpm2.TPMKeyBits(128)),
		Mode:      tpm2.NewTPMUSymMode(tpm2.TPMAlgAES, tpm2.TPMAlgCFB),
	}
}

func eccParent() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgECC, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: storageAttributes(),
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgECC, &tpm2.TPMSECCParms{Symmetric: aes128(), CurveID: tpm2.TPMECCNistP256}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgECC, &tpm2.TPMSECCPoint{}),
	}
}

func rsaParent() tpm2.TPMTPublic {
	return tpm2.TPMTPublic{
		Type: tpm2.TPMAlgRSA, NameAlg: tpm2.TPMAlgSHA256, ObjectAttributes: storageAttributes(),
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgRSA, &tpm2.TPMSRSAParms{Symmetric: aes128(), KeyBits: 2048}),
		Unique:     tpm2.NewTPMUPublicID(tpm2.TPMAlgRSA, &tpm2.TPM2BPublicKeyRSA{}),
	}
}

// load loads the key of a file and flushes its parent.
func (s session) load(f *File) (object tpm2.AuthHandle, err error) {
	err = s.withParent(f.Parent, f.rsaParent, func(p parent) error {
		object, err = s.loadBelow(p, f)
		return err
	})
	return object, err
}

func (s session) loadBelow(p parent, f *File) (object tpm2.AuthHandle, err error) {
	public, private := tpm2.BytesAs2B[tpm2.TPMTPublic](f.public.bytes), tpm2.TPM2BPrivate{Buffer: f.private}
	if f.importable {
		response, err := tpm2.Import{ParentHandle: p, ObjectPublic: public, Duplicate: private, InSymSeed: tpm2.TPM2BEncryptedSecret{Buffer: f.secret}}.Execute(s)
		if err != nil {
			return object, rejected(err)
		}
		private = response.OutPrivate
	}
	response, err := tpm2.Load{ParentHandle: p, InPrivate: private, InPublic: public}.Execute(s)
	if err != nil {
		return object, rejected(err)
	}
	return tpm2.AuthHandle{Handle: response.ObjectHandle, Name: response.Name, Auth: tpm2.PasswordAuth(nil)}, nil
}

// rejected explains an error about the content of a file. It treats an error about a parameter
// that kindOf does not know as permanent.
func rejected(err error) error {
	if aboutParameter(err) {
		return fail(Unusable, "the TPM rejects the key: the file is damaged or from another machine: %w", err)
	}
	return err
}

// aboutParameter reports whether an error is about a parameter and kindOf has no specific kind for
// it.
func aboutParameter(err error) bool {
	var rc tpm2.TPMFmt1Error
	if kind, _ := kindOf(err); kind != Failed || !errors.As(err, &rc) {
		return false
	}
	parameter, _ := rc.Parameter()
	return parameter
}

func (s session) sign(object tpm2.AuthHandle, digest []byte, scheme tpm2.TPMTSigScheme) ([]byte, error) {
	response, err := tpm2.Sign{
		KeyHandle: object, Digest: tpm2.TPM2BDigest{Buffer: digest}, InScheme: scheme,
		Validation: tpm2.TPMTTKHashCheck{Tag: tpm2.TPMSTHashCheck},
	}.Execute(s)
	if err != nil {
		return nil, err
	}
	switch response.Signature.SigAlg {
	case tpm2.TPMAlgECDSA:
		rs, err := response.Signature.Signature.ECDSA()
		if err != nil {
			return nil, err
		}
		b := appendDER(nil, tagInteger, unsigned(rs.SignatureR.Buffer))
		return appendDER(nil, tagSequence, appendDER(b, tagInteger, unsigned(rs.SignatureS.Buffer))), nil
	case tpm2.TPMAlgRSASSA:
		signature, err := response.Signature.Signature.RSASSA()
		if err != nil {
			return nil, err
		}
		return signature.Sig.Buffer, nil
	case tpm2.TPMAlgRSAPSS:
		signature, err := response.Signature.Signature.RSAPSS()
		if err != nil {
			return nil, err
		}
		return signature.Sig.Buffer, nil
	}
	return nil, fmt.Errorf("the TPM used the unexpected scheme 0x%04x", uint16(response.Signature.SigAlg))
}

// unsigned returns the content of a DER INTEGER that is not negative.
func unsigned(b []byte) []byte {
	for len(b) > 1 && b[0] == 0 {
		b = b[1:]
	}
	if len(b) == 0 || b[0] >= 0x80 {
		return append([]byte{0}, b...)
	}
	return b
}

func (s session) hmac(object tpm2.AuthHandle, data []byte) ([]byte, error) {
	response, err := tpm2.Hmac{Handle: object, Buffer: tpm2.TPM2BMaxBuffer{Buffer: data}, HashAlg: tpm2.TPMAlgSHA256}.Execute(s)
	if err != nil {
		return nil, err
	}
	return response.OutHMAC.Buffer, nil
}

// tryPSS determines, once for each connection, whether the TPM uses the salt that TLS requires.
func (s session) tryPSS(object tpm2.AuthHandle, f *File) error {
	if s.device.pss() != pssUnknown {
		return nil
	}
	h := hashesOfTLS()[0]
	for _, other := range hashesOfTLS() {
		if other.id == f.public.hash { // the only one that the key permits
			h = other
		}
	}
	state, digest := pssFails, h.function.New().Sum(nil)
	signature, err := s.sign(object, digest, sigScheme(tpm2.TPMAlgRSAPSS, h.id))
	switch kind, _ := kindOf(err); {
	case err == nil:
		if verify(f.Public(), h.function, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil {
			state = pssWorks
		}
	case kind != Unsupported && !aboutParameter(err):
		if isWrongPassword(err) {
			s.device.refuse(f.id())
		}
		return err
	}
	s.device.mu.Lock()
	defer s.device.mu.Unlock()
	s.device.facts.pss = state
	return nil
}

// hashes returns the hash functions of the TPM.
func (s session) hashes() (map[tpm2.TPMAlgID]bool, error) {
	s.device.mu.Lock()
	hashes := s.device.facts.hashes
	s.device.mu.Unlock()
	if hashes != nil {
		return hashes, nil
	}
	hashes, err := s.algorithms()
	if err != nil {
		return nil, err
	}
	s.device.mu.Lock()
	defer s.device.mu.Unlock()
	s.device.facts.hashes = hashes
	return hashes, nil
}

// algorithms returns all algorithms of the TPM.
func (s session) algorithms() (map[tpm2.TPMAlgID]bool, error) {
	response, err := tpm2.GetCapability{Capability: tpm2.TPMCapAlgs, PropertyCount: 255}.Execute(s)
	if err != nil {
		return nil, err
	}
	list, err := response.CapabilityData.Data.Algorithms()
	if err != nil {
		return nil, err
	}
	all := make(map[tpm2.TPMAlgID]bool, len(list.AlgProperties))
	for _, a := range list.AlgProperties {
		all[a.Alg] = true
	}
	return all, nil
}

// verify checks a signature with the standard library.
func verify(key crypto.PublicKey, hash crypto.Hash, digest, signature []byte, opts crypto.SignerOpts) error {
	switch key := key.(type) {
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(key, digest, signature) {
			return nil
		}
	case *rsa.PublicKey:
		if options, ok := opts.(*rsa.PSSOptions); ok {
			return rsa.VerifyPSS(key, hash, digest, signature, options)
		}
		return rsa.VerifyPKCS1v15(key, hash, digest, signature)
	}
	return errInvalid
}

var errInvalid = errors.New("the TPM returned an invalid signature")
