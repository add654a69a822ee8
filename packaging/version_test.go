// Package packaging tests the version of the programs and their packages.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestVersionsFollowTheTags simulates the life of a repository: each version has its format, and
// dpkg considers it newer than the previous one.
func TestVersionsFollowTheTags(t *testing.T) {
	dir := t.TempDir()
	command := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.Command(name, args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_CEILING_DIRECTORIES="+filepath.Dir(dir),
			"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "file"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	commit := func() { command("git", "commit", "--quiet", "--allow-empty", "--all", "--message", "a change") }

	script, err := os.ReadFile("version")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "version"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	if v := command("./version"); v != "0~devel" {
		t.Errorf("without git it is %s", v)
	}

	before := ""
	for _, step := range []struct {
		what string
		do   func()
		want string // a regular expression
	}{
		{"the first commit", func() {
			command("git", "init", "--quiet")
			write("1")
			command("git", "add", ".")
			commit()
		}, `0~1\.gHASH`},
		{"a change to that", func() { write("2") }, `0~1\.gHASH\.dirty`},
		{"the second commit", commit, `0~2\.gHASH`},
		{"an untracked file", func() {
			if err := os.WriteFile(filepath.Join(dir, "note"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}, `0~2\.gHASH`},
		{"a candidate", func() { command("git", "tag", "v0.1.0-rc.1") }, `0\.1\.0~rc\.1`},
		{"a commit after it", commit, `0\.1\.0~rc\.1\+1\.gHASH`},
		{"a release, annotated", func() { command("git", "tag", "--annotate", "--message", "it", "v0.1.0") }, `0\.1\.0`},
		{"another tag", func() { command("git", "tag", "nightly") }, `0\.1\.0`},
		{"a change to it", func() { write("3") }, `0\.1\.0\+0\.gHASH\.dirty`},
		{"a commit after it", commit, `0\.1\.0\+1\.gHASH`},
		{"ten commits after it", func() {
			for range 9 {
				commit()
			}
		}, `0\.1\.0\+10\.gHASH`},
		{"the next release", func() { command("git", "tag", "v0.1.1") }, `0\.1\.1`},
	} {
		step.do()
		version := command("./version")
		if !regexp.MustCompile("^" + strings.ReplaceAll(step.want, "HASH", "[0-9a-f]{9}") + "$").MatchString(version) {
			t.Errorf("%s: the version is %s, want %s", step.what, version, step.want)
		}
		if _, err := exec.LookPath("dpkg"); err == nil && before != "" {
			if err := exec.Command("dpkg", "--compare-versions", before, "le", version).Run(); err != nil {
				t.Errorf("%s: to dpkg, %s is older than %s", step.what, version, before)
			}
		}
		before = version
	}
}
