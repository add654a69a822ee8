package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// ResolverFile names the name servers of this machine, resolv.conf(5).
const ResolverFile = "/etc/resolv.conf"

// NoNameServerError is a name that could not be resolved because this machine has no
// name server. Without one, resolvers ask the machine itself, and what they report of
// that ("[::1]:53: connection refused") does not say so.
type NoNameServerError struct {
	File    string
	Problem string // with the file
	Err     error  // *net.DNSError
}

// Error names the file first.
func (e *NoNameServerError) Error() string { return fmt.Sprintf("%s %s: %v", e.File, e.Problem, e.Err) }

// Unwrap returns what the resolver reported.
func (e *NoNameServerError) Unwrap() error { return e.Err }

// Unresolved returns err as a *NoNameServerError when it is a failure to resolve a name
// that the contents of the resolver file explain, and err itself otherwise.
func Unresolved(err error, file string) error {
	var dns *net.DNSError
	if !errors.As(err, &dns) || dns.IsNotFound {
		return err
	}
	text, unread := os.ReadFile(file)
	var problem string
	switch target, link := os.Readlink(file); {
	case errors.Is(unread, fs.ErrNotExist) && link == nil:
		problem = "is a link to " + target + ", which does not exist"
	case errors.Is(unread, fs.ErrNotExist):
		problem = "does not exist"
	case unread != nil:
		return err // then the resolver does not know either, and somebody else reports it
	case !namesServer(text):
		problem = "names no name server"
	default:
		return err
	}
	return &NoNameServerError{File: file, Problem: problem, Err: dns}
}

// namesServer reports whether a line of resolv.conf(5) names a name server.
func namesServer(text []byte) bool {
	for line := range bytes.Lines(text) {
		if fields := bytes.Fields(line); len(fields) > 1 && string(fields[0]) == "nameserver" {
			return true
		}
	}
	return false
}
