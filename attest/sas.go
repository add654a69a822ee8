package attest

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/tpm"
)

// TokenLifetime is the validity period of a SAS token of SymmetricKey. A registration takes
// seconds; one hour tolerates a clock that is slightly wrong.
const TokenLifetime = time.Hour

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
	err = secrets.use(k.Key, symmetricKey, func(text []byte) error {
		expiry := now.Add(TokenLifetime).Truncate(time.Second)
		if tpm.Is(text) {
			mac, err := secrets.authenticate(ctx, text, statement(sub.Resource, expiry))
			if mac != nil {
				proof = Proof{Password: token(sub.Resource, mac, expiry), Expires: expiry}
			}
			return err
		}
		key, err := DecodeKey(text)
		if err != nil {
			return err
		}
		defer clear(key)
		proof = Proof{Password: Token(key, sub.Resource, expiry), Expires: expiry}
		if d := DoubtOf(text, key, sub.RegistrationID); d != nil {
			proof.Doubt = about(k.Key, d)
		}
		return nil
	})
	return proof, err
}

// References returns the key's reference.
func (k SymmetricKey) References() []Reference { return references(k.Key) }

// String returns the type and the reference.
func (k SymmetricKey) String() string { return k.Type().Name + " " + k.Key.String() }

// Token returns the SAS token that grants access to resource until expiry, in whole
// seconds (DPS page "Control access"). The resource is signed as it is sent:
// percent-encoded with upper-case hex digits; its letters keep their case.
func Token(key []byte, resource string, expiry time.Time) string {
	mac := hmac.New(sha256.New, key)
	mac.Write(statement(resource, expiry))
	return token(resource, mac.Sum(nil), expiry)
}

// statement returns the text that the signature in a token covers.
func statement(resource string, expiry time.Time) []byte {
	return []byte(percentEncode(resource) + "\n" + strconv.FormatInt(expiry.Unix(), 10))
}

// token returns a token. mac is the HMAC of its statement.
func token(resource string, mac []byte, expiry time.Time) string {
	return "SharedAccessSignature sr=" + percentEncode(resource) + "&sig=" + percentEncode(base64.StdEncoding.EncodeToString(mac)) +
		"&se=" + strconv.FormatInt(expiry.Unix(), 10) + "&skn=registration"
}

// Signature returns the signature in a token made by Token, in base64. It returns "" for
// any other text.
func Signature(token string) string {
	_, rest, _ := strings.Cut(token, "&sig=")
	escaped, _, _ := strings.Cut(rest, "&")
	signature, err := url.PathUnescape(escaped)
	if err != nil {
		return escaped
	}
	return signature
}

// percentEncode encodes all but the unreserved characters of RFC 3986 §2.3. QueryEscape
// differs only in that it encodes a space as a plus sign.
func percentEncode(s string) string {
	return strings.ReplaceAll(url.QueryEscape(s), "+", "%20")
}

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
	mac := hmac.New(sha256.New, groupKey)
	mac.Write([]byte(registrationID))
	return mac.Sum(nil)
}

// references returns the references of rs that are set, without duplicates.
func references(rs ...Reference) []Reference {
	return slices.Compact(slices.DeleteFunc(rs, Reference.IsZero))
}
