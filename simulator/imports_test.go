package simulator_test

import (
	"go/parser"
	gotoken "go/token"
	"path/filepath"
	"strings"
	"testing"
)

// The simulator tests the client. If it used code or libraries of the client, the same
// mistake on both sides would go unnoticed.
func TestTheSimulatorImportsNoCodeOfTheClient(t *testing.T) {
	const module = "github.com/dpsd-project/dpsd/"
	files, err := filepath.Glob("*.go")
	below, errBelow := filepath.Glob("*/*.go")
	if err != nil || errBelow != nil || len(files) == 0 || len(below) == 0 {
		t.Fatal(files, err, below, errBelow)
	}
	files = append(files, below...)
	for _, name := range files {
		f, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range f.Imports {
			path := strings.Trim(i.Path.Value, `"`)
			switch {
			case strings.HasPrefix(path, module) && path != module+"simulator" && !strings.HasPrefix(path, module+"simulator/"),
				strings.HasPrefix(path, "github.com/eclipse/paho"),
				strings.HasPrefix(path, "github.com/coder/websocket"):
				t.Errorf("%s imports %s", name, path)
			}
		}
	}
}
