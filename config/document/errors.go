package document

import (
	"errors"
	"fmt"
)

// Error is one error in a document. No field contains a secret.
type Error struct {
	// File is the name of the document.
	File string
	// Line and Column count from 1; columns are characters. Line is 0 if the error
	// concerns the file as a whole, such as a missing table.
	Line, Column int
	// Key is the key with its tables, such as "dps.id_scope", or "" if it is unknown.
	Key string
	// Problem describes the error.
	Problem string
	// Nearest is the known name that was probably meant, or "".
	Nearest string
	// Remedy says what to do, or is "" if Problem makes that clear.
	Remedy string
}

// Error returns one line that begins with the position, like the errors of compilers:
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

// Errors contains all errors in a document, in the order of the file. Errors about missing
// keys and tables come last.
type Errors []*Error

// Error lists all errors, one per line.
func (e Errors) Error() string { return errors.Join(e.Unwrap()...).Error() }

// Unwrap returns the errors, so that errors.As finds an *Error.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i, one := range e {
		all[i] = one
	}
	return all
}
