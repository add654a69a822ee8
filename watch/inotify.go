package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// The events to report for a directory, a file and a device. IN_ATTRIB is included because
// permissions on the path matter too.
const (
	ofDirectory = unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF |
		unix.IN_ATTRIB | unix.IN_ONLYDIR | unix.IN_DONT_FOLLOW
	ofFile = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DONT_FOLLOW
	// A write to a device or a pipe does not change its content. dpsd watches a TPM that has
	// failed. The commands that the next attempt or other programs send to it must not cause
	// another attempt.
	ofDevice = ofFile &^ unix.IN_MODIFY
)

// inotify is an instance of inotify(7). Except for wait and close, its methods must not be
// called concurrently.
type inotify struct {
	file    *os.File
	watches map[string]int32 // watch descriptors, by path; two paths to one inode share one
	buffer  [4096]byte
}

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		return nil, exhausted(os.NewSyscallError("inotify_init1", err))
	}
	return &inotify{file: os.NewFile(uintptr(fd), "inotify"), watches: map[string]int32{}}, nil
}

// exhausted adds the name of the user limit that caused err, see inotify_init(2) and
// inotify_add_watch(2).
func exhausted(err error) error {
	switch {
	case errors.Is(err, unix.EMFILE):
		return fmt.Errorf("%w (fs.inotify.max_user_instances)", err)
	case errors.Is(err, unix.ENOSPC):
		return fmt.Errorf("%w (fs.inotify.max_user_watches)", err)
	}
	return err
}

// close ends a pending read.
func (n *inotify) close() { _ = n.file.Close() }

// add watches the current file at path, and reports whether it was not watched before:
// another file may have taken the name.
func (n *inotify) add(path string, mask uint32) (fresh bool, err error) {
	var wd int
	if e := n.control(func(fd int) { wd, err = unix.InotifyAddWatch(fd, path, mask) }); e != nil {
		return false, e
	}
	if err != nil {
		n.remove(path)
		return false, exhausted(os.NewSyscallError("inotify_add_watch", err))
	}
	if before, known := n.watches[path]; known && before == int32(wd) {
		return false, nil
	}
	n.remove(path)
	n.watches[path] = int32(wd)
	return true, nil
}

// keep removes the watches of all paths that are not wanted.
func (n *inotify) keep(wanted func(path string) bool) {
	for path := range n.watches {
		if !wanted(path) {
			n.remove(path)
		}
	}
}

func (n *inotify) remove(path string) {
	wd, known := n.watches[path]
	if !known {
		return
	}
	delete(n.watches, path)
	if !slices.Contains(slices.Collect(maps.Values(n.watches)), wd) {
		// EINVAL: the kernel has removed the watch of a deleted file.
		_ = n.control(func(fd int) { _, _ = unix.InotifyRmWatch(fd, uint32(wd)) })
	}
}

// control calls use with the descriptor, which cannot be closed and reused during the call.
func (n *inotify) control(use func(fd int)) error {
	conn, err := n.file.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) { use(int(fd)) })
}

// wait waits for events and returns their length in the buffer. Only one goroutine may call
// it.
func (n *inotify) wait() (length int, err error) { return n.file.Read(n.buffer[:]) }

// events returns the names with events. complete is false if some were lost because the
// kernel's queue was full.
func (n *inotify) events(length int) (names []string, complete bool) {
	complete = true
	for rest := n.buffer[:length]; len(rest) >= unix.SizeofInotifyEvent; {
		// struct inotify_event: wd, mask, cookie, len, name.
		wd, mask := int32(binary.NativeEndian.Uint32(rest)), binary.NativeEndian.Uint32(rest[4:])
		end := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(rest[12:]))
		name, _, _ := bytes.Cut(rest[unix.SizeofInotifyEvent:end], []byte{0})
		rest = rest[end:]
		complete = complete && mask&unix.IN_Q_OVERFLOW == 0
		for path, of := range n.watches {
			if of != wd {
				continue
			}
			names = append(names, filepath.Join(path, string(name)))
			if mask&unix.IN_IGNORED != 0 {
				delete(n.watches, path)
			}
		}
	}
	return names, complete
}
