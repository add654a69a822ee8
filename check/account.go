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

	"github.com/dpsd-project/dpsd/input"
)

// Account is a user of this machine.
type Account struct {
	Name   string // "" for none
	UID    int
	GID    int
	Groups []int // in addition to GID
}

// LookUpAccount returns the user of this machine that the service runs as, with the groups
// of the user and those that its unit adds. If systemctl is nil, it does not query the unit.
// It ignores groups that do not exist; with such a group the service does not start. The
// error means that the user does not exist.
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
		properties, _ := show(ctx, systemctl, unitName, "--property=SupplementaryGroups")
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

// impersonates reports whether do changes the user. Only root can do so.
func (a Account) impersonates() bool { return a.Name != "" && a.UID != 0 && os.Geteuid() == 0 }

// do runs f with the account's file permissions, so that the kernel evaluates modes, ACLs
// and everything else: setfsuid(2) also removes root's file capabilities from the thread
// (capabilities(7)). The thread is not reused.
func (a Account) do(f func() error) error {
	if !a.impersonates() {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // without unlocking, so the thread ends with this goroutine
		done <- func() error {
			if err := errors.Join(unix.Setgroups(a.Groups), unix.Setfsgid(a.GID), unix.Setfsuid(a.UID)); err != nil {
				return fmt.Errorf("accessing files as %s: %w", a.Name, err)
			}
			return f()
		}()
	}()
	return <-done
}

// ClosedError means that root can read a file but the service cannot.
type ClosedError struct {
	Path    string
	Account string // name of the service's user
	Err     error

	remedy string // command that makes the file world-readable; "" for keys
}

func (e *ClosedError) Error() string {
	return fmt.Sprintf("%s: root can read it, but the service, which runs as the user %s, cannot: %v", e.Path, e.Account, e.Err)
}
func (e *ClosedError) Unwrap() error { return e.Err }

// Problem returns the error without the remedy.
func (e *ClosedError) Problem() string { return e.Error() }

// Remedy returns the command, or "".
func (e *ClosedError) Remedy() string { return e.remedy }

// ClosedConfiguration is Closed for a configuration, which may be world-readable because it
// contains no secret.
func (a Account) ClosedConfiguration(path string) error {
	err := a.Closed(path)
	if closed, is := errors.AsType[*ClosedError](err); is {
		_ = a.do(func() error { closed.remedy = Opening(path); return nil })
	}
	return err
}

// Closed returns a *ClosedError if the account cannot read a file that this process has just
// read. It returns nil if the account can, or if this process is not root and cannot know.
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
	return &ClosedError{Path: path, Account: a.Name, Err: input.Cause(err)}
}

// Opening returns the command that makes a file readable for every user. The command changes
// the file, or the first directory of its path that this user may not search.
func Opening(path string) string {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "chmod a+r " + path
	}
	for n, c := range absolute + "/" {
		if c != '/' || n == 0 {
			continue
		}
		// If Lstat is not permitted, the user may not search the parent directory.
		if _, err := os.Lstat(absolute[:n]); errors.Is(err, fs.ErrPermission) {
			return "chmod a+x " + filepath.Dir(absolute[:n])
		}
	}
	return "chmod a+r " + path
}

// closedTo returns an error if the service cannot read one of these files, which this process
// has just read. It returns nil if the service can, or if that is unknown.
func (i *inspection) closedTo(paths []string) error {
	for _, path := range paths {
		if i.provided(path) {
			continue // systemd makes it readable only for the service
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

// hiddenError means that the sandbox of the unit hides a file from the service.
type hiddenError struct{ path, directory string }

func (e *hiddenError) Error() string {
	return fmt.Sprintf("%s: the sandbox of %s hides %s from dpsd", e.path, unitName, e.directory)
}

// Unwrap returns the error that the service encounters.
func (e *hiddenError) Unwrap() error { return fs.ErrNotExist }

// Remedy names places for the file.
func (e *hiddenError) Remedy() string {
	return "Move it to /etc/dpsd (a key to /etc/dpsd/keys) and correct its path in dpsd.toml, or provide it as a systemd credential."
}

// provided reports whether the path is that of a systemd credential.
func (i *inspection) provided(path string) bool {
	return slices.ContainsFunc(i.Secrets.Directories, func(d string) bool { return strings.HasPrefix(path, d+"/") })
}

// otherUser reports whether the current user is neither root nor the service's user.
func (i *inspection) otherUser() bool {
	return os.Geteuid() != 0 && os.Geteuid() != i.Account.UID
}

// asSeen adds the current user to a permission error.
func (i *inspection) asSeen(err error) error {
	if errors.Is(err, fs.ErrPermission) && i.otherUser() {
		return fmt.Errorf("%w; this command runs as user %d, not as the service", err, os.Getuid())
	}
	return err
}
