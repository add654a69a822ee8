package main

import (
	"flag"
	"os"
	"testing"

	"github.com/dpsd-project/dpsd/manual"
)

var update = flag.Bool("update", false, "rewrite docs/man/dpsd-sim.8 from the commands and manual.md")

func prose(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("manual.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestTheManualSaysWhatTheCommandsSay(t *testing.T) {
	page, err := manual.Program(newRoot(), 8, "cmd/dpsd-sim", prose(t))
	if err != nil {
		t.Fatal("manual.md: ", err)
	}
	if err := manual.Compare("../../docs/man/dpsd-sim.8", page, *update); err != nil {
		t.Error(err)
	}
}

func TestEveryCommandIsWorthItsHelp(t *testing.T) {
	for _, complaint := range manual.Complaints(newRoot()) {
		t.Error(complaint)
	}
}

func TestTheManualDescribesEveryExitStatus(t *testing.T) {
	left, err := manual.Undescribed(prose(t), "main.go", "exec.go")
	if err != nil || len(left) > 0 {
		t.Errorf("%v: manual.md does not describe %v", err, left)
	}
}
