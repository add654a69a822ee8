package daemon

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// A long test that the Makefile does not name would be run by nobody.
func TestTheMakefileRunsTheLongTests(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile(`(?m)^LONG = (.*)$`).FindSubmatch(makefile)
	if named == nil {
		t.Fatal("the Makefile has no LONG")
	}
	var long []string
	files, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !strings.HasSuffix(f.Name(), "_test.go") {
			continue
		}
		text, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`func (Test\w+)\(t \*testing\.T\) \{\n\tlong\(t\)`).FindAllSubmatch(text, -1) {
			long = append(long, string(m[1]))
		}
	}
	got := strings.Split(string(named[1]), "|")
	slices.Sort(got)
	slices.Sort(long)
	if !slices.Equal(got, long) {
		t.Errorf("LONG is %q, the long tests are %q", got, long)
	}
}
