package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// LinkError means that a path does not exist because of a dangling symbolic link in it.
type LinkError struct {
	Link   string // the symbolic link
	Target string // the missing path to which it points
}

func (e *LinkError) Error() string {
	return fmt.Sprintf("%s is a link to %s, which does not exist", e.Link, e.Target)
}

// Unwrap returns the error of the file system.
func (e *LinkError) Unwrap() error { return syscall.ENOENT }

// DirectoryError means that a path is not a usable directory: it is something else, or it
// may not be searched.
type DirectoryError struct {
	Path string // the cause: the directory or a parent
	Kind string // its type, such as "a file"; "" for a directory
	Err  error  // syscall.ENOTDIR or syscall.EACCES
}

func (e *DirectoryError) Error() string {
	if e.Kind != "" {
		return fmt.Sprintf("%s is %s, not a directory", e.Path, e.Kind)
	}
	return fmt.Sprintf("the directory %s cannot be searched: %v", e.Path, e.Err)
}

// Unwrap returns the error of the file system.
func (e *DirectoryError) Unwrap() error { return e.Err }

// CheckDirectory returns why a directory can be neither read nor created: a
// *DirectoryError, or a *MissingError because of a dangling link. It returns nil if the
// directory is usable or does not exist yet.
func CheckDirectory(directory string) error {
	if link := danglingLink(directory); link != nil {
		return &MissingError{Directory: directory, Err: link}
	}
	path, info := nearest(filepath.Clean(directory))
	if info == nil {
		return nil
	}
	if !info.IsDir() {
		return &DirectoryError{Path: path, Kind: kind(info.Mode()), Err: syscall.ENOTDIR}
	}
	// Access to files in a directory requires search permission, see path_resolution(7).
	if _, err := os.Stat(path + "/."); errors.Is(err, syscall.EACCES) {
		return &DirectoryError{Path: path, Err: syscall.EACCES}
	}
	return nil
}

// nearest returns the longest accessible prefix of a path; the information is nil if there
// is none.
func nearest(path string) (string, fs.FileInfo) {
	for {
		info, err := os.Stat(path)
		if err == nil || path == filepath.Dir(path) {
			return path, info
		}
		path = filepath.Dir(path)
	}
}

func kind(mode fs.FileMode) string {
	switch {
	case mode.IsRegular():
		return "a file"
	case mode&fs.ModeNamedPipe != 0:
		return "a FIFO"
	case mode&fs.ModeSocket != 0:
		return "a socket"
	}
	return "a device"
}

// danglingLink returns the dangling symbolic link in a path, or nil.
func danglingLink(path string) *LinkError {
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

// linkToNothing follows a chain of links and returns it as an error if the target does not
// exist.
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
