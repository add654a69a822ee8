package store_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/store"
)

// impostors replace a file by something else.
var impostors = []struct {
	say string
	put func(path, outside string) error // outside is another directory, which must not change
}{
	{"an empty directory", func(path, _ string) error { return os.Mkdir(path, 0o755) }},
	{"a non-empty directory", func(path, _ string) error {
		return errors.Join(os.Mkdir(path, 0o755), os.WriteFile(filepath.Join(path, "precious"), []byte("x"), 0o644))
	}},
	{"a link to a copy of it", func(path, outside string) error {
		return os.Symlink(filepath.Join(outside, "copy"), path)
	}},
	{"a link to another file", func(path, outside string) error {
		return os.Symlink(filepath.Join(outside, "other"), path)
	}},
	{"a link to nothing", func(path, outside string) error { return os.Symlink(filepath.Join(outside, "nothing"), path) }},
	{"a link to itself", func(path, _ string) error { return os.Symlink(filepath.Base(path), path) }},
	{"a link to a device that never ends", func(path, _ string) error { return os.Symlink("/dev/zero", path) }},
	{"a FIFO", func(path, _ string) error { return syscall.Mkfifo(path, 0o644) }},
	{"a socket", func(path, _ string) error {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			return err
		}
		l.SetUnlinkOnClose(false)
		return l.Close()
	}},
}

// TestImpostors replaces each file by something else, before a start and while a store is
// open.
func TestImpostors(t *testing.T) {
	for _, impostor := range impostors {
		for _, name := range []string{"state.json", "state.env", "state.json.prev", "lock", "transport"} {
			for _, running := range []bool{false, true} {
				when := "at the start"
				if running {
					when = "at run time"
				}
				t.Run(fmt.Sprintf("%s in the place of %s %s does not prevent a save", impostor.say, name, when), func(t *testing.T) {
					directory, outside := short(t), t.TempDir()
					o := store.Options{Directory: directory}
					s := mustOpen(t, o)
					mustSave(t, s, numbered(1), store.Written)
					mustSave(t, s, numbered(2), store.Written)
					if err := s.SaveTransport("mqtt"); err != nil {
						t.Fatal(err)
					}
					if !running {
						s.Close()
					}
					path := filepath.Join(directory, name)
					put(t, content(t, path), outside, "copy")
					put(t, "something else", outside, "other")
					mark := prints(t, outside)
					if err := errors.Join(os.Remove(path), impostor.put(path, outside)); err != nil {
						t.Fatal(err)
					}
					if !running {
						s = mustOpen(t, o)
					}
					before, _ := s.Current()
					if before.Generation < 2 {
						t.Errorf("generation %d after the start", before.Generation)
					}
					if _, err := s.Save(numbered(2), noon); err != nil {
						t.Fatalf("Save of the same: %v", err)
					}
					if info, err := os.Lstat(path); (name == "state.json" || name == "state.env") && (err != nil || !info.Mode().IsRegular()) {
						t.Errorf("saved, but %s is still not a file: %v", name, info)
					}
					if !running && name == "state.json" && impostor.say != "a link to a copy of it" {
						// The previous record replaced it, as after any damage.
						if rec := mustRead(t, directory); rec.Generation != 4 {
							t.Errorf("generation %d, want 4", rec.Generation)
						}
					} else if rec := mustRead(t, directory); rec.Generation != 2 || rec.DeviceID != "gw-0002" {
						t.Errorf("generation %d of %s, want 2 of gw-0002", rec.Generation, rec.DeviceID)
					}
					rec := mustSave(t, s, numbered(3), store.Written)
					if got := mustRead(t, directory); !cmp.Equal(got, rec) || got.Generation < 3 {
						t.Error(cmp.Diff(rec, got))
					}
					if err := s.SaveTransport("websocket"); err != nil || s.Transport() != "websocket" {
						t.Errorf("transport %q: %v", s.Transport(), err)
					}
					for _, name := range []string{"state.json", "state.env", "state.json.prev", "lock", "transport"} {
						if info, err := os.Lstat(filepath.Join(directory, name)); err != nil || !info.Mode().IsRegular() {
							t.Errorf("%s: %v %v, want a file", name, info, err)
						}
					}
					if _, err := store.Open(o, noon); !errors.As(err, new(*store.LockedError)) {
						t.Errorf("a second Open: %v, want *LockedError", err)
					}
					if got := prints(t, outside); got != mark {
						t.Errorf("the target of a link was changed:\n%s%s", mark, got)
					}
					if impostor.say == "a non-empty directory" {
						if found, _ := filepath.Glob(filepath.Join(directory, "*", "precious")); len(found) != 1 {
							t.Errorf("the contents of the directory are lost: %v", names(t, directory))
						}
					}
				})
			}
		}
	}
	t.Run("a reader of anything but a file gets an immediate error", func(t *testing.T) {
		for _, impostor := range impostors {
			directory, outside := short(t), t.TempDir()
			put(t, "something else", outside, "other")
			if err := impostor.put(filepath.Join(directory, "state.json"), outside); err != nil {
				t.Fatal(err)
			}
			if _, err := store.Read(directory); err == nil {
				t.Errorf("%s was read", impostor.say)
			}
		}
	})
	t.Run("a FIFO that is open for writing does not block a reader", func(t *testing.T) {
		directory := written(t, 2)
		path := filepath.Join(directory, "state.json")
		if err := errors.Join(os.Remove(path), syscall.Mkfifo(path, 0o644)); err != nil {
			t.Fatal(err)
		}
		writer, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer writer.Close()
		if _, err := store.Read(directory); !errors.As(err, new(*store.DamagedError)) {
			t.Errorf("Read: %v, want *DamagedError", err)
		}
		mustSave(t, mustOpen(t, store.Options{Directory: directory}), numbered(2), store.Written)
	})
	t.Run("a link to a record is reported", func(t *testing.T) {
		directory, outside := written(t, 2), t.TempDir()
		path := filepath.Join(directory, "state.json")
		if err := errors.Join(os.Rename(path, filepath.Join(outside, "r")), os.Symlink(filepath.Join(outside, "r"), path)); err != nil {
			t.Fatal(err)
		}
		if s := mustOpen(t, store.Options{Directory: directory}); !noticed(s, store.LinkReplaced) || !s.Durable() {
			t.Errorf("durable %v; notices:\n%s", s.Durable(), kinds(s))
		}
	})
}

// short returns a directory whose name is short enough for the path of a socket.
func short(t *testing.T) string {
	t.Helper()
	directory, err := os.MkdirTemp("", "dpsd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(directory) })
	return directory
}
