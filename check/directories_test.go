package check_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// directories checks a gateway with these directories and returns the results about them.
func directories(t *testing.T, state, runtime string) []check.Result {
	t.Helper()
	return run(t, &check.Gateway{
		Settings:       &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}},
		StateDirectory: state, RuntimeDirectory: runtime,
	}, check.State)
}

func TestTheRuntimeDirectoryIsChecked(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), os.Symlink("gone", filepath.Join(dir, "link"))); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, runtime string
		says          string // "" if nothing is reported
	}{
		{"a writable directory is ok", dir, ""},
		{"a directory that dpsd can create is ok", filepath.Join(dir, "run"), ""},
		{"a directory without a parent is a warning", filepath.Join(dir, "no", "run"), "the directory " + dir + "/no/run does not exist and cannot be created: no such file or directory"},
		{"a file is not a directory", filepath.Join(dir, "file"), dir + "/file is a file, not a directory"},
		{"a dangling link is named with its target", filepath.Join(dir, "link"), "the directory " + dir + "/link is a link to " + dir + "/gone, which does not exist"},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := directories(t, t.TempDir(), c.runtime)
			if c.says == "" {
				if len(all) != 1 {
					t.Errorf("%+v", all)
				}
				return
			}
			r := all[len(all)-1]
			if len(all) != 2 || r.Status != check.Warning || r.Subject != c.runtime || !strings.Contains(r.Detail, c.says) || !strings.Contains(r.Advice, "[control] socket") {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestAnUnusableStateDirectoryIsOneFailureThatDescribesThePath(t *testing.T) {
	for _, c := range []struct {
		name  string
		make  func(path string) error
		below string // subpath that is the state directory
		says  string
	}{
		{"a dangling link", func(path string) error { return os.Symlink("/data/no-such-directory/dpsd", path) }, "", "the directory PATH is a link to /data/no-such-directory/dpsd, which does not exist"},
		{"a file", func(path string) error { return os.WriteFile(path, nil, 0o600) }, "", "PATH is a file, not a directory"},
		{"a path below a file", func(path string) error { return os.WriteFile(path, nil, 0o600) }, "dpsd", "PATH is a file, not a directory"},
		{"a link to a device", func(path string) error { return os.Symlink("/dev/null", path) }, "", "PATH is a device, not a directory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "state")
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			g := &check.Gateway{Settings: &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}}, StateDirectory: filepath.Join(path, c.below)}
			r := run(t, g, check.State)
			want := "cannot write " + g.StateDirectory + ": " + strings.ReplaceAll(c.says, "PATH", path)
			if len(r) != 1 || r[0].Status != check.Failed || r[0].Code != fault.StateUnwritable || r[0].Detail != want {
				t.Errorf("%+v\nwant %s", r, want)
			}
			if r := run(t, g, check.Record); len(r) != 1 || r[0].Status != check.Skipped || r[0].Detail != "not checked: the state directory cannot be used" {
				t.Errorf("%+v", r)
			}
		})
	}
}

// mounting runs the test again in its own mount namespace, where it returns a directory for
// the test. Outside of the namespace it returns "".
func mounting(t *testing.T) (dir string) {
	t.Helper()
	const inside = "DPSD_TEST_MOUNT_OVER"
	dir = os.Getenv(inside)
	if dir == "" {
		dir := t.TempDir()
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"="+dir)
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		switch out, err := cmd.CombinedOutput(); {
		case errors.Is(err, os.ErrPermission) && os.Getenv("CI") == "":
			t.Skip("only root may mount")
		case err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()):
			t.Errorf("%v\n%s", err, out)
		}
		return ""
	}
	return dir
}

func TestAFullRuntimeDirectoryIsAWarning(t *testing.T) {
	dir := mounting(t)
	if dir == "" {
		return
	}
	for _, c := range []struct{ name, options, says string }{
		{"too little space", "size=4k", "no space left on device: 0 MB free; dpsd cannot store"},
		{"no inode", "nr_inodes=2", "free, no free inodes; dpsd cannot store"},
		{"enough of both", "size=2m", ""},
	} {
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, c.options); err != nil {
			t.Fatal(err)
		}
		all := directories(t, t.TempDir(), dir)
		r := all[len(all)-1]
		if c.says == "" && len(all) == 1 {
			continue
		}
		if len(all) != 2 || r.Status != check.Warning || r.Subject != dir || !strings.Contains(r.Detail, c.says) || !strings.Contains(r.Advice, "Free up space") {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

func TestADirectoryOrAMountAtThePathOfTheControlSocketIsAWarning(t *testing.T) {
	dir := mounting(t)
	if dir == "" {
		return
	}
	socket, other := filepath.Join(dir, "dpsd.sock"), filepath.Join(dir, "other")
	for _, c := range []struct {
		name string
		make func() error
		says string
	}{
		{"nothing", func() error { return nil }, ""},
		{"a file", func() error { return os.WriteFile(socket, nil, 0o600) }, ""},
		{"a mount point", func() error {
			return errors.Join(os.WriteFile(other, nil, 0o600), syscall.Mount(other, socket, "", syscall.MS_BIND, ""))
		}, "because its path is a mount point"},
		{"a directory", func() error {
			return errors.Join(syscall.Unmount(socket, 0), os.Remove(socket), os.Mkdir(socket, 0o700))
		}, "because its path is a directory"},
	} {
		if err := c.make(); err != nil {
			t.Fatal(err)
		}
		l, refused := control.Listen(socket)
		if refused == nil {
			refused = errors.Join(l.Close(), os.Remove(socket), os.WriteFile(socket, nil, 0o600))
			if refused != nil {
				t.Fatal(refused)
			}
		}
		if (c.says == "") != (refused == nil) {
			t.Errorf("%s: dpsd run: %v", c.name, refused)
		}
		all := run(t, &check.Gateway{
			Settings:       &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}},
			StateDirectory: dir, RuntimeDirectory: dir, Socket: socket,
		}, check.State)
		r := all[len(all)-1]
		if c.says == "" && len(all) == 1 {
			continue
		}
		if len(all) != 2 || r.Status != check.Warning || r.Subject != socket || !strings.Contains(r.Detail, c.says) || !strings.Contains(r.Advice, "[control] socket") {
			t.Errorf("%s: %+v", c.name, r)
		}
	}
}

// The test mounts a file over state.env.
func TestAFileThatIsAMountPointIsAFailureThatNamesIt(t *testing.T) {
	dir := mounting(t)
	if dir == "" {
		return
	}
	env, other, record := filepath.Join(dir, "state.env"), filepath.Join(dir, "other"), filepath.Join(dir, "state.json")
	if err := errors.Join(os.WriteFile(env, nil, 0o600), os.WriteFile(other, nil, 0o600), syscall.Mount(other, env, "", syscall.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	r := directories(t, dir, "")[0]
	if r.Status != check.Failed || r.Code != fault.StateUnwritable || !strings.Contains(r.Detail, "cannot write "+env+": device or resource busy (a file that is a mount point cannot be replaced") || !strings.Contains(r.Advice, "mount the whole directory instead") {
		t.Errorf("%+v", r)
	}
	if err := errors.Join(syscall.Unmount(env, 0), os.WriteFile(record, nil, 0o600), syscall.Mount(other, record, "", syscall.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	g := &check.Gateway{Settings: &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}}, StateDirectory: dir}
	if r := run(t, g, check.Record)[0]; r.Status != check.Warning || r.Advice != "First fix the failed \"state\" step; until then, dpsd cannot replace the file." {
		t.Errorf("%+v", r)
	}
}

func TestALockThatAnotherProcessHoldsIsAFailureThatNamesTheProcess(t *testing.T) {
	dir := t.TempDir()
	s, err := store.Open(store.Options{Directory: dir}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	g := &check.Gateway{
		Settings: &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}}, StateDirectory: dir,
		Ask: func(context.Context) (control.Status, error) { return control.Status{}, control.ErrNotRunning },
	}
	r := run(t, g, check.Service)[0]
	if r.Status != check.Failed || r.Code != fault.StateLocked || !strings.Contains(r.Detail, fmt.Sprintf("%s/lock is locked by process %d", dir, os.Getpid())) {
		t.Errorf("%+v", r)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if r := run(t, g, check.Service)[0]; r.Status != check.Skipped {
		t.Errorf("without a lock: %+v", r)
	}
}

// A dpsd that runs may have no control socket, for example in a container without a file system
// for it.
func TestADpsdWithoutAControlSocketIsNotReportedAsStoppedOrAsAnotherDpsd(t *testing.T) {
	state, runtime := t.TempDir(), filepath.Join(t.TempDir(), "run")
	s, err := store.Open(store.Options{Directory: state}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	detail := fmt.Sprintf("dpsd is running (process %d), but has no control socket, because it cannot create files in %s: no such file or directory", os.Getpid(), runtime)
	g := &check.Gateway{
		Settings: &daemon.Settings{Dialer: &transport.Dialer{Host: "localhost"}}, StateDirectory: state, RuntimeDirectory: runtime,
		Ask: func(context.Context) (control.Status, error) { return control.Status{}, control.ErrNotRunning },
	}
	if r := run(t, g, check.Service)[0]; r.Status != check.Warning || r.Detail != detail || !strings.Contains(r.Advice, "mount a tmpfs there") {
		t.Errorf("%+v", r)
	}
	if stop, found := check.Unreachable(state, runtime); !found || stop.Reason != check.NoAnswer || stop.Detail != detail {
		t.Errorf("%v, %+v", found, stop)
	}
	if err := os.Mkdir(runtime, 0o755); err != nil {
		t.Fatal(err)
	}
	if stop, found := check.Unreachable(state, runtime); found {
		t.Errorf("with a directory for the socket, it is another dpsd: %+v", stop)
	}
	if err := errors.Join(s.Close(), os.Remove(runtime)); err != nil {
		t.Fatal(err)
	}
	if stop, found := check.Unreachable(state, runtime); found {
		t.Errorf("no dpsd runs: %+v", stop)
	}
}
