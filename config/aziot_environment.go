package config

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/foreign"
)

// EnvironmentFile is a file of variables for a unit, systemd.exec(5).
type EnvironmentFile struct {
	Name string // stands for the file in messages and commands
	Text []byte
}

// environment is what drop-ins of a unit set, systemd.exec(5).
type environment struct {
	values map[string]variable
	files  []environmentFile // their variables override these
}

type variable struct {
	origin
	value string
}

// environmentFile is an assignment to EnvironmentFile=.
type environmentFile struct {
	origin
	value string
	find  func(pattern string) ([]EnvironmentFile, error)
}

// read goes through a drop-in: what it sets replaces what earlier ones have set.
func (e *environment) read(d dropIn) {
	lines := newLines(d.data)
	section := ""
	for n := 1; n <= len(lines.starts); n++ {
		first := n
		line := strings.TrimSpace(string(lines.line(n)))
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		for strings.HasSuffix(line, `\`) && n < len(lines.starts) {
			n++
			line = strings.TrimSuffix(line, `\`) + " " + strings.TrimSpace(string(lines.line(n)))
		}
		if strings.HasPrefix(line, "[") {
			section = line
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if !found || section != "[Service]" {
			continue
		}
		o := origin{d.Name, strings.TrimSpace(key), first, d.data[lines.starts[first-1]:]}
		switch o.key {
		case "Environment":
			e.assign(o, strings.TrimSpace(value))
		case "EnvironmentFile":
			if value = strings.TrimSpace(value); value == "" {
				e.files = nil
			} else {
				e.files = append(e.files, environmentFile{o, value, d.Files})
			}
		}
	}
}

func (e *environment) set(name string, v variable) {
	if e.values == nil {
		e.values = map[string]variable{}
	}
	e.values[name] = v
}

// assign takes the assignments of a line; an empty one takes back all before.
func (e *environment) assign(o origin, value string) {
	if value == "" {
		clear(e.values)
	}
	for _, word := range unitWords(value) {
		if name, value, found := strings.Cut(word, "="); found {
			o.key = name
			e.set(name, variable{o, specifiers(value)})
		}
	}
}

// specifiers writes "%%" as "%"; any other specifier, which only systemd can resolve,
// becomes a NUL, which no address holds.
func specifiers(value string) string {
	var b strings.Builder
	for i := 0; i < len(value); i++ {
		switch {
		case value[i] != '%':
			b.WriteByte(value[i])
		case i+1 < len(value) && value[i+1] == '%':
			b.WriteByte('%')
			i++
		default:
			b.WriteByte(0)
		}
	}
	return b.String()
}

// unitWords splits a value as systemd does: at blanks that are not in quotes.
func unitWords(text string) (words []string) {
	var word bytes.Buffer
	quote, begun := byte(0), false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\\' && i+1 < len(text):
			i++
			word.WriteByte(text[i])
			begun = true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, begun = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if begun {
				words = append(words, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		words = append(words, word.String())
	}
	return words
}

// environmentFile takes the variables of files, which replace those of Environment= and of
// earlier files. What cannot be read is noted.
func (a *importer) environmentFile(e *environment, f environmentFile) {
	const byHand = `; if it sets HTTPS_PROXY, which takes precedence over Environment=, write this line into [transport] of dpsd.toml, in place of any other proxy: proxy = "http://HOST:PORT"`
	value, optional := strings.CutPrefix(specifiers(f.value), "-")
	shown := foreign.Line(value, 200)
	switch {
	case strings.Contains(value, "\x00"):
		a.noteOf(f.origin, "", "left out: the name of the file has a specifier (%%), which only systemd can resolve"+byHand)
		return
	case !filepath.IsAbs(value):
		a.noteOf(f.origin, "", "left out: the name of the file is not absolute, so systemd ignores it")
		return
	case f.find == nil:
		a.noteOf(f.origin, "", "left out: %s is not read, because this drop-in is a copy, and may be of another gateway"+byHand, shown)
		return
	}
	files, err := f.find(value)
	for _, file := range files {
		if !utf8.Valid(file.Text) || bytes.IndexByte(file.Text, 0) >= 0 {
			err = errors.New("it is not UTF-8 text")
			continue
		}
		e.take(file)
	}
	if optional && errors.Is(err, fs.ErrNotExist) || err == nil {
		return
	}
	if of := (*fs.PathError)(nil); errors.As(err, &of) {
		err = of.Err
	}
	a.noteOf(f.origin, "", "left out: %s cannot be read: %s"+byHand, shown, foreign.Line(err.Error(), 200))
}

// take goes through a file as systemd does: an assignment is a line, unless its value is in
// quotes or a backslash precedes the end of the line.
func (e *environment) take(file EnvironmentFile) {
	lines := newLines(file.Text)
	for at, rest := 0, file.Text; len(rest) > 0; rest = file.Text[at:] {
		line := bytes.IndexAny(rest, "\r\n")
		if line < 0 {
			line = len(rest)
		}
		key, _, found := bytes.Cut(rest[:line], []byte("="))
		name := strings.Trim(string(key), " \t")
		if !found || strings.HasPrefix(name, "#") || strings.HasPrefix(name, ";") {
			at += min(line+1, len(rest))
			continue
		}
		place := lines.place(at)
		value, length := environmentValue(rest[len(key)+1:])
		at += len(key) + 1 + length
		e.set(name, variable{origin{file.Name, name, place.line, file.Text[lines.starts[place.line-1]:]}, value})
	}
}

// environmentValue is the value at the beginning of text, and where it ends.
func environmentValue(text []byte) (value string, length int) {
	var b []byte
	solid := 0 // the blanks after it do not count
	for first, i := true, 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\n' || c == '\r':
			return string(b[:solid]), i
		case first && (c == '\'' || c == '"'):
			part, size := quotedValue(text[i+1:], c)
			b, i = append(b, part...), i+size
			solid = len(b)
		case first && (c == ' ' || c == '\t'):
		case c == '\\' && i+1 < len(text):
			first = false
			if i++; text[i] != '\n' && text[i] != '\r' {
				b = append(b, text[i])
				solid = len(b)
			}
		case c == '\\':
		default:
			first = false
			if b = append(b, c); c != ' ' && c != '\t' {
				solid = len(b)
			}
		}
	}
	return string(b[:solid]), len(text)
}

// quotedValue is the part of text up to a quote, and its length with the quote. In double
// quotes a backslash escapes as in a shell.
func quotedValue(text []byte, quote byte) (part []byte, length int) {
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == quote:
			return part, i + 1
		case c == '\\' && quote == '"' && i+1 < len(text) && strings.IndexByte("\"\\`$\n", text[i+1]) >= 0:
			if i++; text[i] != '\n' {
				part = append(part, text[i])
			}
		default:
			part = append(part, c)
		}
	}
	return part, len(text)
}
