// Package tomlfile reads the simulator's files, which people write: each mistake is
// reported with its line and column.
package tomlfile

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Error is one mistake in a file.
type Error struct {
	File         string // the name given to the parser
	Line, Column int    // counted from 1; 0 when it has no place in the file
	Key          string // the dotted key, "" when the text is not TOML
	Problem      string
}

// Error gives the problem in the form FILE:LINE:COLUMN: KEY: PROBLEM.
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

// Duration reads "1s500ms", for which TOML has no type.
type Duration time.Duration

// UnmarshalText reads what time.ParseDuration does.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"1.5s\"", text)
	}
	*d = Duration(v)
	return nil
}

// Decode decodes TOML into a struct that has all its keys. The error is one or more of
// type *Error, joined.
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

// Problems are values that are wrong in a file that is TOML otherwise.
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

// Single is the index of a table that is there once.
const Single = -1

// In returns a function that adds a problem of a key in a table.
func (p *Problems) In(table string, index int) func(key, format string, args ...any) {
	return func(key, format string, args ...any) {
		*p = append(*p, problem{place{table, index, key}, fmt.Sprintf(format, args...)})
	}
}

// Sort orders the problems by table and key, those of the only table first.
func (p Problems) Sort() {
	slices.SortStableFunc(p, func(a, b problem) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.key, b.key))
	})
}

// Error returns the problems of values that were made in Go, each an *Error, joined; nil
// for none.
func (p Problems) Error(name string) error {
	errs := make([]error, 0, len(p))
	for _, problem := range p {
		key := problem.table
		if problem.index != Single {
			key += fmt.Sprintf("[%d]", problem.index)
		}
		errs = append(errs, &Error{File: name, Key: key + "." + problem.key, Problem: problem.text})
	}
	return errors.Join(errs...)
}

// Locate returns the problems with their places in the text that the values come from, each
// an *Error, joined; nil for none.
func (p Problems) Locate(name string, text []byte) error {
	if len(p) == 0 {
		return nil
	}
	at := places(text)
	errs := make([]error, 0, len(p))
	for _, problem := range p {
		where := problem.place
		where.index = max(0, where.index)
		position, found := at[where]
		if !found {
			position = at[place{where.table, where.index, ""}]
		}
		errs = append(errs, &Error{name, position.Line, position.Column, where.table + "." + where.key, problem.text})
	}
	return errors.Join(errs...)
}

// places are where the tables and keys of a text stand.
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
