package redact

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// part is the length of a part that gives a secret away, in bytes: nobody else writes 12
// characters of a key in base64 or hex.
const part = 12

// broken finds secrets that somebody has cut, or has put blanks into: a peer that
// repeats a token may wrap the line, and whoever shows its text may end in the midst. It
// holds every part of every form, bare, by its length: a form that is shorter than a part
// is one part.
type broken struct{ parts []map[string]bool }

// add takes up forms of secrets.
func (b *broken) add(forms []string) {
	for _, form := range forms {
		form, _, _ = bare(form)
		size := min(len(form), part)
		if size < distinct {
			continue
		}
		if b.parts == nil {
			b.parts = make([]map[string]bool, part+1)
		}
		if b.parts[size] == nil {
			b.parts[size] = map[string]bool{}
		}
		for i := range len(form) - size + 1 {
			b.parts[size][form[i:i+size]] = true
		}
	}
}

// mask masks them.
func (b *broken) mask(text string) string {
	if b.parts == nil {
		return text
	}
	plain, from, to := bare(text)
	secret := make([]bool, len(plain))
	for size, parts := range b.parts {
		for i := range len(plain) - size + 1 {
			if parts[plain[i:i+size]] {
				for n := range size {
					secret[i+n] = true
				}
			}
		}
	}
	var masked strings.Builder
	kept := 0 // what of text was dealt with
	for i, hidden := range secret {
		if !hidden {
			continue
		}
		if i == 0 || !secret[i-1] {
			masked.WriteString(text[kept:from[i]] + Mark)
		}
		kept = int(to[i])
	}
	return masked.String() + text[kept:]
}

// bare returns the letters and digits of a text, and + / = _, which base64 and hex consist
// of, with escapes decoded. It leaves out what a peer may put between them. from and to say
// where in text each byte of the rest stands.
func bare(text string) (plain string, from, to []int32) {
	var b strings.Builder
	from, to = make([]int32, 0, len(text)), make([]int32, 0, len(text))
	for rest := text; rest != ""; {
		r, n := character(rest)
		begin := len(text) - len(rest)
		rest = rest[n:]
		if letter(r) || strings.ContainsRune("+/=_", r) {
			size, _ := b.WriteRune(r)
			for range size {
				from, to = append(from, int32(begin)), append(to, int32(begin+n))
			}
		}
	}
	return b.String(), from, to
}

// character decodes the character that a text begins with, which may be escaped as in an
// address, JSON, a string of C or HTML, and returns its length in the text.
func character(text string) (r rune, length int) {
	for _, escape := range []struct {
		begin  string
		digits int // 0: up to the end
		base   int
		end    string
	}{{"%", 2, 16, ""}, {`\u`, 4, 16, ""}, {`\x`, 2, 16, ""}, {"&#x", 0, 16, ";"}, {"&#", 0, 10, ";"}} {
		rest, found := strings.CutPrefix(text, escape.begin)
		if !found {
			continue
		}
		digits := escape.digits
		if digits == 0 {
			digits = strings.Index(rest[:min(len(rest), 8)], escape.end)
		}
		if digits < 0 || digits > len(rest) {
			continue
		}
		if value, err := strconv.ParseUint(rest[:digits], escape.base, 21); err == nil {
			return rune(value), len(escape.begin) + digits + len(escape.end)
		}
	}
	if len(text) > 1 && text[0] == '\\' && strings.IndexByte("nrtbf", text[1]) >= 0 {
		return ' ', 2 // a blank
	}
	return utf8.DecodeRuneInString(text)
}
