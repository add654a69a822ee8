package store_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/store"
)

// identities returns the content of modules.json with n modules.
func identities(n int) store.Modules {
	m := store.Modules{Root: bytes.Repeat([]byte{7}, store.RootSize)}
	for i := range n {
		m.Identities = append(m.Identities, store.ModuleIdentity{AssignedHub: "hub.azure-devices.net", DeviceID: "gw", ModuleID: string(rune('a' + i)), Created: i%2 == 0})
	}
	return m
}

func TestTheModulesAreReadAsTheyWereSaved(t *testing.T) {
	directory := quick(t)
	s := mustOpen(t, store.Options{Directory: directory, Mode: 0o666})
	if m, err := s.Modules(noon); err != nil || m.Root != nil || m.Identities != nil {
		t.Error(m, err)
	}
	for _, n := range []int{2, 3, 0} {
		if err := s.SaveModules(identities(n)); err != nil {
			t.Fatal(err)
		}
		before := prints(t, directory)
		if err := s.SaveModules(identities(n)); err != nil || prints(t, directory) != before {
			t.Error("the same content was written again", err)
		}
		m, err := s.Modules(noon)
		want := identities(n)
		if n == 0 {
			want.Identities = []store.ModuleIdentity{}
		}
		if d := cmp.Diff(want, m); err != nil || d != "" {
			t.Error(err, d)
		}
	}
	path := filepath.Join(directory, "modules.json")
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error("the mode of the files must not apply to a secret", info.Mode(), err)
	}
	s.Close()
	if err := errors.Join(os.Chmod(path, 0o644), os.WriteFile(filepath.Join(directory, ".modules.json12"), []byte("x"), 0o600)); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, store.Options{Directory: directory}).Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Error("a start does not correct the mode", err)
	}
	gone(t, directory, ".modules.json12")
}

// saved returns the text of a modules.json with two modules.
func saved(t *testing.T) string {
	t.Helper()
	directory := quick(t)
	s := mustOpen(t, store.Options{Directory: directory})
	defer s.Close()
	if err := s.SaveModules(identities(2)); err != nil {
		t.Fatal(err)
	}
	return content(t, directory, "modules.json")
}

// wantModulesError checks an error about modules.json, which must not contain the root.
func wantModulesError(t *testing.T, err error, directory string) {
	t.Helper()
	var e *store.ModulesError
	if !errors.As(err, &e) || e.Path != filepath.Join(directory, "modules.json") || strings.Contains(err.Error(), "BwcH") {
		t.Errorf("got %v", err)
	}
}

// Nobody has to repair the gateway: the hub has the same modules, and they get new keys.
func TestADamagedModulesFileIsKeptUnderAnotherNameAndCountsAsMissing(t *testing.T) {
	whole := saved(t)
	file := func(text string) func(*testing.T, string) {
		return func(t *testing.T, directory string) { t.Helper(); put(t, text, directory, "modules.json") }
	}
	other := func(create func(path string) error) func(*testing.T, string) {
		return func(t *testing.T, directory string) {
			t.Helper()
			if err := create(filepath.Join(directory, "modules.json")); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, damage := range map[string]func(t *testing.T, directory string){
		"empty": file(""), "truncated": file(whole[:len(whole)/2]), "another root": file(strings.Replace(whole, "BwcH", "BwcI", 1)),
		"another module": file(strings.Replace(whole, `"a"`, `"b"`, 1)), "another checksum": file(strings.Replace(whole, `"checksum": "`, `"checksum": "0`, 1)),
		"a short root": file(strings.Replace(whole, "BwcHBwcH", "", 1)), "more after it": file(whole + "{}"),
		"a directory": other(func(path string) error { return os.Mkdir(path, 0o700) }),
		"a FIFO":      other(func(path string) error { return syscall.Mkfifo(path, 0o600) }),
		"a link":      other(func(path string) error { return os.Symlink("/dev/null", path) }),
	} {
		t.Run(name, func(t *testing.T) {
			directory := quick(t)
			s := mustOpen(t, store.Options{Directory: directory})
			defer s.Close()
			damage(t, directory)
			before, err := os.Lstat(filepath.Join(directory, "modules.json"))
			if err != nil {
				t.Fatal(err)
			}
			wantModulesError(t, s.SaveModules(identities(1)), directory)
			if m, err := s.Modules(noon); err != nil || m.Root != nil || m.Identities != nil {
				t.Errorf("got %v, %v", m, err)
			}
			kept := filepath.Join(directory, "modules.json.corrupt-20261123T120000Z")
			after, err := os.Lstat(kept)
			if err != nil || !os.SameFile(before, after) {
				t.Fatalf("the file was not kept: %v", err)
			}
			if after.Mode().IsRegular() && after.Mode().Perm() != 0o600 {
				t.Errorf("others can read the damaged file: %s", after.Mode())
			}
			all := s.Notices()
			if len(all) != 2 || all[0].Kind != store.Damaged || all[1].Kind != store.SetAside || all[1].Path != kept || strings.Contains(all[0].String(), "BwcH") {
				t.Errorf("the notices are %v", all)
			}
			if err := s.SaveModules(identities(1)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAtMostThreeDamagedModulesFilesAreKept(t *testing.T) {
	directory := quick(t)
	s := mustOpen(t, store.Options{Directory: directory})
	defer s.Close()
	for n := range 5 {
		put(t, "damaged", directory, "modules.json")
		if _, err := s.Modules(noon.Add(time.Duration(n) * time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := filepath.Glob(filepath.Join(directory, "modules.json.corrupt-*"))
	if err != nil || len(kept) != 3 || filepath.Base(kept[2]) != "modules.json.corrupt-20261123T160000Z" {
		t.Error(kept, err)
	}
}

// The file may be intact, and may contain the only copy of the root.
func TestAModulesFileOfANewerVersionOrThatCannotBeRenamedRemains(t *testing.T) {
	whole := saved(t)
	for name, tt := range map[string]struct {
		text string
		step func(step, path string) error
	}{
		"a newer schema":              {text: strings.Replace(whole, `"schema": 1`, `"schema": 2`, 1)},
		"a newer schema, other types": {text: `{"schema": 2, "root": {"key": "BwcH"}, "modules": 1}`},
		"damaged, a full disk": {text: whole[1:], step: func(step, _ string) error {
			if step == "set-aside" {
				return syscall.ENOSPC
			}
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			directory := quick(t)
			put(t, tt.text, directory, "modules.json")
			s, err := store.OpenStepped(store.Options{Directory: directory}, noon, tt.step)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, err = s.Modules(noon)
			wantModulesError(t, err, directory)
			wantModulesError(t, s.SaveModules(identities(1)), directory)
			if content(t, directory, "modules.json") != tt.text || len(s.Notices()) > 0 {
				t.Errorf("the file has changed: %v", s.Notices())
			}
		})
	}
}

// A process that is killed at any step leaves either the old or the new content. When SaveModules
// returns, the new content is durable.
func TestTheModulesFileIsAlwaysWhole(t *testing.T) {
	var steps []string
	directory := quick(t)
	s, err := store.OpenStepped(store.Options{Directory: directory}, noon, func(step, path string) error {
		steps = append(steps, step+" "+filepath.Base(path))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SaveModules(identities(1)); err != nil {
		t.Fatal(err)
	}
	steps = nil
	if err := s.SaveModules(identities(2)); err != nil {
		t.Fatal(err)
	}
	s.Close()
	want := []string{"create modules.json", "write modules.json", "rename modules.json", "sync " + filepath.Base(directory)}
	if d := cmp.Diff(want, steps); d != "" {
		t.Fatal(d)
	}
	for end := range want {
		directory := quick(t)
		count, armed := 0, false
		s, err := store.OpenStepped(store.Options{Directory: directory}, noon, func(string, string) error {
			if armed {
				count++
			}
			if count > end {
				return syscall.ENOSPC
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SaveModules(identities(1)); err != nil {
			t.Fatal(err)
		}
		armed = true
		var failed *store.WriteError
		if err := s.SaveModules(identities(2)); !errors.As(err, &failed) || !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("step %d: %v", end, err)
		}
		s.Close()
		s = mustOpen(t, store.Options{Directory: directory})
		m, err := s.Modules(noon)
		if n := len(m.Identities); err != nil || n != 1 && n != 2 || n == 2 && end < 3 {
			t.Errorf("step %d: %d modules, %v", end, n, err)
		}
		s.Close()
	}
}
