package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"
)

// ErrNoRecord says that there is no record: the gateway was never assigned, or
// its record was forgotten.
var ErrNoRecord = errors.New("no provisioning record")

// LockedError says that another process has the state directory.
type LockedError struct {
	Path string // the lock file
	PID  int    // of the other process; 0 when it cannot be told
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is locked by another process", e.Path)
	}
	return fmt.Sprintf("%s is locked by process %d", e.Path, e.PID)
}

// DamagedError says that a record is not what dpsd wrote: cut, empty, changed
// or unreadable.
type DamagedError struct {
	Path   string // "" when the bytes did not come from a file
	Reason string
	Err    error // the cause below, may be nil
}

func (e *DamagedError) Error() string {
	message := "damaged record: " + e.Reason
	if e.Path != "" {
		message = e.Path + ": " + message
	}
	if e.Err != nil {
		message += ": " + e.Err.Error()
	}
	return message
}

// Unwrap returns the cause below.
func (e *DamagedError) Unwrap() error { return e.Err }

// NewerSchemaError says that a later dpsd wrote the record. Such a record is
// kept and never overwritten.
type NewerSchemaError struct {
	Path       string // "" when the bytes did not come from a file
	Schema     int64
	Generation uint64 // 0 when it cannot be told
}

func (e *NewerSchemaError) Error() string {
	message := fmt.Sprintf("record has schema %d, this program knows %d", e.Schema, Schema)
	if e.Path != "" {
		message = e.Path + ": " + message
	}
	return message
}

// InvalidError says why a record may not be published. It names the member and
// never repeats the value, which may be hostile.
type InvalidError struct {
	Member string // as in state.json, e.g. "assignedHub"
	Reason string
}

func (e *InvalidError) Error() string { return e.Member + " " + e.Reason }

// WriteError says that a file could not be written. The record that was to be
// saved is held in memory meanwhile.
type WriteError struct {
	Path string
	Err  error
	// Published is the directory in which the record is published meanwhile;
	// "" when there is none.
	Published string
}

func (e *WriteError) Error() string {
	message := fmt.Sprintf("cannot write %s: %v", e.Path, e.Err)
	if errors.Is(e.Err, syscall.EBUSY) {
		message += " (a file that is a mount point cannot be replaced: mount its directory instead)"
	}
	if e.Published != "" {
		message += "; published under " + e.Published + " meanwhile"
	}
	return message
}

// Unwrap returns the cause: a syscall.Errno, a *MissingError, a *DirectoryError, a
// *NewerSchemaError, a *LockedError.
func (e *WriteError) Unwrap() error { return e.Err }

// MissingError says that the state directory is not there and cannot be made
// here. A service manager that makes it does so at a restart.
type MissingError struct {
	Directory string
	Err       error // why it cannot be made
}

func (e *MissingError) Error() string {
	err := e.Err
	var link *LinkError
	if errors.As(err, &link) {
		if link.Link == filepath.Clean(e.Directory) {
			return "the directory " + link.Error()
		}
		return fmt.Sprintf("the directory %s is not there: %v", e.Directory, link)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return fmt.Sprintf("the directory %s is gone and cannot be made here: %v", e.Directory, err)
}

// Unwrap returns why the directory cannot be made.
func (e *MissingError) Unwrap() error { return e.Err }

// CoveredError says that a file system was mounted on the state directory, or unmounted from
// it, outside of the mount namespace of this process.
type CoveredError struct{ Directory string }

func (e *CoveredError) Error() string {
	return fmt.Sprintf("a file system was mounted on %s or unmounted from it while dpsd runs: other services see another directory; to use that one, run: systemctl restart --no-block dpsd", e.Directory)
}

// fileError is an error about a file that readers know, or about its directory: the
// causes below name temporary files.
type fileError struct {
	path string
	err  error
}

func (e *fileError) Error() string { return e.path + ": " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// writeError names the file that failed; path is the one that was to be written. A lock
// that is another user's keeps its name: the directory may well be writable then.
func writeError(path string, err error) *WriteError {
	var errno syscall.Errno
	var at *fs.PathError
	var file *fileError
	switch {
	case errors.As(err, &file):
		path, err = file.path, file.err
	case errors.As(err, &at) && filepath.Base(at.Path) == lockName:
		path = at.Path
	}
	if !errors.As(err, new(*MissingError)) && !errors.As(err, new(*DirectoryError)) && errors.As(err, &errno) {
		err = errno
	}
	return &WriteError{Path: path, Err: err}
}

// Notice is something that Open found, and mended where it could.
type Notice struct {
	Kind NoticeKind
	Path string // the file concerned
	Err  error  // the cause; nil when Kind says it all
}

// String is one line for a log.
func (n Notice) String() string {
	s := n.Path + ": " + string(n.Kind)
	if n.Err != nil {
		s += " (" + n.Err.Error() + ")"
	}
	return s
}

// NoticeKind tells notices apart, in words for a log.
type NoticeKind string

// What Open can find.
const (
	// Damaged: a file is damaged; Err is a *DamagedError. It was copied aside
	// when a notice SetAside follows.
	Damaged NoticeKind = "damaged"
	// Unread: the file is there but cannot be read now; Err says why. It stays as it is,
	// and is read again before the next record is saved.
	Unread NoticeKind = "cannot be read now, left alone"
	// Missing: state.json is gone although state.json.prev is there.
	Missing NoticeKind = "missing"
	// SetAside: a damaged record was kept under Path.
	SetAside NoticeKind = "damaged record kept here"
	// PreviousRestored: the record before the damaged one is published again.
	PreviousRestored NoticeKind = "previous record restored"
	// GenerationRaised: state.env was ahead of the record, so the record was
	// raised above it: a generation never goes backwards.
	GenerationRaised NoticeKind = "generation raised above that of state.env"
	// RuntimeAdopted: the record of the runtime directory is newer, because
	// the disk had refused it.
	RuntimeAdopted NoticeKind = "newer record taken over from the runtime directory"
	// NewerSchema: a later dpsd wrote the record; Err is a *NewerSchemaError.
	NewerSchema NoticeKind = "written by a later version, left alone"
	// EnvironmentRepaired: state.env did not say what state.json says.
	EnvironmentRepaired NoticeKind = "repaired"
	// LinkReplaced: state.json was a link to a record, which stands there itself
	// now: what a link points to may be on a disk that forgets.
	LinkReplaced NoticeKind = "was a link to a record, replaced by the record"
	// StaleTemporary: an interrupted write left a file, which was removed.
	StaleTemporary NoticeKind = "left over from an interrupted write, removed"
	// Unwritable: the directory cannot be written now.
	Unwritable NoticeKind = "cannot be written"
)

// Temporary reports whether err is a failure to read a file that can end without a change
// to the file: too few descriptors, too little memory, a failing disk, or a network file
// system that does not answer. The other reasons last until a person removes them.
func Temporary(err error) bool {
	var errno syscall.Errno
	if !errors.As(err, &errno) {
		return false
	}
	switch errno {
	case syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EACCES, syscall.EPERM, syscall.ELOOP,
		syscall.ENAMETOOLONG, syscall.EINVAL, syscall.ENXIO, syscall.ENODEV:
		return false
	}
	return true
}
