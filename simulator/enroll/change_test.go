package enroll_test

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

const aKey = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="

// handwritten is a file with everything that an edit must keep.
const handwritten = `# Who may register.

# The first press.
[[individual]]
registration_id = "press-7"      # in hall 3
type            = "symmetric-key"
primary_key     = "` + aKey + `"
allocation      = "custom"

  [[individual.custom]]
  when = { model = "v1-*" }
  status = 403

  # for all others
  [[individual.custom]]
  payload = '''
{"a":
1}'''

# All other devices.
[[group]]
name = "keys"
type = "symmetric-key"
primary_key = "` + aKey + `"

# The end.
`

func key(id string) enroll.Individual {
	return enroll.Individual{RegistrationID: id, Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: aKey}}
}

func TestEdit(t *testing.T) {
	edit := func(t *testing.T, text string, c enroll.Change) string {
		t.Helper()
		out, err := enroll.Edit("enrollments.toml", []byte(text), c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := enroll.Parse("enrollments.toml", strings.NewReader(string(out))); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return string(out)
	}
	press, others, _ := strings.Cut(handwritten, "# All other")
	for _, c := range []struct {
		name, in string
		change   enroll.Change
		want     string
	}{
		{"an enrollment is appended", handwritten, enroll.Change{Individual: new(key("new"))},
			handwritten + "\n[[individual]]\nregistration_id = 'new'\ntype = 'symmetric-key'\nprimary_key = '" + aKey + "'\n"},
		{"an enrollment becomes the first", "", enroll.Change{Individual: new(key("new"))},
			"[[individual]]\nregistration_id = 'new'\ntype = 'symmetric-key'\nprimary_key = '" + aKey + "'\n"},
		{"an enrollment is replaced with its sub-tables, regardless of the case of its ID", handwritten, enroll.Change{Individual: new(key("Press-7"))},
			"# Who may register.\n\n# The first press.\n[[individual]]\nregistration_id = 'Press-7'\ntype = 'symmetric-key'\nprimary_key = '" + aKey + "'\n" + "\n# All other" + others},
		{"an enrollment is removed with its sub-tables and its comment", handwritten, enroll.Change{RemoveIndividual: "PRESS-7"},
			"# Who may register.\n\n" + "# All other" + others},
		{"a group is removed", handwritten, enroll.Change{RemoveGroup: "keys"},
			press + "# The end.\n"},
		{"a removal of something unknown changes nothing", handwritten, enroll.Change{RemoveGroup: "nobody"}, handwritten},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, edit(t, c.in, c.change)); diff != "" {
				t.Error(diff)
			}
		})
	}
	t.Run("a file without a newline at its end remains valid", func(t *testing.T) {
		out := edit(t, strings.TrimRight(handwritten, "\n"), enroll.Change{Individual: new(key("new"))})
		if !strings.Contains(out, "# The end.\n\n[[individual]]") {
			t.Error(out)
		}
	})
	t.Run("every property of an enrollment is written and read again", func(t *testing.T) {
		dir := t.TempDir()
		name := filepath.Join(dir, "enrollments.toml")
		grant := enroll.Grant{
			Hubs: []string{"a.example", "b.example"}, Allocation: "custom", Reprovision: "reset", Payload: `{"a":"b'c"}`, CertificateLife: 36 * time.Hour,
			NoCertificates: true, Disabled: true, Properties: `{"initialTwin":{"tags":{}}}`,
			Custom: []enroll.Custom{{When: map[string]any{"model": "v1-*", "site": map[string]any{"country": "de"}, "cores": int64(4)}, Hub: "b.example", Payload: "{}"}, {Status: 500}},
		}
		individual := enroll.Individual{
			RegistrationID: "a", DeviceID: "A", Grant: grant,
			Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: aKey, SecondaryKey: aKey},
		}
		group := enroll.Group{Name: "g", Grant: grant, Attestation: individual.Attestation}
		text, err := enroll.Edit(name, nil, enroll.Change{Individual: &individual})
		if err == nil {
			text, err = enroll.Edit(name, text, enroll.Change{Group: &group})
		}
		if err != nil {
			t.Fatal(err)
		}
		got, err := enroll.Parse(name, strings.NewReader(string(text)))
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		want := &enroll.Enrollments{Individuals: []enroll.Individual{individual}, Groups: []enroll.Group{group}}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a file that is not valid is an error", func(t *testing.T) {
		if _, err := enroll.Edit("x.toml", []byte("[[group]]\n"), enroll.Change{RemoveGroup: "g"}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("enrollments in the form of an inline array are an error, not lost", func(t *testing.T) {
		inline := `group = [{name = "g", type = "symmetric-key", primary_key = "` + aKey + `"}]`
		if out, err := enroll.Edit("x.toml", []byte(inline), enroll.Change{RemoveGroup: "g"}); err == nil {
			t.Errorf("%s", out)
		}
	})
}

func TestWith(t *testing.T) {
	before := &enroll.Enrollments{Individuals: []enroll.Individual{key("a"), key("b")}, Groups: []enroll.Group{{Name: "g"}, {Name: "h"}}}
	ids := func(e *enroll.Enrollments) (out []string) {
		for _, i := range e.Individuals {
			out = append(out, i.RegistrationID+i.DeviceID)
		}
		for _, g := range e.Groups {
			out = append(out, g.Name)
		}
		return out
	}
	changed := key("B")
	changed.DeviceID = "!"
	for _, c := range []struct {
		name   string
		change enroll.Change
		want   []string
	}{
		{"an individual enrollment is added", enroll.Change{Individual: new(key("c"))}, []string{"a", "b", "c", "g", "h"}},
		{"an individual enrollment is replaced", enroll.Change{Individual: &changed}, []string{"a", "B!", "g", "h"}},
		{"an individual enrollment is removed", enroll.Change{RemoveIndividual: "A"}, []string{"b", "g", "h"}},
		{"a group is added", enroll.Change{Group: &enroll.Group{Name: "i"}}, []string{"a", "b", "g", "h", "i"}},
		{"a group is replaced", enroll.Change{Group: &enroll.Group{Name: "G"}}, []string{"a", "b", "G", "h"}},
		{"a group is removed", enroll.Change{RemoveGroup: "H"}, []string{"a", "b", "g"}},
		{"a removal of something unknown changes nothing", enroll.Change{RemoveIndividual: "x"}, []string{"a", "b", "g", "h"}},
	} {
		t.Run(c.name+", and the original stays as it is", func(t *testing.T) {
			if diff := cmp.Diff(c.want, ids(before.With(c.change))); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"a", "b", "g", "h"}, ids(before)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
