package document

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
)

// Error is one thing that is wrong with a document. No field repeats a secret.
type Error struct {
	// File is the name of the document.
	File string
	// Line and Column count from 1, columns in characters. Line is 0 when the place is
	// the file as a whole, as for a table that is missing.
	Line, Column int
	// Key is the key with its tables, such as "dps.id_scope"; "" when unknown.
	Key string
	// Problem says what is wrong.
	Problem string
	// Nearest is the known name that was probably meant; "" when there is none.
	Nearest string
	// Remedy says what to do; "" when the problem says it all.
	Remedy string
}

// Error puts all of it on one line, the place in front, as compilers do:
//
//	dpsd.toml:12:1: dps.id_scop: unknown key; did you mean "id_scope"?
func (e *Error) Error() string {
	text, end := e.File, "; "
	if e.Line > 0 {
		text += fmt.Sprintf(":%d:%d", e.Line, e.Column)
	}
	if e.Key != "" {
		text += ": " + e.Key
	}
	text += ": " + e.Problem
	if e.Nearest != "" {
		text, end = text+fmt.Sprintf("; did you mean %q?", e.Nearest), " "
	}
	if e.Remedy != "" {
		text += end + e.Remedy
	}
	return text
}

// Errors is everything that is wrong with a document, in the order of the file; what is
// missing from it comes last.
type Errors []*Error

// Error lists all of them, one on each line.
func (e Errors) Error() string { return errors.Join(e.Unwrap()...).Error() }

// Unwrap lets errors.As find an *Error.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, one := range e {
		all[i] = one
	}
	return all
}

func (e Errors) sorted() Errors {
	slices.SortStableFunc(e, func(a, b *Error) int {
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return e
}
