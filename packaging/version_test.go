// Package packaging tests the version of the programs and their packages, and the changelog,
// from which it comes.
package packaging

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

// tree is a directory with the script and a changelog.
type tree struct {
	t   *testing.T
	dir string
}

func newTree(t *testing.T) tree {
	t.Helper()
	r := tree{t, t.TempDir()}
	script, err := os.ReadFile("version")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(r.dir, "packaging"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.dir, "packaging/version"), script, 0o755); err != nil {
		t.Fatal(err)
	}
	return r
}

func (r tree) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// try runs a command in the tree, without the settings of this machine.
func (r tree) try(name string, args ...string) (string, error) {
	cmd := exec.Command(name, args...)
	cmd.Dir = r.dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_SYSTEM=/dev/null", "GIT_CEILING_DIRECTORIES="+filepath.Dir(r.dir),
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a", "TZ=Pacific/Kiritimati")
	out, err := cmd.CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

func (r tree) run(name string, args ...string) string {
	r.t.Helper()
	out, err := r.try(name, args...)
	if err != nil {
		r.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

func (r tree) commit() {
	r.t.Helper()
	r.run("git", "commit", "--quiet", "--allow-empty", "--all", "--message", "a change")
}

const preamble = "# Changelog\n\n## [Unreleased]\n\n### Added\n\n- Something.\n\n"

// The test simulates the life of a repository. dpkg must consider each version at least as new as
// the previous one.
func TestTheVersionIsTheTopEntryOfTheChangelogWithTheCommitOfADevelopmentBuild(t *testing.T) {
	r := newTree(t)
	entry := func(version string) func() {
		return func() { r.write("CHANGELOG.md", preamble+"## ["+version+"] - 2026-01-31\n") }
	}
	before := ""
	for _, step := range []struct {
		what string
		do   func()
		want string // a regular expression
	}{
		{"the first commit", func() {
			entry("1.0.0-rc.1")()
			r.write("file", "1")
			r.run("git", "init", "--quiet")
			r.run("git", "add", ".")
			r.commit()
		}, `1\.0\.0~rc\.1~snapshot\.1\.gHASH`},
		{"a change to that", func() { r.write("file", "2") }, `1\.0\.0~rc\.1~snapshot\.1\.gHASH\.dirty`},
		{"the second commit", r.commit, `1\.0\.0~rc\.1~snapshot\.2\.gHASH`},
		{"an untracked file", func() { r.write("note", "") }, `1\.0\.0~rc\.1~snapshot\.2\.gHASH`},
		{"a candidate", func() { r.run("git", "tag", "v1.0.0-rc.1") }, `1\.0\.0~rc\.1`},
		{"a commit after it", r.commit, `1\.0\.0~rc\.1\+1\.gHASH`},
		{"the entry of the release", func() {
			entry("1.0.0")()
			r.commit()
		}, `1\.0\.0~snapshot\.4\.gHASH`},
		{"the release, annotated", func() { r.run("git", "tag", "--annotate", "--message", "it", "v1.0.0") }, `1\.0\.0`},
		{"another tag", func() { r.run("git", "tag", "nightly") }, `1\.0\.0`},
		{"a change to it", func() { r.write("file", "3") }, `1\.0\.0\+0\.gHASH\.dirty`},
		{"a commit after it", r.commit, `1\.0\.0\+1\.gHASH`},
		{"ten commits after it", func() {
			for range 9 {
				r.commit()
			}
		}, `1\.0\.0\+10\.gHASH`},
		{"the next release", func() {
			entry("1.0.1")()
			r.commit()
			r.run("git", "tag", "v1.0.1")
		}, `1\.0\.1`},
	} {
		step.do()
		version := r.run("packaging/version")
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

// A build system unpacks a source archive in its own clone.
func TestASourceArchiveHasTheVersionOfItsChangelogEvenInTheCloneOfAnotherProject(t *testing.T) {
	outer := newTree(t)
	outer.run("git", "init", "--quiet")
	outer.commit()
	outer.run("git", "tag", "v7.0.0")
	r := newTree(t)
	r.write("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - 2026-01-31\n")
	outer.run("cp", "-R", r.dir, "dpsd-1.2.3")
	for _, in := range []tree{r, {t, filepath.Join(outer.dir, "dpsd-1.2.3")}} {
		if version := in.run("packaging/version"); version != "1.2.3" {
			t.Errorf("the version is %s, want 1.2.3", version)
		}
	}
}

func TestTheTimeOfABuildIsTheDateOfTheTopEntryInUTC(t *testing.T) {
	r := newTree(t)
	r.write("CHANGELOG.md", preamble+"## [1.2.3] - 2026-01-31\n\n## [1.2.2] - 2026-01-01\n")
	want := strconv.FormatInt(time.Date(2026, time.January, 31, 0, 0, 0, 0, time.UTC).Unix(), 10)
	if got := r.run("packaging/version", "time"); got != want {
		t.Errorf("the time is %s, want %s", got, want)
	}
}

func TestATagThatDisagreesWithTheChangelogIsAnError(t *testing.T) {
	r := newTree(t)
	r.write("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - 2026-01-31\n")
	r.run("git", "init", "--quiet")
	r.run("git", "add", ".")
	r.commit()
	r.run("git", "tag", "v1.2.4")
	want := "version: this commit has the tag v1.2.4, but the top entry of CHANGELOG.md is 1.2.3"
	if out, err := r.try("packaging/version"); err == nil || out != want {
		t.Errorf("%v, %s\nwant %s", err, out, want)
	}
	r.run("git", "tag", "v1.2.3")
	if version := r.run("packaging/version"); version != "1.2.3" {
		t.Errorf("with both tags the version is %s, want 1.2.3", version)
	}
}

func TestAMalformedTopEntryIsAnError(t *testing.T) {
	r := newTree(t)
	for _, heading := range []string{"", "## 1.2.3\n", "## [1.2.3]\n", "## [1.2] - 2026-01-31\n", "## [v1.2.3] - 2026-01-31\n", "## [1.2.3] - today\n", "## [unreleased]\n"} {
		r.write("CHANGELOG.md", "# Changelog\n\n"+heading+"\n## [1.2.2 ] - 2026-01-01\n")
		if out, err := r.try("packaging/version"); err == nil || !strings.HasPrefix(out, "version: the top entry of CHANGELOG.md must have the form") {
			t.Errorf("%q: %v, %s", heading, err, out)
		}
	}
}

// https://keepachangelog.com/en/1.1.0/
func TestTheChangelogHasTheFormatOfKeepAChangelog(t *testing.T) {
	text, err := os.ReadFile("../CHANGELOG.md")
	if err != nil {
		t.Fatal(err)
	}
	kinds := regexp.MustCompile(`^### (Added|Changed|Deprecated|Removed|Fixed|Security)$`)
	versions := regexp.MustCompile(`^## \[(\d+\.\d+\.\d+(?:-(?:alpha|beta|rc)\.\d+)?)\] - (\d{4}-\d{2}-\d{2})$`)
	var dates []time.Time
	section := "" // the heading whose items follow
	for i, line := range strings.Split(string(text), "\n") {
		complain := func(why string) { t.Errorf("line %d: %s: %s", i+1, why, line) }
		switch {
		case strings.HasPrefix(line, "### "):
			if !kinds.MatchString(line) {
				complain("not one of the kinds of changes")
			}
			section = line
		case line == "## [Unreleased]" && len(dates) == 0:
		case strings.HasPrefix(line, "## "):
			match := versions.FindStringSubmatch(line)
			if match == nil {
				complain("not a version with its date")
				continue
			}
			date, err := time.Parse(time.DateOnly, match[2])
			if err != nil {
				complain(err.Error())
			}
			// A program that was built in the future would distrust the clock.
			if date.After(time.Now()) {
				complain("the date is in the future, in UTC")
			}
			if len(dates) > 0 && date.After(dates[len(dates)-1]) {
				complain("the entries are not in descending order")
			}
			dates = append(dates, date)
			section = ""
		case strings.HasPrefix(line, "- "):
			if section == "" {
				complain("the kind of the change is missing")
			}
			if !strings.HasSuffix(line, ".") {
				complain("not a sentence")
			}
		case line != "" && len(dates) > 0:
			complain("neither a heading nor a change on one line")
		}
	}
	if len(dates) == 0 {
		t.Error("there is no entry")
	}
}
