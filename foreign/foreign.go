// Package foreign makes external text safe to display: text from peers, name servers and
// proxies, and from files that another process may have written. Such text must not control
// a terminal, end a line or fill a log.
package foreign

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// MaxText limits an external text, in bytes.
	MaxText = 512
	// MaxFault limits the external texts of a fault together, in bytes.
	MaxFault = 2 << 10
)

// Line returns text on one line of at most limit bytes. It escapes characters without a
// visible form: control characters, characters that change the direction of text, line and
// paragraph separators, and bytes that are not UTF-8. If the text is too long, Line
// truncates it and appends its length in bytes. Line does not change its own result.
func Line(text string, limit int) string { return shown(text, limit, graphic) }

// Lines is like Line, but keeps line feeds and tabs.
func Lines(text string, limit int) string {
	return shown(text, limit, func(r rune) bool { return r == '\n' || r == '\t' || graphic(r) })
}

// graphic reports whether a character has a visible form or is a blank.
func graphic(r rune) bool { return r != utf8.RuneError && unicode.IsGraphic(r) }

// shown escapes and truncates a text.
func shown(text string, limit int, clean func(rune) bool) string {
	if len(text) <= limit {
		if strings.IndexFunc(text, func(r rune) bool { return !clean(r) }) < 0 {
			return text
		}
		if whole, all := escaped(text, limit, clean); all {
			return whole
		}
	}
	mark := fmt.Sprintf("… (%d bytes)", len(text))
	begin, _ := escaped(text, max(0, limit-len(mark)), clean)
	return begin + mark
}

// escaped returns at most limit bytes of whole characters and escape sequences, and whether
// these are the whole text.
func escaped(text string, limit int, clean func(rune) bool) (string, bool) {
	var b strings.Builder
	for len(text) > 0 {
		r, size := utf8.DecodeRuneInString(text)
		piece := text[:size]
		if !clean(r) {
			piece = strconv.QuoteToASCII(piece)
			piece = piece[1 : len(piece)-1]
		}
		if b.Len()+len(piece) > limit {
			return b.String(), false
		}
		b.WriteString(piece)
		text = text[size:]
	}
	return b.String(), true
}

// Strings applies Line to each string that can be reached from value: a pointer to structs,
// slices and pointers, such as a decoded JSON document.
func Strings(value any, limit int) { lines(reflect.ValueOf(value), limit) }

func lines(v reflect.Value, limit int) {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			lines(v.Elem(), limit)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				lines(v.Field(i), limit)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			lines(v.Index(i), limit)
		}
	case reflect.String:
		v.SetString(Line(v.String(), limit))
	}
}
