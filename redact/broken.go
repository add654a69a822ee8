package redact

import (
	"cmp"
	"encoding/base32"
	"encoding/binary"
	"encoding/hex"
	"slices"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// broken finds secrets that have been truncated, broken by blanks, or listed byte by byte:
// a peer that repeats a token may wrap the line, and its text may be truncated for display.
// broken decodes a text in several ways and searches each result for parts of the secrets.
type broken struct {
	written parts // searched for in the letters and digits of the text
	binary  parts // searched for in its characters as bytes
	listed  parts // searched for in its numbers as bytes
}

// The lengths from which a part identifies a secret, in bytes: 12 characters of a key in
// base64 or hex, 8 binary bytes of one, or 6 bytes as numbers do not occur by chance.
const (
	partWritten = 12
	partBinary  = 8
	partListed  = 6
)

// add adds a secret, which is not PEM, and the forms that Known has for it.
func (b *broken) add(secret []byte, forms []string) {
	b.listed.add(withoutZeros(secret), partListed, shortest)
	forms = append(slices.Clone(forms), inBase32(secret)...)
	if raw := fromBase64(secret); len(raw) >= distinct {
		forms = append(forms, inBase32(raw)...)
		b.binary.add(string(raw), partBinary, distinct)
		b.listed.add(withoutZeros(raw), partListed, shortest)
	}
	if utf8.Valid(secret) {
		var wide []byte
		for _, unit := range utf16.Encode([]rune(string(secret))) {
			wide = binary.LittleEndian.AppendUint16(wide, unit)
		}
		forms = append(append(forms, inBase64(wide)...), hex.EncodeToString(wide), strings.ToUpper(hex.EncodeToString(wide)))
	}
	for _, form := range forms {
		if strings.ContainsAny(form, escapes) {
			form, _, _ = bare(form)
		} else {
			form = strings.Map(func(r rune) rune {
				if isBare(r) {
					return r
				}
				return -1
			}, form)
		}
		b.written.add(form, partWritten, distinct)
	}
}

// withoutZeros removes the zeros that UTF-16 adds to the characters of a list.
func withoutZeros(secret []byte) string { return strings.ReplaceAll(string(secret), "\x00", "") }

// inBase32 returns the forms of a secret within the base32 of a longer text, at its end or
// before it, in both alphabets of RFC 4648.
func inBase32(secret []byte) (forms []string) {
	for shift, begin := range []int{0, 2, 4, 5, 7} { // without the character that it shares with its neighbour
		padded := append(make([]byte, shift), secret...)
		for _, encoding := range []*base32.Encoding{base32.StdEncoding, base32.HexEncoding} {
			form := encoding.WithPadding(base32.NoPadding).EncodeToString(padded)[begin:]
			forms = append(forms, form, strings.ToLower(form))
		}
	}
	return forms
}

// mask masks the parts of secrets in a text.
func (b *broken) mask(text string) string {
	var found []span
	read := func(p *parts, part int, reading func(string) (string, []int32, []int32)) {
		if len(p.long) == 0 && len(p.short) == 0 {
			return
		}
		plain, from, to := reading(text)
		for _, run := range p.find(plain, part) {
			found = append(found, span{int(from[run.from]), int(to[run.to-1])})
		}
	}
	read(&b.written, partWritten, bare)
	read(&b.binary, partBinary, characters)
	for _, base := range []int{2, 8, 10, 16} {
		read(&b.listed, partListed, func(text string) (string, []int32, []int32) { return numbers(text, base) })
	}
	slices.SortFunc(found, func(a, b span) int { return cmp.Compare(a.from, b.from) })
	var masked strings.Builder
	kept := 0 // the length of the text that has been processed
	for _, s := range found {
		if s.from >= kept {
			masked.WriteString(text[kept:s.from] + Mark)
		}
		kept = max(kept, s.to)
	}
	masked.WriteString(text[kept:])
	return masked.String()
}

type span struct{ from, to int }

// parts are secrets whose parts are searched for.
type parts struct {
	long  []string // those that are long enough to have parts
	short []string // the others
	// begins has a bit for the hash of the first bytes of each part. It makes the search as
	// fast as a set of all parts would, in a tenth of its memory.
	begins [1 << 15 / 64]uint64
}

// bit is the place in begins for a part.
func bit(part string) (word int, mask uint64) {
	hash := binary.LittleEndian.Uint32([]byte(part[:4])) * 2654435761 >> 17
	return int(hash / 64), 1 << (hash % 64)
}

func (p *parts) add(secret string, part, least int) {
	switch {
	case len(secret) >= part:
		p.long = append(p.long, secret)
		for i := range len(secret) - part + 1 {
			word, mask := bit(secret[i:])
			p.begins[word] |= mask
		}
	case len(secret) >= least:
		p.short = append(p.short, secret)
	}
}

// find returns the positions of secrets in a text, in order; adjacent ones are joined.
func (p *parts) find(plain string, part int) (found []span) {
	secret := make([]bool, len(plain))
	take := func(at, length int) {
		for i := range length {
			secret[at+i] = true
		}
	}
	all := strings.Join(p.long, "\x00")
	for i := 0; i+part <= len(plain); i++ {
		word, mask := bit(plain[i:])
		if p.begins[word]&mask != 0 && strings.Contains(all, plain[i:i+part]) {
			take(i, part)
		}
	}
	for _, form := range p.short {
		for begin := 0; ; begin++ {
			at := strings.Index(plain[begin:], form)
			if at < 0 {
				break
			}
			begin += at
			take(begin, len(form))
		}
	}
	for i := 0; i < len(plain); i++ {
		if !secret[i] {
			continue
		}
		begin := i
		for i+1 < len(plain) && (secret[i+1] || plain[i+1] == '=') { // including the padding
			i++
		}
		found = append(found, span{begin, i + 1})
	}
	return found
}

// numbers returns the bytes that a text lists as numbers in a base, such as "83, 105", "-5"
// for 251, "0x53 0x69" or "\\123\\151". It omits zeros and everything else. from and to are
// as for bare.
func numbers(text string, base int) (plain string, from, to []int32) {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		begin := i
		for i < len(text) && alphanumeric(text[i]) {
			i++
		}
		value, is := number(text[begin:i], base)
		if !is || value == 0 {
			continue
		}
		if base == 10 && begin > 0 && text[begin-1] == '-' && (begin == 1 || !alphanumeric(text[begin-2])) {
			value = -value
			begin--
		}
		b.WriteByte(value)
		from, to = append(from, int32(begin)), append(to, int32(i))
	}
	return b.String(), from, to
}

func alphanumeric(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// bases are the bases of numbers, with the prefixes that a number may have.
var bases = [...][]string{2: {"0b"}, 8: {"0o"}, 10: nil, 16: {"0x", "x", "u"}}

// number parses a word as one byte.
func number(word string, base int) (byte, bool) {
	for _, prefix := range bases[base] {
		if rest := len(word) - len(prefix); rest > 0 && strings.EqualFold(word[:len(prefix)], prefix) {
			word = word[len(prefix):]
			break
		}
	}
	value, is := natural(word, base, 0xff)
	return byte(value), is
}

// natural parses digits as a number of at most most.
func natural(digits string, base, most int) (value int, is bool) {
	for _, c := range []byte(digits) {
		digit := int(c) - '0'
		if c > '9' {
			digit = int(c|0x20) - 'a' + 10
		}
		if digit < 0 || digit >= base || value*base+digit > most {
			return 0, false
		}
		value = value*base + digit
	}
	return value, digits != ""
}

// characters returns the characters of a text, decoded as by bare, as bytes: one byte each,
// or the bytes of their UTF-8. from and to are as for bare.
func characters(text string) (plain string, from, to []int32) {
	b := make([]byte, 0, len(text))
	from, to = make([]int32, 0, len(text)), make([]int32, 0, len(text))
	for i := 0; i < len(text); {
		r, n := character(text[i:])
		if r == utf8.RuneError && n == 1 {
			r = rune(text[i])
		}
		before := len(b)
		if r <= 0xff {
			b = append(b, byte(r))
		} else {
			b = utf8.AppendRune(b, r)
		}
		for range len(b) - before {
			from, to = append(from, int32(i)), append(to, int32(i+n))
		}
		i += n
	}
	return string(b), from, to
}

// bare returns the characters of base64 and hex in a text (letters, digits and + / = _),
// with escapes decoded. It omits what a peer may insert between them. from and to are the
// position in text of each returned byte.
func bare(text string) (plain string, from, to []int32) {
	var b strings.Builder
	b.Grow(len(text))
	from, to = make([]int32, 0, len(text)), make([]int32, 0, len(text))
	for i := 0; i < len(text); {
		r, n := character(text[i:])
		if isBare(r) {
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

func isBare(r rune) bool { return letter(r) || strings.ContainsRune("+/=_", r) }

// escapes are the characters that begin an escape.
const escapes = `%\&`

// character decodes the first character of a text, which may be escaped as in a URL, JSON,
// a C string or HTML, and returns its length in the text.
func character(text string) (r rune, length int) {
	if strings.IndexByte(escapes, text[0]) < 0 {
		return utf8.DecodeRuneInString(text)
	}
	for _, escape := range []struct {
		begin  string
		digits int // 0: up to the end
		base   int
		end    string
	}{{"%", 2, 16, ""}, {`\u`, 4, 16, ""}, {`\x`, 2, 16, ""}, {`\`, 3, 8, ""}, {"&#x", 0, 16, ";"}, {"&#", 0, 10, ";"}} {
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
		if value, is := natural(rest[:digits], escape.base, utf8.MaxRune); is {
			return rune(value), len(escape.begin) + digits + len(escape.end)
		}
	}
	if len(text) > 1 && text[0] == '\\' && strings.IndexByte("nrtbf", text[1]) >= 0 {
		return ' ', 2 // a blank
	}
	return utf8.DecodeRuneInString(text)
}
