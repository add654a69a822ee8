package store

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// LinkError says that a path leads to nothing because a symbolic link on it does.
type LinkError struct {
	Link   string // the symbolic link
	Target string // the path that it leads to, and that does not exist
}

func (e *LinkError) Error() string {
	return fmt.Sprintf("%s is a link to %s, which does not exist", e.Link, e.Target)
}

// Unwrap returns what the file system says about it.
func (e *LinkError) Unwrap() error { return syscall.ENOENT }

// DanglingLink returns the symbolic link because of which a path leads to nothing; nil when
// there is none.
func DanglingLink(path string) *LinkError {
	for path = filepath.Clean(path); ; path = filepath.Dir(path) {
		info, err := os.Lstat(path)
		if err == nil && info.Mode().Type() == fs.ModeSymlink {
			return linkToNothing(path)
		}
		if err == nil || path == filepath.Dir(path) {
			return nil
		}
	}
}

// linkToNothing follows the links that begin at one.
func linkToNothing(link string) *LinkError {
	const most = 40 // path_resolution(7)
	if _, err := os.Stat(link); !os.IsNotExist(err) {
		return nil
	}
	target := link
	for range most {
		next, err := os.Readlink(target)
		if err != nil {
			break
		}
		if !filepath.IsAbs(next) {
			next = filepath.Join(filepath.Dir(target), next)
		}
		target = next
	}
	return &LinkError{Link: link, Target: target}
}
