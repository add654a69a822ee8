package store_test

import (
	"encoding/json"
	"flag"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/manual"
	"github.com/dpsd-project/dpsd/store"
)

var update = flag.Bool("update", false, "rewrite docs/man/dpsd-state.5 from docs/state.md and docs/state.schema.json")

// member is a member of state.json, as described in docs/state.schema.json.
type member struct {
	name, description string
	required          bool
}

// described returns the members that the schema describes, in its order.
func described(t *testing.T) []member {
	t.Helper()
	text, err := os.ReadFile("../docs/state.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	var schema struct {
		Required   []string
		Properties json.RawMessage
	}
	if err := json.Unmarshal(text, &schema); err != nil {
		t.Fatal(err)
	}
	var members []member
	read := json.NewDecoder(strings.NewReader(string(schema.Properties)))
	if _, err := read.Token(); err != nil { // {
		t.Fatal(err)
	}
	for read.More() {
		name, err := read.Token()
		if err != nil {
			t.Fatal(err)
		}
		var property struct{ Description string }
		if err := read.Decode(&property); err != nil {
			t.Fatal(err)
		}
		members = append(members, member{name.(string), property.Description, slices.Contains(schema.Required, name.(string))})
	}
	return members
}

func TestTheSchemaDescribesEveryMemberOfARecord(t *testing.T) {
	var got, want []member
	for _, m := range described(t) {
		if m.description == "" {
			t.Errorf("there is no description of %s", m.name)
		}
		got = append(got, member{name: m.name, required: m.required})
	}
	for field := range reflect.TypeFor[store.Record]().Fields() {
		name, option, _ := strings.Cut(field.Tag.Get("json"), ",")
		want = append(want, member{name: name, required: option != "omitempty"})
	}
	if !slices.Equal(got, want) {
		t.Errorf("docs/state.schema.json has the members\n%v\nand store.Record\n%v", got, want)
	}
}

// The page is docs/state.md, with the schema's descriptions of the members instead of the
// example, and without the programs in languages other than shell.
func TestTheManualMatchesThePageOfTheStateFiles(t *testing.T) {
	page, err := os.ReadFile("../docs/state.md")
	if err != nil {
		t.Fatal(err)
	}
	p := manual.New("dpsd-state", 5, "the files in which dpsd publishes hub and device ID", "docs/state.md and docs/state.schema.json, in store/")
	left := map[string]bool{"Go": false, "state.json": false, "The issued certificate": false, "Following changes": false, "Verifying the checksum": false}
	for _, chapter := range manual.Chapters(string(page)) {
		if _, special := left[chapter.Title]; special {
			left[chapter.Title] = true
		}
		switch chapter.Title {
		case "":
			chapter.Title = "Description"
		case "Go":
			continue
		case "state.json":
			_, after, found := strings.Cut(chapter.Text, "\n```\n")
			if !found {
				t.Fatal("docs/state.md has no example of state.json")
			}
			chapter.Text = after
		case "The issued certificate", "Following changes", "Verifying the checksum":
			chapter.Text, _, _ = strings.Cut(chapter.Text, "In Python")
		}
		p.Section(chapter.Title)
		if chapter.Title == "state.json" {
			p.Paragraph(manual.Inline("One JSON object, with a member on each line:"))
			for _, m := range described(t) {
				term := manual.Bold(m.name)
				if !m.required {
					term += " (may be absent)"
				}
				p.Item(manual.Plain(m.description), term)
			}
		}
		if err := p.Markdown(chapter.Text); err != nil {
			t.Errorf("docs/state.md: %s: %v", chapter.Title, err)
		}
	}
	for title, found := range left {
		if !found {
			t.Errorf("docs/state.md has no chapter %q any more", title)
		}
	}
	p.Section("See also")
	p.Paragraph(manual.Inline("dpsd(8), dpsd.toml(5), dpsd-faults(7), systemd.exec(5), systemd.path(5)"))
	if err := manual.Compare("../docs/man/dpsd-state.5", p.String(), *update); err != nil {
		t.Error(err)
	}
}
