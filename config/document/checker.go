package document

import (
	"cmp"
	"slices"
	"strconv"
)

// Checker collects the errors in a document.
type Checker struct {
	Document
	// Bad contains the keys and elements for which an error was reported.
	Bad  map[Path]bool
	errs Errors
}

// NewChecker returns a Checker without errors.
func NewChecker(doc Document) Checker { return Checker{Document: doc, Bad: map[Path]bool{}} }

// Report adds an error at a key or element and sets its position.
func (c *Checker) Report(at Path, e Error) {
	place := c.Place(at)
	e.File, e.Key, e.Line, e.Column = c.Name, at.String(), place.Line, place.Column
	c.Bad[at] = true
	c.errs = append(c.errs, &e)
}

// ReportMissing adds an error for a key that is not set, at the position of its table.
func (c *Checker) ReportMissing(table Path, name, remedy string) {
	c.Report(table.Key(name), Error{Problem: "is missing", Remedy: remedy})
	last, place := c.errs[len(c.errs)-1], c.Place(table)
	last.Line, last.Column = place.Line, place.Column
}

// Reported returns how many errors there are so far.
func (c *Checker) Reported() int { return len(c.errs) }

// Err returns all errors as Errors, in the order of the file, or nil.
func (c *Checker) Err() error {
	if len(c.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(c.errs, func(a, b *Error) int {
		if (a.Line == 0) != (b.Line == 0) {
			return cmp.Compare(b.Line, a.Line)
		}
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return c.errs
}

// String returns value if it is a non-empty string, or else an error. remedy says what to
// write instead of a value of another type.
func String(value any, remedy string) (string, *Error) {
	s, ok := value.(string)
	switch {
	case !ok:
		return "", &Error{Problem: "must be a string, not " + TypeOf(value), Remedy: remedy}
	case s == "":
		return "", &Error{Problem: "is empty", Remedy: "set a value or remove the key"}
	}
	return s, nil
}

// TypeOf names the type of a value.
func TypeOf(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case bool:
		return "a boolean"
	case []any:
		return "an array"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// Quote quotes an invalid value for an error, unless the value is so long that it may be a
// key that was pasted into the wrong line: 16 bytes have 24 characters in base64.
func Quote(value string) string {
	if len(value) > 20 {
		return "the value"
	}
	return strconv.Quote(value)
}
