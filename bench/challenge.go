package main

import (
	"bytes"
	"crypto/aes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"

	"github.com/google/go-tpm/tpm2"
)

// challenge returns the authentication key that the service sends in its answer to the first
// request of TPM attestation. It contains key, which only the TPM that holds the endorsement key
// and the storage key can decrypt. key is in a duplicate with an inner wrapper, and the key of the
// inner wrapper is in a credential (part 1 of the TPM specification: credential protection, and
// protected storage hierarchy, duplication).
func challenge(endorsement, storage, key []byte) ([]byte, error) {
	_, ek, err := parent(endorsement)
	if err != nil {
		return nil, fmt.Errorf("the endorsement key: %w", err)
	}
	srkName, srk, err := parent(storage)
	if err != nil {
		return nil, fmt.Errorf("the storage root key: %w", err)
	}
	inner := random(16)
	credential, credentialSecret, err := tpm2.CreateCredential(rand.Reader, ek, srkName, inner)
	if err != nil {
		return nil, err
	}

	seed := random(sha256.Size)
	sensitive := tpm2.Marshal(tpm2.TPM2BDigest{Buffer: tpm2.Marshal(tpm2.TPMTSensitive{
		SensitiveType: tpm2.TPMAlgKeyedHash, SeedValue: tpm2.TPM2BDigest{Buffer: seed},
		Sensitive: tpm2.NewTPMUSensitiveComposite(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BSensitiveData{Buffer: key}),
	})})
	public := tpm2.TPMTPublic{
		Type: tpm2.TPMAlgKeyedHash, NameAlg: tpm2.TPMAlgSHA256,
		ObjectAttributes: tpm2.TPMAObject{UserWithAuth: true, NoDA: true, SignEncrypt: true},
		Parameters: tpm2.NewTPMUPublicParms(tpm2.TPMAlgKeyedHash, &tpm2.TPMSKeyedHashParms{Scheme: tpm2.TPMTKeyedHashScheme{
			Scheme:  tpm2.TPMAlgHMAC,
			Details: tpm2.NewTPMUSchemeKeyedHash(tpm2.TPMAlgHMAC, &tpm2.TPMSSchemeHMAC{HashAlg: tpm2.TPMAlgSHA256}),
		}}),
		Unique: tpm2.NewTPMUPublicID(tpm2.TPMAlgKeyedHash, &tpm2.TPM2BDigest{Buffer: digest(seed, key)}),
	}
	name, err := tpm2.ObjectName(&public)
	if err != nil {
		return nil, err
	}
	duplicate := encrypt(inner, append(tpm2.Marshal(tpm2.TPM2BDigest{Buffer: digest(sensitive, name.Buffer)}), sensitive...))

	secret, duplicateSecret, err := srk.Encapsulate(rand.Reader, "DUPLICATE")
	if err != nil {
		return nil, err
	}
	const hash = tpm2.TPMAlgSHA256 // the hash of the parent, which the function parent has verified
	h, err := hash.Hash()
	if err != nil {
		return nil, err
	}
	duplicate = encrypt(tpm2.KDFa(h, secret, "STORAGE", name.Buffer, nil, 128), duplicate)
	mac := hmac.New(sha256.New, tpm2.KDFa(h, secret, "INTEGRITY", nil, nil, 256))
	mac.Write(duplicate)
	mac.Write(name.Buffer)
	private := append(tpm2.Marshal(tpm2.TPM2BDigest{Buffer: mac.Sum(nil)}), duplicate...)

	var all []byte
	for _, part := range [][]byte{credential, credentialSecret, private, duplicateSecret, tpm2.Marshal(public)} {
		all = append(all, tpm2.Marshal(tpm2.TPM2BData{Buffer: part})...)
	}
	return all, nil
}

// parent returns the name and the public key of a TPM2B_PUBLIC with SHA-256 and AES-128.
func parent(text []byte) (name []byte, key tpm2.LabeledEncapsulationKey, err error) {
	wrapped, err := tpm2.Unmarshal[tpm2.TPM2BPublic](text)
	if err != nil {
		return nil, nil, err
	}
	public, err := wrapped.Contents()
	if err != nil {
		return nil, nil, err
	}
	n, err := tpm2.ObjectName(public)
	if err != nil {
		return nil, nil, err
	}
	key, err = tpm2.ImportEncapsulationKey(public)
	if err != nil {
		return nil, nil, err
	}
	bits, err := key.SymmetricParameters().KeyBits.AES()
	if err != nil {
		return nil, nil, err
	}
	if key.NameAlg() != tpm2.TPMAlgSHA256 || *bits != 128 {
		return nil, nil, fmt.Errorf("hash %#x and AES-%d, not SHA-256 and AES-128", key.NameAlg(), *bits)
	}
	return n.Buffer, key, nil
}

// encrypt encrypts with AES in CFB mode, with an IV of zeros, as the specification requires.
func encrypt(key, text []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err) // the callers pass keys of 16 bytes
	}
	out, previous := make([]byte, len(text)), make([]byte, aes.BlockSize)
	for i := 0; i < len(text); i += aes.BlockSize {
		block.Encrypt(previous, previous)
		n := subtle.XORBytes(out[i:], text[i:], previous)
		copy(previous, out[i:i+n])
	}
	return out
}

func digest(parts ...[]byte) []byte {
	sum := sha256.Sum256(bytes.Join(parts, nil))
	return sum[:]
}

func random(size int) []byte {
	b := make([]byte, size)
	_, _ = rand.Read(b) // never fails
	return b
}
