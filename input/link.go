package input

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LinkError is a link that root does not follow: it does not belong to root, and its target
// belongs to another user than the link. Otherwise, the user of the service could make a
// command that root runs read any file.
type LinkError struct {
	Link  string // its path
	Owner int    // its user ID
}

// Error includes the link and its owner.
func (e *LinkError) Error() string {
	return fmt.Sprintf("%s is a link owned by user %d to a file of another user; root does not follow it", e.Link, e.Owner)
}

// Remedy returns the command for a user who trusts the link.
func (e *LinkError) Remedy() string {
	return inShell("chown -h root: FILE", e.Link) + ", if you trust the link"
}

// maxLinks is how many links the kernel follows in a path, path_resolution(7).
const maxLinks = 40

// openTrusted opens a regular file as root. It resolves the path step by step with
// descriptors, so that nothing can be replaced after its check.
func openTrusted(path string) (*os.File, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	w := &walk{path: path, directory: -1, rest: names(absolute)}
	defer w.close()
	if err := w.root(); err != nil {
		return nil, err
	}
	last := ""
	for len(w.rest) > 0 {
		if last, err = w.step(); err != nil {
			return nil, err
		}
	}
	if last == "" {
		return nil, fmt.Errorf("%w but a directory", ErrNotRegular)
	}
	fd, err := unix.Openat(w.directory, last, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, w.failed(err)
	}
	f, err := regular(os.NewFile(uintptr(fd), path), nil)
	if err != nil {
		return nil, err
	}
	var file unix.Stat_t
	if err := unix.Fstat(fd, &file); err != nil {
		_ = f.Close()
		return nil, w.failed(err)
	}
	for _, link := range w.links {
		if link.Owner != 0 && link.Owner != int(file.Uid) {
			_ = f.Close()
			return nil, link
		}
	}
	return f, nil
}

// names returns the elements of a path.
func names(path string) (names []string) {
	for name := range strings.SplitSeq(path, "/") {
		if name != "" && name != "." {
			names = append(names, name)
		}
	}
	return names
}

// walk resolves a path.
type walk struct {
	path      string // as passed to Open
	directory int    // descriptor of the current directory
	at        string // path of the current directory
	rest      []string
	links     []*LinkError // links that it has followed
}

func (w *walk) failed(err error) error { return &fs.PathError{Op: "open", Path: w.path, Err: err} }

func (w *walk) close() {
	if w.directory >= 0 {
		_ = unix.Close(w.directory)
	}
}

// root changes to the root directory.
func (w *walk) root() error {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return w.failed(err)
	}
	w.close()
	w.directory, w.at = fd, "/"
	return nil
}

// step resolves the next name. It returns the name of a regular file at the end of the
// path, which the caller opens, and "" otherwise.
func (w *walk) step() (file string, err error) {
	name := w.rest[0]
	w.rest = w.rest[1:]
	fd, err := unix.Openat(w.directory, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", w.failed(err)
	}
	var found unix.Stat_t
	if err := unix.Fstat(fd, &found); err != nil {
		_ = unix.Close(fd)
		return "", w.failed(err)
	}
	switch kind := found.Mode & unix.S_IFMT; {
	case kind == unix.S_IFLNK:
		err := w.follow(fd, filepath.Join(w.at, name), int(found.Uid))
		_ = unix.Close(fd)
		return "", err
	case kind == unix.S_IFDIR:
		// Opening an automount point without O_PATH mounts it, see open(2). This requires
		// read permission for the directory.
		if through, err := unix.Openat(w.directory, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
			_ = unix.Close(fd)
			fd = through
		}
		w.close()
		w.directory, w.at = fd, filepath.Join(w.at, name)
		return "", nil
	case len(w.rest) > 0:
		_ = unix.Close(fd)
		return "", w.failed(unix.ENOTDIR)
	case kind != unix.S_IFREG:
		_ = unix.Close(fd)
		// Opening it could block or have side effects.
		return "", notRegular(map[uint32]fs.FileMode{unix.S_IFIFO: fs.ModeNamedPipe, unix.S_IFSOCK: fs.ModeSocket}[kind])
	}
	return name, unix.Close(fd)
}

// follow inserts the target of a link before the rest of the path.
func (w *walk) follow(fd int, path string, owner int) error {
	if w.links = append(w.links, &LinkError{path, owner}); len(w.links) > maxLinks {
		return w.failed(unix.ELOOP)
	}
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", target)
	if err != nil {
		return w.failed(err)
	}
	to := string(target[:n])
	w.rest = append(names(to), w.rest...)
	if filepath.IsAbs(to) {
		return w.root()
	}
	return nil
}
