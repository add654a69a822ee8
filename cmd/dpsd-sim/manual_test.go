package main

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/manual"
)

var update = flag.Bool("update", false, "rewrite docs/man/dpsd-sim.8 from the commands and manual.md")

func TestTheManualSaysWhatTheCommandsSay(t *testing.T) {
	prose, err := os.ReadFile("manual.md")
	if err != nil {
		t.Fatal(err)
	}
	page, err := manual.Program(newRoot(), 8, "cmd/dpsd-sim", string(prose))
	if err != nil {
		t.Fatal("manual.md: ", err)
	}
	if err := manual.Hold("../../docs/man/dpsd-sim.8", page, *update); err != nil {
		t.Error(err)
	}
}

func TestEveryCommandIsWorthItsHelp(t *testing.T) {
	for _, complaint := range manual.Complaints(newRoot()) {
		t.Error(complaint)
	}
}

func TestTheManualNamesEveryExitStatus(t *testing.T) {
	prose, err := os.ReadFile("manual.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"main.go", "exec.go"} {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		declared := regexp.MustCompile(`(?m)^\texit[A-Z]\w+ += ([0-9]+)`).FindAllSubmatch(source, -1)
		if len(declared) == 0 {
			t.Errorf("%s declares no exit status any more", file)
		}
		for _, m := range declared {
			if !strings.Contains(string(prose), "\n| `"+string(m[1])+"` |") {
				t.Errorf("manual.md does not name exit status %s of %s", m[1], file)
			}
		}
	}
}
