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
		t.Fatalf("%v: %d pages in %s; there are five and more", err, len(files), directory)
	}
	return files
}

// tool finds a program; one that is missing is a failure in CI only.
func tool(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(name + " is not here: what it makes of the pages is not checked")
	}
	return path
}

func TestGroffReadsEveryPageAndFitsItToATerminal(t *testing.T) {
	groff := tool(t, "groff")
	for _, page := range pages(t) {
		var complaints strings.Builder
		// As man(1) does on a terminal of 80 columns, but without colours.
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
		// LC_ALL=C: where a character is missing, groff says so.
		if out, err := exec.Command(groff, "-man", "-ww", "-Tascii", "-z", page).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s, in ASCII: %v: %s", page, err, out)
		}
	}
}

func TestMandocFindsNothingAmiss(t *testing.T) {
	mandoc := tool(t, "mandoc")
	for _, page := range pages(t) {
		out, _ := exec.Command(mandoc, "-T", "lint", "-W", "warning", page).CombinedOutput() // its status tells less than its words
		for line := range strings.Lines(string(out)) {
			// A page bears no date, so that the same source is the same page.
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

// Wherever the repository refers to a page of ours, there is one.
func TestEveryReferenceToAPageLeadsToOne(t *testing.T) {
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
