package manual_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A page that names the test of a promise is wrong after the test has been removed.
func TestTheTestsNamedInThePagesExist(t *testing.T) {
	names := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+)(…?)")
	files, err := filepath.Glob("../*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	deeper, err := filepath.Glob("../*/*/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	var code strings.Builder
	for _, file := range append(files, deeper...) {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(text)
	}
	for _, page := range []string{"promises", "security"} {
		text, err := os.ReadFile("../docs/" + page + ".md")
		if err != nil {
			t.Fatal(err)
		}
		found := names.FindAllStringSubmatch(string(text), -1)
		if len(found) == 0 {
			t.Errorf("docs/%s.md names no test", page)
		}
		for _, name := range found {
			end := "("
			if name[2] != "" {
				end = ""
			}
			if !strings.Contains(code.String(), "func "+name[1]+end) {
				t.Errorf("docs/%s.md names %s, which does not exist", page, name[1])
			}
		}
	}
}
