package main

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/manual"
)

var update = flag.Bool("update", false, "rewrite docs/man/dpsd.8 from the commands and manual.md")

func prose(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("manual.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheManualSaysWhatTheCommandsSay(t *testing.T) {
	page, err := manual.Program(rootCommand(), 8, "cmd/dpsd", prose(t))
	if err != nil {
		t.Fatal("manual.md: ", err)
	}
	if err := manual.Hold("../../docs/man/dpsd.8", page, *update); err != nil {
		t.Error(err)
	}
}

func TestEveryCommandIsWorthItsHelp(t *testing.T) {
	for _, complaint := range manual.Complaints(rootCommand()) {
		t.Error(complaint)
	}
}

func TestTheManualNamesEveryExitStatus(t *testing.T) {
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\texit[A-Z]\w+ += ([0-9]+)`).FindAllSubmatch(source, -1)
	if len(declared) == 0 {
		t.Error("main.go declares no exit status any more")
	}
	for _, m := range declared {
		if !strings.Contains(prose(t), "\n| `"+string(m[1])+"` |") {
			t.Errorf("manual.md does not name exit status %s", m[1])
		}
	}
}
