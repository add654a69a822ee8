package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/google/renameio/v2"
)

// The names in the state directory. The runtime directory has the first two
// while the disk refuses a record.
const (
	stateName       = "state.json"
	environmentName = "state.env"
	previousName    = "state.json.prev"
	corruptPrefix   = "state.json.corrupt-"
	lockName        = "lock"
	transportName   = "transport"
)

const (
	directoryMode = 0o755
	// lockMode keeps strangers from opening, and so from holding, the lock.
	lockMode = 0o600
	// maxCorrupt is how many damaged records are kept aside.
	maxCorrupt = 3
	// asideSuffix ends the name of a directory that stood in the way of a file.
	asideSuffix = ".aside"
)

// writer changes files in one directory so that a reader, and a power cut, at
// any instant finds the old content or the new.
type writer struct {
	directory string
	mode      fs.FileMode
	// before is called ahead of each step that changes something; an error
	// stops there. Nil but in tests, which fail or end the process in it.
	before func(step, path string) error
}

func (w *writer) path(name string) string { return filepath.Join(w.directory, name) }

func (w *writer) step(step, path string) error {
	if w.before == nil {
		return nil
	}
	return w.before(step, path)
}

// create makes the directory when only it is missing. The service's directories
// are made by systemd; this is for a person who runs dpsd by hand, so a path
// with more missing than its end is taken for a mistake.
func (w *writer) create() error {
	if err := CheckDirectory(w.directory); err != nil {
		return err
	}
	if _, err := os.Stat(w.directory); !errors.Is(err, fs.ErrNotExist) {
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

// replace gives name the content data: temporary file, fsync, rename. The
// rename itself is on disk only after sync. The error is a *fileError, unless the
// directory takes no new file at all.
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
	defer func() { _ = f.Cleanup() }() // Open removes what cannot be removed now
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

// clear moves a directory out of the way of a file: no rename replaces one, so
// it would refuse every write for ever. An empty one goes, another is kept under
// a name of its own. Whatever else has the name (a link, a FIFO, a socket) is
// replaced by the rename.
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

// has tells whether name is a file with the content data. A link to such a file
// is none: what it points to is somebody else's, and no sync of ours reaches it.
func (w *writer) has(name string, data []byte) bool {
	if !regular(w.path(name)) {
		return false
	}
	have, err := readFile(w.path(name))
	return err == nil && bytes.Equal(have, data)
}

// own gives f to the owner of its directory when root writes, so that a command
// run by hand leaves nothing the service cannot replace.
func (w *writer) own(f *os.File) error {
	if os.Geteuid() != 0 {
		return nil
	}
	directory, err := os.Stat(w.directory)
	if err != nil {
		return err
	}
	file, err := f.Stat()
	if err != nil {
		return err
	}
	want, have := owner(directory), owner(file)
	if want == have {
		return nil
	}
	return f.Chown(want.uid, want.gid)
}

type ownership struct{ uid, gid int }

func owner(info fs.FileInfo) ownership {
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ownership{}
	}
	return ownership{int(stat.Uid), int(stat.Gid)}
}

// settle brings mode and owner of a file that is not going to be written to
// what they would be, e.g. after the configured mode changed. Best effort: the
// content is not at stake.
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

// sync makes the renames in the directory last.
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

// setAside keeps the damaged state.json under a name of its own, and returns
// that; "" when it was kept before. The name state.json stays, unless move is
// set or it is not a file. A link needs no room on a full disk and reads nothing
// from a failing one; file systems without links get a copy.
func (w *writer) setAside(stamp string, move bool) (string, error) {
	from := w.path(stateName)
	if info, err := os.Lstat(from); err == nil && !info.Mode().IsRegular() {
		move = true // nothing can be renamed over a directory
	}
	if !move && w.aside() {
		return "", nil
	}
	to := w.path(corruptPrefix + stamp)
	for i := 2; exists(to); i++ {
		to = w.path(fmt.Sprintf("%s%s.%d", corruptPrefix, stamp, i))
	}
	if err := w.step("set-aside", to); err != nil {
		return "", err
	}
	var err error
	if move {
		err = os.Rename(from, to)
	} else if err = os.Link(from, to); err != nil {
		var data []byte
		if data, err = readFile(from); err == nil {
			err = w.replace(filepath.Base(to), data)
		}
	}
	if err != nil {
		return "", err
	}
	w.prune(filepath.Base(to))
	return to, nil
}

// aside tells whether the damaged state.json has been kept already: a write that
// fails is tried again and again.
func (w *writer) aside() bool {
	info, err := os.Stat(w.path(stateName))
	if err != nil {
		return false
	}
	data, unreadable := readFile(w.path(stateName))
	for _, name := range w.list() {
		if !strings.HasPrefix(name, corruptPrefix) {
			continue
		}
		if kept, err := os.Stat(w.path(name)); err == nil && os.SameFile(info, kept) {
			return true
		}
		if copied, err := readFile(w.path(name)); err == nil && unreadable == nil && bytes.Equal(data, copied) {
			return true
		}
	}
	return false
}

// prune keeps maxCorrupt damaged records: the one just kept and those with the
// latest names. The clock may be wrong, so the new one need not sort last.
func (w *writer) prune(kept string) {
	var others []string
	for _, name := range w.list() {
		if strings.HasPrefix(name, corruptPrefix) && name != kept {
			others = append(others, name)
		}
	}
	for len(others) >= maxCorrupt {
		_ = w.remove(others[0])
		others = others[1:]
	}
}

// list returns the names in the directory, sorted; none when it cannot be read.
func (w *writer) list() []string {
	entries, _ := os.ReadDir(w.directory)
	names := make([]string, 0, len(entries))
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// temporaryOf tells whether found is a temporary file of name: renameio's names
// are a dot, the name of the file and digits.
func temporaryOf(found, name string) bool {
	digits, ok := strings.CutPrefix(found, "."+name)
	return ok && digits != "" && strings.Trim(digits, "0123456789") == ""
}

// sweep removes temporary files of interrupted writes. Only the holder of the
// lock may.
func (w *writer) sweep(names ...string) (removed []string) {
	for _, found := range w.list() {
		for _, name := range names {
			if !temporaryOf(found, name) {
				continue
			}
			if w.remove(found) == nil {
				removed = append(removed, w.path(found))
			}
			break
		}
	}
	return removed
}

// writable tells, without writing, why the directory cannot be written. A full
// disk shows only when it is written.
func (w *writer) writable() error {
	if err := CheckDirectory(w.directory); err != nil {
		return err
	}
	_, err := os.Stat(w.directory)
	if errors.Is(err, fs.ErrNotExist) {
		if parent, e := os.Stat(filepath.Dir(w.directory)); e == nil && parent.IsDir() {
			if e := writableDirectory(filepath.Dir(w.directory)); e != nil {
				return &MissingError{Directory: w.directory, Err: e}
			}
			return nil // create can make it
		}
		return &MissingError{Directory: w.directory, Err: err}
	}
	if err != nil {
		return err
	}
	return writableDirectory(w.directory)
}

// writableDirectory asks access(2), which tells a read-only mount (EROFS) to
// root too.
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

// regular tells whether path itself, not what a link points to, is a file.
func regular(path string) bool {
	info, err := os.Lstat(path)
	return err == nil && info.Mode().IsRegular()
}

// readFile reads a regular file of bounded size. Opening a FIFO must not wait for
// its writer, and another kind of file holds nothing that was ever written here. A link
// could make a command that root runs read any file.
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

// Sweep removes the temporary files that interrupted writes of path have left. Only its
// one writer may.
func Sweep(path string) {
	w := writer{directory: filepath.Dir(path)}
	w.sweep(filepath.Base(path))
}
