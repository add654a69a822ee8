package pace

import (
	"testing"

	"github.com/dpsd-project/dpsd/test/imports"
)

// A delay that depended on a clock, a file or the network could not be simulated.
func TestDelaysDependOnlyOnTheirArguments(t *testing.T) {
	all, err := imports.Direct(".")
	if err != nil {
		t.Fatal(err)
	}
	for path, file := range all {
		switch path {
		case "cmp", "math/rand/v2", "time", "github.com/dpsd-project/dpsd/fault":
		default:
			t.Errorf("%s imports %s", file, path)
		}
	}
}
