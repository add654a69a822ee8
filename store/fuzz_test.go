package store_test

import (
	"bytes"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/store"
)

// FuzzParse checks that arbitrary bytes cause no panic, and that an accepted record has the
// members that readers need.
func FuzzParse(f *testing.F) {
	whole := content(f, "testdata", "state.json")
	f.Add([]byte(whole), false)
	f.Add([]byte(strings.Replace(whole, `"schema": 1`, `"schema": 2`, 1)), true)
	f.Add([]byte(whole[:300]), true)
	f.Add([]byte(`{"schema":1e400}`), false)
	f.Add([]byte(``), true)
	f.Fuzz(func(t *testing.T, data []byte, seal bool) {
		if seal && bytes.Contains(data, []byte(`  "checksum": `)) {
			data = []byte(reseal(string(data)))
		}
		rec, err := store.Parse(data)
		if err != nil {
			return
		}
		if rec.AssignedHub == "" || rec.DeviceID == "" || strings.ContainsFunc(rec.DeviceID, unicode.IsControl) {
			t.Errorf("hub %q, device ID %q", rec.AssignedHub, rec.DeviceID)
		}
		if rec.Generation == 0 || rec.Status != store.Assigned {
			t.Errorf("generation %d, status %q", rec.Generation, rec.Status)
		}
	})
}

// FuzzRecord checks that Read returns the record that Save wrote.
func FuzzRecord(f *testing.F) {
	f.Add("gw-1", "mqttV5", []byte(`{"a":1}`), []byte(`{"issuedCertificateChain":["A"]}`))
	f.Add("a\\\"$`", "", []byte(`null`), []byte("\xff"))
	f.Add("\u2028", "<&>", []byte("\"\xff\""), []byte(`[1e99]`))
	directory := f.TempDir()
	f.Fuzz(func(t *testing.T, device, profile string, payload, state []byte) {
		rec := sample()
		rec.DeviceID, rec.ConnectionProfile, rec.Payload, rec.RegistrationState = device, profile, payload, state
		s, err := store.Open(store.Options{Directory: directory}, noon)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		_, err = s.Save(rec, noon)
		if (err == nil) != (store.Validate(rec) == nil) {
			t.Fatalf("Save: %v, Validate: %v", err, store.Validate(rec))
		}
		if err != nil {
			return
		}
		got, err := store.Read(directory)
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := s.Current(); !cmp.Equal(got, want) {
			t.Error(cmp.Diff(want, got))
		}
		if got.DeviceID != device || got.ConnectionProfile != profile {
			t.Errorf("%q %q", got.DeviceID, got.ConnectionProfile)
		}
		if result, err := s.Save(rec, noon); err != nil || result != store.Unchanged {
			t.Errorf("the same again: %v, %v", result, err)
		}
	})
}

// FuzzEnvironment checks that systemd and, for a sample, sh read a value that Validate
// accepts unchanged.
func FuzzEnvironment(f *testing.F) {
	for _, value := range awkward {
		f.Add(value)
	}
	shell, _ := exec.LookPath("sh")
	n := 0
	f.Fuzz(func(t *testing.T, value string) {
		rec, want := environmentOf(value)
		if store.Validate(rec) != nil {
			return
		}
		env := store.Environment(rec)
		got, err := environmentFile(string(env))
		if err != nil {
			t.Fatal(err)
		}
		checkEnvironment(t, got, want)
		if store.EnvironmentGeneration(env) != 12 {
			t.Error("the generation cannot be parsed")
		}
		if n++; shell == "" || n%50 != 1 {
			return
		}
		file := filepath.Join(t.TempDir(), "state.env")
		put(t, string(env), file)
		checkEnvironment(t, sourced(t, shell, file), want)
	})
}

// FuzzEqualJSON checks that equality is symmetric and independent of white space.
func FuzzEqualJSON(f *testing.F) {
	f.Add([]byte(`{"a":[1.50,-0e9]}`), []byte(`{ "a" : [15e-1, 0] }`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if store.EqualJSON(a, b) != store.EqualJSON(b, a) {
			t.Error("not symmetric")
		}
		if !store.EqualJSON(a, a) {
			t.Error("not reflexive")
		}
	})
}
