package system

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// watchers is how many inotify(7) instances a container needs while it boots.
const watchers = 8

// watchersLeft returns an error if so many instances are not available: the kernel counts those of
// all programs of root together, in every container, and systemd exits without naming the limit.
func watchersLeft() error {
	for range watchers {
		fd, err := syscall.InotifyInit1(syscall.IN_CLOEXEC)
		if err != nil {
			limit, _ := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
			return fmt.Errorf("inotify_init1: %w: a container needs %d instances, and root's programs have used up fs.inotify.max_user_instances, %s: sysctl fs.inotify.max_user_instances=1024",
				err, watchers, strings.TrimSpace(string(limit)))
		}
		defer syscall.Close(fd)
	}
	return nil
}

// The test uses a user namespace, which has its own limit.
func TestABootWithoutWatchersNamesTheLimit(t *testing.T) {
	const child = "DPSD_TEST_WATCHERS"
	if os.Getenv(child) != "" {
		fmt.Println(watchersLeft())
		return
	}
	need(t)
	cmd := exec.Command("unshare", "--user", "--map-root-user", "sh", "-c",
		`echo 3 >/proc/sys/user/max_inotify_instances && exec "$0" -test.run "^`+t.Name()+`$"`, os.Args[0])
	cmd.Env = append(os.Environ(), child+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "too many open files") || !strings.Contains(string(out), ": sysctl fs.inotify.max_user_instances=") {
		t.Errorf("%v: it says %s", err, out)
	}
}
