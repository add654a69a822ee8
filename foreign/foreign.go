// Package foreign makes text that others control fit to be shown: what peers, name
// servers and proxies have sent, and what files hold that another process may have
// written. Such text must not steer a terminal, end a line or fill a log.
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
	// MaxText bounds one text of others, in bytes.
	MaxText = 512
	// MaxFault bounds all that a fault holds of such texts, in bytes.
	MaxFault = 2 << 10
)

// Line returns text on one line of at most limit bytes. What has no picture is escaped:
// control characters, the characters that change the direction of text, separators of
// lines and paragraphs, and bytes that are not UTF-8. A text that is too long ends with
// a mark that gives its length in bytes. The result is its own Line.
func Line(text string, limit int) string { return shown(text, limit, graphic) }

// Lines is Line for a text that may have several: line feeds and tabs stay.
func Lines(text string, limit int) string {
	return shown(text, limit, func(r rune) bool { return r == '\n' || r == '\t' || graphic(r) })
}

// graphic reports whether a character has a picture, or is a blank.
func graphic(r rune) bool { return r != utf8.RuneError && unicode.IsGraphic(r) }

// shown escapes a text as far as it fits.
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

// escaped returns at most limit bytes, whole characters and escapes, and whether that is
// all of the text.
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

// Strings makes each string that the value leads to a Line. The value is a pointer to
// structs, slices and pointers, such as what was decoded from JSON.
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
