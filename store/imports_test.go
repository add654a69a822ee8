package store_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/test/imports"
)

// Other programs import this package to read one small file, and must include, audit and
// update all of its imports. Therefore, no dependency may be added by accident, and
// especially none on the rest of dpsd: readers need none of its MQTT, TLS and configuration
// code.
func TestDirectImports(t *testing.T) {
	allowed := []string{"github.com/google/renameio/v2", "github.com/dpsd-project/dpsd/watch", "github.com/dpsd-project/dpsd/hostname"}
	all, err := imports.Direct(".")
	if err != nil {
		t.Fatal(err)
	}
	for path, file := range all {
		first, _, _ := strings.Cut(path, "/")
		if strings.Contains(first, ".") && !slices.Contains(allowed, path) {
			t.Errorf("%s imports %s: only the standard library, renameio (atomic files), watch (Watch) and hostname (Validate) are allowed", file, path)
		}
	}
}
