package dps_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// A state machine that cannot open a socket, read a file, start a timer of its own or
// be cancelled is one whose every behaviour is decided by its arguments. That is what
// lets a day of polling be tested in a millisecond, and what keeps the protocol usable
// over any transport. The rule covers direct imports: encoding/json brings os along.
func TestDirectImportsAreTheStandardLibraryWithoutIO(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		source, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		f, err := parser.ParseFile(token.NewFileSet(), name, source, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		checked++
		for _, imported := range f.Imports {
			path, err := strconv.Unquote(imported.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			root, _, _ := strings.Cut(path, "/")
			switch {
			case strings.Contains(root, "."):
				t.Errorf("%s imports %s, which is not of the standard library", name, path)
			case root == "net", root == "os", root == "context", root == "syscall", path == "crypto/tls":
				t.Errorf("%s imports %s: the package does no I/O", name, path)
			}
		}
	}
	if checked == 0 {
		t.Fatal("no source file was looked at")
	}
}
