// Package redact masks secrets in text that other people read. It recognizes secrets by
// their form, and known secrets by their value.
package redact

import (
	"regexp"
	"strings"
	"sync"
)

// Mark replaces a secret.
const Mark = "[masked]"

// once compiles an expression on first use. Compiling the expressions of this package at
// start-up would take 0.3 MB and a millisecond, even in a daemon that never needs them.
func once(expression string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expression) })
}

// tokens are the forms of secrets that a peer may repeat, such as a SAS token or a proxy
// password that dpsd has sent to it.
var tokens = []struct {
	sign string // in lower case; texts without it are not matched, which saves time
	form func() *regexp.Regexp
	to   string
}{
	{"sharedaccesssignature", once(`(?i)SharedAccessSignature(?:%20|\+|\s)*[^\s"'<>\\]*`), Mark},
	{"sig", once(`(?i)\bsig(?:=|%3d)[^&\s"'<>\\]+`), "sig=" + Mark},
	{"key", once(`(?i)\b((?:shared)?access(?:_|-)?key(?:=|%3d))[^;&\s"'<>\\]+`), "${1}" + Mark},
	// This does not match "basic authentication": base64 has capitals or digits.
	{"basic", once(`(?i)\b(basic(?:%20|\s)+)(?-i:[a-z+/_.~%-]*[A-Z0-9])[A-Za-z0-9+/_.~%-]{3,}=*`), "${1}" + Mark},
	{"bearer", once(`(?i)\b(bearer(?:%20|\s)+)(?-i:[a-z+/_.~%-]*[A-Z0-9])[A-Za-z0-9+/_.~%-]{3,}=*`), "${1}" + Mark},
	// With a "/" in it, the password looks like a path, so this matches up to the last "@"
	// of the word.
	{"://", once(`(?i)\b([a-z][a-z0-9+.-]*://)[^\s"'<>\\]*@`), "${1}" + Mark + "@"},
	{"private key", once(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`), Mark},
}

// Tokens masks text in the form of a secret: SAS tokens and their signatures, keys of
// connection strings, HTTP credentials, user names and passwords in URLs, private keys.
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
	// labelled matches a secret that follows a word such as "password".
	labelled = once(`(?i)((?:pass(?:word|wd|phrase)?|pwd|secret|token)["']?(?:\s+is\s|\s*[:=])\s*)(\S+)`)
	// word matches a whole word that may be a key in base64 or hex: 16 bytes have at least
	// 22 characters.
	word = once(`[A-Za-z0-9+/_=%-]{20,}`)
	// reference matches the location of a secret, which is not secret.
	reference = once(`^["']?(?:file:/|credential:)`)
)

// Prose is Tokens for text that a person has written, such as a comment, which may contain
// a bare key: it also masks long words that mix letters and digits, and values labelled as
// passwords.
func Prose(text string) string {
	text = labelled().ReplaceAllStringFunc(Tokens(text), func(s string) string {
		m := labelled().FindStringSubmatch(s)
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

// random reports whether a word looks random: digits with letters of both cases, or with
// only the letters of hex.
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
