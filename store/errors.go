package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"syscall"
)

// ErrNoRecord means that there is no record: the gateway was never assigned, or its record
// was removed.
var ErrNoRecord = errors.New("no provisioning record")

// ErrKeyLost means that the pending key was removed or changed before its certificate was
// published. The certificate is useless.
var ErrKeyLost = errors.New("the key of the issued certificate was removed or changed")

// LockedError means that another process has locked the state directory.
type LockedError struct {
	Path string // the lock file
	PID  int    // ID of the other process; 0 if unknown
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s is locked by another process", e.Path)
	}
	return fmt.Sprintf("%s is locked by process %d", e.Path, e.PID)
}

// DamagedError means that a record is not as dpsd wrote it: truncated, empty, changed or
// unreadable.
type DamagedError struct {
	Path   string // "" if the data was not read from a file
	Reason string
	Err    error // the cause; may be nil
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

// Unwrap returns the cause.
func (e *DamagedError) Unwrap() error { return e.Err }

// NewerSchemaError means that a later version of dpsd wrote the record. Such a record is
// never overwritten.
type NewerSchemaError struct {
	Path       string // "" if the data was not read from a file
	Schema     int64
	Generation uint64 // 0 if unknown
}

func (e *NewerSchemaError) Error() string {
	message := fmt.Sprintf("the record has schema %d; this program supports schema %d", e.Schema, Schema)
	if e.Path != "" {
		message = e.Path + ": " + message
	}
	return message
}

// InvalidError is the reason why a record must not be published. It contains the name of
// the member but not its value, which may be hostile.
type InvalidError struct {
	Member string // as in state.json, e.g. "assignedHub"
	Reason string
}

func (e *InvalidError) Error() string { return e.Member + " " + e.Reason }

// WriteError means that a file could not be written. Until it can be saved, the record is
// kept in memory.
type WriteError struct {
	Path string
	Err  error
	// Published is the directory in which the record is published until then, or "".
	Published string
}

func (e *WriteError) Error() string {
	message := fmt.Sprintf("cannot write %s: %v", e.Path, e.Err)
	if errors.Is(e.Err, syscall.EBUSY) {
		message += " (a file that is a mount point cannot be replaced: mount its directory instead)"
	}
	if e.Published != "" {
		message += "; the record is published in " + e.Published + " instead"
	}
	return message
}

// Unwrap returns the cause: a syscall.Errno, a *MissingError, a *DirectoryError, a
// *NewerSchemaError, a *LockedError.
func (e *WriteError) Unwrap() error { return e.Err }

// MissingError means that the state directory does not exist and cannot be created. If the
// service manager creates it, it does so at a restart.
type MissingError struct {
	Directory string
	Err       error // why it cannot be created
}

func (e *MissingError) Error() string {
	err := e.Err
	if link, is := errors.AsType[*LinkError](err); is {
		if link.Link == filepath.Clean(e.Directory) {
			return "the directory " + link.Error()
		}
		return fmt.Sprintf("the directory %s does not exist: %v", e.Directory, link)
	}
	var errno syscall.Errno
	if errors.As(err, &errno) {
		err = errno
	}
	return fmt.Sprintf("the directory %s does not exist and cannot be created: %v", e.Directory, err)
}

// Unwrap returns why the directory cannot be created.
func (e *MissingError) Unwrap() error { return e.Err }

// CoveredError means that a file system was mounted on or unmounted from the state
// directory outside of the mount namespace of this process.
type CoveredError struct{ Directory string }

func (e *CoveredError) Error() string {
	return fmt.Sprintf("a file system was mounted on %s or unmounted from it while dpsd was running: other services see a different directory; to use that one, run: systemctl restart --no-block dpsd", e.Directory)
}

// fileError is an error about a documented file or its directory. Its cause may name a
// temporary file.
type fileError struct {
	path string
	err  error
}

func (e *fileError) Error() string { return e.path + ": " + e.err.Error() }
func (e *fileError) Unwrap() error { return e.err }

// writeError returns a *WriteError for the file that caused err; path is the file to be
// written. An error about a lock file of another user keeps the lock's path, since the
// directory may be writable.
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

// Notice is a problem that a Store found and, if possible, repaired.
type Notice struct {
	Kind NoticeKind
	Path string // the affected file
	Err  error  // the cause; nil if there is none besides Kind
}

// String returns the notice as a line of text.
func (n Notice) String() string {
	s := n.Path + ": " + string(n.Kind)
	if n.Err != nil {
		s += " (" + n.Err.Error() + ")"
	}
	return s
}

// NoticeKind is the kind of a Notice, as text for the log.
type NoticeKind string

// The kinds of notices.
const (
	// Damaged: a file is damaged; Err is a *DamagedError. If a notice SetAside follows, the
	// file was kept under another name.
	Damaged NoticeKind = "damaged"
	// Unread: the file exists but cannot be read now; Err is the reason. It is not changed,
	// and is read again before the next record is saved.
	Unread NoticeKind = "cannot be read now; left unchanged"
	// Missing: state.json is missing although state.json.prev exists.
	Missing NoticeKind = "missing"
	// SetAside: a damaged record, or a damaged modules.json, was kept as Path.
	SetAside NoticeKind = "damaged record kept here"
	// PreviousRestored: the record before the damaged one was published again.
	PreviousRestored NoticeKind = "previous record restored"
	// GenerationRaised: state.env had a higher generation than the record, so the record's
	// generation was raised above it. A generation never decreases.
	GenerationRaised NoticeKind = "generation raised above that of state.env"
	// RuntimeAdopted: the runtime directory had a newer record, which could not be written
	// to the state directory before.
	RuntimeAdopted NoticeKind = "newer record adopted from the runtime directory"
	// NewerSchema: a later version of dpsd wrote the record; Err is a *NewerSchemaError.
	NewerSchema NoticeKind = "written by a later version of dpsd; left unchanged"
	// EnvironmentRepaired: state.env differed from state.json and was written again.
	EnvironmentRepaired NoticeKind = "repaired"
	// LinkReplaced: state.json was a link to a record and was replaced by the record
	// itself, since the target of a link may be on a volatile file system.
	LinkReplaced NoticeKind = "was a link to a record; replaced by the record itself"
	// StaleTemporary: the temporary file of an interrupted write was removed.
	StaleTemporary NoticeKind = "left over from an interrupted write; removed"
	// PairDamaged: a file of an issued certificate, or of a pending key, is missing or differs
	// from what dpsd wrote. The pair is not used; SavePair removes it.
	PairDamaged NoticeKind = "not as dpsd wrote it; this certificate or key is not used"
	// PairReplaced: certificate/current points to an earlier pair, because the latest is
	// damaged or missing.
	PairReplaced NoticeKind = "points to an earlier certificate, because the latest one is damaged or missing"
	// PairCompleted: the publication of a pair had been interrupted.
	PairCompleted NoticeKind = "points to the latest certificate, whose publication was interrupted"
	// PairRestored: certificate/current had been removed or changed.
	PairRestored NoticeKind = "was removed or changed; it points to the latest certificate again"
	// GroupRefused: the configured group could not be set, so only the owner may read the
	// pair; Err names the group.
	GroupRefused NoticeKind = "not readable by the configured group"
	// Unwritable: the directory cannot be written to now.
	Unwritable NoticeKind = "cannot be written"
)

// Temporary reports whether err is a temporary failure to read a file: too few descriptors,
// too little memory, a failing disk, or a network file system that does not respond. Other
// failures require a correction by the user.
func Temporary(err error) bool {
	permanent := []syscall.Errno{syscall.ENOENT, syscall.ENOTDIR, syscall.EISDIR, syscall.EACCES, syscall.EPERM, syscall.ELOOP,
		syscall.ENAMETOOLONG, syscall.EINVAL, syscall.ENXIO, syscall.ENODEV}
	errno, is := errors.AsType[syscall.Errno](err)
	return is && !slices.Contains(permanent, errno)
}
