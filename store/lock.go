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

// lock is an exclusive flock(2) on an empty file. The kernel knows its holder, so no write
// at each boot is needed. The kernel releases the lock when the process ends for any
// reason. The file is never removed, because a third process could then lock another file
// of the same name. It is open only for reading: a file that is open for writing prevents a
// read-only remount of its file system.
type lock struct {
	file   *os.File
	mounts []watch.Mount // mounts on its directory when it was acquired
}

// acquire locks the file "lock" in w's directory. The error is a *LockedError, or another
// error if the file can be neither opened nor created.
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
		// NFS converts it to a byte-range lock, which requires a file that is open for
		// writing.
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

// openLock opens the file of a lock, and creates it if it does not exist.
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

// clearLock removes anything that is not a file from the place of the lock. Two processes
// may do so simultaneously, and the slower one must not remove the new lock of the other:
// therefore, clearLock locks the directory and then checks again.
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

// Holder returns the *LockedError that dpsd would get in a state directory if it started
// now, or nil if it would get none or this is unknown. It takes no lock.
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

// holder returns the process that holds the lock according to /proc/locks, see
// proc_locks(5). It returns 0 if the process is not visible, as in another PID namespace or
// with ProcSubset=pid.
func holder(f *os.File) int {
	var file syscall.Stat_t
	if syscall.Fstat(int(f.Fd()), &file) != nil {
		return 0
	}
	device := uint64(file.Dev) //nolint:unconvert // 32 bits on some machines
	// This is the inverse of makedev(3).
	major, minor := device>>8&0xfff|device>>32&^uint64(0xfff), device&0xff|device>>12&^uint64(0xff)
	name := fmt.Sprintf("%02x:%02x:%d", major, minor, file.Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(locks)) {
		// "1: FLOCK ADVISORY WRITE 7 fe:00:42 0 EOF"; a waiting one has "->" in second
		// place.
		if fields := strings.Fields(line); len(fields) > 5 && fields[1] == "FLOCK" && fields[5] == name {
			pid, err := strconv.Atoi(fields[4])
			if err == nil && pid > 0 {
				return pid
			}
		}
	}
	return 0
}

// in reports whether l is the lock that another process would find in directory, which may
// have been removed and created again.
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

// covered reports whether a file system was mounted on the directory, or unmounted from it,
// below the mount that this process sees. This can happen in the mount namespace of a
// service, which has its own mount on top: other processes then see another directory.
func (l *lock) covered(directory string) bool {
	now := watch.Mounts(directory)
	gone := func(m watch.Mount) bool { return !slices.Contains(now, m) }
	// Mounting a directory on itself makes no difference.
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
