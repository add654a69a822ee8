package enroll

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// sasToken is a parsed SharedAccessSignature. resource is the text of sr exactly as it was
// received, because the device has signed this text, whether it is escaped or not and
// regardless of the case of its hexadecimal digits.
type sasToken struct {
	resource  string
	signature []byte
	expiry    int64
	expiryRaw string
}

// parseToken parses "SharedAccessSignature sr=…&sig=…&se=…[&skn=registration]" with its
// parameters in any order.
func parseToken(text string) (sasToken, error) {
	var t sasToken
	rest, ok := strings.CutPrefix(text, "SharedAccessSignature ")
	if !ok {
		return t, errors.New("the password does not begin with SharedAccessSignature")
	}
	seen := map[string]string{}
	for pair := range strings.SplitSeq(rest, "&") {
		key, value, ok := strings.Cut(pair, "=")
		if _, again := seen[key]; again || !ok {
			return t, fmt.Errorf("the token's parameter %q is repeated or has no value", key)
		}
		switch key {
		case "sr", "sig", "se", "skn":
			seen[key] = value
		default:
			return t, errors.New("the token has an unknown parameter")
		}
	}
	for _, key := range []string{"sr", "sig", "se"} {
		if seen[key] == "" {
			return t, fmt.Errorf("the token has no %s", key)
		}
	}
	if skn, there := seen["skn"]; there && skn != "registration" {
		return t, errors.New("the token's skn is not registration")
	}
	// PathUnescape is correct here: a plus sign in an unescaped signature is a plus sign.
	encoded, err := url.PathUnescape(seen["sig"])
	if err != nil {
		return t, errors.New("the token's sig is not percent-encoded")
	}
	if t.signature, err = base64.StdEncoding.DecodeString(encoded); err != nil {
		return t, errors.New("the token's sig is not base64")
	}
	if t.expiry, err = strconv.ParseInt(seen["se"], 10, 64); err != nil {
		return t, errors.New("the token's se is not a number")
	}
	t.resource, t.expiryRaw = seen["sr"], seen["se"]
	return t, nil
}

// check compares the resource and the expiry with those that the connection claims. Like the
// service, it ignores the case of names.
func (t sasToken) check(scope, registrationID string, now time.Time) error {
	resource, err := url.PathUnescape(t.resource)
	if err != nil {
		return errors.New("the token's sr is not percent-encoded")
	}
	if !strings.EqualFold(resource, scope+"/registrations/"+registrationID) {
		return errors.New("the token is for another resource")
	}
	if now.Unix() >= t.expiry {
		return errors.New("the token has expired")
	}
	return nil
}

// toSign returns the text that the device has signed.
func (t sasToken) toSign() string { return t.resource + "\n" + t.expiryRaw }

// signedBy reports whether the token was signed with the raw key.
func (t sasToken) signedBy(key []byte) bool {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(t.toSign()))
	return hmac.Equal(mac.Sum(nil), t.signature)
}

// DeriveKey returns the raw key of a device of a symmetric-key group. The case of the
// registration ID matters.
func DeriveKey(groupKey []byte, registrationID string) []byte {
	mac := hmac.New(sha256.New, groupKey)
	mac.Write([]byte(registrationID))
	return mac.Sum(nil)
}
