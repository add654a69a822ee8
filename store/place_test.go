package store_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/watch"
)

// bind mounts a file or a directory over another.
func bind(t *testing.T, from, to string) {
	t.Helper()
	if err := syscall.Mount(from, to, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(to, syscall.MNT_DETACH) })
}

func TestAFaultNamesTheFileThatFailed(t *testing.T) {
	if !withMounts(t) {
		return
	}
	for _, name := range []string{"state.env", "state.json", "state.json.prev"} {
		t.Run(name, func(t *testing.T) {
			directory, file := t.TempDir(), filepath.Join(t.TempDir(), "elsewhere")
			s := mustOpen(t, store.Options{Directory: directory})
			mustSave(t, s, numbered(1), store.Written)
			mustSave(t, s, numbered(2), store.Written)
			path := filepath.Join(directory, name)
			data, err := os.ReadFile(path)
			if err := errors.Join(err, os.WriteFile(file, data, 0o644)); err != nil {
				t.Fatal(err)
			}
			bind(t, file, path)
			_, err = s.Save(numbered(3), noon)
			var refused *store.WriteError
			if !errors.As(err, &refused) || !errors.Is(err, syscall.EBUSY) || refused.Path != path {
				t.Fatalf("got %v, want EBUSY of %s", err, path)
			}
			if !strings.Contains(err.Error(), "cannot write "+path+": device or resource busy (a file that is a mount point cannot be replaced: mount its directory instead)") {
				t.Errorf("it says %v", err)
			}
		})
	}
}

func TestAFaultContainsTheTargetOfADanglingLink(t *testing.T) {
	for _, c := range []struct {
		name  string
		links map[string]string // in the temporary directory
		says  string
	}{
		{"the directory itself is a link", map[string]string{"state": "data/dpsd"}, "the directory DIR/state is a link to DIR/data/dpsd, which does not exist"},
		{"the link is absolute", map[string]string{"state": "DIR/data/dpsd"}, "the directory DIR/state is a link to DIR/data/dpsd, which does not exist"},
		{"a link leads to a link", map[string]string{"state": "second", "second": "data/dpsd"}, "the directory DIR/state is a link to DIR/data/dpsd, which does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for link, target := range c.links {
				if err := os.Symlink(strings.ReplaceAll(target, "DIR", dir), filepath.Join(dir, link)); err != nil {
					t.Fatal(err)
				}
			}
			s := mustOpen(t, store.Options{Directory: filepath.Join(dir, "state")})
			want := strings.ReplaceAll(c.says, "DIR", dir)
			if err := reason(s, store.Unwritable); err == nil || err.Error() != want {
				t.Errorf("unwritable because of %v, want %s", err, want)
			}
			if _, err := s.Save(numbered(1), noon); err == nil || !strings.HasSuffix(err.Error(), want) {
				t.Errorf("Save: %v, want %s", err, want)
			}
		})
	}
	t.Run("a link in the path is reported", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Symlink("data", filepath.Join(dir, "lib")); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, store.Options{Directory: filepath.Join(dir, "lib", "dpsd")})
		want := strings.ReplaceAll("the directory DIR/lib/dpsd does not exist: DIR/lib is a link to DIR/data, which does not exist", "DIR", dir)
		if err := reason(s, store.Unwritable); err == nil || err.Error() != want {
			t.Errorf("unwritable because of %v, want %s", err, want)
		}
	})
	t.Run("a link to a directory is accepted", func(t *testing.T) {
		dir := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "data"), 0o755), os.Symlink("data", filepath.Join(dir, "state"))); err != nil {
			t.Fatal(err)
		}
		s := mustOpen(t, store.Options{Directory: filepath.Join(dir, "state")})
		if noticed(s, store.Unwritable) {
			t.Error(reason(s, store.Unwritable))
		}
		mustSave(t, s, numbered(1), store.Written)
	})
}

func TestAnUnusableStateDirectoryIsTheOnlyReportedFault(t *testing.T) {
	for _, c := range []struct {
		name string
		make func(path string) error
		at   string // the state directory, relative to the path
		says string
	}{
		{"a file", func(path string) error { return os.WriteFile(path, []byte("precious"), 0o644) }, "", "PATH is a file, not a directory"},
		{"a FIFO", func(path string) error { return syscall.Mkfifo(path, 0o644) }, "", "PATH is a FIFO, not a directory"},
		{"a link to a device", func(path string) error { return os.Symlink("/dev/null", path) }, "", "PATH is a device, not a directory"},
		{"a path below a file", func(path string) error { return os.WriteFile(path, []byte("precious"), 0o644) }, "dpsd", "PATH is a file, not a directory"},
		{"a link to nothing", func(path string) error { return os.Symlink("no-such-directory", path) }, "", "the directory PATH is a link to DIR/no-such-directory, which does not exist"},
		{"a directory that the user may not search", func(path string) error { return os.Mkdir(path, 0) }, "", "the directory PATH cannot be searched: permission denied"},
		{"a path in such a directory", func(path string) error { return os.Mkdir(path, 0) }, "dpsd", "the directory PATH cannot be searched: permission denied"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir, run := quick(t), quick(t)
			path := filepath.Join(dir, "state")
			if err := errors.Join(c.make(path), toStranger(dir), toStranger(run)); err != nil {
				t.Fatal(err)
			}
			want := strings.NewReplacer("PATH", path, "DIR", dir).Replace(c.says)
			directory := filepath.Join(path, c.at)
			done := make(chan struct{})
			go func() {
				defer close(done)
				asStranger(t)
				s, err := store.Open(store.Options{Directory: directory, RuntimeDirectory: run}, noon)
				if err != nil {
					t.Error(err)
					return
				}
				defer s.Close()
				_, saved := s.Save(numbered(1), noon)
				if err := saved; err == nil || !strings.HasPrefix(err.Error(), "cannot write "+directory+"/state.json: "+want+"; the record is published in "+run) {
					t.Errorf("Save: %v\nwant %s", err, want)
				}
				if notices := s.Notices(); len(notices) != 1 || notices[0].String() != directory+": cannot be written ("+want+")" {
					t.Errorf("notices %v", notices)
				}
				if !strings.Contains(c.name, "nothing") {
					if _, err := store.Read(directory); err == nil || err.Error() != want {
						t.Errorf("Read: %v, want %s", err, want)
					}
				}
				recorder := store.Recorder{Directory: directory, RuntimeDirectory: run}
				if err := recorder.Add(store.Attempt{Outcome: "fault"}, noon); err != nil {
					t.Errorf("the flight recorder: %v", err)
				}
			}()
			<-done
		})
	}
}

func TestARecordInADirectoryThatCouldNotBeSearchedIsReadBeforeTheNextSave(t *testing.T) {
	dir := quick(t)
	directory := filepath.Join(dir, "state")
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	mustSave(t, s, numbered(2), store.Written)
	if err := errors.Join(s.Close(), os.Remove(filepath.Join(directory, "lock")), toStranger(dir), toStranger(directory), os.Chmod(directory, 0)); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		asStranger(t)
		s, err := store.Open(store.Options{Directory: directory}, noon)
		if err != nil {
			t.Error(err)
			return
		}
		defer s.Close()
		if err := os.Chmod(directory, 0o755); err != nil {
			t.Error(err)
		}
		if _, err := s.Save(numbered(2), noon); err != nil {
			t.Error(err)
		}
		if rec, _ := s.Current(); rec.Generation != 2 {
			t.Errorf("the same identity has generation %d now, want 2", rec.Generation)
		}
	}()
	<-done
}

// toStranger makes the user of asStranger the owner of a directory.
func toStranger(directory string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	return os.Chown(directory, serviceUser, 0)
}

// asStranger drops root's file permissions for the goroutine's thread, which ends with the
// goroutine.
func asStranger(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if os.Geteuid() != 0 {
		return
	}
	if err := syscall.Setfsuid(serviceUser); err != nil {
		t.Error(err)
	}
}

func TestAFileSystemWithARunningDpsdCanBeRemountedReadOnly(t *testing.T) {
	if !withMounts(t) {
		return
	}
	directory := tmpfs(t, "mode=0755")
	s := mustOpen(t, store.Options{Directory: directory})
	mustSave(t, s, numbered(1), store.Written)
	if err := syscall.Mount("", directory, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, "mode=0755"); err != nil {
		t.Fatalf("remount read-only: %v", err)
	}
	if _, err := store.Open(store.Options{Directory: directory}, noon); !errors.As(err, new(*store.LockedError)) {
		t.Errorf("a second process: %v, want *LockedError", err)
	}
}

func TestAMountOrUnmountOfTheDirectoryIsDetectedAndLocked(t *testing.T) {
	if !withMounts(t) {
		return
	}
	directory := t.TempDir()
	if err := syscall.Mount("tmpfs", directory, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	o := store.Options{Directory: directory}
	s := mustOpen(t, o)
	mustSave(t, s, numbered(1), store.Written)
	changed, err := watch.Files(t.Context(), store.Files(directory)...)
	if err != nil {
		t.Fatal(err)
	}
	noticed := func(what string) {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatalf("the change of the directory to %s was not detected within a minute", what)
		}
		if _, err := s.Repair(noon); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if rec := mustRead(t, directory); rec.Generation != 1 {
			t.Errorf("%s: generation %d", what, rec.Generation)
		}
		if _, err := store.Open(o, noon); !errors.As(err, new(*store.LockedError)) {
			t.Errorf("%s: a second process: %v, want *LockedError", what, err)
		}
	}
	// This unmounts lazily, as from another mount namespace: the file system remains in
	// use, and inotify reports nothing.
	if err := syscall.Unmount(directory, syscall.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	noticed("unmounted")
	// The directory has the same record, as on a disk that was temporarily removed, but no
	// lock of this process.
	other := t.TempDir()
	for _, name := range []string{"state.json", "state.env"} {
		data, err := os.ReadFile(filepath.Join(directory, name))
		if err := errors.Join(err, os.WriteFile(filepath.Join(other, name), data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	bind(t, other, directory)
	noticed("mounted")
}

func TestTemporaryFilesOfEveryWriterAreRemovedAtTheStart(t *testing.T) {
	directory, runtime := t.TempDir(), t.TempDir()
	left := []string{
		filepath.Join(directory, ".attempts.json123"), filepath.Join(directory, ".transport4"),
		filepath.Join(runtime, ".attempts.json56"), filepath.Join(runtime, ".confirmation.json7"),
	}
	others := []string{filepath.Join(directory, ".attempts.json"), filepath.Join(runtime, ".attempts.json5x"), filepath.Join(runtime, "attempts.json5")}
	for _, path := range append(left, others...) {
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
	for _, path := range left {
		if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	for _, path := range others {
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s belongs to another program: %v", path, err)
		}
	}
}

// As in the mount namespace of a service, its own mount remains on top.
func TestAMountBelowIsAFaultButADirectoryMountedOnItselfIsNot(t *testing.T) {
	if !withMounts(t) {
		return
	}
	directory, runtime := tmpfs(t, "mode=0755"), t.TempDir()
	s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
	mustSave(t, s, numbered(1), store.Written)
	changed, err := watch.Files(t.Context(), store.Files(directory)...)
	if err != nil {
		t.Fatal(err)
	}
	repaired := func() error {
		t.Helper()
		select {
		case <-changed:
		case <-time.After(time.Minute):
			t.Fatal("the change was not detected within a minute")
		}
		_, err := s.Repair(noon)
		return err
	}
	bind(t, directory, directory)
	if err := repaired(); err != nil {
		t.Errorf("mounted on itself: %v", err)
	}
	kept := t.TempDir()
	bind(t, directory, kept)
	if err := syscall.Mount("tmpfs", directory, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(directory, syscall.MNT_DETACH) })
	bind(t, kept, directory)
	for err = repaired(); err == nil; err = repaired() {
		// There were three mounts.
	}
	if !errors.As(err, new(*store.CoveredError)) || !strings.Contains(err.Error(), "mounted on "+directory+" or unmounted from it") {
		t.Errorf("another file system beneath: %v", err)
	}
	if _, err := s.Save(numbered(2), noon); !errors.As(err, new(*store.CoveredError)) {
		t.Errorf("a change: %v", err)
	}
	if rec := mustRead(t, runtime); rec.Generation != 2 {
		t.Errorf("the runtime directory has generation %d", rec.Generation)
	}
}
