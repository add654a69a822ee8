package store_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

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
	if m, err := s.Modules(); err != nil || m.Root != nil || m.Identities != nil {
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
		m, err := s.Modules()
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

// The file may contain the only copy of the root.
func TestAModulesFileThatCannotBeReadIsNeverOverwritten(t *testing.T) {
	whole := func(t *testing.T) string {
		other := quick(t)
		s := mustOpen(t, store.Options{Directory: other})
		defer s.Close()
		if err := s.SaveModules(identities(2)); err != nil {
			t.Fatal(err)
		}
		return content(t, other, "modules.json")
	}(t)
	for name, text := range map[string]string{
		"empty": "", "truncated": whole[:len(whole)/2], "another root": strings.Replace(whole, "BwcH", "BwcI", 1),
		"another module": strings.Replace(whole, `"a"`, `"b"`, 1), "another checksum": strings.Replace(whole, `"checksum": "`, `"checksum": "0`, 1),
		"a newer schema": strings.Replace(whole, `"schema": 1`, `"schema": 2`, 1), "a short root": strings.Replace(whole, "BwcHBwcH", "", 1),
		"more after it": whole + "{}",
	} {
		t.Run(name, func(t *testing.T) {
			directory := quick(t)
			put(t, text, directory, "modules.json")
			s := mustOpen(t, store.Options{Directory: directory})
			defer s.Close()
			_, err := s.Modules()
			saved := s.SaveModules(identities(1))
			for _, err := range []error{err, saved} {
				var e *store.ModulesError
				if !errors.As(err, &e) || e.Path != filepath.Join(directory, "modules.json") || strings.Contains(err.Error(), "BwcH") {
					t.Errorf("got %v", err)
				}
			}
			if content(t, directory, "modules.json") != text {
				t.Error("the file has changed")
			}
		})
	}
	for name, impostor := range map[string]func(path string) error{
		"a directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"a FIFO":      func(path string) error { return syscall.Mkfifo(path, 0o600) },
		"a link":      func(path string) error { return os.Symlink("/dev/null", path) },
	} {
		t.Run(name, func(t *testing.T) {
			directory := quick(t)
			if err := impostor(filepath.Join(directory, "modules.json")); err != nil {
				t.Fatal(err)
			}
			s := mustOpen(t, store.Options{Directory: directory})
			defer s.Close()
			if err := s.SaveModules(identities(1)); !errors.As(err, new(*store.ModulesError)) {
				t.Errorf("got %v", err)
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
		m, err := s.Modules()
		if n := len(m.Identities); err != nil || n != 1 && n != 2 || n == 2 && end < 3 {
			t.Errorf("step %d: %d modules, %v", end, n, err)
		}
		s.Close()
	}
}
