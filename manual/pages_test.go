package manual_test

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const directory = "../docs/man"

// pages returns the paths of all pages.
func pages(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(directory, "*.[1-9]"))
	if err != nil || len(files) < 5 {
		t.Fatalf("%v: %d pages in %s; want at least 5", err, len(files), directory)
	}
	return files
}

// tool returns the path of a program. In CI, a missing program is a failure; otherwise, the
// test is skipped.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(name + " is not installed: its output for the pages is not checked")
	}
	return path
}

func TestGroffReadsEveryPageAndFitsItToATerminal(t *testing.T) {
	groff := tool(t, "groff")
	for _, page := range pages(t) {
		var complaints strings.Builder
		// The options are those of man(1) for a terminal of 80 columns, but without
		// colours.
		c := exec.Command(groff, "-man", "-ww", "-Tutf8", "-P-cbou", "-rLL=78n", page)
		c.Stderr = &complaints
		out, err := c.Output()
		if err != nil || complaints.Len() > 0 {
			t.Errorf("%s: %v: %s", page, err, complaints.String())
		}
		for line := range strings.Lines(string(out)) {
			if n := len([]rune(strings.TrimSuffix(line, "\n"))); n > 80 {
				t.Errorf("%s: a line has %d columns: %s", page, n, line)
			}
		}
		// With LC_ALL=C, groff warns about missing characters.
		if out, err := exec.Command(groff, "-man", "-ww", "-Tascii", "-z", page).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s, in ASCII: %v: %s", page, err, out)
		}
	}
}

func TestMandocReportsNoProblem(t *testing.T) {
	mandoc := tool(t, "mandoc")
	for _, page := range pages(t) {
		out, _ := exec.Command(mandoc, "-T", "lint", "-W", "warning", page).CombinedOutput() // the output is checked, not the exit status
		for line := range strings.Lines(string(out)) {
			// A page has no date, so that it depends only on its source.
			if !strings.Contains(line, `WARNING: missing date, using "": TH`) {
				t.Error(strings.TrimSpace(line))
			}
		}
	}
}

func TestAproposFindsEveryPage(t *testing.T) {
	lexgrog := tool(t, "lexgrog")
	for _, page := range pages(t) {
		name := strings.TrimSuffix(filepath.Base(page), filepath.Ext(page))
		out, err := exec.Command(lexgrog, page).CombinedOutput()
		if err != nil || !strings.Contains(string(out), `: "`+name+" - ") {
			t.Errorf("%s: %v: %s", page, err, out)
		}
	}
}

// Every manual page of dpsd to which the repository refers must exist.
func TestEveryReferencedPageExists(t *testing.T) {
	files := []string{"../README.md", "../CONTRIBUTING.md"}
	for _, tree := range []string{"../docs", "../packaging", "../cmd", "../config"} {
		err := filepath.WalkDir(tree, func(path string, entry fs.DirEntry, err error) error {
			if err == nil && entry.Type().IsRegular() {
				files = append(files, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	// dpsd(8), and dpsd.8 in the directory of the pages.
	named := regexp.MustCompile(`\b(dpsd(?:[.-][a-z]+)*)(?:\\fR)?\(([1-9])\)|\bman/(dpsd(?:[.-][a-z]+)*)\.([1-9])\b`)
	found := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		plain := strings.ReplaceAll(string(text), `\-`, "-")
		for _, m := range named.FindAllStringSubmatch(plain, -1) {
			page := m[1] + m[3] + "." + m[2] + m[4]
			found[page] = true
			if _, err := os.Stat(filepath.Join(directory, page)); err != nil {
				t.Errorf("%s refers to %s: %v", file, m[0], err)
			}
		}
	}
	for _, page := range pages(t) {
		if name := filepath.Base(page); !found[name] {
			t.Errorf("nothing refers to %s", name)
		}
	}
}
