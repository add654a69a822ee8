package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/dpsd-project/dpsd/watch"
)

// lock is an exclusive flock(2) on an empty file: who holds it the kernel knows, and a
// flash disk is spared a write at each boot. The kernel lets go of it when the process
// ends, however it ends; the file stays, because removing it would let a third process
// lock another file of the same name. It is open for reading only: a file that is open for
// writing keeps its file system from being remounted read-only.
type lock struct {
	file   *os.File
	mounts []watch.Mount // on its directory, when it was taken
}

// acquire locks the file "lock" in w's directory. Errors: *LockedError; any
// other says that the file can neither be opened nor made.
func acquire(w *writer) (*lock, error) {
	path := w.path(lockName)
	f, err := openLock(path, os.O_RDONLY)
	if err == nil && !regularFile(f) || err != nil && exists(path) && !regular(path) {
		if err == nil {
			_ = f.Close()
		}
		if err = clearLock(w); err != nil {
			return nil, err
		}
		f, err = openLock(path, os.O_RDONLY)
	}
	if err != nil {
		return nil, err
	}
	err = flock(f)
	if errors.Is(err, syscall.EBADF) {
		// NFS makes a lock of a byte range of it, which takes a file open for writing.
		_ = f.Close()
		if f, err = openLock(path, os.O_RDWR); err != nil {
			return nil, err
		}
		err = flock(f)
	}
	if err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Path: path, PID: holder(f)}
		}
		return nil, &os.PathError{Op: "flock", Path: path, Err: err}
	}
	_ = w.own(f)
	return &lock{f, watch.Mounts(w.directory)}, nil
}

// openLock opens the file of a lock, and makes it when it is missing.
func openLock(path string, access int) (*os.File, error) {
	return os.OpenFile(path, access|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, lockMode)
}

func flock(f *os.File) error {
	for {
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

func regularFile(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode().IsRegular()
}

// clearLock removes what is no file from the place of the lock. Two processes
// may find it at the same time, and the slower one must not remove the lock of
// the quicker: so this takes a lock on the directory, and looks again under it.
func clearLock(w *writer) error {
	directory, err := os.Open(w.directory)
	if err != nil {
		return err
	}
	defer directory.Close()
	if err := syscall.Flock(int(directory.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return &os.PathError{Op: "flock", Path: w.directory, Err: err}
	}
	path := w.path(lockName)
	if regular(path) || !exists(path) {
		return nil
	}
	if err := w.clear(lockName); err != nil || !exists(path) {
		return err
	}
	return w.remove(lockName)
}

// Holder returns the *LockedError that a dpsd that starts now would meet in a state
// directory; nil when it would meet none, or when that cannot be told. It takes no lock.
func Holder(directory string) error {
	path := filepath.Join(directory, lockName)
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	defer f.Close()
	if pid := holder(f); pid != 0 {
		return &LockedError{Path: path, PID: pid}
	}
	return nil
}

// holder finds the process that holds the lock in /proc/locks, proc_locks(5); 0 where it
// is not to be seen, as in another PID name space or under ProcSubset=pid.
func holder(f *os.File) int {
	var file syscall.Stat_t
	if syscall.Fstat(int(f.Fd()), &file) != nil {
		return 0
	}
	device := uint64(file.Dev) //nolint:unconvert // 32 bits on some machines
	// makedev(3) the other way round.
	major, minor := device>>8&0xfff|device>>32&^uint64(0xfff), device&0xff|device>>12&^uint64(0xff)
	name := fmt.Sprintf("%02x:%02x:%d", major, minor, file.Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(locks)) {
		// "1: FLOCK ADVISORY WRITE 7 fe:00:42 0 EOF"; one that waits has "->" second.
		if fields := strings.Fields(line); len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == name {
			pid, err := strconv.Atoi(fields[4])
			if err == nil && pid > 0 {
				return pid
			}
		}
	}
	return 0
}

// in tells whether l is the lock that another process would find in directory:
// the directory may have been removed and made anew meanwhile.
func (l *lock) in(directory string) bool {
	if l == nil {
		return false
	}
	mine, err := l.file.Stat()
	if err != nil {
		return false
	}
	found, err := os.Lstat(filepath.Join(directory, lockName))
	return err == nil && os.SameFile(mine, found)
}

// covered tells whether a file system was mounted on the directory, or unmounted from it,
// beneath the mount that this process sees there. That is so in the mount namespace of a
// service, which has a mount of its own on top: other processes see another directory.
func (l *lock) covered(directory string) bool {
	now := watch.Mounts(directory)
	gone := func(m watch.Mount) bool { return !slices.Contains(now, m) }
	// A directory may be mounted on itself, now or later, and nothing is different.
	foreign := func(m watch.Mount) bool {
		return !slices.ContainsFunc(l.mounts, func(known watch.Mount) bool { return known.Device == m.Device })
	}
	return len(l.mounts) > 0 && (slices.ContainsFunc(l.mounts, gone) || slices.ContainsFunc(now, foreign))
}

func (l *lock) release() error {
	if l == nil {
		return nil
	}
	return l.file.Close()
}
