package main_test

import (
	"debug/buildinfo"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

// list runs go list and returns its lines.
func list(t *testing.T, args ...string) map[string]bool {
	t.Helper()
	out, err := exec.Command("go", append([]string{"list", "-buildvcs=false"}, args...)...).Output()
	if err != nil {
		t.Fatalf("go list %v: %v", args, err)
	}
	lines := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		lines[strings.TrimSpace(line)] = true
	}
	return lines
}

func TestShippedProgram(t *testing.T) {
	program, err := exec.LookPath("dpsd") // TestMain has built it with the flags of a release
	if err != nil {
		t.Fatal(err)
	}
	info, err := buildinfo.ReadFile(program) // the output of go version -m
	if err != nil {
		t.Fatal(err)
	}
	inside := map[string]bool{}
	for _, dependency := range info.Deps {
		inside[dependency.Path] = true
	}
	if !inside["github.com/eclipse/paho.golang"] {
		t.Fatalf("the program does not list its MQTT client, only %v", inside)
	}
	required := list(t, "-m", "-f", "{{.Path}}", "all")
	for _, module := range []string{
		"github.com/mochi-mqtt/server/v2", "github.com/gorilla/websocket", // used by the simulator
		"go.uber.org/goleak", "github.com/google/go-cmp", "github.com/rogpeppe/go-internal", // used by the tests
		"github.com/santhosh-tekuri/jsonschema/v6", "golang.org/x/tools",
	} {
		t.Run("dpsd is built without "+module, func(t *testing.T) {
			if !required[module] {
				t.Fatal("go.mod no longer contains a module of this name: this list is outdated")
			}
			if inside[module] {
				t.Error("the program contains it")
			}
		})
	}
	t.Run("dpsd is built without the simulator, which is in the same module", func(t *testing.T) {
		packages := list(t, "-deps", ".")
		if !packages["github.com/dpsd-project/dpsd/daemon"] {
			t.Fatalf("the packages of dpsd are %v", packages)
		}
		for _, name := range []string{"simulator", "fleet", "manual", "test/sdk"} {
			for path := range packages {
				if strings.HasPrefix(path+"/", "github.com/dpsd-project/dpsd/"+name+"/") {
					t.Errorf("package %s is in the program", path)
				}
			}
		}
	})
	t.Run("modules that only the benchmarks or the container image import are not dependencies of dpsd", func(t *testing.T) {
		for _, module := range []string{"gonum.org/v1/plot", "github.com/fsnotify/fsnotify", "github.com/google/go-containerregistry", "github.com/compose-spec/compose-go/v2"} {
			if required[module] {
				t.Errorf("%s is among the modules", module)
			}
		}
	})
	t.Run("dpsd is at most 12 MB on amd64", func(t *testing.T) {
		if runtime.GOARCH != "amd64" {
			t.Skip("this machine is a " + runtime.GOARCH + "; the budget is for amd64")
		}
		file, err := os.Stat(program)
		if err != nil {
			t.Fatal(err)
		}
		if file.Size() > 12_000_000 {
			t.Errorf("it has %d bytes", file.Size())
		}
	})
}

// renameio creates its temporary files in $TMPDIR if possible, where a process that is killed
// leaves them.
func TestFilesAreReplacedFromTheirOwnDirectoryAndNotFromTmp(t *testing.T) {
	calls := 0
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		text, err := os.ReadFile(path)
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "renameio.WriteFile(") || strings.Contains(line, "renameio.NewPendingFile(") {
				calls++
				if !strings.Contains(line, "renameio.WithTempDir(") {
					t.Errorf("%s: without renameio.WithTempDir: %s", path, strings.TrimSpace(line))
				}
			}
		}
		return err
	})
	if err != nil || calls == 0 {
		t.Errorf("%d calls of renameio, %v", calls, err)
	}
}
