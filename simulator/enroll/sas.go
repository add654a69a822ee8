package enroll

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
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

const (
	tokenPrefix = "SharedAccessSignature "
	tokenForm   = "SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"
)

// parseToken parses "SharedAccessSignature sr=…&sig=…&se=…[&skn=registration]" with its
// parameters in any order. Clients also send skn without a value.
func parseToken(text string) (sasToken, *Explanation) {
	var t sasToken
	rest, ok := strings.CutPrefix(text, tokenPrefix)
	if !ok {
		return t, explainPassword(text)
	}
	seen := map[string]string{}
	for pair := range strings.SplitSeq(rest, "&") {
		key, value, ok := strings.Cut(pair, "=")
		if _, again := seen[key]; again || !ok {
			return t, &Explanation{Reason: parameter(key) + " of the token is repeated or has no value", Expected: tokenForm}
		}
		switch key {
		case "sr", "sig", "se", "skn":
			seen[key] = value
		default:
			return t, &Explanation{Reason: "the token has an unknown parameter", Expected: tokenForm, Given: parameter(key)}
		}
	}
	for _, key := range []string{"sr", "sig", "se"} {
		if seen[key] == "" {
			return t, &Explanation{Reason: "the token has no " + key, Expected: tokenForm}
		}
	}
	if skn := seen["skn"]; skn != "" && skn != "registration" {
		return t, &Explanation{
			Reason: "the token's skn is not registration", Expected: "registration, an empty value, or no skn", Given: Quote(skn),
			Advice: "A device's token does not name an access policy.",
		}
	}
	// PathUnescape is correct here: a plus sign in an unescaped signature is a plus sign.
	encoded, err := url.PathUnescape(seen["sig"])
	if err != nil {
		return t, &Explanation{Reason: "the token's sig is not correctly percent-encoded", Advice: "Percent-encode the base64 of the signature: + becomes %2B, / becomes %2F, and = becomes %3D."}
	}
	if t.signature, err = base64.StdEncoding.DecodeString(encoded); err != nil {
		return t, &Explanation{Reason: "the token's sig is not base64", Expected: "the percent-encoded base64 of 32 bytes", Advice: explainBase64(encoded)}
	}
	if t.expiry, err = strconv.ParseInt(seen["se"], 10, 64); err != nil {
		e := &Explanation{Reason: "the token's se is not a number", Expected: "the expiry in whole seconds since 1970", Given: Quote(seen["se"])}
		if _, err := strconv.ParseFloat(seen["se"], 64); err == nil {
			e.Advice = "Round the expiry to whole seconds."
		}
		return t, e
	}
	t.resource, t.expiryRaw = seen["sr"], seen["se"]
	return t, nil
}

// parameter returns the name of a parameter for an explanation. A long name could be a key.
func parameter(name string) string {
	if len(name) > 12 {
		return fmt.Sprintf("a parameter with a name of %d bytes", len(name))
	}
	return "the parameter " + Quote(name)
}

// explainPassword explains a password that is not a token.
func explainPassword(text string) *Explanation {
	e := &Explanation{
		Reason: "the password does not begin with SharedAccessSignature", Expected: tokenForm, Given: fmt.Sprintf("a string of %d bytes", len(text)),
	}
	_, err := DecodeKey(text)
	switch {
	case err == nil:
		e.Advice = "The password looks like the key itself. It must be a token signed with the key."
	case strings.Contains(text, "HostName=") || strings.Contains(text, "SharedAccessKey="):
		e.Advice = "The password looks like a connection string. It must be a token."
	case strings.HasPrefix(strings.ToLower(strings.TrimSpace(text)), "sharedaccesssignature"):
		e.Advice = "The token must begin with SharedAccessSignature, in exactly this spelling, and one space."
	case strings.Contains(text, "sr="):
		e.Advice = "The token is missing the word SharedAccessSignature and a space before its parameters."
	}
	return e
}

// explainBase64 finds out why a signature is not base64.
func explainBase64(text string) string {
	const alphabet = "The signature is base64url-encoded. It must be standard base64, with + and /."
	_, padless := base64.RawStdEncoding.DecodeString(text)
	switch {
	case strings.Contains(text, " "):
		return "The signature contains a space, probably because an unescaped + was decoded as one. Percent-encode the signature once: + becomes %2B."
	case strings.Contains(text, "%"):
		return "The signature was percent-encoded twice."
	case strings.ContainsAny(text, "-_"):
		return alphabet
	case padless == nil:
		return "The signature is missing the = at the end of its base64."
	}
	return ""
}

// check compares the resource and the expiry with those that the connection claims. Like the
// service, it ignores the case of names.
func (t sasToken) check(scope, registrationID string, now time.Time) *Explanation {
	resource, err := url.PathUnescape(t.resource)
	if err != nil {
		return &Explanation{Reason: "the token's sr is not correctly percent-encoded", Expected: Quote(escaped(scope, registrationID)), Given: Quote(t.resource)}
	}
	if !strings.EqualFold(resource, scope+"/registrations/"+registrationID) {
		e := &Explanation{Reason: "the token is for a different resource", Expected: "the sr " + Quote(escaped(scope, registrationID)), Given: Quote(t.resource)}
		again, err := url.PathUnescape(resource)
		switch {
		case err == nil && strings.EqualFold(again, scope+"/registrations/"+registrationID):
			e.Advice = "The sr was percent-encoded twice."
		case strings.Contains(resource, "/devices/"):
			e.Advice = "The token is for an IoT hub. DPS requires a token for the registration."
		case strings.HasSuffix(strings.ToLower(resource), strings.ToLower("/registrations/"+registrationID)):
			e.Advice = "The ID scope belongs to a different DPS instance."
		}
		return e
	}
	if now.Unix() >= t.expiry {
		return t.explainExpiry(now)
	}
	return nil
}

// explainExpiry explains a token that has expired.
func (t sasToken) explainExpiry(now time.Time) *Explanation {
	e := &Explanation{
		Reason:   "the token has expired",
		Expected: fmt.Sprintf("an se after %d (%s)", now.Unix(), now.UTC().Format(time.RFC3339)),
		Given:    fmt.Sprintf("%d (%s)", t.expiry, time.Unix(t.expiry, 0).UTC().Format(time.RFC3339)),
		Advice:   "The token is too old, or the device's clock is behind.",
	}
	if t.expiry < 366*24*60*60 {
		e.Advice = "The se looks like a lifetime, or the device's clock is not set. The se must be the expiry in seconds since 1970."
	}
	return e
}

// escaped returns the resource of a token in its usual form.
func escaped(scope, registrationID string) string {
	return url.QueryEscape(scope + "/registrations/" + registrationID)
}

// toSign returns the text that the device has signed.
func (t sasToken) toSign() string { return t.resource + "\n" + t.expiryRaw }

// signedBy reports whether the token was signed with the raw key.
func (t sasToken) signedBy(key []byte) bool { return t.signs(t.toSign(), key) }

// signs reports whether the signature is that of a text and a raw key.
func (t sasToken) signs(text string, key []byte) bool {
	return hmac.Equal(sign(text, key), t.signature)
}

func sign(text string, key []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write([]byte(text))
	return mac.Sum(nil)
}

// DeriveKey returns the raw key of a device of a symmetric-key group. The case of the
// registration ID matters.
func DeriveKey(groupKey []byte, registrationID string) []byte { return sign(registrationID, groupKey) }

// candidate is a key or a text that a device could have signed with or signed by mistake.
type candidate struct {
	value  string
	advice string // "" for the correct one
}

// texts returns the texts that a device could have signed: the correct one first.
func (t sasToken) texts(wanted string) []candidate {
	resource, _ := url.PathUnescape(t.resource) // check has tested it
	upper := url.QueryEscape(wanted)
	lower := strings.NewReplacer("%2F", "%2f", "%3A", "%3a").Replace(upper)
	const (
		encoding = "The sr in the token differs from the text that was signed. Sign the percent-encoded resource, and send exactly that text as sr."
		letters  = "The sr that was signed differs in case from the sr in the token."
		unit     = "The expiry that was signed is in a different unit from the se in the token. Both must be the same number of seconds."
	)
	expiry := "\n" + t.expiryRaw
	return []candidate{
		{t.toSign(), ""},
		{resource + expiry, encoding}, {upper + expiry, encoding}, {lower + expiry, encoding}, {wanted + expiry, encoding},
		{url.QueryEscape(t.resource) + expiry, "The resource was percent-encoded twice before it was signed."},
		{strings.ToLower(t.resource) + expiry, letters}, {strings.ToLower(upper) + expiry, letters},
		{t.resource + t.expiryRaw, "The text that was signed has no line feed between sr and se."},
		{t.resource + `\n` + t.expiryRaw, "A backslash and the letter n were signed instead of a line feed."},
		{t.resource + "\r\n" + t.expiryRaw, "A carriage return was signed before the line feed."},
		{t.toSign() + "\n", "The text that was signed ends with a line feed. It must end with the expiry."},
		{t.resource + "\n" + strconv.FormatInt(t.expiry/1000, 10), unit},
		{t.resource + expiry + "000", unit},
	}
}

// keysOf returns the keys that a device could have used if an enrollment applies to it: the
// correct ones first.
func (n *Entry) keysOf(registrationID string) (right, wrong []candidate) {
	const undecoded = "The base64 text of the key was used. Decode the key from base64 before you sign with it."
	text := func(key []byte) string { return base64.StdEncoding.EncodeToString(key) }
	for _, key := range n.keys {
		if n.individual != "" {
			right = append(right, candidate{string(key), ""})
			wrong = append(wrong, candidate{text(key), undecoded},
				candidate{string(DeriveKey(key, registrationID)), "A device key was derived from the key of the individual enrollment. Sign with the enrollment's key itself."})
			continue
		}
		derived := DeriveKey(key, registrationID)
		right = append(right, candidate{string(derived), ""})
		wrong = append(wrong,
			candidate{string(key), "The group key itself was used. Sign with the device key, which is derived from it."},
			candidate{text(key), "The base64 text of the group key was used. Decode it from base64, and sign with the device key, which is derived from it."},
			candidate{text(derived), undecoded},
			candidate{string(DeriveKey([]byte(text(key)), registrationID)), "The device key was derived from the base64 text of the group key. Decode the group key from base64 before you derive the device key."},
			candidate{string(DeriveKey(derived, registrationID)), "The device key was derived twice. The device already has the derived key."},
			candidate{string(DeriveKey(key, registrationID+"\n")), "The device key was derived for the registration ID followed by a line feed, which echo adds without -n."},
		)
		for _, other := range []string{strings.ToLower(registrationID), strings.ToUpper(registrationID)} {
			if other != registrationID {
				wrong = append(wrong, candidate{string(DeriveKey(key, other)), fmt.Sprintf("The device key was derived for %s, but the device registers as %s. Case matters.", Quote(other), Quote(registrationID))})
			}
		}
	}
	return right, wrong
}

// source says which key an enrollment requires.
func (n *Entry) source(registrationID string) string {
	if n.individual != "" {
		return "a key of the individual enrollment"
	}
	return fmt.Sprintf("the device key that is derived for %s from the key of the group %s", Quote(registrationID), Quote(n.Group))
}

// explainSignature finds out why no key of the enrollments that apply to a device has signed
// its token, which is for a resource.
func (entries Entries) explainSignature(t sasToken, fitting []*Entry, resource, registrationID string) Explanation {
	var sources []string
	var right, wrong []candidate
	for _, n := range fitting {
		r, w := n.keysOf(registrationID)
		right, wrong = append(right, r...), append(wrong, w...)
		if len(r) > 0 {
			sources = append(sources, n.source(registrationID))
		}
	}
	for i := range entries {
		n := &entries[i]
		r, _ := n.keysOf(registrationID)
		for _, c := range r {
			switch {
			case len(fitting) == 1 && n == fitting[0]:
			case n.individual != "":
				c.advice = fmt.Sprintf("The key belongs to the individual enrollment of %s.", Quote(n.individual))
				wrong = append(wrong, c)
			case fitting[0].individual != "":
				c.advice = fmt.Sprintf("The key is derived from the key of the group %s, but the device's individual enrollment takes precedence.", Quote(n.Group))
				wrong = append(wrong, c)
			}
		}
	}
	e := Explanation{
		Reason:   "the token is not signed with the device's key",
		Expected: fmt.Sprintf("the HMAC-SHA256 of %s with %s", Quote(t.toSign()), strings.Join(sources, ", or ")),
		Given:    fmt.Sprintf("a different signature; the token's sr and se give %s", Quote(t.toSign())),
		Advice:   "No known mistake explains the signature. Compare the key and the registration ID with the enrollment.",
	}
	if digest, err := hex.DecodeString(string(t.signature)); err == nil && len(digest) == sha256.Size {
		t.signature = digest
		if t.anySigned(right, t.toSign()) {
			e.Advice = "The signature is the base64 of hexadecimal digits. Encode the 32 raw bytes instead."
			return e
		}
	}
	if n := len(t.signature); n != sha256.Size {
		e.Given = fmt.Sprintf("a signature of %d bytes instead of %d", n, sha256.Size)
		e.Advice = map[int]string{
			20: "The signature looks like an HMAC-SHA1.", 64: "The signature looks like an HMAC-SHA512.",
			48: "The signature looks hexadecimal. It must be base64.",
		}[n]
		return e
	}
	texts := t.texts(resource)
	for _, keys := range [][]candidate{wrong, right} { // the correct text with a wrong key, and then a wrong text
		for _, text := range texts {
			for _, key := range keys {
				if t.signs(text.value, []byte(key.value)) {
					e.Given = fmt.Sprintf("the signature of %s", Quote(text.value))
					e.Advice = strings.TrimSpace(key.advice + " " + text.advice)
					return e
				}
			}
		}
	}
	if t.expiry > 100_000_000_000 {
		e.Advice = "The se looks like milliseconds. It must be the expiry in seconds since 1970."
	}
	return e
}

func (t sasToken) anySigned(keys []candidate, text string) bool {
	for _, key := range keys {
		if t.signs(text, []byte(key.value)) {
			return true
		}
	}
	return false
}
