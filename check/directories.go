package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/store"
)

// obstacle returns the error with which dpsd would fail to replace the files in a writable
// state directory, or nil: a file is a mount point or immutable, or the lock cannot be opened.
func obstacle(directory string) error {
	files := store.Files(directory)
	for _, path := range append(files, files[0]+".prev") {
		var file unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &file); err != nil {
			continue // it does not exist
		}
		switch {
		case file.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
			return &store.WriteError{Path: path, Err: syscall.EBUSY}
		case file.Attributes&(unix.STATX_ATTR_IMMUTABLE|unix.STATX_ATTR_APPEND) != 0:
			return &store.WriteError{Path: path, Err: syscall.EPERM}
		}
	}
	lock := filepath.Join(directory, "lock")
	f, err := os.OpenFile(lock, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrPermission) {
		return &store.WriteError{Path: lock, Err: input.Cause(err)}
	}
	if err == nil {
		_ = f.Close()
	}
	return nil
}

// runtimeDirectory checks the directory of the control socket. It reports only problems, and
// only as warnings, because dpsd also works without the directory.
func (i *inspection) runtimeDirectory(r Result) {
	if r.Subject == "" || r.Subject == i.StateDirectory {
		return
	}
	bySystemd := i.unit != nil && r.Subject == "/run/dpsd"
	missing := false
	err := i.useless(r.Subject)
	if err == nil {
		err = i.Account.do(func() error {
			_, err := os.Stat(r.Subject)
			missing = errors.Is(err, fs.ErrNotExist)
			if missing {
				return nil
			}
			return input.Cause(err)
		})
	}
	switch {
	case err != nil:
	case missing && bySystemd && !i.unit.running():
		return
	case missing && bySystemd:
		err = &store.MissingError{Directory: r.Subject, Err: syscall.ENOENT} // inside the sandbox only systemd can create it
	case missing:
		if refused := i.mayWrite(parent(r.Subject)); refused != nil {
			err = &store.MissingError{Directory: r.Subject, Err: refused}
		}
	default:
		err = i.mayWrite(r.Subject)
		if _, room, full := space(r.Subject); err == nil && full != nil {
			i.warn(r, fmt.Sprintf("%v: %s; dpsd cannot store DPS's Retry-After there, nor a record that it cannot write to the state directory", full, room),
				"Free up space in this directory's file system.")
		}
	}
	if err == nil {
		return
	}
	advice := "Create the directory and make it writable by the user dpsd, or set [control] socket to a path in a different directory."
	if bySystemd {
		advice = "systemd creates it when dpsd starts: " + restartCommand
	}
	i.warn(r, fmt.Sprintf("%v; without it, there is no control socket for dpsd status, wait and reprovision, and no place for a record that cannot be written to the state directory", err), advice)
}

// controlSocket checks the path at which dpsd creates its socket. Listen replaces only files.
func (i *inspection) controlSocket() {
	var found unix.Statx_t
	err := i.Account.do(func() error {
		return unix.Statx(unix.AT_FDCWD, i.Socket, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS, &found)
	})
	is := ""
	switch {
	case i.Socket == "" || err != nil: // the path does not exist
	case found.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		is = "a mount point"
	case found.Mode&unix.S_IFMT == unix.S_IFDIR:
		is = "a directory"
	}
	if is != "" {
		i.warn(Result{Name: State, Subject: i.Socket}, "the control socket cannot be created because its path is "+is+"; without it, dpsd status, wait and reprovision do not work",
			"Remove it, then run: "+restartCommand+". Or set [control] socket to a different path.")
	}
}
