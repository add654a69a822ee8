package store

import (
	"errors"
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

// DirectoryError says that a path leads to no directory that can be used: something else is
// there, or it may not be searched.
type DirectoryError struct {
	Path string // of what is in the way; the directory or one above it
	Kind string // what is there in its place, such as "a file"; "" for a directory
	Err  error  // syscall.ENOTDIR or syscall.EACCES
}

func (e *DirectoryError) Error() string {
	if e.Kind != "" {
		return fmt.Sprintf("%s is %s, not a directory", e.Path, e.Kind)
	}
	return fmt.Sprintf("the directory %s cannot be searched: %v", e.Path, e.Err)
}

// Unwrap returns what the file system says about it.
func (e *DirectoryError) Unwrap() error { return e.Err }

// CheckDirectory returns why nothing can be read in a directory and it cannot be made
// either: a *DirectoryError, or a *MissingError because of a link to nothing. nil is a
// directory, or a path where there is nothing yet.
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
	// To look at what is in a directory takes the right to search it, path_resolution(7).
	if _, err := os.Stat(path + "/."); errors.Is(err, syscall.EACCES) {
		return &DirectoryError{Path: path, Err: syscall.EACCES}
	}
	return nil
}

// nearest is the end of a path that can be looked at; the information is nil if there is none.
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

// danglingLink returns the symbolic link because of which a path leads to nothing; nil
// when there is none.
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
