package store_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

// actAsService is the helper process of these tests: it opens a store, saves the record of
// each number that it reads, and prints the result.
func actAsService() int {
	s, err := store.Open(store.Options{Directory: os.Getenv("DPSD_TEST_STATE"), RuntimeDirectory: os.Getenv("DPSD_TEST_RUNTIME"), CertificateGroup: os.Getenv("DPSD_TEST_GROUP")}, noon)
	if err != nil {
		fmt.Println("open:", err)
		return 0
	}
	for {
		var n int
		var question string
		if _, err := fmt.Scanln(&question); err != nil {
			return 0
		}
		switch question {
		case "pair":
			pair, found, err := s.Pair()
			fmt.Println(pair.Number, found, err)
			continue
		case "check":
			fmt.Println(s.CheckPair())
			continue
		case "request":
			fmt.Println(s.SavePendingKey(pendingKey(8)))
			continue
		case "issue":
			key, _, _ := s.PendingKey()
			fmt.Println(s.SavePair(pairUntil(days(90)), chainFor(key.PEM), noon))
			continue
		case "notices":
			fmt.Println(s.Notices())
			continue
		default:
			if n, err = strconv.Atoi(question); err != nil {
				return 2
			}
		}
		result, err := s.Save(numbered(n), noon)
		if err != nil {
			fmt.Println("refused:", err)
			continue
		}
		rec, _ := s.Current()
		fmt.Println(result, rec.Generation)
	}
}

// service is such a process. Its user is not root, which may write everywhere.
type service struct {
	t     *testing.T
	in    io.Writer
	lines *bufio.Scanner
}

const serviceUser = 61234

func startService(t *testing.T, directory, runtime string, change ...func(*exec.Cmd)) *service {
	t.Helper()
	// Other users cannot access the directory of the test binary.
	binary, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	place := quick(t)
	path := filepath.Join(place, "dpsd-store.test")
	if err := errors.Join(os.Chmod(place, 0o755), os.WriteFile(path, binary, 0o755), os.Chmod(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	cmd.Env = append(os.Environ(), helperVariable+"=service", "DPSD_TEST_STATE="+directory, "DPSD_TEST_RUNTIME="+runtime)
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: serviceUser, Gid: serviceUser}}
	for _, change := range change {
		change(cmd)
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	})
	return &service{t, in, bufio.NewScanner(out)}
}

// saves makes the service save record n and expects a response that contains want.
func (s *service) saves(n int, want string) {
	s.t.Helper()
	fmt.Fprintln(s.in, n)
	if !s.lines.Scan() {
		s.t.Fatal("the service has ended")
	}
	got := s.lines.Text()
	if reason, refused := strings.CutPrefix(got, "refused: "); got != want && (!refused || !strings.Contains(reason, want)) {
		s.t.Errorf("saving %d: %s\nwant %s", n, got, want)
	}
}

// answer returns the answer of the service to a question of actAsService.
func (s *service) answer(question string) string {
	s.t.Helper()
	fmt.Fprintln(s.in, question)
	if !s.lines.Scan() {
		s.t.Fatal("the service has ended")
	}
	return s.lines.Text()
}

// places returns a state directory in a parent that root owns, and a runtime directory. The
// service's user owns both.
func places(t *testing.T) (directory, runtime string) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root, to start a process as another user")
	}
	parent := quick(t)
	directory, runtime = filepath.Join(parent, "state"), filepath.Join(parent, "run")
	if err := os.Chmod(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	own(t, directory)
	own(t, runtime)
	return directory, runtime
}

// own creates a directory that the service's user owns.
func own(t *testing.T, directory string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(directory, 0o755), os.Chown(directory, serviceUser, serviceUser)); err != nil {
		t.Fatal(err)
	}
}

func TestDirectoryOfAnotherUser(t *testing.T) {
	t.Run("a directory of another user refuses a change, not an identical record", func(t *testing.T) {
		directory, runtime := places(t)
		fill(t, directory, 2)
		if err := os.Chown(directory, 0, 0); err != nil {
			t.Fatal(err)
		}
		s := startService(t, directory, runtime)
		s.saves(2, "unchanged 2")
		mark := prints(t, directory)
		s.saves(3, "cannot write "+filepath.Join(directory, "state.json")+": permission denied; the record is published in "+runtime)
		if rec := mustRead(t, runtime); rec.Generation != 3 {
			t.Errorf("generation %d under the runtime directory", rec.Generation)
		}
		if prints(t, directory) != mark {
			t.Error("the directory changed")
		}
		own(t, directory)
		s.saves(3, "written 3")
		if rec := mustRead(t, directory); rec.Generation != 3 {
			t.Errorf("generation %d", rec.Generation)
		}
		gone(t, runtime, "state.json")
	})
	t.Run("a lock of another user is reported, since the directory is writable", func(t *testing.T) {
		directory, runtime := places(t)
		lock := filepath.Join(directory, "lock")
		put(t, "", lock)
		if err := os.Chmod(lock, 0o600); err != nil {
			t.Fatal(err)
		}
		s := startService(t, directory, runtime)
		s.saves(1, "cannot write "+lock+": permission denied; the record is published in "+runtime)
		if err := os.Chown(lock, serviceUser, serviceUser); err != nil {
			t.Fatal(err)
		}
		s.saves(1, "written 1")
	})
	t.Run("a record without read permission counts as damaged, and the previous one replaces it", func(t *testing.T) {
		directory, runtime := places(t)
		fill(t, directory, 2)
		path := filepath.Join(directory, "state.json")
		if err := errors.Join(os.Chown(path, 0, 0), os.Chmod(path, 0o600)); err != nil {
			t.Fatal(err)
		}
		s := startService(t, directory, runtime)
		s.saves(1, "unchanged 3")
		if rec := mustRead(t, directory); rec.Generation != 3 || rec.DeviceID != "gw-0001" {
			t.Errorf("generation %d of %s", rec.Generation, rec.DeviceID)
		}
	})
}

func TestDirectoryAtRunTime(t *testing.T) {
	t.Run("a removed directory is reported, and used again after it has been restored", func(t *testing.T) {
		directory, runtime := places(t)
		s := startService(t, directory, runtime)
		s.saves(1, "written 1")
		if err := os.RemoveAll(directory); err != nil {
			t.Fatal(err)
		}
		const reason = "does not exist and cannot be created: permission denied; the record is published in "
		s.saves(1, "the directory "+directory+" "+reason+runtime)
		s.saves(2, reason)
		if rec := mustRead(t, runtime); rec.Generation != 2 {
			t.Errorf("generation %d under the runtime directory", rec.Generation)
		}
		own(t, directory) // like a restart of the unit
		s.saves(2, "written 2")
		gone(t, runtime, "state.json")
		if _, err := store.Open(store.Options{Directory: directory}, noon); !errors.As(err, new(*store.LockedError)) {
			t.Errorf("Open: %v, want *LockedError: the new directory is locked too", err)
		}
	})
	t.Run("the next process gets the directory and the unsaved record after a restart", func(t *testing.T) {
		directory, runtime := places(t)
		t.Run("the first process", func(t *testing.T) {
			s := startService(t, directory, runtime)
			s.saves(1, "written 1")
			if err := os.RemoveAll(directory); err != nil {
				t.Fatal(err)
			}
			s.saves(2, "does not exist and cannot be created")
		})
		own(t, directory)
		s := startService(t, directory, runtime)
		s.saves(2, "unchanged 2") // Open has written it
		if rec := mustRead(t, directory); rec.Generation != 2 {
			t.Errorf("generation %d", rec.Generation)
		}
	})
	t.Run("a directory that replaces it gets the record, a lock, and no lower generation", func(t *testing.T) {
		directory, runtime := places(t)
		s := startService(t, directory, runtime)
		s.saves(1, "written 1")
		s.saves(2, "written 2")
		old := directory + ".old"
		if err := os.Rename(directory, old); err != nil {
			t.Fatal(err)
		}
		mark := prints(t, old)
		own(t, directory)
		s.saves(2, "written 2")
		s.saves(3, "written 3")
		if rec := mustRead(t, directory); rec.Generation != 3 {
			t.Errorf("generation %d", rec.Generation)
		}
		if prints(t, old) != mark {
			t.Error("the directory that was moved away changed")
		}
		if _, err := store.Open(store.Options{Directory: directory}, noon); !errors.As(err, new(*store.LockedError)) {
			t.Errorf("Open: %v, want *LockedError", err)
		}
	})
	t.Run("a directory that replaces it and that another process has locked is not changed", func(t *testing.T) {
		directory, runtime := places(t)
		s := startService(t, directory, runtime)
		s.saves(1, "written 1")
		if err := os.Rename(directory, directory+".old"); err != nil {
			t.Fatal(err)
		}
		own(t, directory)
		other := mustOpen(t, store.Options{Directory: directory})
		mustSave(t, other, numbered(7), store.Written)
		mark := prints(t, directory)
		s.saves(2, fmt.Sprintf("is locked by process %d", os.Getpid()))
		if prints(t, directory) != mark {
			t.Error("the directory was written to")
		}
		other.Close()
		s.saves(2, "written 2")
	})
	t.Run("a file that replaces it is reported and not changed", func(t *testing.T) {
		directory, runtime := places(t)
		s := startService(t, directory, runtime)
		s.saves(1, "written 1")
		if err := os.RemoveAll(directory); err != nil {
			t.Fatal(err)
		}
		put(t, "precious", directory)
		s.saves(2, "not a directory; the record is published in "+runtime)
		if content(t, directory) != "precious" {
			t.Error("the file changed")
		}
	})
}
