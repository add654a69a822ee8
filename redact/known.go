package redact

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// shortest is the length from which a text is a secret, in bytes: less occurs
	// everywhere.
	shortest = 4
	// distinct is the length from which a form is masked within a word too.
	distinct = 8
)

// Known holds secrets, to find them again. The zero value holds none.
type Known struct {
	forms []string // the longest first
	all   map[string]bool
}

// Add takes up a secret as a file holds it: a key, a password, or PEM, of which the
// private keys count. Less than 4 bytes are passed over.
func (k *Known) Add(secret []byte) {
	if !bytes.Contains(secret, []byte("-----BEGIN ")) {
		k.add(bytes.TrimSpace(secret))
		return
	}
	for rest := secret; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return
		}
		if !strings.Contains(block.Type, "PRIVATE KEY") {
			continue // a certificate is for everybody
		}
		k.add(block.Bytes)
		text := pem.EncodeToMemory(block)
		k.add(text)
		for line := range bytes.Lines(text) {
			if line = bytes.TrimSpace(line); !bytes.HasPrefix(line, []byte("-")) {
				k.form(string(line))
			}
		}
	}
}

// add takes up the forms in which a secret may have been written down.
func (k *Known) add(secret []byte) {
	if len(secret) < shortest {
		return
	}
	k.encodings(secret)
	text := string(secret)
	if utf8.Valid(secret) {
		k.form(text)
		quoted := strconv.Quote(text)
		k.form(quoted[1 : len(quoted)-1])
		if asJSON, err := json.Marshal(text); err == nil {
			k.form(string(asJSON[1 : len(asJSON)-1]))
		}
	}
	// A key is bytes, in base64 as the portal shows it, or in that of addresses.
	plain := strings.NewReplacer("-", "+", "_", "/", "=", "").Replace(text)
	if raw, err := base64.RawStdEncoding.DecodeString(plain); err == nil && len(raw) >= distinct {
		k.form(plain)
		k.encodings(raw)
	}
}

// encodings takes up base64, hex and the escapes of addresses.
func (k *Known) encodings(secret []byte) {
	k.form(hex.EncodeToString(secret))
	k.form(strings.ToUpper(hex.EncodeToString(secret)))
	for _, escaped := range []string{url.QueryEscape(string(secret)), url.PathEscape(string(secret)), percent(secret)} {
		k.form(escaped)
		k.form(lowerEscapes(escaped))
	}
	// In the base64 of a longer text it begins at one of three places; what it shares
	// with its neighbours is left out.
	for shift := range 3 {
		padded := append(make([]byte, shift), secret...)
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			text := encoding.EncodeToString(padded)
			end := len(text)
			if len(padded)%3 != 0 {
				end--
			}
			k.form(text[min([]int{0, 2, 3}[shift], end):end])
		}
	}
}

// percent escapes every byte that is no letter and no digit.
func percent(secret []byte) string {
	var b strings.Builder
	for _, c := range secret {
		if c < utf8.RuneSelf && (unicode.IsLetter(rune(c)) || unicode.IsDigit(rune(c))) {
			b.WriteByte(c)
			continue
		}
		b.WriteString("%" + strings.ToUpper(hex.EncodeToString([]byte{c})))
	}
	return b.String()
}

func lowerEscapes(escaped string) string {
	b := []byte(escaped)
	for i := 0; i+2 < len(b); i++ {
		if b[i] == '%' {
			copy(b[i+1:i+3], bytes.ToLower(b[i+1:i+3]))
		}
	}
	return string(b)
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
// are masked where they are a word of their own.
func (k *Known) Mask(text string) string {
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
	return text
}

func letter(r rune) bool { return unicode.IsLetter(r) || unicode.IsDigit(r) }
