package journal

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
)

// catalog returns the text for journalctl -x, in the format of systemd.
func catalog() string {
	var b strings.Builder
	b.WriteString("# The events and faults of dpsd for journalctl -x, systemd.catalog format.\n# Generated from the catalogues in event/ and fault/: make man\n")
	entry := func(id, subject, manual string, text ...string) {
		fmt.Fprintf(&b, "\n-- %s\nSubject: dpsd: %s\nDefined-By: dpsd\nSupport: https://github.com/dpsd-project/dpsd/issues\nDocumentation: %s\n\n%s\n",
			id, subject, manual, strings.Join(text, "\n\n"))
	}
	for _, e := range event.Catalogue() {
		entry(event.MessageID(e.Name), e.Name, "man:dpsd(8)", e.Meaning)
	}
	for _, e := range fault.Catalogue() {
		advice := "What to do: " + e.Advice
		if e.When != "" {
			advice += "\nWhen " + string(e.When) + ": " + e.Instead
		}
		entry(e.Code.MessageID(), string(e.Code), "man:dpsd-faults(7)", e.Summary, advice, e.Class.Next())
	}
	return b.String()
}

func TestTheJournalsCatalogueIsGenerated(t *testing.T) {
	same(t, "../packaging/systemd/dpsd.catalog", catalog())
}

// systemd must find every entry by its MESSAGE_ID.
func TestSystemdReadsTheCatalog(t *testing.T) {
	journalctl, err := exec.LookPath("journalctl")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("journalctl is not installed")
		}
		t.Skip("journalctl is not installed: the catalog is not checked")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/catalog")
	if err := cmp.Or(os.MkdirAll(dir, 0o755), os.MkdirAll(filepath.Join(root, "var/lib/systemd/catalog"), 0o755),
		os.WriteFile(filepath.Join(dir, "dpsd.catalog"), []byte(catalog()), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(journalctl, "--root="+root, "--update-catalog").CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	explained := func(id, name, text string) {
		out, err := exec.Command(journalctl, "--root="+root, "--dump-catalog", id).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Subject: dpsd: "+name+"\n") || !strings.Contains(string(out), text) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
	for _, e := range event.Catalogue() {
		explained(event.MessageID(e.Name), e.Name, e.Meaning)
	}
	for _, e := range fault.Catalogue() {
		explained(e.Code.MessageID(), string(e.Code), e.Advice)
	}
}

// The table of events is generated from the catalogue and the fields in the source code, and
// the values of DPSD_STAGE from the constants of package fault.
func TestThePageListsTheCatalogue(t *testing.T) {
	const page, begin, end = "../docs/journal.md", "<!-- events: make man -->\n", "<!-- end -->"
	var b strings.Builder
	b.WriteString("| event | priority | meaning | fields; a change of a **bold** one makes the event new | `MESSAGE_ID` |\n| --- | --- | --- | --- | --- |\n")
	fields := fieldsOf(t)
	for _, e := range event.Catalogue() {
		var names []string
		for _, f := range fields[e.Name] {
			name := "`" + Field(f) + "`"
			if slices.Contains(e.Same, f) {
				name = "**" + name + "**"
			}
			names = append(names, name)
		}
		id := "`" + event.MessageID(e.Name) + "`"
		if slices.Contains(fields[e.Name], "fault") {
			id = "that of the fault"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", e.Name, e.Priority, strings.ReplaceAll(e.Meaning, "|", `\|`), strings.Join(names, " "), id)
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(have), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has lost its marks", page)
	}
	source, err := os.ReadFile("../fault/fault.go")
	if err != nil {
		t.Fatal(err)
	}
	var stages []string
	for _, declared := range regexp.MustCompile(`(?m)^\tStage\w+ +Stage = "(.+?)"`).FindAllSubmatch(source, -1) {
		stages = append(stages, "`"+string(declared[1])+"`")
	}
	row := regexp.MustCompile("(?m)^\\| `DPSD_STAGE` \\|.*$")
	before = row.ReplaceAllLiteralString(before, "| `DPSD_STAGE` | the step of the attempt: "+strings.Join(stages, ", ")+" |")
	if !row.MatchString(before) {
		t.Errorf("%s does not describe DPSD_STAGE", page)
	}
	same(t, page, before+begin+b.String()+end+after)
}
