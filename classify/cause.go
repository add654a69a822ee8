package classify

import (
	"errors"
	"net"
	"strings"

	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/transport"
)

// This file formats the cause of a fault for logs, STATUS and commands. Much of it is
// external text: names in a certificate, replies of a proxy or the service.

const (
	// maxTrackingID limits the tracking ID of the service, in bytes. The observed IDs have
	// 36 characters.
	maxTrackingID = 128
	// maxCause leaves room for the code and the tracking ID.
	maxCause = foreign.MaxFault - foreign.MaxText
)

// formatter makes the text of an error safe to display: it masks secrets that a peer
// repeats, and escapes and truncates external text.
type formatter struct{ secrets *redact.Known }

// format returns err with a safe text. A failure that all protocols have in common appears
// once.
func (f formatter) format(err error) error {
	if err == nil {
		return nil
	}
	plain := err.Error()
	text := plain
	if several := transport.Errors(nil); errors.As(err, &several) {
		text = strings.Replace(text, several.Error(), f.together(several), 1)
	}
	if text = f.line(f.short(text, err), maxCause); text != plain {
		return &formattedError{text, err}
	}
	return err
}

type formattedError struct {
	text string
	err  error
}

func (e *formattedError) Error() string { return e.text }
func (e *formattedError) Unwrap() error { return e.err }

// line masks before it truncates, since a truncated secret is hard to find.
func (f formatter) line(text string, limit int) string {
	return foreign.Line(f.secrets.Mask(redact.Tokens(text)), limit)
}

// short truncates the texts of the innermost errors of err within text to foreign.MaxText
// bytes each. These contain the external text; dpsd's own text around them is kept.
func (f formatter) short(text string, err error) string {
	for _, inner := range innermost(err) {
		whole := inner.Error()
		if short := f.line(whole, foreign.MaxText); short != whole {
			text = strings.Replace(text, whole, short, 1)
		}
	}
	return text
}

// innermost returns the errors that wrap no other error.
func innermost(err error) []error {
	switch wrapping := err.(type) { //nolint:errorlint // every error of the chain is visited
	case interface{ Unwrap() error }:
		if inner := wrapping.Unwrap(); inner != nil {
			return innermost(inner)
		}
	case interface{ Unwrap() []error }:
		var all []error
		for _, inner := range wrapping.Unwrap() {
			all = append(all, innermost(inner)...)
		}
		return all
	}
	return []error{err}
}

// together returns the text of the failures. A failure that differs from the first only in
// protocol and port does not repeat its text.
func (f formatter) together(several transport.Errors) string {
	first := several[0]
	texts := make([]string, 0, len(several))
	for i, e := range several {
		text := f.short(e.Error(), e)
		if i > 0 && sameButForPort(first, e) {
			text = string(e.Protocol) + ": same error"
			if _, port, err := net.SplitHostPort(e.Address); err == nil && e.Address != first.Address {
				text += " on port " + port
			}
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, "; ")
}

func sameButForPort(a, b *transport.Error) bool {
	hostA, portA, errA := net.SplitHostPort(a.Address)
	hostB, portB, errB := net.SplitHostPort(b.Address)
	if errA != nil || errB != nil || hostA != hostB {
		return false
	}
	general := func(e *transport.Error, port string) string {
		e = &transport.Error{Stage: e.Stage, Address: e.Address, Proxy: e.Proxy, Err: e.Err}
		return strings.ReplaceAll(withoutChance(e.Error()), ":"+port, ":PORT")
	}
	return general(a, portA) == general(b, portB)
}

// withoutChance removes the parts that change from attempt to attempt: the local port in
// the text of net.OpError ("10.0.0.5:41234->10.0.0.1:53"), and the current time in the text
// of x509 about an invalid certificate ("current time 2026-03-01T07:15:00Z is before").
func withoutChance(text string) string {
	parts := strings.Split(text, "->")
	for i := range parts[:len(parts)-1] {
		parts[i] = strings.TrimRight(parts[i], "0123456789")
	}
	parts = strings.Split(strings.Join(parts, "->"), "current time ")
	for i := 1; i < len(parts); i++ {
		_, parts[i], _ = strings.Cut(parts[i], " ")
	}
	return strings.Join(parts, "")
}
