package attest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/sas"
)

// TokenLifetime is the validity period of a SAS token of SymmetricKey. A registration takes
// seconds; one hour tolerates a clock that is slightly wrong.
const TokenLifetime = time.Hour

// policy is the value of skn in a token for DPS.
const policy = "registration"

// Sizes of a key that the service accepts, in bytes after decoding.
const (
	minKey = 16
	maxKey = 64
)

var (
	// ErrNotBase64 means that a symmetric key is not standard base64 text.
	ErrNotBase64 = errors.New("the key is not base64 text")
	// ErrKeyLength means that a symmetric key does not have 16 to 64 bytes.
	ErrKeyLength = errors.New("the key must have 16 to 64 bytes")
)

// SymmetricKey is the device key of an individual enrollment, or a device key derived from
// the key of an enrollment group. It cannot be the group key; see DeriveKey.
type SymmetricKey struct {
	// Key refers to the base64 text that the portal shows, or to a TSS2 file with the key.
	Key Reference
}

// Type returns the type "symmetric-key".
func (SymmetricKey) Type() Type {
	return NewType("symmetric-key", func(k *SymmetricKey) []Key { return []Key{{Name: "key", Reference: &k.Key, Secret: true}} }, capitals)
}

// capitals warns about a registration ID with upper-case letters. A key that is derived
// from the key of an enrollment group depends on their case, which DPS otherwise ignores.
func capitals(registrationID string) (detail, advice string) {
	lower := strings.ToLower(registrationID)
	if registrationID == lower {
		return "", ""
	}
	return fmt.Sprintf("the registration ID %s has upper-case letters; DPS may reject a key that was derived for it from the key of an enrollment group", registrationID),
		fmt.Sprintf("For an enrollment group, use %q as the registration ID, and derive the device's key for it: dpsd derive-key --registration-id %[1]s", lower)
}

// Prove makes a SAS token for sub.Resource that is valid for TokenLifetime from now.
func (k SymmetricKey) Prove(ctx context.Context, sub Subject, secrets Secrets, now time.Time) (proof Proof, err error) {
	expiry := now.Add(TokenLifetime).Truncate(time.Second)
	err = secrets.use(k.Key, symmetricKey, func(text []byte) error {
		mac, err := secrets.authenticate(ctx, text, sas.Statement(sub.Resource, expiry))
		if mac != nil {
			proof = Proof{Password: sas.Token(sub.Resource, mac, expiry, policy), Expires: expiry}
		}
		if d := doubtOf(text, sub.RegistrationID); d != nil {
			proof.Doubt = about(k.Key, d)
		}
		return err
	})
	return proof, err
}

// MAC returns the HMAC-SHA256 of a statement under the device's key. A TPM computes it if it
// holds the key; with Secrets.FilesOnly the result is then nil. The errors are those of Prove.
func (k SymmetricKey) MAC(ctx context.Context, secrets Secrets, statement []byte) (mac []byte, err error) {
	err = secrets.use(k.Key, symmetricKey, func(text []byte) error {
		mac, err = secrets.authenticate(ctx, text, statement)
		return err
	})
	return mac, err
}

// References returns the key's reference.
func (k SymmetricKey) References() []Reference { return references(k.Key) }

// String returns the type and the reference.
func (k SymmetricKey) String() string { return k.Type().Name + " " + k.Key.String() }

// DecodeKey returns the bytes of a symmetric key given as standard base64 text with
// padding. White space around the text and line breaks in it are ignored. The errors are
// ErrNotBase64 and ErrKeyLength, or a *input.Mistake that wraps one of them and says what
// the text is. No error contains any part of the text.
func DecodeKey(text []byte) ([]byte, error) {
	key, err := decode(bytes.TrimSpace(text))
	if err != nil {
		return nil, explainKey(text, err)
	}
	return key, nil
}

// DeriveKey returns the device key of registrationID in an enrollment group: the
// HMAC-SHA256 of the ID exactly as written, under the decoded group key (DPS page
// "Symmetric key attestation"). IDs that differ in case give different keys.
func DeriveKey(groupKey []byte, registrationID string) []byte {
	return sas.MAC(groupKey, []byte(registrationID))
}

// references returns the references of rs that are set, without duplicates.
func references(rs ...Reference) []Reference {
	return slices.Compact(slices.DeleteFunc(rs, Reference.IsZero))
}
