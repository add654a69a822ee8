package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/store"
)

func TestFirstRecord(t *testing.T) {
	directory := t.TempDir()
	s := mustOpen(t, store.Options{Directory: directory})

	t.Run("a gateway that was never assigned has no record", func(t *testing.T) {
		if _, ok := s.Current(); ok || s.Durable() {
			t.Error("a new store publishes a record")
		}
		if _, err := store.Read(directory); !errors.Is(err, store.ErrNoRecord) {
			t.Errorf("Read: %v, want ErrNoRecord", err)
		}
		if len(s.Notices()) != 0 {
			t.Errorf("a new directory gives notices:\n%s", kinds(s))
		}
	})

	rec := mustSave(t, s, sample(), store.Written)

	t.Run("state.json is the golden file", func(t *testing.T) {
		if diff := cmp.Diff(content(t, "testdata", "state.json"), content(t, directory, "state.json")); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("state.env is the golden file", func(t *testing.T) {
		if diff := cmp.Diff(content(t, "testdata", "state.env"), content(t, directory, "state.env")); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("Read returns what Current does", func(t *testing.T) {
		if diff := cmp.Diff(rec, mustRead(t, directory)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("the first record leaves no previous record and no temporary file", func(t *testing.T) {
		want := []string{"lock", "state.env", "state.json"}
		if diff := cmp.Diff(want, names(t, directory)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("the next process finds the record", func(t *testing.T) {
		s.Close()
		next := mustOpen(t, store.Options{Directory: directory})
		got, ok := next.Current()
		if diff := cmp.Diff(rec, got); !ok || !next.Durable() || diff != "" {
			t.Error(ok, next.Durable(), diff)
		}
		if len(next.Notices()) != 0 {
			t.Errorf("an intact directory gives notices:\n%s", kinds(next))
		}
	})
}

func TestSaveWritesOnlyWhatDiffers(t *testing.T) {
	change := func(f func(*store.Record)) store.Record {
		rec := sample()
		f(&rec)
		return rec
	}
	state := func(extra string) json.RawMessage {
		return json.RawMessage(`{"registrationId":"gw-0001","issuedCertificateChain":` + extra + `}`)
	}
	tests := []struct {
		say    string
		before store.Record
		answer store.Record
		want   store.Result
	}{
		{"the same assignment", sample(), sample(), store.Unchanged},
		{"another hub", sample(), change(func(r *store.Record) { r.AssignedHub = "b.azure-devices.net" }), store.Written},
		{"another device ID", sample(), change(func(r *store.Record) { r.DeviceID = "GW-0001" }), store.Written},
		{"another registration ID", sample(), change(func(r *store.Record) { r.RegistrationID = "gw-2" }), store.Written},
		{"another ID scope", sample(), change(func(r *store.Record) { r.IDScope = "0ne00000001" }), store.Written},
		{"another endpoint", sample(), change(func(r *store.Record) { r.Endpoint = "a.azure-devices-provisioning.net" }), store.Written},
		{"the endpoint in capitals is the same host", sample(), change(func(r *store.Record) { r.Endpoint = strings.ToUpper(r.Endpoint) }), store.Unchanged},
		{"another connection profile", sample(), change(func(r *store.Record) { r.ConnectionProfile = "classic" }), store.Written},
		{"a payload in another order", sample(), change(func(r *store.Record) { r.Payload = json.RawMessage("{ \"rack\":7.0,\n\"site\":\"\\u0041ntwerp\"}") }), store.Unchanged},
		{"another payload", sample(), change(func(r *store.Record) { r.Payload = json.RawMessage(`{"site":"Antwerp","rack":8}`) }), store.Written},
		{"a removed payload", sample(), change(func(r *store.Record) { r.Payload = nil }), store.Written},
		{"a null payload is no payload", change(func(r *store.Record) { r.Payload = nil }), change(func(r *store.Record) { r.Payload = json.RawMessage(" null ") }), store.Unchanged},
		{"another certificate", change(func(r *store.Record) { r.RegistrationState = state(`["AAAA","BBBB"]`) }), change(func(r *store.Record) { r.RegistrationState = state(`["AAAA","CCCC"]`) }), store.Written},
		{"the first certificate", sample(), change(func(r *store.Record) { r.RegistrationState = state(`["AAAA"]`) }), store.Written},
		{"the same certificates among other members", change(func(r *store.Record) { r.RegistrationState = state(`["AAAA"]`) }), change(func(r *store.Record) { r.RegistrationState = state(`["AAAA"],"etag":"x"`) }), store.Unchanged},
		{"members that describe only when and how", sample(), change(func(r *store.Record) {
			r.Substatus, r.ETag, r.CreatedDateTimeUtc, r.LastUpdatedDateTimeUtc = "deviceDataMigrated", "x", "y", "z"
			r.RegistrationState = json.RawMessage(`{"lastUpdatedDateTimeUtc":"z"}`)
		}), store.Unchanged},
		{"another fingerprint", sample(), change(func(r *store.Record) { r.ConfigFingerprint = store.Fingerprint("e", "s", "r", nil) }), store.FingerprintOnly},
		{"another fingerprint and another hub", sample(), change(func(r *store.Record) {
			r.ConfigFingerprint = store.Fingerprint("e", "s", "r", nil)
			r.AssignedHub = "b.azure-devices.net"
		}), store.Written},
	}
	for _, test := range tests {
		t.Run(fmt.Sprintf("%s: %s", test.say, test.want), func(t *testing.T) {
			directory := t.TempDir()
			steps := 0
			s, err := store.OpenStepped(store.Options{Directory: directory}, noon, func(string, string) error { steps++; return nil })
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			mustSave(t, s, test.before, store.Written)
			file, env, mark := content(t, directory, "state.json"), content(t, directory, "state.env"), prints(t, directory)
			steps = 0

			got, err := s.Save(test.answer, noon.Add(time.Hour))
			if err != nil || got != test.want {
				t.Fatalf("Save: %v, %v; want %v", got, err, test.want)
			}
			rec := mustRead(t, directory)
			switch test.want {
			case store.Unchanged:
				if steps != 0 || prints(t, directory) != mark {
					t.Errorf("%d steps changed the directory:\n%s%s", steps, mark, prints(t, directory))
				}
			case store.FingerprintOnly:
				if rec.Generation != 1 || rec.ConfigFingerprint != test.answer.ConfigFingerprint {
					t.Errorf("generation %d, fingerprint %s", rec.Generation, rec.ConfigFingerprint)
				}
				if content(t, directory, "state.env") != env {
					t.Error("state.env changed, which wakes all consumers")
				}
			case store.Written:
				if rec.Generation != 2 || rec.AssignedHub != test.answer.AssignedHub || rec.DeviceID != test.answer.DeviceID {
					t.Errorf("generation %d, hub %s, device %s", rec.Generation, rec.AssignedHub, rec.DeviceID)
				}
			}
			if test.want != store.Unchanged {
				if content(t, directory, "state.json.prev") != file {
					t.Error("state.json.prev is not the previous record")
				}
				if want := noon.Add(time.Hour).Truncate(time.Second); !rec.ProvisionedAt.Equal(want) {
					t.Errorf("provisionedAt is %v, want the time of the write, %v", rec.ProvisionedAt, want)
				}
			}
			if got, _ := s.Current(); !cmp.Equal(got, rec) {
				t.Error(cmp.Diff(got, rec))
			}
		})
	}
}

func TestGenerationNeverGoesBackwards(t *testing.T) {
	directory := t.TempDir()
	last := uint64(0)
	for process := range 5 {
		s := mustOpen(t, store.Options{Directory: directory})
		for i := range 3 {
			rec := mustSave(t, s, numbered(10*process+i), store.Written)
			if rec.Generation != last+1 {
				t.Fatalf("generation %d after %d", rec.Generation, last)
			}
			last = rec.Generation
		}
		s.Close()
	}
}

func TestFilesChangedByOtherPrograms(t *testing.T) {
	setUp := func(t *testing.T) (*store.Store, string) {
		directory := t.TempDir()
		s := mustOpen(t, store.Options{Directory: directory})
		mustSave(t, s, numbered(1), store.Written)
		mustSave(t, s, numbered(2), store.Written)
		return s, directory
	}
	for _, name := range []string{"state.json", "state.env"} {
		t.Run("the same assignment restores a removed "+name+"", func(t *testing.T) {
			s, directory := setUp(t)
			want := content(t, directory, name)
			if err := os.Remove(filepath.Join(directory, name)); err != nil {
				t.Fatal(err)
			}
			mustSave(t, s, numbered(2), store.Written)
			if got := content(t, directory, name); got != want {
				t.Error(cmp.Diff(want, got))
			}
		})
	}
	t.Run("the same assignment replaces a record that has been damaged, and keeps the damaged one", func(t *testing.T) {
		s, directory := setUp(t)
		want := content(t, directory, "state.json")
		put(t, want[:40], directory, "state.json")
		mustSave(t, s, numbered(2), store.Written)
		if got := content(t, directory, "state.json"); got != want {
			t.Error(cmp.Diff(want, got))
		}
		if got := content(t, directory, "state.json.corrupt-20261123T120000Z"); got != want[:40] {
			t.Errorf("kept aside: %q", got)
		}
	})
	t.Run("the next record is above a record of a later generation that a user has restored", func(t *testing.T) {
		s, directory := setUp(t)
		other := t.TempDir()
		o := mustOpen(t, store.Options{Directory: other})
		for i := range 7 {
			mustSave(t, o, numbered(i), store.Written)
		}
		put(t, content(t, other, "state.json"), directory, "state.json")
		if rec := mustSave(t, s, numbered(2), store.Written); rec.Generation != 8 {
			t.Errorf("generation %d, want 8", rec.Generation)
		}
	})
	t.Run("a removed state directory is created and locked again", func(t *testing.T) {
		s, directory := setUp(t)
		if err := os.RemoveAll(directory); err != nil {
			t.Fatal(err)
		}
		mustSave(t, s, numbered(2), store.Written)
		var locked *store.LockedError
		if _, err := store.Open(store.Options{Directory: directory}, noon); !errors.As(err, &locked) {
			t.Errorf("Open of the new directory: %v, want *LockedError", err)
		}
	})
}

func TestLock(t *testing.T) {
	directory := t.TempDir()
	s := mustOpen(t, store.Options{Directory: directory})

	t.Run("a second store gets the holder of the lock", func(t *testing.T) {
		_, err := store.Open(store.Options{Directory: directory}, noon)
		var locked *store.LockedError
		if !errors.As(err, &locked) || locked.PID != os.Getpid() || locked.Path != filepath.Join(directory, "lock") {
			t.Errorf("Open: %v, want *LockedError with process %d", err, os.Getpid())
		}
	})
	t.Run("another user cannot open the lock, and so cannot hold it", func(t *testing.T) {
		info, err := os.Stat(filepath.Join(directory, "lock"))
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
	})
	t.Run("the lock writes nothing to the file", func(t *testing.T) {
		if info, err := os.Stat(filepath.Join(directory, "lock")); err != nil || info.Size() != 0 {
			t.Errorf("%v, %v", info, err)
		}
	})
	t.Run("the contents of the file are ignored", func(t *testing.T) {
		put(t, "2147483646\n", directory, "lock")
		_, err := store.Open(store.Options{Directory: directory}, noon)
		var locked *store.LockedError
		if !errors.As(err, &locked) || locked.PID != os.Getpid() {
			t.Errorf("Open: %v, want *LockedError with process %d", err, os.Getpid())
		}
	})
	t.Run("Close releases the lock", func(t *testing.T) {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		mustOpen(t, store.Options{Directory: directory})
	})
}

// written creates a directory with the records 1 to n.
func written(t *testing.T, n int) string {
	t.Helper()
	directory := t.TempDir()
	s := mustOpen(t, store.Options{Directory: directory})
	for i := range n {
		mustSave(t, s, numbered(i+1), store.Written)
	}
	s.Close()
	return directory
}

func TestDamage(t *testing.T) {
	whole := content(t, written(t, 2), "state.json")
	flip := func(i int) string {
		b := []byte(whole)
		b[i] ^= 0x20
		return string(b)
	}
	damages := map[string]string{
		"empty":                      "",
		"cut in half":                whole[:len(whole)/2],
		"without its last byte":      whole[:len(whole)-1],
		"with an additional byte":    whole + "\n",
		"with a bit flipped":         flip(120),
		"full of zeros":              strings.Repeat("\x00", len(whole)),
		"written twice":              whole + whole,
		"the JSON of something else": "[]",
		"a newer schema by a bit flipped under the checksum": strings.Replace(whole, `"schema": 1`, `"schema": 9`, 1),
		"too large": whole + strings.Repeat(" ", 5<<20),
	}
	for say, data := range damages {
		t.Run("a state.json "+say+" is replaced by the previous record with a generation two above it", func(t *testing.T) {
			directory := written(t, 2)
			put(t, data, directory, "state.json")
			var damaged *store.DamagedError
			if _, err := store.Read(directory); !errors.As(err, &damaged) || damaged.Path != filepath.Join(directory, "state.json") {
				t.Fatalf("Read: %v, want *DamagedError with the path", err)
			}
			s, err := store.OpenStepped(store.Options{Directory: directory}, noon, func(step, path string) error {
				if _, err := os.Lstat(filepath.Join(directory, "state.json")); err != nil {
					t.Errorf("ahead of %s %s: %v", step, path, err)
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			rec := mustRead(t, directory)
			if rec.Generation != 3 || rec.DeviceID != "gw-0001" || !s.Durable() {
				t.Errorf("generation %d, device %s, durable %v", rec.Generation, rec.DeviceID, s.Durable())
			}
			if got := content(t, directory, "state.json.corrupt-20261123T120000Z"); got != data {
				t.Errorf("%d bytes were kept aside, want the %d damaged ones", len(got), len(data))
			}
			if store.EnvironmentGeneration([]byte(content(t, directory, "state.env"))) != 3 {
				t.Error("state.env does not follow")
			}
			want := "state.json: damaged\nstate.json.prev: previous record restored\nstate.json.corrupt-20261123T120000Z: damaged record kept here"
			if diff := cmp.Diff(want, kinds(s)); diff != "" {
				t.Error(diff)
			}
			if rec := mustSave(t, s, numbered(2), store.Written); rec.Generation != 4 {
				t.Errorf("the next record has generation %d", rec.Generation)
			}
		})
		t.Run("a state.json "+say+" without a previous record is renamed, and the next one is above state.env", func(t *testing.T) {
			directory := written(t, 3)
			put(t, data, directory, "state.json")
			put(t, data, directory, "state.json.prev")
			env := content(t, directory, "state.env")
			s := mustOpen(t, store.Options{Directory: directory})
			if _, ok := s.Current(); ok {
				t.Error("something is published")
			}
			gone(t, directory, "state.json")
			if content(t, directory, "state.env") != env {
				t.Error("the identity in state.env was removed before there is a newer one")
			}
			if content(t, directory, "state.json.corrupt-20261123T120000Z") != data {
				t.Error("the damaged record was not kept")
			}
			if rec := mustSave(t, s, numbered(3), store.Written); rec.Generation != 4 {
				t.Errorf("generation %d, want 4: one above state.env", rec.Generation)
			}
		})
	}

	t.Run("a record that is truncated at any byte or has any bit flipped is damaged", func(t *testing.T) {
		for i := range len(whole) {
			var damaged *store.DamagedError
			if _, err := store.Parse([]byte(whole[:i])); !errors.As(err, &damaged) {
				t.Fatalf("truncated at byte %d: %v", i, err)
			}
			for bit := range 8 {
				b := []byte(whole)
				b[i] ^= 1 << bit
				if _, err := store.Parse(b); !errors.As(err, &damaged) {
					t.Fatalf("bit %d of byte %d flipped: %v", bit, i, err)
				}
			}
		}
	})
	t.Run("two above the previous record is above the lost one, even if state.env is lost too", func(t *testing.T) {
		directory := written(t, 5)
		put(t, "", directory, "state.json")
		put(t, "", directory, "state.env")
		mustOpen(t, store.Options{Directory: directory})
		if rec := mustRead(t, directory); rec.Generation != 6 || rec.DeviceID != "gw-0004" {
			t.Errorf("generation %d, device %s", rec.Generation, rec.DeviceID)
		}
	})
	t.Run("a missing state.json counts as damaged", func(t *testing.T) {
		directory := written(t, 3)
		os.Remove(filepath.Join(directory, "state.json"))
		s := mustOpen(t, store.Options{Directory: directory})
		if rec := mustRead(t, directory); rec.Generation != 4 || rec.DeviceID != "gw-0002" {
			t.Errorf("generation %d, device %s", rec.Generation, rec.DeviceID)
		}
		if !noticed(s, store.Missing) {
			t.Errorf("notices:\n%s", kinds(s))
		}
	})
	t.Run("a FIFO in the place of a file is damage, and nothing waits for its writer", func(t *testing.T) {
		directory := written(t, 3)
		for _, name := range []string{"state.json", "state.env", "transport"} {
			path := filepath.Join(directory, name)
			os.Remove(path)
			if err := syscall.Mkfifo(path, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		var damaged *store.DamagedError
		if _, err := store.Read(directory); !errors.As(err, &damaged) {
			t.Errorf("Read: %v, want *DamagedError", err)
		}
		s := mustOpen(t, store.Options{Directory: directory})
		if rec := mustRead(t, directory); rec.Generation != 4 || rec.DeviceID != "gw-0002" || !s.Durable() {
			t.Errorf("generation %d, device %s, durable %v", rec.Generation, rec.DeviceID, s.Durable())
		}
		if name := s.Transport(); name != "" {
			t.Errorf("transport %q", name)
		}
	})
	t.Run("a directory in the place of state.json is renamed", func(t *testing.T) {
		directory := written(t, 2)
		os.Remove(filepath.Join(directory, "state.json"))
		if err := os.Mkdir(filepath.Join(directory, "state.json"), 0o755); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, store.Options{Directory: directory})
		if rec := mustRead(t, directory); rec.Generation != 3 || !s.Durable() {
			t.Errorf("generation %d", rec.Generation)
		}
	})
	t.Run("at most three damaged records are kept, including the newest even if the clock went backwards", func(t *testing.T) {
		directory := written(t, 2)
		for i := range 6 {
			put(t, fmt.Sprint("damage ", i), directory, "state.json")
			s, err := store.Open(store.Options{Directory: directory}, noon.Add(-time.Duration(i)*time.Hour))
			if err != nil {
				t.Fatal(err)
			}
			s.Close()
		}
		var kept []string
		for _, name := range names(t, directory) {
			if strings.HasPrefix(name, "state.json.corrupt-") {
				kept = append(kept, content(t, directory, name))
			}
		}
		if len(kept) != 3 || !slices.Contains(kept, "damage 5") {
			t.Errorf("kept: %q", kept)
		}
		if rec := mustRead(t, directory); rec.Generation != 8 {
			t.Errorf("generation %d, want 8: first two above the previous record, then always one above state.env", rec.Generation)
		}
	})
	t.Run("two damaged records within one second do not overwrite each other", func(t *testing.T) {
		directory := written(t, 2)
		for _, damage := range []string{"first", "second"} {
			put(t, damage, directory, "state.json")
			mustOpen(t, store.Options{Directory: directory}).Close()
		}
		if content(t, directory, "state.json.corrupt-20261123T120000Z") != "first" || content(t, directory, "state.json.corrupt-20261123T120000Z.2") != "second" {
			t.Error(names(t, directory))
		}
	})
}

func TestNewerSchema(t *testing.T) {
	whole := content(t, written(t, 2), "state.json")
	for say, data := range map[string]string{
		"in an unknown format": `{"schema": 2, "generation": 41, "records": []}`,
		"in this format":       reseal(strings.Replace(strings.Replace(whole, `"schema": 1`, `"schema": 2`, 1), `"generation": 2`, `"generation": 41`, 1)),
	} {
		t.Run("a record of a newer schema "+say+" is kept, reported and never overwritten", func(t *testing.T) {
			directory, runtime := written(t, 2), t.TempDir()
			put(t, data, directory, "state.json")
			put(t, "DPSD_GENERATION=\"41\"\nDPSD_FUTURE=\"1\"\n", directory, "state.env")
			var newer *store.NewerSchemaError
			if _, err := store.Read(directory); !errors.As(err, &newer) || newer.Schema != 2 || newer.Generation != 41 {
				t.Fatalf("Read: %v, want *NewerSchemaError", err)
			}
			s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
			if !errors.As(reason(s, store.NewerSchema), &newer) {
				t.Errorf("notices:\n%s", kinds(s))
			}
			mark := prints(t, directory)
			for range 2 {
				_, err := s.Save(numbered(5), noon)
				var refused *store.WriteError
				if !errors.As(err, &refused) || !errors.As(err, &newer) || refused.Published != runtime {
					t.Fatalf("Save: %v, want *WriteError with the *NewerSchemaError", err)
				}
			}
			if prints(t, directory) != mark {
				t.Error("the state directory changed")
			}
			if rec := mustRead(t, runtime); rec.Generation != 42 || rec.DeviceID != "gw-0005" || s.Durable() {
				t.Errorf("published: generation %d, device %s, durable %v", rec.Generation, rec.DeviceID, s.Durable())
			}
			s.Close()
			mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime}).Close()
			if prints(t, directory) == "" || content(t, directory, "state.json") != data {
				t.Error("the next start changed it")
			}
		})
	}
}

func TestEnvironmentIsRepaired(t *testing.T) {
	for say, damage := range map[string]func(path string){
		"is gone":                func(path string) { os.Remove(path) },
		"is empty":               func(path string) { os.WriteFile(path, nil, 0o644) },
		"is one behind":          func(path string) { os.WriteFile(path, store.Environment(store.Record{Generation: 1}), 0o644) },
		"contains no generation": func(path string) { os.WriteFile(path, []byte("DPSD_GENERATION=\"99999999999999999999\"\n"), 0o644) },
		"is out of limits":       func(path string) { os.WriteFile(path, []byte("DPSD_GENERATION=\"18446744073709551615\"\n"), 0o644) },
	} {
		t.Run("a state.env that "+say+" is written again at the start", func(t *testing.T) {
			directory := written(t, 2)
			path := filepath.Join(directory, "state.env")
			want := content(t, path)
			damage(path)
			s := mustOpen(t, store.Options{Directory: directory})
			if got := content(t, path); got != want {
				t.Error(cmp.Diff(want, got))
			}
			if !noticed(s, store.EnvironmentRepaired) || !s.Durable() {
				t.Errorf("notices:\n%s", kinds(s))
			}
		})
	}
	t.Run("a state.env with a higher generation than the record, as after restoring a backup, raises the record's generation", func(t *testing.T) {
		directory := written(t, 2)
		put(t, string(store.Environment(store.Record{Generation: 9})), directory, "state.env")
		s := mustOpen(t, store.Options{Directory: directory})
		if rec := mustRead(t, directory); rec.Generation != 10 || rec.DeviceID != "gw-0002" || !noticed(s, store.GenerationRaised) {
			t.Errorf("generation %d, notices:\n%s", rec.Generation, kinds(s))
		}
		if g := store.EnvironmentGeneration([]byte(content(t, directory, "state.env"))); g != 10 {
			t.Errorf("state.env has generation %d", g)
		}
	})
}

func TestStaleTemporaryFiles(t *testing.T) {
	directory := written(t, 2)
	stale := []string{".state.json123", ".state.json.prev9", ".state.env4611686018427387904", ".transport1"}
	others := []string{".state.json", ".state.jsonx1", "state.json1", ".hidden", ".state.env1x"}
	for _, name := range append(slices.Clone(stale), others...) {
		put(t, "x", directory, name)
	}
	s := mustOpen(t, store.Options{Directory: directory})
	for _, name := range stale {
		gone(t, directory, name)
	}
	for _, name := range others {
		content(t, directory, name)
	}
	if n := strings.Count(kinds(s), "interrupted"); n != len(stale) {
		t.Errorf("%d notices:\n%s", n, kinds(s))
	}
}

func TestModesAndOwners(t *testing.T) {
	modes := func(t *testing.T, directory string, want fs.FileMode) {
		t.Helper()
		for _, name := range []string{"state.json", "state.env", "state.json.prev"} {
			info, err := os.Stat(filepath.Join(directory, name))
			if err != nil || info.Mode() != want {
				t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, want)
			}
		}
	}
	t.Run("files have the configured mode, independent of the umask", func(t *testing.T) {
		old := syscall.Umask(0o077)
		defer syscall.Umask(old)
		for _, mode := range []fs.FileMode{0, 0o644, 0o640} {
			directory := filepath.Join(t.TempDir(), "state")
			s := mustOpen(t, store.Options{Directory: directory, Mode: mode})
			mustSave(t, s, numbered(1), store.Written)
			mustSave(t, s, numbered(2), store.Written)
			modes(t, directory, map[fs.FileMode]fs.FileMode{0: 0o644, 0o644: 0o644, 0o640: 0o640}[mode])
			if info, _ := os.Stat(directory); info.Mode().Perm() != 0o755 {
				t.Errorf("the directory has mode %v", info.Mode())
			}
		}
	})
	t.Run("a changed mode is applied to existing files, including damaged ones, without rewriting them", func(t *testing.T) {
		directory := written(t, 2)
		put(t, "x", directory, "state.json.corrupt-20260101T000000Z")
		mustOpen(t, store.Options{Directory: directory, Mode: 0o640})
		modes(t, directory, 0o640)
		if info, _ := os.Stat(filepath.Join(directory, "state.json.corrupt-20260101T000000Z")); info.Mode() != 0o640 {
			t.Errorf("the damaged record has mode %v", info.Mode())
		}
		if rec := mustRead(t, directory); rec.Generation != 2 {
			t.Errorf("generation %d", rec.Generation)
		}
	})
	t.Run("files that root writes belong to the directory's owner", func(t *testing.T) {
		if os.Geteuid() != 0 {
			missing(t, "root")
		}
		directory, runtime := t.TempDir(), t.TempDir()
		for _, d := range []string{directory, runtime} {
			if err := os.Chown(d, 61234, 61235); err != nil {
				t.Fatal(err)
			}
		}
		s := mustOpen(t, store.Options{Directory: directory})
		mustSave(t, s, numbered(1), store.Written)
		mustSave(t, s, numbered(2), store.Written)
		r := store.Runtime{Directory: runtime}
		if err := r.SaveFloor("k", 1); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{
			filepath.Join(directory, "state.json"), filepath.Join(directory, "state.env"), filepath.Join(directory, "state.json.prev"),
			filepath.Join(directory, "lock"), filepath.Join(runtime, "retry-after.json"),
		} {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 61234 || stat.Gid != 61235 {
				t.Errorf("%s belongs to %d:%d", path, stat.Uid, stat.Gid)
			}
		}
	})
}

func TestDirectoryMissing(t *testing.T) {
	t.Run("a directory is created if its parent exists", func(t *testing.T) {
		directory := filepath.Join(t.TempDir(), "state")
		s := mustOpen(t, store.Options{Directory: directory})
		mustSave(t, s, sample(), store.Written)
		mustRead(t, directory)
	})
	t.Run("Open and Save report a missing parent, and the record is published in the runtime directory", func(t *testing.T) {
		root, runtime := t.TempDir(), t.TempDir()
		directory := filepath.Join(root, "mistyped", "state")
		s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
		if err := reason(s, store.Unwritable); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("unwritable because of %v; notices:\n%s", err, kinds(s))
		}
		_, err := s.Save(sample(), noon)
		var refused *store.WriteError
		if !errors.As(err, &refused) || !errors.Is(err, fs.ErrNotExist) || refused.Published != runtime {
			t.Fatalf("Save: %v", err)
		}
		if rec := mustRead(t, runtime); rec.Generation != 1 {
			t.Errorf("generation %d", rec.Generation)
		}
		if len(names(t, root)) != 0 {
			t.Error("files were created:", names(t, root))
		}
		if _, err := store.Open(store.Options{Directory: directory, RuntimeDirectory: runtime}, noon); !errors.As(err, new(*store.LockedError)) {
			t.Errorf("a second store with the same runtime directory: %v, want *LockedError", err)
		}
		if err := os.Mkdir(filepath.Dir(directory), 0o755); err != nil {
			t.Fatal(err)
		}
		if rec := mustSave(t, s, sample(), store.Written); rec.Generation != 1 {
			t.Errorf("generation %d", rec.Generation)
		}
		gone(t, runtime, "state.json")
	})
	t.Run("a file in the place of the directory is reported", func(t *testing.T) {
		directory := filepath.Join(t.TempDir(), "state")
		put(t, "", directory)
		s := mustOpen(t, store.Options{Directory: directory})
		if _, err := s.Save(sample(), noon); !errors.Is(err, syscall.ENOTDIR) {
			t.Errorf("Save: %v", err)
		}
		if _, ok := s.Current(); !ok || s.Durable() {
			t.Error("the record is not kept in memory")
		}
	})
}

// TestDiskRefuses makes each step of a commit fail in turn. disk_test.go tests real full
// and read-only disks.
func TestDiskRefuses(t *testing.T) {
	for step := 1; ; step++ {
		directory, runtime := written(t, 2), t.TempDir()
		o := store.Options{Directory: directory, RuntimeDirectory: runtime}
		before := content(t, directory, "state.json")
		count, at, failing := 0, "", false
		s, err := store.OpenStepped(o, noon, func(name, path string) error {
			if !failing {
				return nil
			}
			if count++; count < step {
				return nil
			}
			if at == "" {
				at = name + " " + filepath.Base(path)
			}
			return &fs.PathError{Op: name, Path: path, Err: syscall.ENOSPC}
		})
		if err != nil {
			t.Fatal(err)
		}
		failing = true
		_, err = s.Save(numbered(3), noon)
		if at == "" { // all steps passed
			if err != nil || step < 8 {
				t.Fatalf("a commit of %d steps: %v", step-1, err)
			}
			s.Close()
			return
		}
		t.Run("after a failure at "+at+", the disk has an old or a new record, and the runtime directory has the new one", func(t *testing.T) {
			defer s.Close()
			var refused *store.WriteError
			if !errors.As(err, &refused) || !errors.Is(err, syscall.ENOSPC) || refused.Published != runtime {
				t.Fatalf("Save: %v, want a *WriteError of ENOSPC, published", err)
			}
			if s.Durable() {
				t.Error("Durable is true")
			}
			rec := mustRead(t, directory)
			if rec.Generation == 2 && content(t, directory, "state.json") != before || rec.Generation != 2 && rec.DeviceID != "gw-0003" {
				t.Errorf("on disk: generation %d, device %s", rec.Generation, rec.DeviceID)
			}
			published := mustRead(t, runtime)
			if current, ok := s.Current(); !ok || !cmp.Equal(current, published) || published.Generation != 3 || published.DeviceID != "gw-0003" {
				t.Errorf("published: generation %d, device %s", published.Generation, published.DeviceID)
			}
			if !strings.Contains(content(t, runtime, "state.env"), `DPSD_GENERATION="3"`) {
				t.Error("no state.env in the runtime directory")
			}
			for _, name := range names(t, directory) {
				if strings.HasPrefix(name, ".") {
					t.Errorf("temporary file %s was left", name)
				}
			}
			t.Run("a retry that fails again writes nothing to the runtime directory", func(t *testing.T) {
				mark := prints(t, runtime)
				if _, err := s.Save(numbered(3), noon.Add(time.Minute)); err == nil || prints(t, runtime) != mark {
					t.Errorf("Save: %v\n%s%s", err, mark, prints(t, runtime))
				}
			})
			t.Run("the next process adopts it", func(t *testing.T) {
				copied, again := t.TempDir(), t.TempDir()
				for from, to := range map[string]string{directory: copied, runtime: again} {
					if err := os.CopyFS(filepath.Join(to, "d"), os.DirFS(from)); err != nil {
						t.Fatal(err)
					}
				}
				next := mustOpen(t, store.Options{Directory: filepath.Join(copied, "d"), RuntimeDirectory: filepath.Join(again, "d")})
				if got, _ := next.Current(); !cmp.Equal(got, published) || !next.Durable() {
					t.Errorf("generation %d, device %s, durable %v; notices:\n%s", got.Generation, got.DeviceID, next.Durable(), kinds(next))
				}
				if got := mustRead(t, filepath.Join(copied, "d")); !cmp.Equal(got, published) {
					t.Error(cmp.Diff(got, published))
				}
				gone(t, again, "d", "state.json")
				gone(t, again, "d", "state.env")
			})
			t.Run("the same assignment is written when the disk works again", func(t *testing.T) {
				failing = false
				if rec := mustSave(t, s, numbered(3), store.Written); rec.Generation != 3 {
					t.Errorf("generation %d", rec.Generation)
				}
				if got := mustRead(t, directory); !cmp.Equal(got, published) {
					t.Error(cmp.Diff(got, published))
				}
				if content(t, directory, "state.json.prev") != before {
					t.Error("state.json.prev is not the previous record")
				}
				gone(t, runtime, "state.json")
				gone(t, runtime, "state.env")
			})
		})
	}
}

func TestRuntimeRecord(t *testing.T) {
	t.Run("an older record in the runtime directory is removed", func(t *testing.T) {
		directory, runtime := written(t, 3), written(t, 2)
		s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
		if rec, _ := s.Current(); rec.Generation != 3 || noticed(s, store.RuntimeAdopted) {
			t.Errorf("generation %d; notices:\n%s", rec.Generation, kinds(s))
		}
		gone(t, runtime, "state.json")
		gone(t, runtime, "state.env")
	})
	t.Run("a damaged record in the runtime directory is removed too", func(t *testing.T) {
		directory, runtime := written(t, 3), written(t, 9)
		put(t, content(t, runtime, "state.json")[1:], runtime, "state.json")
		s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
		if rec, _ := s.Current(); rec.Generation != 3 {
			t.Errorf("generation %d", rec.Generation)
		}
		gone(t, runtime, "state.json")
	})
	t.Run("the only remaining record is adopted", func(t *testing.T) {
		directory, runtime := t.TempDir(), written(t, 2)
		mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
		if rec := mustRead(t, directory); rec.Generation != 2 {
			t.Errorf("generation %d", rec.Generation)
		}
	})
	t.Run("it takes precedence over the record before a damaged one", func(t *testing.T) {
		directory, runtime := written(t, 4), written(t, 5)
		put(t, "", directory, "state.json")
		mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
		if rec := mustRead(t, directory); rec.Generation != 5 || rec.DeviceID != "gw-0005" {
			t.Errorf("generation %d, device %s", rec.Generation, rec.DeviceID)
		}
	})
	t.Run("a runtime directory that is the state directory is not used", func(t *testing.T) {
		directory := written(t, 2)
		s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: directory + "/"})
		mustSave(t, s, numbered(3), store.Written)
		if rec := mustRead(t, directory); rec.Generation != 3 {
			t.Errorf("generation %d", rec.Generation)
		}
	})
}

func TestDiskRefusesTwoAnswers(t *testing.T) {
	directory, runtime := written(t, 2), t.TempDir()
	failing := true
	s, err := store.OpenStepped(store.Options{Directory: directory, RuntimeDirectory: runtime}, noon, func(step, _ string) error {
		if failing && step == "create" {
			return syscall.EIO
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	t.Run("each different assignment gets a new generation, so that readers of the runtime directory see it", func(t *testing.T) {
		for i, want := range []uint64{3, 4, 5} {
			if _, err := s.Save(numbered(10+i), noon); err == nil {
				t.Fatal("Save succeeded")
			}
			if rec := mustRead(t, runtime); rec.Generation != want {
				t.Errorf("generation %d, want %d", rec.Generation, want)
			}
		}
	})
	t.Run("a return of the service to the record on disk is also a change", func(t *testing.T) {
		failing = false
		if rec := mustSave(t, s, numbered(2), store.Written); rec.Generation != 6 {
			t.Errorf("generation %d, want 6", rec.Generation)
		}
	})
	t.Run("a new fingerprint of a record that is not on disk yet is a written record", func(t *testing.T) {
		failing = true
		s.Save(numbered(20), noon)
		failing = false
		rec := numbered(20)
		rec.ConfigFingerprint = store.Fingerprint("a", "b", "c", nil)
		if rec := mustSave(t, s, rec, store.Written); rec.Generation != 7 {
			t.Errorf("generation %d, want 7", rec.Generation)
		}
	})
}

func TestInvalidRecords(t *testing.T) {
	long := strings.Repeat("d", 128)
	tests := []struct {
		say    string
		edit   func(*store.Record)
		member string // "" when valid
	}{
		{"the sample", func(*store.Record) {}, ""},
		{"no hub", func(r *store.Record) { r.AssignedHub = "" }, "assignedHub"},
		{"a hub with a scheme", func(r *store.Record) { r.AssignedHub = "https://hub" }, "assignedHub"},
		{"a hub with a port", func(r *store.Record) { r.AssignedHub = "hub:8883" }, "assignedHub"},
		{"a hub with a blank", func(r *store.Record) { r.AssignedHub = "hub net" }, "assignedHub"},
		{"a hub with an empty label", func(r *store.Record) { r.AssignedHub = "hub..net" }, "assignedHub"},
		{"a hub with a label that begins with a hyphen", func(r *store.Record) { r.AssignedHub = "hub.-net" }, "assignedHub"},
		{"a hub with a label of 64", func(r *store.Record) { r.AssignedHub = strings.Repeat("a", 64) + ".net" }, "assignedHub"},
		{"a hub with a label of 63", func(r *store.Record) { r.AssignedHub = strings.Repeat("a", 63) + ".net" }, ""},
		{"a hub with a label that ends with a hyphen", func(r *store.Record) { r.AssignedHub = "hub-.net" }, "assignedHub"},
		{"a hub with a hyphen within a label", func(r *store.Record) { r.AssignedHub = "h-b.net" }, ""},
		{"a hub with the first and the last letters and digits", func(r *store.Record) { r.AssignedHub = "09.AZ.az" }, ""},
		{"a hub with the character before 0", func(r *store.Record) { r.AssignedHub = "h/b" }, "assignedHub"},
		{"a hub with the character before A", func(r *store.Record) { r.AssignedHub = "h@b" }, "assignedHub"},
		{"a hub with the character after Z", func(r *store.Record) { r.AssignedHub = "h[b" }, "assignedHub"},
		{"a hub with the character before a", func(r *store.Record) { r.AssignedHub = "h`b" }, "assignedHub"},
		{"a hub with the character after z", func(r *store.Record) { r.AssignedHub = "h{b" }, "assignedHub"},
		{"a hub of 253", func(r *store.Record) { r.AssignedHub = strings.Repeat("a.", 126) + "a" }, ""},
		{"a hub of 254", func(r *store.Record) { r.AssignedHub = strings.Repeat("a.", 126) + "aa" }, "assignedHub"},
		{"a hub of one label", func(r *store.Record) { r.AssignedHub = "localhost" }, ""},
		{"no device ID", func(r *store.Record) { r.DeviceID = "" }, "deviceId"},
		{"a device ID of 128", func(r *store.Record) { r.DeviceID = long }, ""},
		{"a device ID of 129", func(r *store.Record) { r.DeviceID = long + "d" }, "deviceId"},
		{"a device ID with every character that a hub allows", func(r *store.Record) { r.DeviceID = "a-:.+%_#*?!(),=@;$'" }, ""},
		{"a device ID with a line end", func(r *store.Record) { r.DeviceID = "a\nb" }, "deviceId"},
		{"a device ID with an override of the direction", func(r *store.Record) { r.DeviceID = "a\u202eb" }, "deviceId"},
		{"a device ID with a line separator", func(r *store.Record) { r.DeviceID = "a\u2028b" }, "deviceId"},
		{"a device ID with a paragraph separator", func(r *store.Record) { r.DeviceID = "a\u2029b" }, "deviceId"},
		{"a device ID with a byte-order mark", func(r *store.Record) { r.DeviceID = "\ufeffa" }, "deviceId"},
		{"a device ID with a zero-width space", func(r *store.Record) { r.DeviceID = "a\u200bb" }, "deviceId"},
		{"a device ID with a leading blank", func(r *store.Record) { r.DeviceID = " a" }, "deviceId"},
		{"a device ID with a trailing no-break space", func(r *store.Record) { r.DeviceID = "a\u00a0" }, "deviceId"},
		{"a device ID with a blank within", func(r *store.Record) { r.DeviceID = "a b" }, ""},
		{"a payload of 100 levels", func(r *store.Record) { r.Payload = nested(100) }, ""},
		{"a payload of 101 levels", func(r *store.Record) { r.Payload = nested(101) }, "payload"},
		{"a payload of 101 levels of objects", func(r *store.Record) {
			r.Payload = json.RawMessage(strings.Repeat(`{"a":`, 101) + "1" + strings.Repeat("}", 101))
		}, "payload"},
		{"a payload of 100 levels after an escaped backslash", func(r *store.Record) { r.Payload = json.RawMessage(`["\\\\",` + string(nested(99)) + `]`) }, ""},
		{"a payload of 101 levels after an escaped backslash", func(r *store.Record) { r.Payload = json.RawMessage(`["\\\\",` + string(nested(100)) + `]`) }, "payload"},
		{"a payload of 200 values side by side", func(r *store.Record) {
			r.Payload = json.RawMessage("[" + strings.Repeat("[],{},", 100) + "1]")
		}, ""},
		{"a registration state of 101 levels", func(r *store.Record) { r.RegistrationState = nested(101) }, ""},
		{"a registration state of 102 levels", func(r *store.Record) { r.RegistrationState = nested(102) }, "registrationState"},
		{"brackets in a text of a payload", func(r *store.Record) { r.Payload = json.RawMessage(`"\"` + strings.Repeat("[", 200) + `"`) }, ""},
		{"a payload of 128 KiB", func(r *store.Record) {
			r.Payload = json.RawMessage(`"` + strings.Repeat("p", 128<<10-2) + `"` + strings.Repeat(" ", 99))
		}, ""},
		{"a payload of 128 KiB and a byte", func(r *store.Record) { r.Payload = json.RawMessage(`"` + strings.Repeat("p", 128<<10-1) + `"`) }, "payload"},
		{"a device ID with NUL", func(r *store.Record) { r.DeviceID = "a\x00b" }, "deviceId"},
		{"a device ID with a C1 control", func(r *store.Record) { r.DeviceID = "a\u0085b" }, "deviceId"},
		{"a device ID of invalid UTF-8", func(r *store.Record) { r.DeviceID = "a\xff" }, "deviceId"},
		{"a device ID with half a surrogate", func(r *store.Record) { r.DeviceID = "a\xed\xa0\x80" }, "deviceId"},
		{"a registration ID with U+FFFE", func(r *store.Record) { r.RegistrationID = "a\ufffe" }, "registrationId"},
		{"a registration ID with U+FFFD", func(r *store.Record) { r.RegistrationID = "a\ufffd" }, ""},
		{"an ID scope with U+FDCF", func(r *store.Record) { r.IDScope = "\ufdcf" }, ""},
		{"an ID scope with U+FDEF", func(r *store.Record) { r.IDScope = "\ufdef" }, "idScope"},
		{"an ID scope with U+FDF0", func(r *store.Record) { r.IDScope = "\ufdf0" }, ""},
		{"an ID scope with U+FDD0", func(r *store.Record) { r.IDScope = "\ufdd0" }, "idScope"},
		{"a connection profile with U+10FFFF", func(r *store.Record) { r.ConnectionProfile = "\U0010ffff" }, "connectionProfile"},
		{"a connection profile with DEL", func(r *store.Record) { r.ConnectionProfile = "\x7f" }, "connectionProfile"},
		{"no connection profile", func(r *store.Record) { r.ConnectionProfile = "" }, ""},
		{"no registration ID", func(r *store.Record) { r.RegistrationID = "" }, "registrationId"},
		{"no ID scope", func(r *store.Record) { r.IDScope = "" }, "idScope"},
		{"no endpoint", func(r *store.Record) { r.Endpoint = "" }, "endpoint"},
		{"a truncated payload", func(r *store.Record) { r.Payload = json.RawMessage(`{"a":`) }, "payload"},
		{"a truncated registration state", func(r *store.Record) { r.RegistrationState = json.RawMessage(`{`) }, "registrationState"},
	}
	for _, test := range tests {
		verdict := " is refused"
		if test.member == "" {
			verdict = " is valid"
		}
		t.Run(test.say+verdict, func(t *testing.T) {
			directory := t.TempDir()
			s := mustOpen(t, store.Options{Directory: directory})
			mark := prints(t, directory)
			rec := sample()
			test.edit(&rec)
			_, err := s.Save(rec, noon)
			if test.member == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			var invalid *store.InvalidError
			if !errors.As(err, &invalid) || invalid.Member != test.member {
				t.Errorf("Save: %v, want an *InvalidError of %s", err, test.member)
			}
			if prints(t, directory) != mark {
				t.Error("something was written")
			}
		})
	}
}

// nested returns JSON with the given number of levels.
func nested(levels int) json.RawMessage {
	return json.RawMessage(strings.Repeat("[", levels) + strings.Repeat("]", levels))
}

// Records that an earlier version has published remain valid.
func TestARecordOfAnEarlierVersionRemainsReadable(t *testing.T) {
	directory := t.TempDir()
	s := mustOpen(t, store.Options{Directory: directory})
	rec := sample()
	rec.DeviceID = "gw-0001-was-here"
	mustSave(t, s, rec, store.Written)
	old := reseal(strings.ReplaceAll(content(t, directory, "state.json"), `"deviceId": "gw-0001-was-here"`, `"deviceId": " gw-0001\u202e "`))
	got, err := store.Parse([]byte(old))
	if err != nil || got.DeviceID != " gw-0001\u202e " {
		t.Errorf("it is read as %q, %v", got.DeviceID, err)
	}
	if err := store.Validate(got); err == nil {
		t.Error("Validate accepts it")
	}
}

func TestUnusualAnswers(t *testing.T) {
	deep := strings.Repeat("[", 100) + strings.Repeat("]", 100)
	tests := []struct {
		say     string
		payload string
		file    string // the text in the file; "" if it is unchanged
	}{
		{"numbers keep every digit", `{"n":123456789012345678901234567890.10e-2}`, ""},
		{"the order of keys is kept", `{"b":1,"a":2}`, ""},
		{"angle brackets are not escaped", `{"a":"<&>"}`, ""},
		{"white space is removed", "{\n  \"a\" : [ 1 ]\r\n}", `{"a":[1]}`},
		{"invalid UTF-8 becomes U+FFFD, since a record is UTF-8", "{\"a\":\"\xff\"}", "{\"a\":\"\ufffd\"}"},
		{"half a surrogate pair remains escaped", `{"a":"\ud800"}`, ""},
		{"nesting of 100 levels takes no additional space", deep, ""},
		{"a member with the name checksum is allowed", `{"checksum":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}`, ""},
	}
	for _, test := range tests {
		t.Run(test.say, func(t *testing.T) {
			directory := t.TempDir()
			s := mustOpen(t, store.Options{Directory: directory})
			rec := sample()
			rec.Payload = json.RawMessage(test.payload)
			mustSave(t, s, rec, store.Written)
			want := test.file
			if want == "" {
				want = test.payload
			}
			if got := string(mustRead(t, directory).Payload); got != want {
				t.Errorf("payload is %.100q, want %.100q", got, want)
			}
			if !strings.Contains(content(t, directory, "state.json"), "\n  \"payload\": "+want+",\n") {
				t.Error("the payload is not on a separate line")
			}
			mustSave(t, s, rec, store.Unchanged)
		})
	}
	t.Run("a clock beyond the year 9999 leaves a readable record", func(t *testing.T) {
		first, last := time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
		for now, want := range map[time.Time]time.Time{
			time.Unix(1<<40, 0):   last,
			last.Add(time.Second): last,
			last:                  last,
			last.Add(-time.Hour + 999*time.Millisecond): last.Add(-time.Hour),
			time.Unix(0, 0):         time.Unix(0, 0),
			first.Add(time.Minute):  first.Add(time.Minute),
			{}:                      first,
			first.Add(-time.Second): first,
			time.Unix(-1<<40, 0):    first,
		} {
			directory := t.TempDir()
			s := mustOpen(t, store.Options{Directory: directory})
			if _, err := s.Save(sample(), now); err != nil {
				t.Fatal(err)
			}
			if got := mustRead(t, directory).ProvisionedAt; !got.Equal(want) {
				t.Errorf("at %s it was provisioned at %s", now, got)
			}
		}
	})
}

func TestFingerprint(t *testing.T) {
	// printf 'dpsd1\nglobal.azure-devices-provisioning.net\n0ne00000000\ngw-0001\n\n' | sha256sum
	const plain = "sha256:2c37c91c2bc396bbd1e2f87e78ad1f0bf1458859de1dc3dc9534c1e593c09762"
	// … with "$(printf '{}' | sha256sum | cut -c 1-64)" on the last line
	const payload = "sha256:8bee0296981a7ef9f53427ec90c05daa29adeeef12567c4a7c482234319bbbfa"
	if got := store.Fingerprint("Global.Azure-Devices-Provisioning.NET", "0ne00000000", "gw-0001", nil); got != plain {
		t.Errorf("without a payload file: %s", got)
	}
	if got := store.Fingerprint("global.azure-devices-provisioning.net", "0ne00000000", "gw-0001", []byte("{}")); got != payload {
		t.Errorf("with a payload file: %s", got)
	}
	if store.Fingerprint("e", "S", "r", nil) == store.Fingerprint("e", "s", "r", nil) {
		t.Error("the case of the ID scope must matter")
	}
}

func TestTransport(t *testing.T) {
	directory := t.TempDir()
	s := mustOpen(t, store.Options{Directory: directory})
	if s.Transport() != "" {
		t.Error("a new store has a transport")
	}
	if err := s.SaveTransport("websocket"); err != nil {
		t.Fatal(err)
	}
	mark := prints(t, directory)
	if err := s.SaveTransport("websocket"); err != nil || prints(t, directory) != mark {
		t.Errorf("the same name again was written (%v)", err)
	}
	s.Close()
	if got := mustOpen(t, store.Options{Directory: directory}).Transport(); got != "websocket" {
		t.Errorf("the next process finds %q", got)
	}
}
