package redact

import "strings"

// part is the length of a part that gives a secret away, in bytes: nobody else writes 12
// characters of a key in base64 or hex.
const part = 12

// broken finds secrets that somebody has cut, or has put blanks into: a peer that
// repeats a token may wrap the line, and whoever shows its text may end in the midst.
type broken struct {
	parts map[string]bool // every part of every long form, without blanks
	whole []string        // the shorter forms
}

// add takes up forms of secrets.
func (b *broken) add(forms []string) {
	if b.parts == nil {
		b.parts = map[string]bool{}
	}
	for _, form := range forms {
		form, _ = withoutBlanks(form)
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
	plain, places := withoutBlanks(text)
	secret := make([]bool, len(plain))
	found := false
	take := func(from, length int) {
		found = true
		for i := range length {
			secret[from+i] = true
		}
	}
	for i := 0; i+part <= len(plain); i++ {
		if b.parts[plain[i:i+part]] {
			take(i, part)
		}
	}
	for _, form := range b.whole {
		for from := 0; ; from++ {
			at := strings.Index(plain[from:], form)
			if at < 0 {
				break
			}
			from += at
			take(from, len(form))
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
		masked.WriteString(text[kept:places[i]])
		for i+1 < len(plain) && secret[i+1] {
			i++
		}
		masked.WriteString(Mark)
		kept = int(places[i]) + 1
	}
	masked.WriteString(text[kept:])
	return masked.String()
}

// blanks are those of a text and of one that was escaped.
var blanks = []string{" ", "\t", "\n", "\r", "%20", `\n`, `\r`, `\t`}

// withoutBlanks leaves blanks out, and says where in text each byte of the rest stands.
func withoutBlanks(text string) (plain string, places []int32) {
	var b strings.Builder
	places = make([]int32, 0, len(text))
next:
	for i := 0; i < len(text); {
		if c := text[i]; c <= ' ' || c == '%' || c == '\\' {
			for _, blank := range blanks {
				if strings.HasPrefix(text[i:], blank) {
					i += len(blank)
					continue next
				}
			}
		}
		b.WriteByte(text[i])
		places = append(places, int32(i))
		i++
	}
	return b.String(), places
}
