package main

import (
	"flag"
	"os"
	"os/exec"
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

func TestTheManualContainsTheHelpOfTheCommands(t *testing.T) {
	page, err := manual.Program(rootCommand(), 8, "cmd/dpsd", prose(t))
	if err != nil {
		t.Fatal("manual.md: ", err)
	}
	if err := manual.Compare("../../docs/man/dpsd.8", page, *update); err != nil {
		t.Error(err)
	}
}

func TestEveryCommandHasCompleteHelp(t *testing.T) {
	for _, complaint := range manual.Complaints(rootCommand()) {
		t.Error(complaint)
	}
}

func TestTheManualNamesEveryVariableThatDpsdReads(t *testing.T) {
	out, err := exec.Command("go", "list", "-buildvcs=false", "-deps", "-f", `{{if not .Standard}}{{if eq .Module.Path "github.com/dpsd-project/dpsd"}}{{$d := .Dir}}{{range .GoFiles}}{{$d}}/{{.}}{{"\n"}}{{end}}{{end}}{{end}}`, ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	read := map[string]bool{}
	for file := range strings.FieldsSeq(string(out)) {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`os\.(?:Getenv|LookupEnv)\("(\w+)"\)`).FindAllSubmatch(source, -1) {
			read[string(m[1])] = true
		}
	}
	if !read["CREDENTIALS_DIRECTORY"] {
		t.Errorf("dpsd seems to read only %v", read)
	}
	for name := range read {
		if !strings.Contains(prose(t), "`"+name+"`") {
			t.Errorf("manual.md does not name %s", name)
		}
	}
}

func TestTheManualDescribesEveryExitStatus(t *testing.T) {
	left, err := manual.Undescribed(prose(t), "main.go")
	if err != nil || len(left) > 0 {
		t.Errorf("%v: manual.md does not describe %v", err, left)
	}
}
