package check

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Account is a user of this machine.
type Account struct {
	Name   string // "" for nobody
	UID    int
	GID    int
	Groups []int // beside GID
}

// LookUpAccount finds a user of this machine. The error says that there is none.
func LookUpAccount(name string) (Account, error) {
	u, err := user.Lookup(name)
	if err != nil {
		return Account{}, err
	}
	a := Account{Name: name}
	groups, err := u.GroupIds()
	if err != nil {
		return Account{}, err
	}
	if a.UID, err = strconv.Atoi(u.Uid); err == nil {
		a.GID, err = strconv.Atoi(u.Gid)
	}
	for _, g := range groups {
		id, e := strconv.Atoi(g)
		a.Groups, err = append(a.Groups, id), errors.Join(err, e)
	}
	return a, err
}

// impersonates tells whether files are looked at as another user than the one who
// checks: only root can.
func (a Account) impersonates() bool { return a.Name != "" && a.UID != 0 && os.Geteuid() == 0 }

// do runs f with the account's rights to files. Their modes, ACLs and all else are
// the kernel's to judge: setfsuid(2) of a thread takes root's rights to files from it
// as well (capabilities(7)). The thread is never used for anything else again.
func (a Account) do(f func() error) error {
	if !a.impersonates() {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with this goroutine
		done <- func() error {
			if err := unix.Setgroups(a.Groups); err != nil {
				return fmt.Errorf("looking at files as %s: %w", a.Name, err)
			}
			if err := errors.Join(unix.Setfsgid(a.GID), unix.Setfsuid(a.UID)); err != nil {
				return fmt.Errorf("looking at files as %s: %w", a.Name, err)
			}
			return f()
		}()
	}()
	return <-done
}

// closedError is a file that root can read and the service cannot.
type closedError struct {
	path string
	name string // of the account
	err  error
}

func (e *closedError) Error() string {
	return fmt.Sprintf("%s: root can read it, the user %s, as whom the service runs, cannot: %v", e.path, e.name, e.err)
}
func (e *closedError) Unwrap() error { return e.err }

// closedTo returns why the service cannot read one of these files, which could be
// read just now; nil when it can, or when that cannot be told.
func (i *inspection) closedTo(paths []string) error {
	if !i.Account.impersonates() {
		return nil
	}
	for _, path := range paths {
		if i.provided(path) {
			continue // systemd hands it to the service, and to nobody else
		}
		err := i.Account.do(func() error {
			f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
			if err == nil {
				err = f.Close()
			}
			return err
		})
		if errors.Is(err, fs.ErrPermission) {
			return &closedError{path, i.Account.Name, cause(err)}
		}
	}
	return nil
}

// provided tells whether the path is that of a credential of systemd.
func (i *inspection) provided(path string) bool {
	return slices.ContainsFunc(i.Secrets.Directories, func(d string) bool { return strings.HasPrefix(path, d+"/") })
}

// cause drops what was done to which path: whoever reports it says so better.
func cause(err error) error {
	var at *fs.PathError
	if errors.As(err, &at) {
		return at.Err
	}
	return err
}

// strangerError is a file that an ordinary user, who is not the service, may not read.
type strangerError struct {
	err error
}

func (e *strangerError) Error() string {
	return fmt.Sprintf("%v; this is user %d, not the service", e.err, os.Getuid())
}
func (e *strangerError) Unwrap() error { return e.err }

// stranger tells whether whoever checks can neither be nor look as the service.
func (i *inspection) stranger() bool {
	return os.Geteuid() != 0 && os.Geteuid() != i.Account.UID
}

// asSeen adds to a refusal of the file system who it was that was refused.
func (i *inspection) asSeen(err error) error {
	if errors.Is(err, fs.ErrPermission) && i.stranger() {
		return &strangerError{err}
	}
	return err
}
