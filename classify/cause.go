package classify

import (
	"errors"
	"net"
	"strings"

	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/transport"
)

// This file words the cause of a fault, which goes into logs and to everybody who
// asks. Much of it is the text of others: the names in a certificate, what a proxy and
// the service have answered.

const (
	// maxTrackingID bounds what the service gives a request as its name. Those seen have
	// 36 characters.
	maxTrackingID = 128
	// maxCause leaves room for the code and the tracking ID.
	maxCause = foreign.MaxFault - foreign.MaxText
)

// wording makes the text of an error fit to be shown: what a peer repeats of the secrets
// that it was told is masked, and the text of others is escaped and bounded.
type wording struct{ told *redact.Known }

// of is err in such words. What all protocols met alike is said once.
func (w wording) of(err error) error {
	if err == nil {
		return nil
	}
	plain := err.Error()
	text := plain
	if several := transport.Errors(nil); errors.As(err, &several) {
		text = strings.Replace(text, several.Error(), w.together(several), 1)
	}
	if text = w.line(w.short(text, err), maxCause); text != plain {
		return &wordedError{text, err}
	}
	return err
}

type wordedError struct {
	text string
	err  error
}

func (e *wordedError) Error() string { return e.text }
func (e *wordedError) Unwrap() error { return e.err }

// line masks before it cuts: half a secret is hard to find.
func (w wording) line(text string, limit int) string {
	return foreign.Line(w.told.Mask(redact.Tokens(text)), limit)
}

// short is text with what the innermost errors of err say in it, which holds the text of
// others, in at most foreign.MaxText bytes each: what dpsd says around them stays whole.
func (w wording) short(text string, err error) string {
	for _, inner := range innermost(err) {
		whole := inner.Error()
		if short := w.line(whole, foreign.MaxText); short != whole {
			text = strings.Replace(text, whole, short, 1)
		}
	}
	return text
}

// innermost are the errors that wrap no other.
func innermost(err error) []error {
	switch wrapping := err.(type) { //nolint:errorlint // each error of the chain has its turn
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

// together is the text of the failures, where one that differs from the first only in
// protocol and port does not repeat it.
func (w wording) together(several transport.Errors) string {
	first := several[0]
	texts := make([]string, 0, len(several))
	for i, e := range several {
		text := w.short(e.Error(), e)
		if i > 0 && sameButForPort(first, e) {
			text = string(e.Protocol) + ": the same"
			if _, port, err := net.SplitHostPort(e.Address); err == nil && e.Address != first.Address {
				text += " at port " + port
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

// withoutChance leaves out what differs from one moment to the next: our own port in
// what net.OpError says of a connection ("10.0.0.5:41234->10.0.0.1:53"), and by which
// time x509 found a certificate not valid ("current time 2026-03-01T07:15:00Z is before").
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
