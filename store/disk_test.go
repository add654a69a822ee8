package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/store"
)

// mountVariable is set in the process with private mounts.
const mountVariable = "DPSD_TEST_MOUNTS"

// withMounts runs the calling test again in a process with a private mount namespace, so
// that all mounts end with it, and returns true there.
func withMounts(t *testing.T) bool {
	t.Helper()
	if os.Getenv(mountVariable) != "" {
		return true
	}
	if os.Geteuid() != 0 {
		missing(t, "root, to mount file systems")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=10m")
	cmd.Env = append(os.Environ(), mountVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	switch text := string(out); {
	case errors.Is(err, fs.ErrPermission):
		missing(t, "the right to make a mount name space")
	case err != nil:
		t.Fatalf("%v\n%s", err, out)
	case strings.Contains(text, "--- SKIP: "):
		t.Skip(text)
	case !strings.Contains(text, "--- PASS: "+t.Name()):
		t.Fatalf("the test did not run:\n%s", out)
	}
	for line := range strings.Lines(string(out)) {
		if row, ok := strings.CutPrefix(line, rowPrefix); ok {
			fmt.Print(row)
		}
	}
	return false
}

// rowPrefix marks output of the process with private mounts that is printed.
const rowPrefix = "row: "

// report prints a table through the process that ran the test.
func report(table string) {
	for line := range strings.Lines(table) {
		fmt.Print(rowPrefix, line)
	}
}

// tmpfs mounts a file system in memory.
func tmpfs(t *testing.T, options string) string {
	t.Helper()
	directory := t.TempDir()
	if err := syscall.Mount("tmpfs", directory, "tmpfs", 0, options); err != nil {
		missing(t, fmt.Sprintf("a tmpfs (%v)", err))
	}
	t.Cleanup(func() { _ = syscall.Unmount(directory, syscall.MNT_DETACH) })
	return directory
}

// stuff fills a disk completely and returns a function that frees space again.
func stuff(t *testing.T, directory string) func() {
	t.Helper()
	path := filepath.Join(directory, "ballast")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFullDisk(t *testing.T) {
	if !withMounts(t) {
		return
	}
	directory, runtime := tmpfs(t, "size=64k,mode=0755"), t.TempDir()
	o := store.Options{Directory: directory, RuntimeDirectory: runtime}
	s := mustOpen(t, o)
	mustSave(t, s, numbered(1), store.Written)
	mustSave(t, s, numbered(2), store.Written)
	room := stuff(t, directory)

	t.Run("an identical assignment is not a fault on a full disk", func(t *testing.T) {
		mustSave(t, s, numbered(2), store.Unchanged)
	})
	t.Run("a change is kept, published, and tried again", func(t *testing.T) {
		for range 2 {
			_, err := s.Save(numbered(3), noon)
			var refused *store.WriteError
			if !errors.As(err, &refused) || !errors.Is(err, syscall.ENOSPC) || refused.Published != runtime || s.Durable() {
				t.Fatalf("Save: %v", err)
			}
			if rec := mustRead(t, directory); rec.Generation != 2 {
				t.Errorf("the disk has generation %d", rec.Generation)
			}
			if rec := mustRead(t, runtime); rec.Generation != 3 {
				t.Errorf("the runtime directory has generation %d", rec.Generation)
			}
		}
	})
	t.Run("no temporary file is left on the full disk", func(t *testing.T) {
		want := []string{"ballast", "lock", "state.env", "state.json", "state.json.prev"}
		if diff := cmp.Diff(want, names(t, directory)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("a start on a full disk adopts the published record and keeps a damaged one", func(t *testing.T) {
		s.Close()
		put(t, "damaged", directory, "state.json")
		s = mustOpen(t, o)
		if rec, ok := s.Current(); !ok || rec.Generation != 3 || rec.DeviceID != "gw-0003" || s.Durable() {
			t.Errorf("generation %d, device %s, durable %v; notices:\n%s", rec.Generation, rec.DeviceID, s.Durable(), kinds(s))
		}
		if content(t, directory, "state.json.corrupt-20261123T120000Z") != "damaged" {
			t.Error("not kept")
		}
	})
	t.Run("trying again keeps the damaged record once", func(t *testing.T) {
		for range 3 {
			if _, err := s.Save(numbered(3), noon); err == nil {
				t.Fatal("Save succeeded")
			}
		}
		if n := strings.Count(strings.Join(names(t, directory), " "), "corrupt"); n != 1 {
			t.Errorf("%d copies", n)
		}
	})
	t.Run("after space has been freed, the same assignment is saved", func(t *testing.T) {
		room()
		if rec := mustSave(t, s, numbered(3), store.Written); rec.Generation != 3 {
			t.Errorf("generation %d", rec.Generation)
		}
		gone(t, runtime, "state.json")
	})
}

func TestDiskOfOnePage(t *testing.T) {
	if !withMounts(t) {
		return
	}
	for _, options := range []string{"size=4k", "size=8k", "size=12k", "nr_inodes=1", "nr_inodes=2", "nr_inodes=3", "nr_inodes=4", "nr_inodes=5"} {
		t.Run("a disk of "+options+" holds a whole record or none", func(t *testing.T) {
			directory, runtime := tmpfs(t, options+",mode=0755"), t.TempDir()
			s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
			for i := 1; i <= 3; i++ {
				_, err := s.Save(numbered(i), noon)
				rec, readErr := store.Read(directory)
				published, publishedErr := store.Read(runtime)
				switch {
				case err == nil && (readErr != nil || rec.DeviceID != numbered(i).DeviceID || !s.Durable()):
					t.Errorf("Save %d succeeded; on disk: %v, %s", i, readErr, rec.DeviceID)
				case err == nil:
				case !errors.Is(err, syscall.ENOSPC):
					t.Errorf("Save %d: %v", i, err)
				case readErr != nil && !errors.Is(readErr, store.ErrNoRecord):
					t.Errorf("Save %d: on disk: %v", i, readErr)
				case publishedErr != nil || published.DeviceID != numbered(i).DeviceID || s.Durable():
					t.Errorf("Save %d: published: %v, %s", i, publishedErr, published.DeviceID)
				}
			}
			if options == "size=4k" || options == "nr_inodes=1" {
				if s.Durable() {
					t.Error("the small disk accepted everything: the test is ineffective")
				}
			}
		})
	}
}

func TestReadOnlyDisk(t *testing.T) {
	if !withMounts(t) {
		return
	}
	remount := func(t *testing.T, directory string, flags uintptr) {
		t.Helper()
		if err := syscall.Mount("", directory, "", syscall.MS_REMOUNT|flags, "mode=0755"); err != nil {
			t.Fatal(err)
		}
	}
	for _, locked := range []bool{true, false} {
		t.Run(fmt.Sprintf("with a lock file on it: %v", locked), func(t *testing.T) {
			directory, runtime := tmpfs(t, "mode=0755"), t.TempDir()
			o := store.Options{Directory: directory, RuntimeDirectory: runtime}
			fill(t, directory, 2)
			if !locked {
				os.Remove(filepath.Join(directory, "lock"))
			}
			remount(t, directory, syscall.MS_RDONLY)
			mark := prints(t, directory)
			s := mustOpen(t, o)

			t.Run("Open reports it without writing, and finds the record", func(t *testing.T) {
				if err := reason(s, store.Unwritable); !errors.Is(err, syscall.EROFS) {
					t.Errorf("unwritable because of %v; notices:\n%s", err, kinds(s))
				}
				if rec, ok := s.Current(); !ok || rec.Generation != 2 || !s.Durable() {
					t.Errorf("generation %d, durable %v", rec.Generation, s.Durable())
				}
			})
			t.Run("a second process is excluded", func(t *testing.T) {
				if _, err := store.Open(o, noon); !errors.As(err, new(*store.LockedError)) {
					t.Errorf("Open: %v, want *LockedError", err)
				}
				if !locked {
					return // without a lock file, only the runtime directory excludes it
				}
				if _, err := store.Open(store.Options{Directory: directory}, noon); !errors.As(err, new(*store.LockedError)) {
					t.Errorf("Open with another runtime directory: %v, want *LockedError", err)
				}
			})
			t.Run("an identical record is not a fault", func(t *testing.T) {
				mustSave(t, s, numbered(2), store.Unchanged)
				gone(t, runtime, "state.json")
			})
			t.Run("a change is kept and published", func(t *testing.T) {
				_, err := s.Save(numbered(3), noon)
				if !errors.As(err, new(*store.WriteError)) || !errors.Is(err, syscall.EROFS) || s.Durable() {
					t.Errorf("Save: %v", err)
				}
				if rec := mustRead(t, runtime); rec.Generation != 3 {
					t.Errorf("generation %d", rec.Generation)
				}
				if prints(t, directory) != mark {
					t.Error("the disk changed")
				}
			})
			t.Run("after the disk has become writable, the same assignment is saved under the lock", func(t *testing.T) {
				remount(t, directory, 0)
				mustSave(t, s, numbered(3), store.Written)
				if _, err := store.Open(store.Options{Directory: directory}, noon); !errors.As(err, new(*store.LockedError)) {
					t.Errorf("Open: %v, want *LockedError", err)
				}
			})
		})
	}
	t.Run("a damaged record on a read-only disk is replaced in the runtime directory", func(t *testing.T) {
		directory, runtime := tmpfs(t, "mode=0755"), t.TempDir()
		fill(t, directory, 2)
		put(t, "damaged", directory, "state.json")
		remount(t, directory, syscall.MS_RDONLY)
		s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
		if rec := mustRead(t, runtime); rec.Generation != 3 || rec.DeviceID != "gw-0001" || s.Durable() {
			t.Errorf("generation %d, device %s, durable %v", rec.Generation, rec.DeviceID, s.Durable())
		}
	})
	t.Run("a stale state.env on a read-only disk is a fault, since READY promises both files", func(t *testing.T) {
		directory, runtime := tmpfs(t, "mode=0755"), t.TempDir()
		fill(t, directory, 2)
		os.Remove(filepath.Join(directory, "state.env"))
		remount(t, directory, syscall.MS_RDONLY)
		s := mustOpen(t, store.Options{Directory: directory, RuntimeDirectory: runtime})
		if s.Durable() {
			t.Error("Durable is true")
		}
		if _, err := s.Save(numbered(2), noon); !errors.Is(err, syscall.EROFS) {
			t.Errorf("Save: %v", err)
		}
		if got := content(t, runtime, "state.env"); !strings.Contains(got, `DPSD_GENERATION="2"`) {
			t.Errorf("published: %q", got)
		}
	})
}

// loopDisk is an ext4 file system in a file that can simulate a power failure.
type loopDisk struct {
	t         *testing.T
	image     string
	directory string
}

func newLoopDisk(t *testing.T) *loopDisk {
	t.Helper()
	mkfs, mount := tool(t, "mkfs.ext4"), tool(t, "mount")
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		missing(t, "a loop device")
	}
	d := &loopDisk{t: t, image: filepath.Join(quick(t), "image"), directory: t.TempDir()}
	f, err := os.Create(d.image)
	if err == nil {
		err = f.Truncate(8 << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if out, err := exec.Command(mkfs, "-q", "-F", d.image).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	d.mount(mount)
	t.Cleanup(func() { _ = syscall.Unmount(d.directory, syscall.MNT_DETACH) })
	return d
}

// mount makes tests deterministic: ext4 does not flush on rename, and does not commit
// during the test.
func (d *loopDisk) mount(mount string) {
	d.t.Helper()
	if out, err := exec.Command(mount, "-o", "loop,noauto_da_alloc,commit=300", d.image, d.directory).CombinedOutput(); err != nil {
		missing(d.t, fmt.Sprintf("a mount of a loop device (%v %s)", err, out))
	}
}

// copy returns another disk with the contents of this one, which must not be mounted.
func (d *loopDisk) copy() *loopDisk {
	d.t.Helper()
	return d.copyTo(d.t.TempDir())
}

// copyTo is copy for a disk that is mounted at a directory.
func (d *loopDisk) copyTo(directory string) *loopDisk {
	d.t.Helper()
	image, err := os.ReadFile(d.image)
	other := &loopDisk{t: d.t, image: filepath.Join(quick(d.t), "image"), directory: directory}
	if err == nil {
		err = os.WriteFile(other.image, image, 0o600)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	other.mount("mount")
	return other
}

func (d *loopDisk) end() {
	_ = syscall.Unmount(d.directory, syscall.MNT_DETACH)
	_ = os.Remove(d.image)
}

// cut simulates a power failure: nothing more is written to the disk, not even the journal.
func (d *loopDisk) cut() {
	f, err := os.Open(d.directory)
	if err != nil {
		d.t.Fatal(err)
	}
	defer f.Close()
	const shutdown, noLogFlush = 0x8004587D, uint32(2) // FS_IOC_SHUTDOWN
	flags := noLogFlush
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), shutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		d.t.Fatalf("FS_IOC_SHUTDOWN: %v", errno)
	}
}

// restore mounts the disk again.
func (d *loopDisk) restore() {
	d.t.Helper()
	if err := syscall.Unmount(d.directory, 0); err != nil {
		d.t.Fatal(err)
	}
	d.mount("mount")
}

// sync makes all changes durable, so that a power failure affects only later ones.
func (d *loopDisk) sync() { syscall.Sync() }

func TestPowerCut(t *testing.T) {
	if !withMounts(t) {
		return
	}
	t.Run("the disk of these tests loses an unsynced rename", func(t *testing.T) {
		d := newLoopDisk(t)
		put(t, "old", d.directory, "file")
		d.sync()
		put(t, "new", d.directory, "file.tmp")
		f, _ := os.OpenFile(filepath.Join(d.directory, "file.tmp"), os.O_RDWR, 0)
		if err := errors.Join(f.Sync(), f.Close(), os.Rename(f.Name(), filepath.Join(d.directory, "file"))); err != nil {
			t.Fatal(err)
		}
		d.cut()
		d.restore()
		if got := content(t, d.directory, "file"); got != "old" {
			t.Errorf("%q survived: the tests below would pass without fsync", got)
		}
	})
	for n := range 4 {
		t.Run(fmt.Sprintf("record %d, reported as saved, is there after the cut", n+1), func(t *testing.T) {
			d := newLoopDisk(t)
			directory := filepath.Join(d.directory, "state")
			s := mustOpen(t, store.Options{Directory: directory})
			for i := range n {
				mustSave(t, s, numbered(i+1), store.Written)
			}
			rec := mustSave(t, s, numbered(n+1), store.Written)
			d.cut()
			s.Close()
			d.restore()
			if got, err := store.Read(directory); err != nil || !cmp.Equal(got, rec) {
				t.Errorf("after the cut: %v, generation %d", err, got.Generation)
			}
			if got := content(t, directory, "state.env"); got != string(store.Environment(rec)) {
				t.Errorf("state.env: %q", got)
			}
		})
	}
	t.Run("the next start syncs a record that an earlier process had renamed but not synced", func(t *testing.T) {
		d := newLoopDisk(t)
		directory := filepath.Join(d.directory, "state")
		killed := errors.New("killed")
		dead := false
		s, err := store.OpenStepped(store.Options{Directory: directory}, noon, func(step, path string) error {
			// The process ends between the rename of state.env and the sync.
			if rec, err := store.Read(directory); dead || step == "sync" && err == nil && rec.Generation == 2 {
				dead = true
				return killed
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		mustSave(t, s, numbered(1), store.Written)
		if _, err := s.Save(numbered(2), noon); !errors.Is(err, killed) {
			t.Fatal(err)
		}
		s.Close()
		s = mustOpen(t, store.Options{Directory: directory})
		mustSave(t, s, numbered(2), store.Unchanged)
		d.cut()
		s.Close()
		d.restore()
		if rec := mustRead(t, directory); rec.Generation != 2 {
			t.Errorf("the record that was reported as saved is gone: generation %d", rec.Generation)
		}
		// With the fsync of state.env, ext4 wrote the rename of state.json; the rename of
		// state.env needs the sync of the start.
		if got := store.EnvironmentGeneration([]byte(content(t, directory, "state.env"))); got != 2 {
			t.Errorf("state.env that was reported as saved is gone: generation %d", got)
		}
	})
	t.Run("after a power failure before any step, the old or the new record is complete, and the next start repairs the rest", func(t *testing.T) {
		for step := 1; ; step++ {
			d := newLoopDisk(t)
			directory := filepath.Join(d.directory, "state")
			fill(t, directory, 2)
			d.sync()
			count, cut := 0, false
			s, err := store.OpenStepped(store.Options{Directory: directory}, noon, func(string, string) error {
				if count++; count == step+1 { // the first step is the sync of Open
					d.cut()
					cut = true
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			_, err = s.Save(numbered(3), noon)
			s.Close()
			if !cut {
				if err != nil || step < 8 {
					t.Fatalf("%d steps: %v", step, err)
				}
				return
			}
			if err == nil {
				t.Errorf("step %d: Save reports a record as saved that never reached the disk", step)
			}
			d.restore()
			rec := mustRead(t, directory)
			if rec.Generation == 2 && rec.DeviceID != "gw-0002" || rec.Generation == 3 && rec.DeviceID != "gw-0003" || rec.Generation < 2 || rec.Generation > 3 {
				t.Errorf("step %d: generation %d of %s", step, rec.Generation, rec.DeviceID)
			}
			next := mustOpen(t, store.Options{Directory: directory})
			if got := mustSave(t, next, numbered(4), store.Written); got.Generation != rec.Generation+1 {
				t.Errorf("step %d: generation %d after %d", step, got.Generation, rec.Generation)
			}
			for _, name := range names(t, directory) {
				if strings.HasPrefix(name, ".") {
					t.Errorf("step %d: %s was left", step, name)
				}
			}
			next.Close()
		}
	})
}

func TestRepair(t *testing.T) {
	for _, c := range []struct {
		name string
		harm func(directory string) error
		want store.Result
	}{
		{"nothing is written if the files are unchanged", func(string) error { return nil }, store.Unchanged},
		{"a removed state.json", func(d string) error { return os.Remove(filepath.Join(d, "state.json")) }, store.Written},
		{"a removed state.env", func(d string) error { return os.Remove(filepath.Join(d, "state.env")) }, store.Written},
		{"a changed state.env", func(d string) error {
			return os.WriteFile(filepath.Join(d, "state.env"), []byte("DPSD_DEVICE_ID=\"other\"\n"), 0o644)
		}, store.Written},
		{"a removed directory", os.RemoveAll, store.Written},
	} {
		t.Run(c.name, func(t *testing.T) {
			directory := filepath.Join(quick(t), "state")
			s := mustOpen(t, store.Options{Directory: directory})
			mustSave(t, s, numbered(1), store.Written)
			mustSave(t, s, numbered(2), store.Written)
			json, env := content(t, filepath.Join(directory, "state.json")), content(t, filepath.Join(directory, "state.env"))
			if err := c.harm(directory); err != nil {
				t.Fatal(err)
			}
			var mark string
			if c.want == store.Unchanged {
				mark = prints(t, directory)
			}
			result, err := s.Repair(noon)
			if err != nil || result != c.want {
				t.Errorf("%v, %v; want %v", result, err, c.want)
			}
			if c.want == store.Unchanged && prints(t, directory) != mark {
				t.Error("something was written")
			}
			if got := content(t, filepath.Join(directory, "state.json")); got != json {
				t.Errorf("state.json is %s", got)
			}
			if got := content(t, filepath.Join(directory, "state.env")); got != env {
				t.Errorf("state.env is %s", got)
			}
		})
	}
	t.Run("without a record, there is nothing to repair", func(t *testing.T) {
		s := mustOpen(t, store.Options{Directory: filepath.Join(quick(t), "state")})
		if result, err := s.Repair(noon); err != nil || result != store.Unchanged {
			t.Errorf("%v, %v", result, err)
		}
	})
}
