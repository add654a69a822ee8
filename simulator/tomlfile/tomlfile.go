// Package tomlfile reads the simulator's files, which people write. It reports each mistake with
// its line and column.
package tomlfile

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Error is one mistake in a file.
type Error struct {
	File         string // the name given to the parser
	Line, Column int    // starting at 1; 0 if it has no position in the file
	Key          string // the dotted key, "" when the text is not TOML
	Problem      string
}

// Error returns the problem in the form FILE:LINE:COLUMN: KEY: PROBLEM.
func (e *Error) Error() string {
	text := e.File
	if e.Line > 0 {
		text += fmt.Sprintf(":%d:%d", e.Line, e.Column)
	}
	if e.Key != "" {
		text += ": " + e.Key
	}
	return text + ": " + e.Problem
}

// Duration is a duration such as "1s500ms", for which TOML has no type.
type Duration time.Duration

// UnmarshalText accepts the format of time.ParseDuration.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"1.5s\"", text)
	}
	*d = Duration(v)
	return nil
}

// Decode decodes TOML into a struct that has all its keys. The error is one or more of type
// *Error, joined.
func Decode(name string, text []byte, into any) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(into)
	var missing *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &missing):
		errs := make([]error, 0, len(missing.Errors))
		for _, e := range missing.Errors {
			line, column := e.Position()
			errs = append(errs, &Error{name, line, column, strings.Join(e.Key(), "."), "unknown key"})
		}
		return errors.Join(errs...)
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		return &Error{name, line, column, strings.Join(wrong.Key(), "."), strings.TrimPrefix(wrong.Error(), "toml: ")}
	case err != nil:
		return &Error{File: name, Problem: err.Error()}
	}
	return nil
}

// Problems collects wrong values in a valid TOML file.
type Problems []problem

type problem struct {
	place
	text string
}

// place is a key of the index-th table of a name; "" is the table itself.
type place struct {
	table string
	index int
	key   string
}

// Single is the index of a table that occurs once.
const Single = -1

// Reporter reports a problem with a key.
type Reporter func(key, format string, args ...any)

// In returns a function that adds a problem of a key in a table.
func (p *Problems) In(table string, index int) Reporter {
	return func(key, format string, args ...any) {
		*p = append(*p, problem{place{table, index, key}, fmt.Sprintf(format, args...)})
	}
}

// OneOf reports a text that is neither empty nor one of these.
func (bad Reporter) OneOf(key, value string, of ...string) {
	if value != "" && !slices.Contains(of, value) {
		bad(key, "%q is not one of %s", value, strings.Join(of, ", "))
	}
}

// Pattern reports a text that path.Match cannot use.
func (bad Reporter) Pattern(key, value string) {
	if _, err := path.Match(value, ""); err != nil {
		bad(key, "%q is not a pattern", value)
	}
}

// Error returns the problems with their places in the text from which the values come, each
// an *Error, joined; nil for none. The text is nil for values that were made in Go.
func (p Problems) Error(name string, text []byte) error {
	at := places(text)
	errs := make([]error, 0, len(p))
	for _, wrong := range p {
		table := place{table: wrong.table, index: max(0, wrong.index)}
		position, found := at[place{table.table, table.index, wrong.key}]
		if !found {
			position = at[table]
		}
		key := wrong.table
		if text == nil && wrong.index != Single {
			key += fmt.Sprintf("[%d]", wrong.index)
		}
		errs = append(errs, &Error{name, position.Line, position.Column, key + "." + wrong.key, wrong.text})
	}
	return errors.Join(errs...)
}

// places returns the positions of the tables and keys in a text.
func places(text []byte) map[place]unstable.Position {
	at := map[place]unstable.Position{}
	count := map[string]int{}
	current := place{}
	parser := unstable.Parser{}
	parser.Reset(text)
	for parser.NextExpression() {
		e := parser.Expression()
		var parts []string
		var start unstable.Range
		for it := e.Key(); it.Next(); {
			if len(parts) == 0 {
				start = it.Node().Raw
			}
			parts = append(parts, string(it.Node().Data))
		}
		name, position := strings.Join(parts, "."), parser.Shape(start).Start
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			current = place{table: name, index: count[name]}
			count[name]++
			at[current] = position
		case unstable.KeyValue:
			at[place{current.table, current.index, name}] = position
		}
	}
	return at
}
