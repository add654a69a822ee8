package input

import (
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// OpenBeneath is OpenOwn for a file below a directory. No element of path may be a link,
// because the user of the service may write to all of these directories. The directory itself
// may be a link.
func OpenBeneath(directory, path string) (*os.File, error) {
	info, err := StatBeneath(directory, path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, notRegular(info.Mode())
	}
	return regular(beneath(directory, path, unix.O_RDONLY|unix.O_NONBLOCK))
}

// StatBeneath describes the file at path below a directory. It follows no link: if the last
// element of path is a link, it describes the link.
func StatBeneath(directory, path string) (fs.FileInfo, error) {
	f, err := beneath(directory, path, unix.O_PATH)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// ListBeneath returns at most limit names in the directory at path below a directory. It
// follows no link.
func ListBeneath(directory, path string, limit int) ([]string, error) {
	f, err := beneath(directory, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Readdirnames(limit)
}

// beneath opens path below a directory, name by name, without following a link.
func beneath(directory, path string, flags int) (*os.File, error) {
	at := directory
	fd, err := unix.Open(directory, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	elements := names(path)
	for i, name := range elements {
		if err != nil {
			break
		}
		how := unix.O_PATH | unix.O_DIRECTORY
		if i == len(elements)-1 {
			how = flags
		}
		at = filepath.Join(at, name)
		var next int
		next, err = unix.Openat(fd, name, how|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		_ = unix.Close(fd)
		fd = next
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: at, Err: err}
	}
	return os.NewFile(uintptr(fd), at), nil
}
