package dps_test

import (
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/test/imports"
)

// A state machine that cannot open a socket, read a file, start a timer of its own or
// be cancelled is one whose every behaviour is decided by its arguments. That is what
// lets a day of polling be tested in a millisecond, and what keeps the protocol usable
// over any transport. The rule covers direct imports: encoding/json brings os along. The
// one package of dpsd that may be imported, hostname, obeys it too.
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
				t.Errorf("%s imports %s, which is not of the standard library", file, path)
			case root == "net", root == "os", root == "context", root == "syscall", path == "crypto/tls":
				t.Errorf("%s imports %s: the package does no I/O", file, path)
			}
		}
	}
}
