package fault_test

import (
	"regexp"
	"testing"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/manual"
)

const manualFile = "../docs/man/dpsd-faults.7"

// generated compares a file with the text generated from the catalogue, or writes it with
// -update.
func generated(t *testing.T, file, text string) {
	t.Helper()
	if err := manual.Hold(file, text, *update); err != nil {
		t.Error(err)
	}
}

func TestEveryClassSaysHowDpsdContinues(t *testing.T) {
	listed := map[fault.Class]bool{}
	for _, c := range fault.Classes() {
		listed[c] = true
		if c.Next() == "" {
			t.Errorf("there is no text for the class %s", c)
		}
	}
	for _, e := range fault.Catalogue() {
		if !listed[e.Class] {
			t.Errorf("%s: the class %q is not listed", e.Code, e.Class)
		}
	}
}

func TestMessageIDsNeverChange(t *testing.T) {
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

// page returns dpsd-faults(7).
func page() string {
	p := manual.New("dpsd-faults", 7, "failures of dpsd, and what to do about them", "the catalogue in fault/")
	p.Section("Description")
	p.Paragraph(manual.Inline("Every failure has a code. The journal, the status line of `systemctl status dpsd`, and `dpsd status` show the code with its cause and with what to do. " +
		"The class of a code determines when dpsd retries. dpsd exits only if dpsd.toml is invalid or another dpsd uses the same state directory; after any other failure it retries forever. The published record stays in place."))
	p.Section("Classes")
	for _, c := range fault.Classes() {
		p.Item(manual.Plain(c.Next()), manual.Bold(string(c)))
	}
	p.Section("Faults")
	for _, e := range fault.Catalogue() {
		p.Item(manual.Plain(e.Summary), manual.Bold(string(e.Code))+manual.Plain(" ("+string(e.Class)+")"))
		p.Break(manual.Italic("What to do:") + " " + manual.Plain(e.Advice))
		if e.When != "" {
			p.Break(manual.Italic("When "+string(e.When)+":") + " " + manual.Plain(e.Instead))
		}
	}
	p.Section("See also")
	p.Paragraph(manual.Inline("dpsd(8), dpsd.toml(5), journalctl(1)"))
	return p.String()
}

func TestTheManualIsTheCatalogue(t *testing.T) {
	generated(t, manualFile, page())
}
