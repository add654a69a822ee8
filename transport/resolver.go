package transport

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
)

// ResolverFile is the file with the name servers of this machine, see resolv.conf(5).
const ResolverFile = "/etc/resolv.conf"

// NoNameServerError is a failure to resolve a name because this machine has no name server.
// Without one, resolvers query the machine itself, and their error ("[::1]:53: connection
// refused") does not state the reason.
type NoNameServerError struct {
	File    string
	Problem string // problem of the file
	Err     error  // *net.DNSError
}

// Error begins with the file.
func (e *NoNameServerError) Error() string { return fmt.Sprintf("%s %s: %v", e.File, e.Problem, e.Err) }

// Unwrap returns the resolver's error.
func (e *NoNameServerError) Unwrap() error { return e.Err }

// Unresolved returns a *NoNameServerError if err is a failure to resolve a name and the
// contents of the resolver file explain it, and err otherwise.
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
		return err // the contents are unknown, so they explain nothing
	case !namesServer(text):
		problem = "contains no name server"
	default:
		return err
	}
	return &NoNameServerError{File: file, Problem: problem, Err: dns}
}

// namesServer reports whether a text in the format of resolv.conf(5) contains a name
// server.
func namesServer(text []byte) bool {
	for line := range bytes.Lines(text) {
		if fields := bytes.Fields(line); len(fields) > 1 && string(fields[0]) == "nameserver" {
			return true
		}
	}
	return false
}
