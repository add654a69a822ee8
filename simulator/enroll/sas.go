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

// sasToken is a SharedAccessSignature taken apart. resource is the text of
// sr as it was received, because that text, escaped or not and in whatever
// case of hex, is what the device has signed.
type sasToken struct {
	resource  string
	signature []byte
	expiry    int64
	expiryRaw string
}

// parseToken reads "SharedAccessSignature sr=…&sig=…&se=…[&skn=registration]",
// its parameters in any order.
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
	// PathUnescape, since a plus sign in an unescaped signature is a plus sign.
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

// check compares resource and expiry with what the connection claims to be.
// Names are compared as the service does, without regard to case.
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

// toSign is the text that the device has signed.
func (t sasToken) toSign() string { return t.resource + "\n" + t.expiryRaw }

// signedBy tells whether the token was made with the raw key.
func (t sasToken) signedBy(key []byte) bool {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(t.toSign()))
	return hmac.Equal(mac.Sum(nil), t.signature)
}

// DeriveKey makes the raw key of one device of a symmetric-key group. The
// registration ID goes in as it was typed.
func DeriveKey(groupKey []byte, registrationID string) []byte {
	mac := hmac.New(sha256.New, groupKey)
	mac.Write([]byte(registrationID))
	return mac.Sum(nil)
}
