package config

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// path names a place in a document: keys and array indexes, each with a separator before
// it that a TOML key cannot hold unescaped. The root is "".
type path string

const separator = "\x00"

func (p path) key(name string) path { return p + separator + path(name) }

func (p path) index(i int) path { return p.key("[" + strconv.Itoa(i) + "]") }

// document is the contents of a TOML file. The values come from the library's stable
// interface; the places of the keys only its syntax tree knows, which may change between
// versions and is used for nothing else.
type document struct {
	// values are string, int64, float64, bool, []any, map[string]any and the types of
	// dates and times.
	values map[string]any
	// places are those of keys, table headers and array elements.
	places map[path]place
}

// place is a position in a file, both from 1; the column counts characters.
type place struct{ line, column int }

// readDocument parses TOML.
func readDocument(data []byte) (document, *Error) {
	lines := newLines(data)
	if tooManyKeys(data) {
		return document{}, &Error{Problem: fmt.Sprintf("the file has more than %d keys", maxKeys), Remedy: "a configuration has a few dozen; is this the right file?"}
	}
	doc := document{values: map[string]any{}, places: map[path]place{}}
	if err := toml.Unmarshal(data, &doc.values); err != nil {
		return document{}, syntaxError(data, lines, err)
	}
	finder := finder{lines: lines, places: doc.places, elements: map[path]int{}}
	finder.find(data)
	return doc, nil
}

// maxKeys bounds the parts of keys and headers. The library compares each key with all
// others of its table, which takes half a minute for what fits into 1 MiB.
const maxKeys = 5000

// tooManyKeys counts keys as far as the text is TOML.
func tooManyKeys(data []byte) bool {
	var parser unstable.Parser
	parser.Reset(data)
	n := 0
	var count func(*unstable.Node)
	count = func(e *unstable.Node) {
		for ; e.Valid() && n <= maxKeys; e = e.Next() {
			if e.Kind == unstable.Key {
				n++
			}
			count(e.Child())
		}
	}
	for n <= maxKeys && parser.NextExpression() {
		count(parser.Expression().Child())
	}
	return n > maxKeys
}

// lines holds where each line of a text begins.
type lines struct {
	data   []byte
	starts []int
}

func newLines(data []byte) lines {
	l := lines{data: data, starts: []int{0}}
	for i, c := range data {
		if c == '\n' {
			l.starts = append(l.starts, i+1)
		}
	}
	return l
}

func (l lines) place(offset int) place {
	n, found := slices.BinarySearch(l.starts, offset)
	if found {
		n++
	}
	return place{line: n, column: utf8.RuneCount(l.data[l.starts[n-1]:offset]) + 1}
}

// line returns line n, from 1, without its end.
func (l lines) line(n int) []byte {
	end := len(l.data)
	if n < len(l.starts) {
		end = l.starts[n]
	}
	return l.data[l.starts[n-1]:end]
}

// syntaxError describes an error of the library. Of the file's text the library repeats
// single characters, names of keys and numbers, which a secret in quotes cannot reach.
func syntaxError(data []byte, lines lines, err error) *Error {
	var decode *toml.DecodeError
	if !errors.As(err, &decode) {
		return &Error{Problem: "the file cannot be parsed as TOML"}
	}
	problem := strings.TrimPrefix(decode.Error(), "toml: ")
	problem, _, _ = strings.Cut(problem, ": strconv.")
	e := &Error{Problem: "TOML syntax: " + strings.Map(printable, problem)}
	row, column := decode.Position()
	if row < 1 || row > len(lines.starts) {
		return e
	}
	// The library counts bytes.
	at := lines.place(min(lines.starts[row-1]+column-1, len(data)))
	if t := typographic(lines, at.line); t != nil && utf8.Valid(data) {
		return t
	}
	e.Line, e.Column = at.line, at.column
	e.Key = keyOfLine(lines, at.line)
	switch {
	case !utf8.Valid(data):
		e.Remedy = "save the file as UTF-8"
	case strings.Contains(problem, "start of value"), strings.Contains(problem, "expected keyword"), strings.Contains(problem, "strings must be quoted"):
		e.Remedy = "text is written in double quotes"
	case strings.Contains(problem, "unterminated basic string"), strings.Contains(problem, "strings cannot have new lines"):
		e.Remedy = "close the quotes on the same line"
	case strings.Contains(problem, "invalid escape"):
		e.Remedy = `write a backslash as \\, or use single quotes`
	}
	return e
}

func printable(r rune) rune {
	if !unicode.IsPrint(r) {
		return '?'
	}
	return r
}

var (
	headerLine = regexp.MustCompile(`^[ \t]*\[\[?[ \t]*([a-z_]+)[ \t]*\]`)
	keyLine    = regexp.MustCompile(`^[ \t]*([a-z0-9_]+)[ \t]*=`)
)

// keyOfLine guesses the key of a line that is not TOML. Only known names are returned:
// what looks like a key may be a line of a secret.
func keyOfLine(lines lines, n int) string {
	match := keyLine.FindSubmatch(lines.line(n))
	if match == nil {
		return ""
	}
	for n--; n > 0; n-- {
		header := headerLine.FindSubmatch(lines.line(n))
		if header == nil {
			continue
		}
		if table, name := string(header[1]), string(match[1]); slices.Contains(names()[table], name) {
			return table + "." + name
		}
		break
	}
	return ""
}

// finder collects the places of a document that is known to be valid.
type finder struct {
	lines    lines
	places   map[path]place
	elements map[path]int // how many elements each array of tables has so far
}

func (f *finder) find(data []byte) {
	var parser unstable.Parser
	parser.Reset(data)
	var table path
	for parser.NextExpression() {
		switch e := parser.Expression(); e.Kind {
		case unstable.Table:
			table = f.inLast(f.keys("", e.Key()))
		case unstable.ArrayTable:
			array := f.keys("", e.Key())
			table = array.index(f.elements[array])
			f.elements[array]++
			f.places[table] = f.placeOfKey(e.Key())
		case unstable.KeyValue:
			f.keyValue(table, e)
		}
	}
}

// keys follows a dotted key from a table, through the last element of arrays of tables,
// and notes the place of every part that is new.
func (f *finder) keys(at path, it unstable.Iterator) path {
	for first := true; it.Next(); first = false {
		if !first {
			at = f.inLast(at)
		}
		at = at.key(string(it.Node().Data))
		f.note(at, it.Node())
	}
	return at
}

func (f *finder) inLast(at path) path {
	if n := f.elements[at]; n > 0 {
		return at.index(n - 1)
	}
	return at
}

func (f *finder) keyValue(table path, kv *unstable.Node) {
	f.value(f.keys(table, kv.Key()), kv.Value())
}

func (f *finder) value(at path, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			f.keyValue(at, it.Node())
		}
	case unstable.Array:
		i := 0
		for it := v.Children(); it.Next(); {
			if it.Node().Kind == unstable.Comment {
				continue
			}
			element := at.index(i)
			f.note(element, it.Node())
			f.value(element, it.Node())
			i++
		}
	}
}

// note keeps the first place of a path. Nested arrays have none in the syntax tree.
func (f *finder) note(at path, n *unstable.Node) {
	if _, known := f.places[at]; !known && n.Raw.Length > 0 {
		f.places[at] = f.lines.place(int(n.Raw.Offset))
	}
}

// placeOfKey returns where a key begins.
func (f *finder) placeOfKey(it unstable.Iterator) place {
	if !it.Next() {
		return place{}
	}
	return f.lines.place(int(it.Node().Raw.Offset))
}
