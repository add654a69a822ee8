package config_test

import (
	"flag"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/manual"
)

var update = flag.Bool("update", false, "rewrite docs/man/dpsd.toml.5 from the annotated reference and manual.md")

// comment returns the text after the "#" of a line of prose, and whether the line is prose.
func comment(line string) (string, bool) {
	if line == "#" {
		return "", true
	}
	return strings.CutPrefix(line, "# ")
}

// sort names the kind of a value of the reference. For a string whose form is restricted, it
// returns the example.
func sort(value string) string {
	text := strings.Trim(value, `"`)
	_, err := time.ParseDuration(text)
	switch {
	case strings.HasPrefix(value, "["):
		return "list of strings"
	case value == "true", value == "false":
		return "boolean"
	case value == text:
		return "number"
	case strings.HasPrefix(text, "file:"), strings.HasPrefix(text, "credential:"):
		return "reference"
	case strings.HasPrefix(text, "/"):
		return "absolute path"
	case err == nil:
		return "duration"
	}
	return "string"
}

// term returns the line above the description of a key. The reference has examples for the
// required keys and defaults for the others. A key that is commented out may be either.
func term(t *testing.T, l line) manual.Text {
	means := "example"
	_, defaults := rewritten(t, with("consumer", "name", `"a"`)+"[certificate]\n")
	for _, s := range defaults {
		if s.Table == l.table && s.Line == 0 && s.TOML() == l.key+" = "+l.value {
			means = "default"
		}
	}
	return manual.Bold(l.key) + " = " + manual.Italic(sort(l.value)) + ", " + manual.Plain(means) + " " + manual.Bold(l.value)
}

// addKeys adds the tables of the reference: its comments and the keys below each.
func addKeys(t *testing.T, p *manual.Page) {
	header := regexp.MustCompile(`^#?(\[\[?[a-z_]+\]\]?)$`)
	settings := reference(t)
	var said []string
	var group []line
	table := ""
	flush := func() {
		text := strings.Join(said, "\n")
		switch {
		case len(group) == 0:
			p.Help(text)
		default:
			terms := make([]manual.Text, 0, len(group))
			for _, l := range group {
				terms = append(terms, term(t, l))
			}
			p.Terms(terms)
			p.Indented(func() { p.Help(text) })
		}
		said, group = nil, nil
	}
	_, body, _ := strings.Cut(config.Reference(), "\n\n") // the header of the file is for people who edit it
	var before []string
	for text := range strings.Lines(body) {
		text = strings.TrimSuffix(text, "\n")
		prose, isProse := comment(text)
		switch m := header.FindStringSubmatch(text); {
		case m != nil:
			// The comment directly above a header describes the table.
			before, said = said, nil
			if m[1] != table {
				table = m[1]
				p.Subsection(manual.Bold(table))
			}
			p.Help(strings.Join(before, "\n"))
		case text == "":
			flush()
		case isProse:
			said = append(said, prose)
		default:
			group = append(group, settings[0])
			settings = settings[1:]
		}
	}
	flush()
}

func TestTheManualContainsTheCommentsOfTheReference(t *testing.T) {
	prose, err := os.ReadFile("manual.md")
	if err != nil {
		t.Fatal(err)
	}
	p := manual.New("dpsd.toml", 5, "configuration of dpsd", "config/dpsd.toml")
	for i, chapter := range manual.Chapters(string(prose)) {
		if i == 0 {
			chapter.Title = "Description"
		}
		p.Section(chapter.Title)
		if err := p.Markdown(chapter.Text); err != nil {
			t.Errorf("manual.md: %s: %v", chapter.Title, err)
		}
		if i == 0 {
			p.Section("Keys")
			p.Paragraph(manual.Inline(`A duration is written with its unit: "90s", "5m", "1h30m". A key with a default may be left out.`))
			addKeys(t, p)
		}
	}
	if err := manual.Compare("../docs/man/dpsd.toml.5", p.String(), *update); err != nil {
		t.Error(err)
	}
}

func TestTheManualNamesEveryDirectoryOfCredentials(t *testing.T) {
	prose, err := os.ReadFile("manual.md")
	if err != nil {
		t.Fatal(err)
	}
	places := attest.SystemSecrets("")
	for i, directory := range places.Directories {
		if !regexp.MustCompile(`(?m)^` + string(rune('1'+i)) + `\. .` + regexp.QuoteMeta(directory) + "`").Match(prose) {
			t.Errorf("manual.md does not name %s as number %d", directory, i+1)
		}
	}
	for _, directory := range places.Encrypted {
		if !strings.Contains(string(prose), "`"+directory+"`") {
			t.Errorf("manual.md does not name %s", directory)
		}
	}
}
