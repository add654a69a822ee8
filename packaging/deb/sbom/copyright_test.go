package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const copyrightFile = "../debian/copyright"

// TestCopyrightCoversAllLinkedModules compares the copyright file with the modules that are
// linked into the shipped programs, on every architecture that has a package, and with the
// licenses of these modules.
func TestCopyrightCoversAllLinkedModules(t *testing.T) {
	text, err := os.ReadFile(copyrightFile)
	if err != nil {
		t.Fatal(err)
	}
	files, err := parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	modules := linked(t)
	if len(modules) < 10 {
		t.Fatalf("only %d modules are linked: the output of go list is incomplete", len(modules))
	}
	apache, err := os.ReadFile("../../../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	for module, dir := range modules {
		t.Run(module, func(t *testing.T) {
			s, ok := about(module, files)
			if !ok {
				t.Fatalf("it is linked, and %s has no stanza for %s", copyrightFile, pattern(module))
			}
			for _, complaint := range compare(t, s, dir, string(apache)) {
				t.Error(complaint)
			}
		})
	}
	for _, s := range files {
		for _, f := range s.files {
			if module := strings.TrimSuffix(strings.TrimPrefix(f, "vendor/"), "/*"); f != "*" && modules[module] == "" {
				t.Errorf("%s has a stanza for %s, which is not linked", copyrightFile, f)
			}
		}
	}
}

// compare compares a stanza with the license files of a module.
func compare(t *testing.T, s stanza, dir, apache string) (complaints []string) {
	t.Helper()
	given := ""
	for _, pattern := range []string{"LICENSE*", "edl-v10"} { // paho.golang's alternative license
		names, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			given += string(text) + "\n"
		}
	}
	if given == "" {
		return []string{"the module has no license file"}
	}
	want := s.text
	if s.license == "Apache-2.0" { // the text is in Debian's common-licenses and in the LICENSE of this repository
		want, _, _ = strings.Cut(apache, "END OF TERMS AND CONDITIONS")
	}
	if !strings.Contains(words(given), words(want)) {
		complaints = append(complaints, "the module's license is not the text of "+s.license+" there")
	}
	if known := marks[s.license]; known == "" || !strings.Contains(words(want), words(known)) {
		complaints = append(complaints, "the text is not that of the "+s.license)
	}
	for _, line := range copyrightLine.FindAllStringSubmatch(given, -1) {
		holder := strings.TrimSpace(line[1])
		if !slices.Contains(s.copyright, holder) && s.license != "Apache-2.0" { // there the line is an example
			complaints = append(complaints, "Copyright lacks "+holder)
		}
	}
	if notice, err := os.ReadFile(filepath.Join(dir, "NOTICE")); err == nil && !strings.Contains(words(s.comment), words(string(notice))) {
		complaints = append(complaints, "the NOTICE of the module is not in Comment (Apache License 2.0, 4 d)")
	}
	return complaints
}

// marks are words that occur in only one of these licenses.
var marks = map[string]string{
	"Apache-2.0":   "Apache License Version 2.0, January 2004",
	"BSD-2-Clause": "this list of conditions and the following disclaimer in the documentation and/or other materials provided with the distribution. THIS SOFTWARE IS PROVIDED",
	"BSD-3-Clause": "contributors may be used to endorse or promote products derived from this software without specific prior written permission",
	"ISC":          "Permission to use, copy, modify, and distribute this software for any purpose with or without fee",
	"MIT":          "to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software",
}

var copyrightLine = regexp.MustCompile(`(?m)^(?:> )?Copyright (?:\(c\) |© )?(\d{4}.*)$`)

// words returns a text without its layout and the letters of its lists.
func words(text string) string {
	return strings.Join(strings.Fields(listLetter.ReplaceAllString(text, " ")), " ")
}

var listLetter = regexp.MustCompile(`\s\([a-z]\)\s`)

// linked returns the modules of the shipped programs with their directories, and the
// standard library as "std".
func linked(t *testing.T) map[string]string {
	t.Helper()
	modules := map[string]string{"std": strings.TrimSpace(command(t, "amd64", "env", "GOROOT"))}
	for _, arch := range []string{"amd64", "arm64", "arm", "riscv64"} {
		const format = "{{with .Module}}{{if not (or .Main (and .Replace (not .Replace.Version)))}}{{.Path}}\t{{.Dir}}{{end}}{{end}}"
		for _, programs := range [][]string{
			{"list", "-buildvcs=false", "-deps", "-f", format, "../../../cmd/dpsd", "../../../cmd/dpsd-sim"},
			{"list", "-C", "../../../pkcs11", "-buildvcs=false", "-deps", "-f", format, "./dpsd-signer-pkcs11"},
		} {
			for line := range strings.Lines(command(t, arch, programs...)) {
				if path, dir, is := strings.Cut(strings.TrimSpace(line), "\t"); is {
					modules[path] = dir
				}
			}
		}
	}
	return modules
}

func command(t *testing.T, arch string, args ...string) string {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v", strings.Join(args, " "), err)
	}
	return string(out)
}
