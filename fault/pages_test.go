package fault_test

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/manual"
)

const (
	catalogFile = "../packaging/systemd/dpsd.catalog"
	manualFile  = "../docs/man/dpsd-faults.7"
)

// generated holds a file to the text that the catalogue makes, or with -update
// writes it.
func generated(t *testing.T, file, text string) {
	t.Helper()
	if err := manual.Hold(file, text, *update); err != nil {
		t.Error(err)
	}
}

// classes says how dpsd goes on, class by class.
var classes = []struct {
	class fault.Class
	next  string
}{
	{fault.Offline, "Nothing was sent. dpsd tries again every few seconds, at most offline_max apart."},
	{fault.Transient, "dpsd tries again, at first after a second, later up to max apart."},
	{fault.Throttling, "dpsd waits as long as the service asked, and at least as for a transient fault."},
	{fault.Credential, "The next credential is tried at once. When all were refused, dpsd tries again after refused_initial, later up to refused_max apart, and at once when a credential file changes."},
	{fault.Input, "dpsd tries again when the file changes, and otherwise as after a refusal."},
	{fault.Enrollment, "dpsd tries again after refused_initial, later up to refused_max apart."},
	{fault.Interception, "dpsd tries again as after a transient fault. It counts against no credential."},
	{fault.Clock, "dpsd tries again when the clock is stepped, and otherwise as after a refusal."},
	{fault.Storage, "dpsd tries again as after a transient fault. What was published before stays."},
	{fault.Configuration, "At the start dpsd ends with exit code 78. At a reload the running configuration stays."},
}

func next(c fault.Class) string {
	for _, known := range classes {
		if known.class == c {
			return known.next
		}
	}
	return ""
}

func TestEveryClassSaysHowDpsdGoesOn(t *testing.T) {
	for _, e := range fault.Catalogue() {
		if next(e.Class) == "" {
			t.Errorf("%s: nothing is said about the class %s", e.Code, e.Class)
		}
	}
}

func TestMessageIDsAreTheSameForEver(t *testing.T) {
	// printf 'dpsd fault unauthorized' | sha256sum | cut -c1-32
	if got, want := fault.Unauthorized.MessageID(), "bb513b6bf45182d1398b7a8025c1f680"; got != want {
		t.Errorf("%s, want %s: entries of older versions would lose their text", got, want)
	}
	form, seen := regexp.MustCompile(`^[0-9a-f]{32}$`), map[string]fault.Code{}
	for _, e := range fault.Catalogue() {
		id := e.Code.MessageID()
		if !form.MatchString(id) || seen[id] != "" {
			t.Errorf("%s: %q, as %s", e.Code, id, seen[id])
		}
		seen[id] = e.Code
	}
}

// journalCatalogue is the text for journalctl -x, in the format of systemd.
func journalCatalogue() string {
	var b strings.Builder
	b.WriteString("# The faults of dpsd for journalctl -x, systemd.catalog format.\n# Generated from the catalogue in fault/: go test ./fault -update\n")
	for _, e := range fault.Catalogue() {
		fmt.Fprintf(&b, "\n-- %s\nSubject: dpsd: %s\nDefined-By: dpsd\nSupport: https://github.com/dpsd-project/dpsd/issues\nDocumentation: man:dpsd-faults(7)\n\n%s\n\nWhat to do: %s\n\n%s\n",
			e.Code.MessageID(), e.Code, e.Summary, e.Advice, next(e.Class))
	}
	return b.String()
}

func TestTheJournalsCatalogueIsTheCatalogue(t *testing.T) {
	generated(t, catalogFile, journalCatalogue())
}

// What systemd makes of it: every entry is found by its MESSAGE_ID.
func TestSystemdReadsTheJournalsCatalogue(t *testing.T) {
	journalctl, err := exec.LookPath("journalctl")
	if err != nil {
		missing(t, "journalctl")
	}
	root := t.TempDir()
	dir := filepath.Join(root, "usr/lib/systemd/catalog")
	if err := cmp.Or(os.MkdirAll(dir, 0o755), os.MkdirAll(filepath.Join(root, "var/lib/systemd/catalog"), 0o755),
		os.WriteFile(filepath.Join(dir, "dpsd.catalog"), []byte(journalCatalogue()), 0o644)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(journalctl, "--root="+root, "--update-catalog").CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("%v: %s", err, out)
	}
	for _, e := range fault.Catalogue() {
		out, err := exec.Command(journalctl, "--root="+root, "--dump-catalog", e.Code.MessageID()).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "Subject: dpsd: "+string(e.Code)+"\n") || !strings.Contains(string(out), e.Advice) {
			t.Errorf("%s: %v: %s", e.Code, err, out)
		}
	}
}

// page is dpsd-faults(7).
func page() string {
	p := manual.New("dpsd-faults", 7, "what can keep dpsd from provisioning a gateway", "the catalogue in fault/")
	p.Section("Description")
	p.Paragraph(manual.Inline("Every failure has a code. It stands in the journal, in the status line of `systemctl status dpsd` and in `dpsd status`, together with the cause and with what to do. " +
		"The class of a code says how dpsd goes on. Only a dpsd.toml that cannot work, or another dpsd in the same state directory, ends dpsd; anything else it tries again for ever. What it has published stays."))
	p.Section("Classes")
	for _, c := range classes {
		p.Item(manual.Plain(c.next), manual.Bold(string(c.class)))
	}
	p.Section("Faults")
	for _, e := range fault.Catalogue() {
		p.Item(manual.Plain(e.Summary), manual.Bold(string(e.Code))+manual.Plain(" ("+string(e.Class)+")"))
		p.Break(manual.Italic("What to do:") + " " + manual.Plain(e.Advice))
	}
	p.Section("See also")
	p.Paragraph(manual.Inline("dpsd(8), dpsd.toml(5), journalctl(1)"))
	return p.String()
}

func TestTheManualIsTheCatalogue(t *testing.T) {
	generated(t, manualFile, page())
}

// missing leaves a test out on a laptop; in CI a missing program is a failure.
func missing(t *testing.T, program string) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatal(program + " is not here")
	}
	t.Skip(program + " is not here: what it makes of the page is not checked")
}
