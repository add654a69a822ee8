package daemon

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Without an entry in the Makefile, a long test would never run.
func TestTheMakefileRunsTheLongTests(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var named []string
	for _, line := range regexp.MustCompile(`(?m)^LONG .*$`).FindAllString(string(makefile), -1) {
		named = append(named, regexp.MustCompile(`Test\w+`).FindAllString(line, -1)...)
	}
	where := regexp.MustCompile(`-run '\^\(\$\(LONG\)\)\$\$' (.*);`).FindSubmatch(makefile)
	if where == nil {
		t.Fatal("the Makefile runs no LONG")
	}
	packages := strings.Fields(string(where[1]))
	files, err := filepath.Glob("../*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var long []string
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`func (Test\w+)\(t \*testing\.T\) \{\n\tlong\(t\)`).FindAllSubmatch(text, -1) {
			long = append(long, string(m[1]))
			if dir := "./" + filepath.Base(filepath.Dir(f)); !slices.Contains(packages, dir) {
				t.Errorf("%s is in %s; the Makefile runs LONG in %s", m[1], dir, packages)
			}
		}
	}
	slices.Sort(named)
	slices.Sort(long)
	if !slices.Equal(named, long) {
		t.Errorf("LONG is %q, the long tests are %q", named, long)
	}
}
