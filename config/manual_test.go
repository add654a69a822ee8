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

// comment returns what stands behind the "#" of prose, and whether it is prose.
func comment(line string) (string, bool) {
	if line == "#" {
		return "", true
	}
	return strings.CutPrefix(line, "# ")
}

// sort names what a value of the reference is. Of a string it is told by the
// example when not every string would do.
func sort(value string) string {
	text := strings.Trim(value, `"`)
	_, err := time.ParseDuration(text)
	switch {
	case strings.HasPrefix(value, "["):
		return "list of strings"
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

// term is the line above what is said of a key. In what a configuration cannot
// do without, the reference has examples, elsewhere defaults.
func term(l line) manual.Text {
	means := "default"
	if l.commented || l.table == "credential" || strings.Contains(minimal, "\n"+l.key+" = ") {
		means = "example"
	}
	return manual.Bold(l.key) + " = " + manual.Italic(sort(l.value)) + ", " + manual.Plain(means) + " " + manual.Bold(l.value)
}

// addKeys adds the tables of the reference: what its comments say, and the keys
// that stand below each.
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
				terms = append(terms, term(l))
			}
			p.Terms(terms)
			p.Indented(func() { p.Help(text) })
		}
		said, group = nil, nil
	}
	_, body, _ := strings.Cut(config.Reference(), "\n\n") // the head of the file is for people who edit it
	var before []string
	for text := range strings.Lines(body) {
		text = strings.TrimSuffix(text, "\n")
		prose, isProse := comment(text)
		switch m := header.FindStringSubmatch(text); {
		case m != nil:
			// What stands right above a header is about the table.
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

func TestTheManualSaysWhatTheReferenceSays(t *testing.T) {
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

func TestTheManualNamesEveryPlaceOfACredential(t *testing.T) {
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
