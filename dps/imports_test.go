package dps_test

import (
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/test/imports"
)

// The behaviour of a state machine that cannot open a socket, read a file, start a timer or
// be cancelled depends on its arguments alone. A test can therefore simulate a day of
// polling in a millisecond, and the protocol works over any transport. The rule covers
// direct imports, since encoding/json imports os. The only package of dpsd that may be
// imported, hostname, follows the same rule.
func TestDirectImportsAreTheStandardLibraryWithoutIO(t *testing.T) {
	for _, dir := range []string{".", "../hostname"} {
		all, err := imports.Direct(dir)
		if err != nil {
			t.Fatal(err)
		}
		delete(all, "github.com/dpsd-project/dpsd/hostname")
		for path, file := range all {
			root, _, _ := strings.Cut(path, "/")
			switch {
			case strings.Contains(root, "."):
				t.Errorf("%s imports %s, which is not in the standard library", file, path)
			case root == "net", root == "os", root == "context", root == "syscall", path == "crypto/tls":
				t.Errorf("%s imports %s: the package does no I/O", file, path)
			}
		}
	}
}
