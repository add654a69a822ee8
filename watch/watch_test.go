package watch_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/watch"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scene is a directory with changing files; the first error ends the test.
type scene struct {
	t    *testing.T
	root string
}

func (s scene) path(name string) string { return filepath.Join(s.root, name) }

func (s scene) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s scene) write(name, data string) {
	s.t.Helper()
	s.must(os.WriteFile(s.path(name), []byte(data), 0o600))
}

func (s scene) mkdir(name string) { s.t.Helper(); s.must(os.MkdirAll(s.path(name), 0o755)) }

func (s scene) rename(from, to string) {
	s.t.Helper()
	s.must(os.Rename(s.path(from), s.path(to)))
}

func (s scene) link(target, name string) {
	s.t.Helper()
	s.must(os.Symlink(target, s.path(name)))
}

func (s scene) read(name string) string {
	data, _ := os.ReadFile(s.path(name))
	return string(data)
}

func TestFiles(t *testing.T) {
	tests := []struct {
		say    string
		watch  string
		before func(scene)
		change func(scene)
		want   string // content of the watched file afterwards; "" if absent
	}{
		{"a file that appears", "key",
			func(scene) {}, func(s scene) { s.write("key", "a") }, "a"},
		{"a file written in place", "key",
			func(s scene) { s.write("key", "a") }, func(s scene) { s.write("key", "b") }, "b"},
		{"a file replaced by rename", "key",
			func(s scene) { s.write("key", "a"); s.write("key.tmp", "b") }, func(s scene) { s.rename("key.tmp", "key") }, "b"},
		{"a file that is removed", "key",
			func(s scene) { s.write("key", "a") }, func(s scene) { s.must(os.Remove(s.path("key"))) }, ""},
		{"a file that is renamed away", "key",
			func(s scene) { s.write("key", "a") }, func(s scene) { s.rename("key", "key.old") }, ""},
		{"a file that becomes readable", "key",
			func(s scene) { s.write("key", "a") }, func(s scene) { s.must(os.Chmod(s.path("key"), 0o640)) }, "a"},
		{"a file with a change that stat does not show, as of its access list", "key",
			func(s scene) { s.write("key", "a") }, func(s scene) { s.must(os.Chmod(s.path("key"), 0o600)) }, "a"},
		{"a file in a directory that does not exist yet", "a/b/c/key",
			func(scene) {}, func(s scene) { s.mkdir("a/b/c"); s.write("a/b/c/key", "a") }, "a"},
		{"a file that comes with its directory in one rename", "a/b/key",
			func(s scene) { s.mkdir("new/b"); s.write("new/b/key", "a") }, func(s scene) { s.rename("new", "a") }, "a"},
		{"a directory removed and made again", "d/key",
			func(s scene) { s.mkdir("d"); s.write("d/key", "a") },
			func(s scene) { s.must(os.RemoveAll(s.path("d"))); s.mkdir("d"); s.write("d/key", "b") }, "b"},
		{"a directory swapped for another", "d/key",
			func(s scene) { s.mkdir("d"); s.write("d/key", "a"); s.mkdir("e"); s.write("e/key", "b") },
			func(s scene) { s.rename("d", "old"); s.rename("e", "d") }, "b"},
		{"an upper directory swapped for another", "u/d/key",
			func(s scene) { s.mkdir("u/d"); s.write("u/d/key", "a"); s.mkdir("v/d"); s.write("v/d/key", "b") },
			func(s scene) { s.rename("u", "old"); s.rename("v", "u") }, "b"},
		{"a symbolic link swapped for another", "key",
			func(s scene) {
				s.write("one", "a")
				s.write("two", "b")
				s.link("one", "key")
				s.link("two", "key.tmp")
			},
			func(s scene) { s.rename("key.tmp", "key") }, "b"},
		{"the target of a symbolic link in another directory", "key",
			func(s scene) { s.mkdir("d"); s.write("d/real", "a"); s.link("d/real", "key") },
			func(s scene) { s.write("d/real", "b") }, "b"},
		{"the target of a symbolic link that points nowhere yet", "key",
			func(s scene) { s.link("later/real", "key") },
			func(s scene) { s.mkdir("later"); s.write("later/real", "b") }, "b"},
		{"a swapped link above the file, as Kubernetes mounts secrets", "secret/key",
			func(s scene) {
				s.mkdir("secret/..1")
				s.write("secret/..1/key", "a")
				s.mkdir("secret/..2")
				s.write("secret/..2/key", "b")
				s.link("..1", "secret/..data")
				s.link("..data/key", "secret/key")
				s.link("..2", "secret/..data_tmp")
			},
			func(s scene) { s.rename("secret/..data_tmp", "secret/..data") }, "b"},
		{"an absolute link to a directory", "l/key",
			func(s scene) {
				s.mkdir("d")
				s.write("d/key", "a")
				s.must(os.Symlink(s.path("d"), s.path("l")))
			},
			func(s scene) { s.write("d/key", "b") }, "b"},
		{"a link upwards", "d/l/key",
			func(s scene) { s.mkdir("d"); s.mkdir("e"); s.write("e/key", "a"); s.link("../e/", "d/l") },
			func(s scene) { s.write("e/key", "b") }, "b"},
		{"a loop of links that is cut", "key",
			func(s scene) { s.link("other", "key"); s.link("key", "other") },
			func(s scene) { s.must(os.Remove(s.path("other"))); s.write("other", "b") }, "b"},
	}
	for _, test := range tests {
		t.Run(test.say+" is reported", func(t *testing.T) {
			s := scene{t, t.TempDir()}
			test.before(s)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			changed, err := watch.Files(ctx, s.path(test.watch), s.path("another"))
			if err != nil {
				t.Fatal(err)
			}
			test.change(s)
			// If the change is missed, the test does not end.
			for <-changed; s.read(test.watch) != test.want; <-changed {
			}
			// The file is still watched: for a change in place, then for its removal.
			if test.want == "" {
				return
			}
			for i := range 3 {
				want := string(rune('x' + i))
				s.write(test.watch, want)
				for <-changed; s.read(test.watch) != want; <-changed {
				}
			}
		})
	}
}

func TestFilesCoalesces(t *testing.T) {
	s := scene{t, t.TempDir()}
	changed, err := watch.Files(t.Context(), s.path("one"), s.path("two"))
	if err != nil {
		t.Fatal(err)
	}
	for range 1000 {
		s.write("one", "a")
		s.write("two", "b")
	}
	s.write("two", "last")
	for <-changed; s.read("two") != "last"; <-changed {
	}
	if cap(changed) != 1 {
		t.Errorf("the channel holds %d values", cap(changed))
	}
}

func TestFilesRelative(t *testing.T) {
	s := scene{t, t.TempDir()}
	t.Chdir(s.root)
	changed, err := watch.Files(t.Context(), "key")
	if err != nil {
		t.Fatal(err)
	}
	s.write("key", "a")
	<-changed
}

func TestFilesOfNothing(t *testing.T) {
	changed, err := watch.Files(t.Context())
	if err != nil || changed == nil {
		t.Errorf("%v, %v", changed, err)
	}
}

func TestOtherFilesInADirectoryAreIgnored(t *testing.T) {
	s := scene{t, t.TempDir()}
	s.mkdir("d")
	s.link("d/real", "key")
	reacted, err := watch.Reaction([]string{s.path("key"), s.path("missing/x")}, []string{
		s.path("key"), s.path("d"), s.path("d/real"), s.path("missing"), // on the route
		s.path(".key123"), s.path("d/other"), s.path("real"), s.path("missing/x"), // not on the route, or not yet
	})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{s.path("key"), s.path("d"), s.path("d/real"), s.path("missing")}; !slices.Equal(reacted, want) {
		t.Errorf("reactions: %q, want %q", reacted, want)
	}
}

func TestWritesToOtherFilesCauseNoWakeup(t *testing.T) {
	s := scene{t, t.TempDir()}
	s.mkdir("d")
	for _, name := range []string{"log", "d/log", "d/key"} {
		s.write(name, "a")
	}
	reported, err := watch.Reported(s.path("d/key"), func() {
		for _, name := range []string{"log", "d/log"} {
			s.write(name, "b")
		}
		s.must(os.Chtimes(s.path("d/key"), time.Now(), time.Now()))
	}, s.path("d/key"))
	reported = slices.DeleteFunc(reported, func(name string) bool { return !strings.HasPrefix(name, s.root) }) // files of other programs in /tmp
	if err != nil || len(reported) > 0 {
		t.Errorf("the kernel reports %q, %v", reported, err)
	}
}

// The test uses a pipe instead of a device, because only root can create a device.
func TestAWriteToADeviceIsNotReported(t *testing.T) {
	s := scene{t, t.TempDir()}
	s.must(syscall.Mkfifo(s.path("device"), 0o600))
	reported, err := watch.Reported(s.path("device"), func() {
		device, err := os.OpenFile(s.path("device"), os.O_RDWR, 0)
		s.must(err)
		_, err = device.WriteString("a command")
		s.must(errors.Join(err, device.Close()))
		s.write("last", "")
	}, s.path("last"))
	reported = slices.DeleteFunc(reported, func(name string) bool { return !strings.HasPrefix(name, s.root) }) // files of other programs in /tmp
	if err != nil || len(reported) > 0 {
		t.Errorf("the kernel reports %q, %v", reported, err)
	}
}

func TestOneFileUnderTwoNames(t *testing.T) {
	s := scene{t, t.TempDir()}
	s.write("one", "a")
	s.must(os.Link(s.path("one"), s.path("two")))
	for _, name := range []string{"one", "two"} {
		changed, err := watch.Files(t.Context(), s.path("one"), s.path("two"))
		if err != nil {
			t.Fatal(err)
		}
		s.write(name, "b")
		<-changed
		s.must(os.Remove(s.path("one")))
		<-changed
		s.write("two", "c")
		<-changed
		s.must(os.Link(s.path("two"), s.path("one")))
	}
}

func TestUnreadableDirectory(t *testing.T) {
	s := scene{t, t.TempDir()}
	s.mkdir("d/e")
	s.write("d/e/key", "a")
	s.must(os.Chmod(s.path("d"), 0o311))
	defer func() { s.must(os.Chmod(s.path("d"), 0o755)) }() // so that it can be removed
	if os.Geteuid() == 0 {
		s.must(os.Chmod(filepath.Dir(s.root), 0o711)) // MkdirTemp allows only root
		// Only this thread changes its user to nobody, and only for the file system.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		s.must(syscall.Setfsuid(65534))
		defer func() { _ = syscall.Setfsuid(0) }()
	}
	reacted, err := watch.Reaction([]string{s.path("d/e/key")}, []string{s.path("d/e/key")})
	if err != nil || len(reacted) != 1 {
		t.Errorf("a directory that is searchable but not readable ends the watch of the others: %q, %v", reacted, err)
	}
}

// TestFilesUnderStress makes many concurrent changes and expects a report of the last
// state.
func TestFilesUnderStress(t *testing.T) {
	s := scene{t, t.TempDir()}
	s.mkdir("a")
	changed, err := watch.Files(t.Context(), s.path("l/key"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		want := string(rune('0' + i%10))
		directory := "d" + want
		s.must(os.RemoveAll(s.path(directory)))
		s.mkdir(directory)
		s.must(os.RemoveAll(s.path("l.tmp")))
		s.link(directory, "l.tmp")
		s.rename("l.tmp", "l")
		s.write("l/key.tmp", want)
		s.rename("l/key.tmp", "l/key")
		for <-changed; s.read("l/key") != want; <-changed {
		}
	}
}

// TestFilesInFreshTrees repeatedly creates all directories of a file: a directory that is
// created between resolving and watching must not be missed.
func TestFilesInFreshTrees(t *testing.T) {
	s := scene{t, t.TempDir()}
	changed, err := watch.Files(t.Context(), s.path("a/b/c/key"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		want := string(rune('0' + i%10))
		s.must(os.RemoveAll(s.path("a")))
		s.mkdir("a/b")
		s.mkdir("real" + want)
		s.link("../../real"+want, "a/b/c")
		s.write("real"+want+"/key", want)
		for <-changed; s.read("a/b/c/key") != want; <-changed {
		}
		s.write("real"+want+"/key", "again")
		for <-changed; s.read("a/b/c/key") != "again"; <-changed {
		}
		s.must(os.RemoveAll(s.path("real" + want)))
	}
}
