// Package sas builds shared access signatures, the tokens with which a device signs in to DPS
// and to an IoT hub with a symmetric key. It does not read keys.
package sas

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Statement returns the text that the signature in a token covers; the signature is its MAC under
// the key of the identity. The resource is signed as it is sent: encoded, with the case of its
// letters unchanged.
func Statement(resource string, expiry time.Time) []byte {
	return []byte(Encode(resource) + "\n" + strconv.FormatInt(expiry.Unix(), 10))
}

// MAC returns the HMAC-SHA256 of a statement under a key.
func MAC(key, statement []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(statement)
	return mac.Sum(nil)
}

// Token returns the token that grants access to resource until expiry, in whole seconds (DPS
// page "Control access", IoT Hub page "Control access with shared access signatures"). mac is
// the MAC of its Statement. policy is the value of skn, which DPS requires and a hub must not
// receive from a device; "" omits it.
func Token(resource string, mac []byte, expiry time.Time, policy string) string {
	token := "SharedAccessSignature sr=" + Encode(resource) + "&sig=" + Encode(base64.StdEncoding.EncodeToString(mac)) +
		"&se=" + strconv.FormatInt(expiry.Unix(), 10)
	if policy != "" {
		token += "&skn=" + policy
	}
	return token
}

// Signature returns the signature in a token made by Token, in base64. It returns "" for any
// other text.
func Signature(token string) string {
	_, rest, _ := strings.Cut(token, "&sig=")
	escaped, _, _ := strings.Cut(rest, "&")
	signature, err := url.PathUnescape(escaped)
	if err != nil {
		return escaped
	}
	return signature
}

// encoding corrects the result of QueryEscape. Only the asterisk, which a device ID may contain, has
// a lower-case hex digit, as in Microsoft's SDK for Node.js.
var encoding = strings.NewReplacer("+", "%20", "%2A", "%2a")

// Encode percent-encodes all but the unreserved characters of RFC 3986 §2.3 as
// encodeUriComponentStrict of Microsoft's SDK for Node.js does.
func Encode(s string) string { return encoding.Replace(url.QueryEscape(s)) }
