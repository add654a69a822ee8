package main

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// key signs a release. It is an OpenPGP key with RSA, the only algorithm that apt, apk, and rpm on
// all supported distributions accept.
type key struct {
	entity *openpgp.Entity
	next   *openpgp.Entity // will replace this key, so clients must trust it too; may be nil
	config *packet.Config
}

// keyBits is the length of new keys.
const keyBits = 4096

// owner is the user ID of new keys.
const owner, address = "dpsd release", "dpsd-project@users.noreply.github.com"

// newKeyFile writes a new secret key to a file, which must not exist.
func newKeyFile(path string, now time.Time) error {
	config := &packet.Config{Algorithm: packet.PubKeyAlgoRSA, RSABits: keyBits, DefaultHash: crypto.SHA512, Time: func() time.Time { return now }}
	entity, err := openpgp.NewEntity(owner, "", address, config)
	if err != nil {
		return err
	}
	entity.Subkeys = nil                                                     // which are for encryption only
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600) //nolint:gosec // the maintainer names the file
	if err != nil {
		return err
	}
	w, err := armor.Encode(file, openpgp.PrivateKeyType, nil)
	if err == nil {
		err = errors.Join(entity.SerializePrivate(w, config), w.Close())
	}
	if err := errors.Join(err, file.Close()); err != nil {
		return errors.Join(err, os.Remove(path)) //nolint:gosec // as above
	}
	fmt.Printf("The secret key is in %s. Its fingerprint is %X.\n", path, entity.PrimaryKey.Fingerprint)
	return nil
}

// readEntity reads a file with one key that can sign releases.
func readEntity(path string) (*openpgp.Entity, error) {
	file, err := os.Open(path) //nolint:gosec // the maintainer names the file
	if err != nil {
		return nil, err
	}
	defer file.Close()
	entities, err := openpgp.ReadArmoredKeyRing(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(entities) != 1 {
		return nil, fmt.Errorf("%s: it contains %d keys, want one", path, len(entities))
	}
	if public, is := entities[0].PrimaryKey.PublicKey.(*rsa.PublicKey); !is || public.N.BitLen() < 3072 {
		return nil, fmt.Errorf("%s: the key must be an RSA key of at least 3072 bits; rpm and apk on older distributions accept no other algorithm", path)
	}
	return entities[0], nil
}

// readKey reads a secret key. Its signatures have the given time, or the time of the key if that
// is later: a signature must not be older than its key.
func readKey(path string, at time.Time) (*key, error) {
	entity, err := readEntity(path)
	switch {
	case err != nil:
		return nil, err
	case entity.PrivateKey == nil:
		return nil, fmt.Errorf("%s: this is a public key; signing needs the secret key", path)
	case entity.PrivateKey.Dummy():
		return nil, fmt.Errorf("%s: this file has only subkeys; signing needs the primary key", path)
	case entity.PrivateKey.Encrypted:
		return nil, fmt.Errorf("%s: the key has a passphrase; export it without one, to a file on an encrypted disk or in memory", path)
	}
	if created := entity.PrimaryKey.CreationTime; at.Before(created) {
		at = created
	}
	return &key{entity: entity, config: &packet.Config{
		DefaultHash:  crypto.SHA512,
		Time:         func() time.Time { return at },
		SigningKeyId: entity.PrimaryKey.KeyId, // and no subkey, which rpm and apk would not know
		// A second build must produce the same signatures.
		NonDeterministicSignaturesViaNotation: packet.BoolPointer(false),
	}}, nil
}

// detached returns a binary signature.
func (k *key) detached(message io.Reader) ([]byte, error) {
	var out bytes.Buffer
	err := openpgp.DetachSign(&out, k.entity, message, k.config)
	return out.Bytes(), err
}

// armored returns a signature as text.
func (k *key) armored(message []byte) ([]byte, error) {
	var out bytes.Buffer
	err := openpgp.ArmoredDetachSign(&out, k.entity, bytes.NewReader(message), k.config)
	out.WriteByte('\n')
	return out.Bytes(), err
}

// clear returns the message with a signature in it.
func (k *key) clear(message []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, k.entity.PrivateKey, k.config)
	if err != nil {
		return nil, err
	}
	_, err = w.Write(message)
	err = errors.Join(err, w.Close())
	out.WriteByte('\n')
	return out.Bytes(), err
}

// digest returns a signature for apk, of a SHA-1 digest.
func (k *key) digest(digest io.Reader) ([]byte, error) {
	sum, err := io.ReadAll(digest)
	if err != nil {
		return nil, err
	}
	return rsa.SignPKCS1v15(nil, k.rsa(), crypto.SHA1, sum)
}

func (k *key) rsa() *rsa.PrivateKey { return k.entity.PrivateKey.PrivateKey.(*rsa.PrivateKey) }

// announce reads the key that will replace this one.
func (k *key) announce(path string) (err error) {
	k.next, err = readEntity(path)
	return err
}

// trusted returns the keys that clients must trust.
func (k *key) trusted() []*openpgp.Entity {
	if k.next == nil {
		return []*openpgp.Entity{k.entity}
	}
	return []*openpgp.Entity{k.entity, k.next}
}

// public returns the public keys in the format of apt.
func (k *key) public() ([]byte, error) {
	var out bytes.Buffer
	for _, e := range k.trusted() {
		if err := e.Serialize(&out); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}

// publicText returns the public keys in the format of rpm: one block of text for each.
func (k *key) publicText() ([]byte, error) {
	var out bytes.Buffer
	for _, e := range k.trusted() {
		w, err := armor.Encode(&out, openpgp.PublicKeyType, nil)
		if err != nil {
			return nil, err
		}
		if err := errors.Join(e.Serialize(w), w.Close()); err != nil {
			return nil, err
		}
		out.WriteByte('\n')
	}
	return out.Bytes(), nil
}

// publicPEM returns the public key in the format of apk.
func (k *key) publicPEM() ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(&k.rsa().PublicKey)
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), err
}

// fingerprints returns the fingerprint of each trusted key, in the groups in which people
// compare it, one a line.
func (k *key) fingerprints() string {
	out := ""
	for _, e := range k.trusted() {
		out += "   "
		for group := range slices.Chunk(e.PrimaryKey.Fingerprint, 2) {
			out += fmt.Sprintf(" %X", group)
		}
		out += "\n"
	}
	return out
}
