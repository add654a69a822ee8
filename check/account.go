package check

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
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

// LookUpAccount finds the user of this machine that the service runs as, with the groups
// that its unit adds to those of the user; systemctl may be nil, and the unit is not asked
// then. The service does not start with a group that does not exist, and none is added for
// it here. The error says that there is no such user.
func LookUpAccount(ctx context.Context, name string, systemctl func(ctx context.Context, args ...string) ([]byte, error)) (Account, error) {
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
	if systemctl != nil {
		properties, _ := show(ctx, systemctl, "--property=SupplementaryGroups")
		for name := range strings.FieldsSeq(properties["SupplementaryGroups"]) {
			if g, err := user.LookupGroup(name); err == nil {
				name = g.Gid
			}
			if _, err := strconv.Atoi(name); err == nil {
				groups = append(groups, name)
			}
		}
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

// ClosedError is a file that root can read and the service cannot.
type ClosedError struct {
	Path    string
	Account string // its name
	Err     error

	remedy string // the command that lets everybody read it, which is no advice for a key
}

func (e *ClosedError) Error() string {
	return fmt.Sprintf("%s: root can read it, but the service, which runs as the user %s, cannot: %v", e.Path, e.Account, e.Err)
}
func (e *ClosedError) Unwrap() error { return e.Err }

// Problem is the error without the remedy.
func (e *ClosedError) Problem() string { return e.Error() }

// Remedy is the command; "" for none.
func (e *ClosedError) Remedy() string { return e.remedy }

// ClosedConfiguration is Closed for a configuration, which everybody may read: it holds no
// secret.
func (a Account) ClosedConfiguration(path string) error {
	err := a.Closed(path)
	if closed, is := errors.AsType[*ClosedError](err); is {
		_ = a.do(func() error { closed.remedy = Opening(path); return nil })
	}
	return err
}

// Closed returns why the account cannot read a file that could be read just now, a
// *ClosedError; nil when it can, or when only root could tell.
func (a Account) Closed(path string) error {
	if !a.impersonates() {
		return nil
	}
	err := a.do(func() error {
		f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err == nil {
			err = f.Close()
		}
		return err
	})
	if !errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return &ClosedError{Path: path, Account: a.Name, Err: cause(err)}
}

// Opening is the command that makes a file readable for every user: it names the file, or
// the first directory on the way to it that this user may not pass.
func Opening(path string) string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "chmod a+r " + path
	}
	for n, c := range absolute + "/" {
		if c != '/' || n == 0 {
			continue
		}
		// What cannot even be looked at is in a directory that cannot be passed.
		if _, err := os.Lstat(absolute[:n]); errors.Is(err, fs.ErrPermission) {
			return "chmod a+x " + filepath.Dir(absolute[:n])
		}
	}
	return "chmod a+r " + path
}

// closedTo returns why the service cannot read one of these files, which could be
// read just now; nil when it can, or when that cannot be told.
func (i *inspection) closedTo(paths []string) error {
	for _, path := range paths {
		if i.provided(path) {
			continue // systemd hands it to the service, and to nobody else
		}
		if where := i.hidden(path); where != "" && i.Installed {
			return &hiddenError{path, where}
		}
		if err := i.Account.Closed(path); err != nil {
			return err
		}
	}
	return nil
}

// hiddenError is a file that the sandbox of the unit hides from the service.
type hiddenError struct{ path, directory string }

func (e *hiddenError) Error() string {
	return fmt.Sprintf("%s: the sandbox of %s hides %s from dpsd", e.path, unitName, e.directory)
}

// Unwrap returns what the service meets.
func (e *hiddenError) Unwrap() error { return fs.ErrNotExist }

// Remedy says where it can be.
func (e *hiddenError) Remedy() string {
	return "Move it below /etc/dpsd (a key to /etc/dpsd/keys) and correct its path in dpsd.toml, or provide it as a systemd credential."
}

// provided tells whether the path is that of a credential of systemd.
func (i *inspection) provided(path string) bool {
	return slices.ContainsFunc(i.Secrets.Directories, func(d string) bool { return strings.HasPrefix(path, d+"/") })
}

// cause drops what was done to which path: whoever reports it says so better.
func cause(err error) error {
	if at, is := errors.AsType[*fs.PathError](err); is {
		return at.Err
	}
	return err
}

// stranger tells whether whoever checks can neither be nor look as the service.
func (i *inspection) stranger() bool {
	return os.Geteuid() != 0 && os.Geteuid() != i.Account.UID
}

// asSeen adds to a refusal of the file system who it was that was refused.
func (i *inspection) asSeen(err error) error {
	if errors.Is(err, fs.ErrPermission) && i.stranger() {
		return fmt.Errorf("%w; this is user %d, not the service", err, os.Getuid())
	}
	return err
}
