// Package document parses TOML text and finds the position of each key, so that errors name
// positions. Package config uses it for dpsd.toml, and package aziot for the config.toml of
// Azure IoT Edge.
package document

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/dpsd-project/dpsd/input"
)

// maxSize is the maximum size of a file, in bytes. The reference has about 6 KiB.
const maxSize = 1 << 20

// Path names a key or element of a document. It consists of keys and array indexes, each
// preceded by a separator that a TOML key can only contain escaped. The root is "".
type Path string

const separator = "\x00"

// Key returns the path of a key in the table p.
func (p Path) Key(name string) Path { return p + separator + Path(name) }

// Index returns the path of an element of the array p, counted from 0.
func (p Path) Index(i int) Path { return p.Key("[" + strconv.Itoa(i) + "]") }

// Name returns the last key or index of p.
func (p Path) Name() string { return string(p[strings.LastIndex(string(p), separator)+1:]) }

// String returns the path for messages, without the indexes, because errors have the line.
func (p Path) String() string {
	var names []string
	for _, name := range strings.Split(string(p), separator) {
		if name == "" || name[0] == '[' {
			continue
		}
		const longest = 40
		if r := []rune(name); len(r) > longest {
			name = string(r[:longest]) + "…"
		}
		if strings.ContainsFunc(name, func(r rune) bool { return !unicode.IsPrint(r) }) {
			name = strconv.Quote(name)
		}
		names = append(names, name)
	}
	return strings.Join(names, ".")
}

// Document is a parsed TOML file. The values come from the stable interface of the library.
// Only its syntax tree contains the positions of the keys. The syntax tree may change
// between versions, so it is used for nothing else.
type Document struct {
	Lines
	// Name is the file's name in messages.
	Name string
	// Values are string, int64, float64, bool, []any, map[string]any and the types of
	// dates and times. Values is empty if the text is not TOML.
	Values map[string]any
	// places contains the positions of keys, table headers and array elements.
	places map[Path]Place
}

// Place is a position in a file. Line and Column count from 1; columns are characters.
type Place struct{ Line, Column int }

// Read reads r to its end and removes a byte order mark. The error is an Errors if the text
// is UTF-16 or longer than 1 MiB.
func Read(name string, r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxSize {
		return nil, Errors{{File: name, Problem: "the file is larger than 1 MiB", Remedy: "a configuration has a few lines; is this the right file?"}}
	}
	text, err := input.Text(data)
	if mistake := (*input.Mistake)(nil); errors.As(err, &mistake) {
		mistake.File = name
		return nil, Errors{{File: name, Line: 1, Column: 1, Problem: mistake.What, Remedy: mistake.Remedy()}}
	}
	return text, err
}

// Parse parses TOML. A syntax error names the key of its line if known, which lists the keys
// of each table, contains it.
func Parse(name string, data []byte, known map[string][]string) (Document, *Error) {
	doc, values := Document{Lines: NewLines(data), Name: name, places: map[Path]Place{}}, map[string]any{}
	finder := finder{lines: doc.Lines, places: doc.places, elements: map[Path]int{}}
	if !finder.find(data) {
		return doc, &Error{File: name, Problem: fmt.Sprintf("the file has more than %d keys", maxKeys), Remedy: "a configuration has a few dozen; is this the right file?"}
	}
	if err := toml.Unmarshal(data, &values); err != nil {
		problem := syntaxError(doc.Lines, known, err)
		problem.File = name
		return doc, problem
	}
	doc.Values = values
	return doc, nil
}

// Place returns the position of a key, a table or an element, or the zero value if it is
// unknown.
func (d Document) Place(at Path) Place { return d.places[at] }

// Lines is a text with the offset of each line.
type Lines struct {
	data   []byte
	starts []int
}

// NewLines finds the lines of a text.
func NewLines(data []byte) Lines {
	l := Lines{data: data, starts: []int{0}}
	for i, c := range data {
		if c == '\n' {
			l.starts = append(l.starts, i+1)
		}
	}
	return l
}

// Count returns the number of lines.
func (l Lines) Count() int { return len(l.starts) }

// Of returns the position of the byte at an offset.
func (l Lines) Of(offset int) Place {
	n, found := slices.BinarySearch(l.starts, offset)
	if found {
		n++
	}
	return Place{Line: n, Column: utf8.RuneCount(l.data[l.starts[n-1]:offset]) + 1}
}

// Line returns line n, counted from 1, including its newline.
func (l Lines) Line(n int) []byte {
	end := len(l.data)
	if n < len(l.starts) {
		end = l.starts[n]
	}
	return l.data[l.starts[n-1]:end]
}

// From returns the text from line n to the end.
func (l Lines) From(n int) []byte { return l.data[l.starts[n-1]:] }

// syntaxError describes an error of the library. The library's errors contain only single
// characters, names of keys and numbers of the text, but no part of a quoted secret.
func syntaxError(lines Lines, known map[string][]string, err error) *Error {
	var decode *toml.DecodeError
	if !errors.As(err, &decode) {
		return &Error{Problem: "the file cannot be parsed as TOML"}
	}
	problem := strings.TrimPrefix(decode.Error(), "toml: ")
	problem, _, _ = strings.Cut(problem, ": strconv.")
	e := &Error{Problem: "TOML syntax: " + strings.Map(printable, problem)}
	row, column := decode.Position()
	if row < 1 || row > lines.Count() {
		return e
	}
	// The library counts bytes.
	at := lines.Of(min(lines.starts[row-1]+column-1, len(lines.data)))
	if t := typographic(lines, known, at.Line); t != nil && utf8.Valid(lines.data) {
		return t
	}
	e.Line, e.Column = at.Line, at.Column
	e.Key = keyOfLine(lines, known, at.Line)
	switch {
	case !utf8.Valid(lines.data):
		e.Remedy = "save the file as UTF-8"
	case strings.Contains(problem, "start of value"), strings.Contains(problem, "expected keyword"), strings.Contains(problem, "strings must be quoted"):
		e.Remedy = "write text in double quotes"
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

// keyOfLine guesses the key of a line that is not TOML. It returns only known names, because
// text that looks like a key may be a line of a secret.
func keyOfLine(lines Lines, known map[string][]string, n int) string {
	match := regexp.MustCompile(`^[ \t]*([a-z0-9_]+)[ \t]*=`).FindSubmatch(lines.Line(n))
	if match == nil {
		return ""
	}
	headerLine := regexp.MustCompile(`^[ \t]*\[\[?[ \t]*([a-z_]+)[ \t]*\]`)
	for n--; n > 0; n-- {
		header := headerLine.FindSubmatch(lines.Line(n))
		if header == nil {
			continue
		}
		if table, name := string(header[1]), string(match[1]); slices.Contains(known[table], name) {
			return table + "." + name
		}
		break
	}
	return ""
}

// maxKeys is the maximum number of parts of keys and headers. The library compares each key
// with all others of its table, which takes half a minute for 1 MiB of keys.
const maxKeys = 5000

// finder collects the positions in a document up to the first syntax error.
type finder struct {
	lines    Lines
	places   map[Path]Place
	elements map[Path]int // number of elements of each array of tables so far
	parts    int          // number of parts of keys and headers
}

// find returns false if the document has too many keys.
func (f *finder) find(data []byte) bool {
	var parser unstable.Parser
	parser.Reset(data)
	var table Path
	for f.parts <= maxKeys && parser.NextExpression() {
		switch e := parser.Expression(); e.Kind {
		case unstable.Table:
			table = f.inLast(f.keys("", e.Key()))
		case unstable.ArrayTable:
			array := f.keys("", e.Key())
			table = array.Index(f.elements[array])
			f.elements[array]++
			first := e.Key()
			first.Next()
			f.note(table, first.Node())
		case unstable.KeyValue:
			f.keyValue(table, e)
		}
	}
	return f.parts <= maxKeys
}

// keys follows a dotted key from a table, through the last element of arrays of tables,
// and records the position of every new part.
func (f *finder) keys(at Path, it unstable.Iterator) Path {
	for first := true; f.parts <= maxKeys && it.Next(); first = false {
		f.parts++
		if !first {
			at = f.inLast(at)
		}
		at = at.Key(string(it.Node().Data))
		f.note(at, it.Node())
	}
	return at
}

func (f *finder) inLast(at Path) Path {
	if n := f.elements[at]; n > 0 {
		return at.Index(n - 1)
	}
	return at
}

func (f *finder) keyValue(table Path, kv *unstable.Node) {
	f.value(f.keys(table, kv.Key()), kv.Value())
}

func (f *finder) value(at Path, v *unstable.Node) {
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
			element := at.Index(i)
			f.note(element, it.Node())
			f.value(element, it.Node())
			i++
		}
	}
}

// note records the first position of a path. Nested arrays have no position in the syntax
// tree.
func (f *finder) note(at Path, n *unstable.Node) {
	if _, known := f.places[at]; !known && n.Raw.Length > 0 {
		f.places[at] = f.lines.Of(int(n.Raw.Offset))
	}
}
