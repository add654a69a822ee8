package aziot

import (
	"bytes"
	"errors"
	"io/fs"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/unitfile"
)

// EnvironmentFile is a file of environment variables for a unit (systemd.exec(5)).
type EnvironmentFile struct {
	Name string // name in messages and commands
	Text []byte
}

// environment is the environment that the drop-ins of a unit set (systemd.exec(5)).
type environment struct {
	values map[string]variable
	files  []environmentFile // their variables override these
}

// variable is an environment variable and the position where it is set.
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

// read reads a drop-in. Its assignments override those of earlier drop-ins.
func (e *environment) read(d dropIn) {
	lines := document.NewLines(d.data)
	for _, s := range unitfile.Settings(d.data) {
		o := origin{d.Name, s.Key, s.Line, lines.From(s.Line)}
		switch {
		case s.Section != "[Service]":
		case s.Key == "Environment":
			e.assign(o, s.Value)
		case s.Key == "EnvironmentFile" && s.Value == "":
			e.files = nil
		case s.Key == "EnvironmentFile":
			e.files = append(e.files, environmentFile{o, s.Value, d.Files})
		}
	}
}

// assign applies the assignments of a line. An empty line resets all previous assignments.
func (e *environment) assign(o origin, value string) {
	if value == "" {
		clear(e.values)
	}
	for _, word := range unitfile.Words(value) {
		if name, value, found := strings.Cut(word, "="); found {
			o.key = name
			e.values[name] = variable{o, specifiers(value)}
		}
	}
}

// specifiers replaces "%%" by "%". It replaces any other specifier, which only systemd can
// resolve, by a NUL, which no address contains.
func specifiers(value string) string {
	return strings.NewReplacer("%%", "%", "%", "\x00").Replace(value)
}

// environmentFile applies the variables of files, which override those of Environment= and
// of earlier files. It adds a note about a file that cannot be read.
func (a *importer) environmentFile(e *environment, f environmentFile) {
	const byHand = `; if it sets HTTPS_PROXY, which takes precedence over Environment=, add this line to [transport] in dpsd.toml, in place of any other proxy: proxy = "http://HOST:PORT"`
	value, optional := strings.CutPrefix(specifiers(f.value), "-")
	shown := foreign.Line(value, 200)
	switch {
	case strings.Contains(value, "\x00"):
		a.noteOf(f.origin, "", "left out: the name of the file contains a specifier (%%), which only systemd can resolve"+byHand)
		return
	case !filepath.IsAbs(value):
		a.noteOf(f.origin, "", "left out: the name of the file is not absolute, so systemd ignores it")
		return
	case f.find == nil:
		a.noteOf(f.origin, "", "left out: %s is not read, because this drop-in is a copy and may come from another gateway"+byHand, shown)
		return
	}
	files, err := f.find(value)
	for _, file := range files {
		if !utf8.Valid(file.Text) || bytes.IndexByte(file.Text, 0) >= 0 {
			err = errors.New("it is not UTF-8 text")
			continue
		}
		lines := document.NewLines(file.Text)
		for _, v := range unitfile.Variables(file.Text) {
			e.values[v.Key] = variable{origin{file.Name, v.Key, v.Line, lines.From(v.Line)}, v.Value}
		}
	}
	if optional && errors.Is(err, fs.ErrNotExist) || err == nil {
		return
	}
	a.noteOf(f.origin, "", "left out: %s cannot be read: %s"+byHand, shown, foreign.Line(input.Cause(err).Error(), 200))
}
