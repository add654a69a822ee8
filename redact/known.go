package redact

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/pemfile"
)

const (
	// shortest is the length from which a text is a secret, in bytes: less occurs
	// everywhere.
	shortest = 4
	// longest is the length up to which escapes are looked for, in bytes; a line of PEM
	// has 64, and what is longer is no password.
	longest = 256
	// distinct is the length from which a form is masked within a word too.
	distinct = 8
)

// Known holds secrets, to find them again. The zero value holds none.
type Known struct {
	forms   []string // the longest first
	escaped []*regexp.Regexp
	all     map[string]bool
	broken  broken
}

// Add takes up a secret as a file holds it: a key, a password, or PEM, of which the
// private keys count. Less than 4 bytes are passed over.
func (k *Known) Add(secret []byte) {
	if !bytes.Contains(secret, []byte("-----BEGIN ")) {
		var one Known
		secret = bytes.TrimSpace(secret)
		one.add(secret)
		for _, form := range one.forms {
			k.form(form)
		}
		k.escaped = append(k.escaped, one.escaped...)
		if len(secret) >= shortest {
			k.broken.add(secret, one.forms)
		}
		return
	}
	blocks, err := pemfile.Blocks(secret)
	if err != nil {
		k.lines(secret) // what it is cannot be told, so all of it counts
		return
	}
	for _, block := range blocks {
		if !strings.Contains(block.Type, "PRIVATE KEY") {
			continue // a certificate is for everybody
		}
		k.add(block.Bytes)
		text := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})
		k.add(text)
		k.lines(text)
	}
}

// lines takes up each line of a PEM file that is none of its frame.
func (k *Known) lines(text []byte) {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); !bytes.HasPrefix(line, []byte("-")) {
			k.add(line)
		}
	}
}

// add takes up the forms in which a secret may have been written down.
func (k *Known) add(secret []byte) {
	if len(secret) < shortest {
		return
	}
	k.encodings(secret)
	k.encodings([]byte(hex.EncodeToString(secret)))
	text := string(secret)
	if k.form(text); utf8.Valid(secret) {
		k.escape(text)
	}
	if raw := fromBase64(secret); len(raw) >= distinct {
		k.form(base64.RawStdEncoding.EncodeToString(raw))
		k.encodings(raw)
	}
}

// fromBase64 is what a key holds, in base64 as the portal shows it, or in that of addresses;
// nil for what is not base64.
func fromBase64(key []byte) []byte {
	plain := strings.NewReplacer("-", "+", "_", "/", "=", "").Replace(string(key))
	raw, err := base64.RawStdEncoding.DecodeString(plain)
	if err != nil {
		return nil
	}
	return raw
}

// encodings takes up base64, hex and the escapes of addresses.
func (k *Known) encodings(secret []byte) {
	k.form(hex.EncodeToString(secret))
	k.form(strings.ToUpper(hex.EncodeToString(secret)))
	for _, form := range inBase64(secret) {
		k.form(form)
	}
}

// inBase64 is a secret within the base64 of a longer text, where it begins at one of three
// places. What it shares with its neighbours is left out, unless the text ends with it.
func inBase64(secret []byte) (forms []string) {
	for shift, begin := range []int{0, 2, 3} {
		padded := append(make([]byte, shift), secret...)
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(padded)
			end := len(text)
			if len(padded)%3 != 0 {
				end--
			}
			forms = append(forms, text[min(begin, len(text)):], text[min(begin, end):end])
		}
	}
	return forms
}

// escape takes up how a text is written in an address, in JSON or in quotes: each
// character that is no letter or digit may be escaped in its own way, or not at all.
func (k *Known) escape(text string) {
	var b strings.Builder
	special := 0
	for _, r := range text {
		if r < utf8.RuneSelf && letter(r) {
			b.WriteRune(r)
			continue
		}
		special++
		fmt.Fprintf(&b, `(?:\\?%s|(?i:%s)|\\(?i:u%04x|x%02x)`, regexp.QuoteMeta(string(r)), percent(string(r)), r, r)
		if r == ' ' {
			b.WriteString(`|\+`)
		}
		b.WriteByte(')')
	}
	if special > 0 && len(text) >= distinct && len(text) <= longest {
		k.escaped = append(k.escaped, regexp.MustCompile(b.String()))
	}
}

// percent escapes every byte of a text.
func percent(text string) string {
	var b strings.Builder
	for _, c := range []byte(text) {
		fmt.Fprintf(&b, "%%%02x", c)
	}
	return b.String()
}

func (k *Known) form(text string) {
	if len(text) < shortest || k.all[text] {
		return
	}
	if k.all == nil {
		k.all = map[string]bool{}
	}
	k.all[text] = true
	at, _ := slices.BinarySearchFunc(k.forms, text, func(have, new string) int {
		return cmp.Or(cmp.Compare(len(new), len(have)), cmp.Compare(have, new))
	})
	k.forms = slices.Insert(k.forms, at, text)
}

// Mask masks every secret that was added, also in base64, hex and escaped. Short ones
// are masked where they are a word of their own. Of keys and passwords, not of PEM,
// parts are masked too, also with blanks in them, in base32 or UTF-16, or listed as numbers.
func (k *Known) Mask(text string) string {
	for _, form := range k.escaped {
		text = form.ReplaceAllString(text, Mark)
	}
	for _, form := range k.forms {
		if len(form) >= distinct {
			text = strings.ReplaceAll(text, form, Mark)
			continue
		}
		for from := 0; ; {
			at := strings.Index(text[from:], form)
			if at < 0 {
				break
			}
			at += from
			from = at + len(form)
			before, _ := utf8.DecodeLastRuneInString(text[:at])
			after, _ := utf8.DecodeRuneInString(text[from:])
			if !letter(before) && !letter(after) {
				text = text[:at] + Mark + text[from:]
				from = at + len(Mark)
			}
		}
	}
	return k.broken.mask(text)
}

func letter(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
