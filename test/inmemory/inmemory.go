// Package inmemory moves the temporary directories of tests to memory.
package inmemory

import (
	"os"

	"golang.org/x/sys/unix"
)

// directory is the file system in memory of every Linux system. All users may write to it, as to /tmp.
const directory = "/dev/shm"

// room is more space than the tests need. Docker limits the file system to 64 MB.
const room = 256 << 20

// Use makes testing.T.TempDir and os.MkdirTemp create directories in memory, where fsync takes no
// time. dpsd syncs each file that it publishes; on a slow disk, tests would wait for that most of
// the time. Tests of power failures have disks of their own. Use does nothing if TMPDIR is set, or
// if the file system is small or cannot contain programs.
func Use() {
	var s unix.Statfs_t
	if os.Getenv("TMPDIR") != "" || unix.Access(directory, unix.W_OK) != nil || unix.Statfs(directory, &s) != nil ||
		int64(s.Flags)&unix.MS_NOEXEC != 0 || int64(s.Bavail)*int64(s.Bsize) < room { //nolint:unconvert // 32 bits on arm
		return
	}
	_ = os.Setenv("TMPDIR", directory)
}
