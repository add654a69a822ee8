package signer

import "fmt"

// Kind classifies the errors of a signer.
type Kind uint8

// The kinds of errors.
const (
	// Absent means that no process listens on the socket.
	Absent Kind = iota + 1
	// Forbidden means that this process is not allowed to connect to the socket.
	Forbidden
	// Untrusted means that the process that listens belongs to a user that is not trusted.
	Untrusted
	// Slow means that the signer did not answer in time.
	Slow
	// Ended means that the connection was closed, for example because the signer has
	// crashed, or because Close was called.
	Ended
	// Malformed means that an answer violates the protocol, or that a signature is not valid
	// for the public key of the signer.
	Malformed
	// Unsupported means that the signer or this package does not support a version, a key or
	// a scheme that the other one uses.
	Unsupported
	// Unavailable means that the signer reported that it cannot use the key at the moment.
	Unavailable
	// Refused means that the signer reported that it cannot use the key until a person has
	// corrected something.
	Refused
)

// String returns the name of the kind, for tests and logs.
func (k Kind) String() string {
	names := [...]string{"", "absent", "forbidden", "untrusted", "slow", "ended", "malformed", "unsupported", "unavailable", "refused"}
	if int(k) < len(names) {
		return names[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Error is a failure of a signer.
type Error struct {
	Kind Kind
	// Path is the path of the socket.
	Path string
	// Err is the cause. A *Failure contains text from the signer.
	Err error
}

// Error returns a description that contains no secret. It may contain text from the signer.
func (e *Error) Error() string { return "signer " + e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }
