package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
)

// The names in the state directory. The runtime directory contains the first two while a
// record cannot be written to the state directory.
const (
	stateName       = "state.json"
	environmentName = "state.env"
	previousName    = "state.json.prev"
	// corruptInfix follows the name of a damaged file, and precedes the time at which it was kept.
	corruptInfix  = ".corrupt-"
	corruptPrefix = stateName + corruptInfix
	lockName      = "lock"
	transportName = "transport"
)

const (
	directoryMode = 0o755
	// lockMode prevents other users from opening, and thus from holding, the lock.
	lockMode = 0o600
	// maxCorrupt is the number of damaged files of one name that are kept.
	maxCorrupt = 3
	// asideSuffix is appended to the name of a directory that was in the place of a file.
	asideSuffix = ".aside"
)

// writer changes files in one directory so that at any time, also after a power failure,
// they have the old or the new contents.
type writer struct {
	directory string
	mode      fs.FileMode
	// before is called before each step that changes a file; its error prevents the step.
	// It is nil except in tests, in which it fails or ends the process.
	before func(step, path string) error
}

func (w *writer) path(name string) string { return filepath.Join(w.directory, name) }

func (w *writer) step(step, path string) error {
	if w.before == nil {
		return nil
	}
	return w.before(step, path)
}

// create creates the directory if its parent exists. systemd creates the directories of the
// service; this is for users who run dpsd manually, so a missing parent is treated as a
// mistake.
func (w *writer) create() error {
	if found, err := w.directoryExists(); found || err != nil {
		return err
	}
	if err := w.step("mkdir", w.directory); err != nil {
		return err
	}
	if err := os.Mkdir(w.directory, directoryMode); err != nil {
		return &MissingError{Directory: w.directory, Err: err}
	}
	if err := os.Chmod(w.directory, directoryMode); err != nil { // the umask
		return err
	}
	return syncDirectory(filepath.Dir(w.directory))
}

// directoryExists reports whether the directory exists. The error is the reason why it can be neither
// used nor created.
func (w *writer) directoryExists() (bool, error) {
	if err := CheckDirectory(w.directory); err != nil {
		return false, err
	}
	_, err := os.Stat(w.directory)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// write replaces a file that may be lost in a power failure. The error is a *WriteError.
func (w *writer) write(name string, data []byte) error {
	if err := w.replace(name, data); err != nil {
		return writeError(w.path(name), err)
	}
	return nil
}

// put is replace for a file that may already have these contents: it then writes nothing,
// so that watchers are not woken.
func (w *writer) put(name string, data []byte) error {
	if w.has(name, data) {
		return nil
	}
	return w.replace(name, data)
}

// replace replaces the contents of a file with data: temporary file, fsync, rename. Only
// after sync is the rename durable. The error is a *fileError, unless the directory accepts
// no new files.
func (w *writer) replace(name string, data []byte) error {
	path := w.path(name)
	about := func(err error) error {
		if err == nil {
			return nil
		}
		return &fileError{path, err}
	}
	if err := w.clear(name); err != nil {
		return about(err)
	}
	if err := w.step("create", path); err != nil {
		return err
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(w.directory), renameio.WithStaticPermissions(w.mode))
	if err != nil {
		return err
	}
	defer func() { _ = f.Cleanup() }() // otherwise, the next Open removes the file
	if err := w.own(f.File); err != nil {
		return err
	}
	if err := w.step("write", path); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return about(err)
	}
	if err := w.step("rename", path); err != nil {
		return err
	}
	return about(f.CloseAtomicallyReplace())
}

// clear removes a directory in the place of a file, which rename does not replace and which
// would prevent every write. It removes an empty directory and renames another. The rename
// replaces anything else with that name (a link, a FIFO, a socket).
func (w *writer) clear(name string) error {
	path := w.path(name)
	if !isDirectory(path) {
		return nil
	}
	if err := w.step("clear", path); err != nil {
		return err
	}
	if os.Remove(path) == nil {
		return nil
	}
	to := path + asideSuffix
	for i := 2; exists(to); i++ {
		to = fmt.Sprintf("%s%s.%d", path, asideSuffix, i)
	}
	return os.Rename(path, to)
}

// has reports whether name is a file with the contents data. A link to such a file does not
// count, since sync does not make its target durable.
func (w *writer) has(name string, data []byte) bool {
	if !regular(w.path(name)) {
		return false
	}
	have, err := readFile(w.path(name))
	return err == nil && bytes.Equal(have, data)
}

// own changes the owner of f to the owner of its directory if root writes, so that the
// service can replace files of a command that root runs.
func (w *writer) own(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var directory, file syscall.Stat_t
	if err := errors.Join(syscall.Stat(w.directory, &directory), syscall.Fstat(int(f.Fd()), &file)); err != nil {
		return err
	}
	if file.Uid == directory.Uid && file.Gid == directory.Gid {
		return nil
	}
	return f.Chown(int(directory.Uid), int(directory.Gid))
}

// settle sets the mode and owner of a file that is not rewritten, e.g. after the configured
// mode has changed. It ignores errors, which do not affect the contents.
func (w *writer) settle(name string) {
	f, err := os.OpenFile(w.path(name), os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return
	}
	_ = w.own(f)
	if info.Mode().Perm() != w.mode {
		_ = f.Chmod(w.mode)
	}
}

// sync makes the renames in the directory durable.
func (w *writer) sync() error {
	err := w.step("sync", w.directory)
	if err == nil {
		err = syncDirectory(w.directory)
	}
	if err != nil {
		return &fileError{w.directory, err}
	}
	return nil
}

func syncDirectory(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

func (w *writer) remove(name string) error {
	if err := w.step("remove", w.path(name)); err != nil {
		return err
	}
	return os.Remove(w.path(name))
}

// list returns the sorted names in the directory, or none if it cannot be read.
func (w *writer) list() []string {
	entries, _ := os.ReadDir(w.directory)
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// temporaryOf reports whether found is a temporary file of name: renameio's names consist
// of a dot, the name of the file and digits.
func temporaryOf(found, name string) bool {
	digits, ok := strings.CutPrefix(found, "."+name)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// sweep removes temporary files of interrupted writes. The caller must hold the lock.
func (w *writer) sweep(names ...string) (removed []string) {
	for _, found := range w.list() {
		temporary := slices.ContainsFunc(names, func(name string) bool { return temporaryOf(found, name) })
		if temporary && w.remove(found) == nil {
			removed = append(removed, w.path(found))
		}
	}
	return removed
}

// writable returns why the directory cannot be written to, without writing. It does not
// detect a full disk.
func (w *writer) writable() error {
	there, err := w.directoryExists()
	if err != nil {
		return err
	}
	if there {
		return writableDirectory(w.directory)
	}
	if err := writableDirectory(filepath.Dir(w.directory)); err != nil {
		return &MissingError{Directory: w.directory, Err: err}
	}
	return nil // create can create it
}

// writableDirectory uses access(2), which also reports a read-only mount (EROFS) to root.
func writableDirectory(path string) error {
	const writeAndSearch = 2 | 1 // W_OK | X_OK
	if err := syscall.Access(path, writeAndSearch); err != nil {
		return &fs.PathError{Op: "access", Path: path, Err: err}
	}
	return nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func isDirectory(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.IsDir()
}

// regular reports whether path itself, not the target of a link, is a regular file.
func regular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// readFile reads a regular file of limited size. It does not wait for the writer of a FIFO,
// and rejects other types of files, which dpsd never writes. It follows no link, which
// could make a command run by root read any file.
func readFile(path string) ([]byte, error) { return readRegular(path, syscall.O_NOFOLLOW) }

// readRegular is readFile with more flags for open(2).
func readRegular(path string, flags int) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|flags, 0)
	if errors.Is(err, syscall.ELOOP) && !regular(path) {
		return nil, &DamagedError{Path: path, Reason: "a link, not a regular file"}
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, &DamagedError{Path: path, Reason: "not a regular file"}
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, &DamagedError{Path: path, Reason: "the file is too large"}
	}
	return data, nil
}

// Sweep removes the temporary files of interrupted writes of path. Only the sole writer of
// path may call it.
func Sweep(path string) {
	w := writer{directory: filepath.Dir(path)}
	w.sweep(filepath.Base(path))
}
