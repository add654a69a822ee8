package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/dpsd-project/dpsd/watch"
)

// Read returns the record in a state directory, checksum and members verified.
// It takes no lock: the file is replaced by rename, so it is always whole. It
// follows no link.
//
// Errors: ErrNoRecord, *DamagedError, *NewerSchemaError, *DirectoryError, or that of the
// file system when the file may not be read.
func Read(directory string) (Record, error) {
	return read(filepath.Join(directory, stateName))
}

// Published returns the record that other services read: that of the state directory, or a
// newer one of the runtime directory while the disk refuses it. The error is that of Read for
// the state directory.
func Published(state, runtime string) (Record, error) {
	record, err := Read(state)
	if late, lateErr := Read(runtime); lateErr == nil && (err != nil || late.Generation > record.Generation) {
		record, err = late, nil
	}
	return record, err
}

// Previous returns the record before that of Read, which dpsd restores when it starts with
// none or with a damaged one. Errors: as Read.
func Previous(directory string) (Record, error) {
	return read(filepath.Join(directory, previousName))
}

func read(path string) (Record, error) {
	data, err := readFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return Record{}, fmt.Errorf("%s: %w", path, ErrNoRecord)
	case err != nil:
		return Record{}, cmp.Or(CheckDirectory(filepath.Dir(path)), err)
	}
	rec, err := Parse(data)
	return rec, at(path, err)
}

// Files returns the paths of the files in a state directory that others read.
func Files(directory string) []string {
	return []string{filepath.Join(directory, stateName), filepath.Join(directory, environmentName)}
}

// readRecord is Read for the owner, with the text of the record. To the owner, a file that
// cannot be read is as damaged as one that cannot be understood, unless the reason may
// pass: then the error is an *unreadError, and what the file says is not known. A link is
// followed, and then replaced by the record.
func readRecord(path string) (Record, []byte, error) {
	data, err := readRegular(path, 0)
	var damaged *DamagedError
	switch {
	case errors.As(err, &damaged):
		return Record{}, nil, err
	case errors.Is(err, fs.ErrNotExist):
		return Record{}, nil, ErrNoRecord
	case Temporary(err):
		return Record{}, nil, &unreadError{err}
	case err != nil && CheckDirectory(filepath.Dir(path)) != nil:
		return Record{}, nil, &unreadError{CheckDirectory(filepath.Dir(path))}
	case err != nil:
		return Record{}, nil, &DamagedError{Path: path, Reason: "cannot be read", Err: err}
	}
	rec, err := Parse(data)
	return rec, data, at(path, err)
}

// unreadError says that a file exists but could not be read, for a reason that can pass
// without a change to the file. It names the path.
type unreadError struct{ error }

func (e *unreadError) Unwrap() error { return e.error }

// exhausted reports whether too little of something is left that reading takes, so that
// the file itself may be as good as ever.
func (e *unreadError) exhausted() bool {
	return errors.Is(e, syscall.EMFILE) || errors.Is(e, syscall.ENFILE) || errors.Is(e, syscall.ENOMEM)
}

// at adds the path to an error of Parse.
func at(path string, err error) error {
	var damaged *DamagedError
	var newer *NewerSchemaError
	switch {
	case errors.As(err, &damaged):
		damaged.Path = path
	case errors.As(err, &newer):
		newer.Path = path
	}
	return err
}

// Watch sends the record in a state directory as soon as there is one, and again
// whenever its generation is another, until ctx ends; then it closes the
// channel. A receiver that is slow gets the latest record, not each. A record
// that is missing, damaged or newer than this program is waited for.
//
// The error says that the system has no room for a watch.
func Watch(ctx context.Context, directory string) (<-chan Record, error) {
	changed, err := watch.Files(ctx, filepath.Join(directory, stateName))
	if err != nil {
		return nil, err
	}
	records := make(chan Record)
	go func() {
		defer close(records)
		var sent uint64 // generation; 0: none yet
		for {
			rec, err := Read(directory)
			to := records
			if err != nil || rec.Generation == sent {
				to = nil // nothing to send
			}
			select {
			case <-ctx.Done():
				return
			case <-changed:
			case to <- rec:
				sent = rec.Generation
			}
		}
	}()
	return records, nil
}
