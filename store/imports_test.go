package store_test

import (
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// Other programs import this package to read one small file. Whatever it
// imports they carry, audit and update too; so it may not grow a dependency by
// accident, and above all none on the rest of dpsd, whose MQTT, TLS and
// configuration are no business of a reader.
func TestDirectImports(t *testing.T) {
	allowed := []string{"github.com/google/renameio/v2", "github.com/dpsd-project/dpsd/watch"}
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, spec := range file.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			first, _, _ := strings.Cut(path, "/")
			if strings.Contains(first, ".") && !slices.Contains(allowed, path) {
				t.Errorf("%s imports %s: only the standard library, renameio (atomic files) and watch (Watch) are allowed", name, path)
			}
		}
	}
}
