package daemon

import (
	"errors"
	"net"
	"strings"

	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/transport"
)

// This file words the cause of a fault, which goes into logs and to everybody who
// asks.

// worded is err in those words: what all protocols met alike is said once, and what a
// peer repeats of the secrets that it was told is masked.
func worded(err error) error {
	if err == nil {
		return nil
	}
	plain := err.Error()
	text := plain
	if several := transport.Errors(nil); errors.As(err, &several) {
		text = strings.Replace(text, several.Error(), together(several), 1)
	}
	if text = redact.Tokens(text); text != plain {
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

// together is the text of the failures, where one that differs from the first only in
// protocol and port does not repeat it.
func together(several transport.Errors) string {
	first := several[0]
	texts := make([]string, 0, len(several))
	for i, e := range several {
		text := e.Error()
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
