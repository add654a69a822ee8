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
	// shortest is the length from which a text counts as a secret, in bytes: shorter texts
	// occur everywhere.
	shortest = 4
	// longest is the length up to which escaped forms are searched for, in bytes; a line of
	// PEM has 64, and longer texts are not passwords.
	longest = 256
	// distinct is the length from which a form is also masked within a word.
	distinct = 8
)

// Known is a set of secrets to mask. The zero value is empty.
type Known struct {
	forms   []string // longest first
	escaped []func() *regexp.Regexp
	all     map[string]bool
	broken  broken
}

// Add adds a secret with the contents of a file: a key, a password, or PEM, of which it
// adds the private keys. It ignores secrets of less than 4 bytes.
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
		k.lines(secret) // the type is unknown, so every line counts
		return
	}
	for _, block := range blocks {
		if !strings.Contains(block.Type, "PRIVATE KEY") {
			continue // a certificate is public
		}
		k.add(block.Bytes)
		text := pem.EncodeToMemory(&pem.Block{Type: block.Type, Bytes: block.Bytes})
		k.add(text)
		k.lines(text)
	}
}

// lines adds the lines of a PEM file except its BEGIN and END lines.
func (k *Known) lines(text []byte) {
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); !bytes.HasPrefix(line, []byte("-")) {
			k.add(line)
		}
	}
}

// add adds the forms in which a secret may appear.
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

// fromBase64 decodes a key in base64, as the portal shows it, or in base64url. It returns
// nil if the key is neither.
func fromBase64(key []byte) []byte {
	plain := strings.Map(func(r rune) rune {
		switch r {
		case '-':
			return '+'
		case '_':
			return '/'
		case '=':
			return -1
		}
		return r
	}, string(key))
	raw, err := base64.RawStdEncoding.DecodeString(plain)
	if err != nil {
		return nil
	}
	return raw
}

// encodings adds the base64, hex and URL-escaped forms.
func (k *Known) encodings(secret []byte) {
	k.form(hex.EncodeToString(secret))
	k.form(strings.ToUpper(hex.EncodeToString(secret)))
	for _, form := range inBase64(secret) {
		k.form(form)
	}
}

// inBase64 returns the forms of a secret within the base64 of a longer text, where it has
// one of three offsets. They omit the characters that it shares with its neighbours, unless
// it is the end of the text.
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

// escape adds the forms of a text in a URL, in JSON or in quotes: each character other than
// a letter or digit may or may not be escaped.
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
		k.escaped = append(k.escaped, once(b.String()))
	}
}

// percent escapes every byte of a text.
func percent(text string) string { return "%" + strings.ReplaceAll(fmt.Sprintf("% x", text), " ", "%") }

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

// Mask masks every added secret, also in base64, hex and escaped forms. It masks short
// secrets only where they are separate words. For keys and passwords, but not for PEM, it
// also masks parts, forms with blanks in them, base32, UTF-16 and lists of numbers.
func (k *Known) Mask(text string) string {
	for _, form := range k.escaped {
		text = form().ReplaceAllString(text, Mark)
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
