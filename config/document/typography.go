package document

import (
	"bytes"
	"fmt"
	"unicode"
	"unicode/utf8"
)

// This file names characters that word processors, web pages and mail programs substitute
// for the characters of TOML syntax. Most look the same on a screen, and some are invisible.

// lookAlikes are such characters, grouped by the right character.
var lookAlikes = []struct {
	names  map[rune]string // names in Unicode
	remedy string
}{
	{map[rune]string{
		'“': "left double quotation mark", '”': "right double quotation mark", '„': "double low-9 quotation mark",
		'‟': "double high-reversed-9 quotation mark", '«': "left-pointing double angle quotation mark",
		'»': "right-pointing double angle quotation mark", '″': "double prime", '＂': "fullwidth quotation mark",
		'‘': "left single quotation mark", '’': "right single quotation mark", '‚': "single low-9 quotation mark",
		'‛': "single high-reversed-9 quotation mark", '‹': "single left-pointing angle quotation mark",
		'›': "single right-pointing angle quotation mark", '′': "prime", '＇': "fullwidth apostrophe",
		'`': "grave accent", '´': "acute accent",
	}, `use the straight quotation mark " instead`},
	{map[rune]string{
		'\u00a0': "no-break space", '\u2002': "en space", '\u2003': "em space", '\u2007': "figure space", '\u2009': "thin space",
		'\u200a': "hair space", '\u202f': "narrow no-break space", '\u3000': "ideographic space", '\u2028': "line separator",
	}, "use an ordinary space instead"},
	{map[rune]string{
		'\u00ad': "soft hyphen", '\u200b': "zero width space", '\u200c': "zero width non-joiner", '\u200d': "zero width joiner",
		'\u200e': "left-to-right mark", '\u200f': "right-to-left mark", '\u2060': "word joiner", '\ufeff': "byte order mark",
	}, "delete it; it is invisible, so delete and retype the characters next to it too"},
	{map[rune]string{'＝': "fullwidth equals sign"}, "use = instead"},
	{map[rune]string{'［': "fullwidth left square bracket"}, "use [ instead"},
	{map[rune]string{'］': "fullwidth right square bracket"}, "use ] instead"},
	{map[rune]string{'，': "fullwidth comma", '、': "ideographic comma"}, "use , instead"},
	{map[rune]string{'＃': "fullwidth number sign"}, "use # instead"},
	{map[rune]string{'‐': "hyphen", '‑': "non-breaking hyphen", '–': "en dash", '—': "em dash", '−': "minus sign"}, "use - instead"},
}

// lookAlike returns the name of a character in lookAlikes and the remedy, or "" for any other
// character.
func lookAlike(r rune) (name, remedy string) {
	for _, l := range lookAlikes {
		if name := l.names[r]; name != "" {
			return name, l.remedy
		}
	}
	return "", ""
}

// shownRune returns a character for messages: the character, if it is visible, and its code
// point.
func shownRune(r rune) string {
	name, _ := lookAlike(r)
	if name != "" {
		name = ", " + name
	}
	if !unicode.IsGraphic(r) || unicode.IsSpace(r) {
		return fmt.Sprintf("the character U+%04X%s", r, name)
	}
	return fmt.Sprintf("the character %c (U+%04X%s)", r, r, name)
}

// strange finds the first character of a line that is invalid in TOML: a non-ASCII letter or
// a backquote outside of strings and comments, or a look-alike in a string that does not end
// on the line. It returns the offset of the character in bytes.
func strange(line []byte) (at int, r rune, found bool) {
	quote, inString := byte(0), -1
	for at < len(line) {
		r, size := utf8.DecodeRune(line[at:])
		switch {
		case quote == '"' && r == '\\':
			size++
		case quote != 0 && r == rune(quote):
			quote = 0
		case quote != 0:
			if name, _ := lookAlike(r); inString < 0 && name != "" {
				inString = at
			}
		case r == '"' || r == '\'':
			quote, inString = byte(r), -1
		case r == '#':
			return 0, 0, false
		case r > unicode.MaxASCII && r != utf8.RuneError, r == '`':
			return at, r, true
		}
		at += size
	}
	if quote == 0 || inString < 0 {
		return 0, 0, false
	}
	r, _ = utf8.DecodeRune(line[inString:])
	return inString, r, true
}

// typographic returns an error if such a character explains a syntax error in line n, or nil.
func typographic(lines Lines, known map[string][]string, n int) *Error {
	at, r, found := strange(bytes.TrimRight(lines.Line(n), "\r\n"))
	if !found {
		return nil
	}
	where := lines.Of(lines.starts[n-1] + at)
	_, remedy := lookAlike(r)
	if remedy == "" {
		remedy = "write keys and values in ASCII, and put other text in double quotes"
	}
	return &Error{Line: where.Line, Column: where.Column, Key: keyOfLine(lines, known, n), Problem: "TOML does not allow " + shownRune(r), Remedy: remedy}
}

// Hidden describes the look-alike in an invalid value, or returns "" if there is none.
func Hidden(value string) string {
	for _, r := range value {
		if _, remedy := lookAlike(r); remedy != "" {
			return "it contains " + shownRune(r) + ": " + remedy
		}
	}
	return ""
}
