package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/input"
	"github.com/dpsd-project/dpsd/store"
)

// Maximum space for a record, the previous record and state.env while they are written, and
// the limit for a warning.
const (
	tooLittle = 1 << 20
	little    = 16 << 20
)

// state checks the state directory without changing it.
func (i *inspection) state() {
	r := Result{Name: State, Subject: i.StateDirectory}
	useless := i.useless(i.StateDirectory)
	if useless != nil {
		i.fail(r, &store.WriteError{Path: i.StateDirectory, Err: useless})
	} else {
		i.directory(r)
	}
	i.runtimeDirectory(Result{Name: State, Subject: i.RuntimeDirectory})
	i.controlSocket()
	if useless != nil {
		i.skip(Result{Name: Record}, "the state directory cannot be used")
		return
	}
	i.record()
}

// useless returns the reason why the service cannot use a directory, or nil; see
// store.CheckDirectory. It ignores that another user may not search the directory.
func (i *inspection) useless(directory string) error {
	err := i.Account.do(func() error { return store.CheckDirectory(directory) })
	if errors.Is(err, fs.ErrPermission) && i.otherUser() {
		return nil
	}
	return err
}

func (i *inspection) directory(r Result) {
	var info fs.FileInfo
	err := i.Account.do(func() (err error) {
		info, err = os.Stat(i.StateDirectory)
		return err
	})
	refuse := func(err error) { i.fail(r, &store.WriteError{Path: i.StateDirectory, Err: err}) }
	switch {
	case errors.Is(err, fs.ErrNotExist) && i.unit.running():
		refuse(&store.MissingError{Directory: i.StateDirectory, Err: err}) // systemd creates it only when the service starts
		return
	case errors.Is(err, fs.ErrNotExist) && i.unit != nil && i.StateDirectory == "/var/lib/dpsd":
		i.ok(r, "does not exist yet; systemd creates it when dpsd.service starts")
		return
	case errors.Is(err, fs.ErrNotExist):
		if err := i.mayWrite(parent(i.StateDirectory)); err != nil {
			refuse(&store.MissingError{Directory: i.StateDirectory, Err: err})
			return
		}
		i.ok(r, "does not exist yet; dpsd creates it")
		return
	case err != nil:
		refuse(input.Cause(err))
		return
	}
	detail := fmt.Sprintf("owner %s, mode %04o", ownerName(info), info.Mode().Perm())
	err = i.mayWrite(i.StateDirectory)
	switch {
	case errors.Is(err, syscall.EROFS):
		if _, unread := store.Read(i.StateDirectory); unread == nil {
			i.warn(r, detail+", read-only: the record in it cannot be updated", "Make the file system writable, or set [state] directory to a writable directory.")
			return
		}
		refuse(err)
		return
	case err != nil:
		refuse(fmt.Errorf("%w (%s)", err, detail))
		return
	}
	if err := i.Account.do(func() error { return obstacle(i.StateDirectory) }); err != nil && !i.otherUser() {
		i.fail(r, err)
		return
	}
	free, room, err := space(i.StateDirectory)
	detail += ", writable, " + room
	switch {
	case err != nil:
		refuse(fmt.Errorf("%w: %s", err, detail))
	case free < little:
		i.warn(r, detail, "Free up space before it runs out: a record that cannot be written is lost at the next boot.")
	default:
		i.ok(r, detail)
	}
}

// space returns the free space in the file system of a directory, in bytes and as text. The
// error means that dpsd needs more.
func space(directory string) (free uint64, words string, err error) {
	var disk unix.Statfs_t
	if err := unix.Statfs(directory, &disk); err != nil {
		return 0, "free space unknown", err
	}
	free = disk.Bavail * uint64(max(disk.Bsize, 1))
	words = fmt.Sprintf("%d MB free", free/1e6)
	if free < tooLittle {
		err = syscall.ENOSPC
	}
	// File systems without a table of inodes report none at all.
	if disk.Files != 0 && disk.Ffree <= 8 {
		words, err = words+", no free inodes", syscall.ENOSPC
	}
	return free, words, err
}

// mayWrite asks the kernel whether the service can create files in a directory. Without root,
// it cannot ask for another user, so it evaluates owner and mode.
func (i *inspection) mayWrite(directory string) error {
	if i.Account.Name != "" && i.otherUser() {
		return i.mayWriteByMode(directory)
	}
	return i.Account.do(func() error {
		return unix.Faccessat(unix.AT_FDCWD, directory, unix.W_OK|unix.X_OK, unix.AT_EACCESS)
	})
}

func (i *inspection) mayWriteByMode(directory string) error {
	info, err := os.Stat(directory)
	if err != nil {
		return input.Cause(err)
	}
	if err := unix.Access(directory, unix.W_OK); errors.Is(err, syscall.EROFS) {
		return err
	}
	owner, bits := info.Sys().(*syscall.Stat_t), info.Mode().Perm()
	switch {
	case int(owner.Uid) == i.Account.UID:
		bits >>= 6
	case int(owner.Gid) == i.Account.GID, slices.Contains(i.Account.Groups, int(owner.Gid)):
		bits >>= 3
	}
	if bits&3 != 3 {
		return syscall.EACCES
	}
	return nil
}

func ownerName(info fs.FileInfo) string {
	id := fmt.Sprint(info.Sys().(*syscall.Stat_t).Uid)
	if u, err := user.LookupId(id); err == nil {
		return u.Username
	}
	return id
}
