// Package redact takes secrets out of text that other people are to read: by their
// form, where any text may hold one, and by what they are, where they are known.
package redact

import (
	"regexp"
	"strings"
	"sync"
)

// Mark stands where a secret stood.
const Mark = "[masked]"

// once compiles an expression when it is first used. Compiled at the start, the expressions of
// this package cost a daemon that never needs them 0.3 MB and a millisecond.
func once(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// tokens are the forms of secrets that a peer may repeat: dpsd has told it a SAS token,
// or a proxy its password.
var tokens = []struct {
	sign string // in small letters; without it there is no need to look, which takes long
	form func() *regexp.Regexp
	to   string
}{
	{"sharedaccesssignature", once(`(?i)SharedAccessSignature(?:%20|\+|\s)*[^\s"'<>\\]*`), Mark},
	{"sig", once(`(?i)\bsig(?:=|%3d)[^&\s"'<>\\]+`), "sig=" + Mark},
	{"key", once(`(?i)\b((?:shared)?access(?:_|-)?key(?:=|%3d))[^;&\s"'<>\\]+`), "${1}" + Mark},
	// Not "basic authentication": base64 has capitals or digits.
	{"basic", once(`(?i)\b(basic(?:%20|\s)+)(?-i:[a-z+/_.~%-]*[A-Z0-9])[A-Za-z0-9+/_.~%-]{3,}=*`), "${1}" + Mark},
	{"bearer", once(`(?i)\b(bearer(?:%20|\s)+)(?-i:[a-z+/_.~%-]*[A-Z0-9])[A-Za-z0-9+/_.~%-]{3,}=*`), "${1}" + Mark},
	// A "/" in the password makes it look like a path: the last "@" of the word counts.
	{"://", once(`(?i)\b([a-z][a-z0-9+.-]*://)[^\s"'<>\\]*@`), "${1}" + Mark + "@"},
	{"private key", once(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`), Mark},
}

// Tokens masks what has the form of a secret: SAS tokens and their signatures, keys of
// connection strings, credentials of HTTP, users and passwords in addresses, private
// keys.
func Tokens(text string) string {
	small := strings.ToLower(text)
	for _, t := range tokens {
		if strings.Contains(small, t.sign) {
			text = t.form().ReplaceAllString(text, t.to)
		}
	}
	return text
}

var (
	// said is a secret that somebody calls by its name.
	said = once(`(?i)((?:pass(?:word|wd|phrase)?|pwd|secret|token)["']?(?:\s+is\s|\s*[:=])\s*)(\S+)`)
	// word may be a key in base64 or hex, whole: 16 bytes have at least 22 characters.
	word = once(`[A-Za-z0-9+/_=%-]{20,}`)
	// reference is where a secret is, which is none.
	reference = once(`^["']?(?:file:/|credential:)`)
)

// Prose is Tokens for what a person has written, such as a comment, where a key may
// stand without any form: it masks long words of letters and digits mixed too, and
// what is called a password.
func Prose(text string) string {
	text = said().ReplaceAllStringFunc(Tokens(text), func(s string) string {
		m := said().FindStringSubmatch(s)
		if reference().MatchString(m[2]) {
			return s
		}
		return m[1] + Mark
	})
	return word().ReplaceAllStringFunc(text, func(s string) string {
		if random(s) {
			return Mark
		}
		return s
	})
}

// random tells whether a word looks as if nobody had made it up: digits with letters of
// both cases, or with those of hex alone.
func random(s string) bool {
	const digits, hex = "0123456789", "abcdefABCDEF"
	if !strings.ContainsAny(s, digits) {
		return false
	}
	if strings.Trim(s, digits+hex) == "" {
		return strings.ContainsAny(s, hex)
	}
	return strings.ToLower(s) != s && strings.ToUpper(s) != s
}
