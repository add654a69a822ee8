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
// repeats a token may wrap the line, and whoever shows its text may end in the midst.
type broken struct {
	parts map[string]bool // every part of every long form, bare
	whole []string        // the shorter forms
}

// add takes up forms of secrets.
func (b *broken) add(forms []string) {
	if b.parts == nil {
		b.parts = map[string]bool{}
	}
	for _, form := range forms {
		form, _, _ = bare(form)
		switch {
		case len(form) >= part:
			for i := range len(form) - part + 1 {
				b.parts[form[i:i+part]] = true
			}
		case len(form) >= distinct:
			b.whole = append(b.whole, form)
		}
	}
}

// mask masks them.
func (b *broken) mask(text string) string {
	if len(b.parts) == 0 && len(b.whole) == 0 {
		return text
	}
	plain, from, to := bare(text)
	secret := make([]bool, len(plain))
	found := false
	take := func(at, length int) {
		found = true
		for i := range length {
			secret[at+i] = true
		}
	}
	for i := 0; i+part <= len(plain); i++ {
		if b.parts[plain[i:i+part]] {
			take(i, part)
		}
	}
	for _, form := range b.whole {
		for begin := 0; ; begin++ {
			at := strings.Index(plain[begin:], form)
			if at < 0 {
				break
			}
			begin += at
			take(begin, len(form))
		}
	}
	if !found {
		return text
	}
	var masked strings.Builder
	kept := 0 // what of text was dealt with
	for i := 0; i < len(plain); i++ {
		if !secret[i] {
			continue
		}
		masked.WriteString(text[kept:from[i]])
		for i+1 < len(plain) && secret[i+1] {
			i++
		}
		masked.WriteString(Mark)
		kept = int(to[i])
	}
	masked.WriteString(text[kept:])
	return masked.String()
}

// bare returns the letters and digits of a text, and + / = _, which base64 and hex consist
// of, with escapes decoded. It leaves out what a peer may put between them. from and to say
// where in text each byte of the rest stands.
func bare(text string) (plain string, from, to []int32) {
	var b strings.Builder
	from, to = make([]int32, 0, len(text)), make([]int32, 0, len(text))
	for i := 0; i < len(text); {
		r, n := character(text[i:])
		if letter(r) || strings.ContainsRune("+/=_", r) {
			before := b.Len()
			b.WriteRune(r)
			for range b.Len() - before {
				from, to = append(from, int32(i)), append(to, int32(i+n))
			}
		}
		i += n
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
		if digits <= 0 || digits > len(rest) {
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
