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

// Read returns the record in a state directory, checksum and members verified. It takes no
// lock: the file is replaced by rename, so it is always complete. It follows no link.
//
// The error is ErrNoRecord, a *DamagedError, a *NewerSchemaError, a *DirectoryError, or the
// error of the file system if the file may not be read.
func Read(directory string) (Record, error) {
	return read(filepath.Join(directory, stateName))
}

// Published returns the record that other services read: that of the state directory, or a
// newer one of the runtime directory while the disk refuses it. The error is that of Read for
// the state directory.
func Published(state, runtime string) (Record, error) {
	record, err := Read(state)
	if newer, failed := Read(runtime); failed == nil && (err != nil || newer.Generation > record.Generation) {
		record, err = newer, nil
	}
	return record, err
}

// Previous returns the record before that of Read, which dpsd restores if it starts with a
// missing or damaged record. Its errors are those of Read.
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

// Files returns the paths of the files in a state directory that other programs read. Those of
// the certificate exist only if one was issued.
func Files(directory string) []string {
	return []string{
		filepath.Join(directory, stateName), filepath.Join(directory, environmentName),
		filepath.Join(directory, currentPath, chainName), filepath.Join(directory, currentPath, keyName),
	}
}

// readRecord is Read for the owner of the directory, and also returns the text of the
// record. For the owner, an unreadable file is damaged like an invalid one, unless the
// reason is temporary: then the error is an *unreadError. readRecord follows a link, which
// the caller replaces by the record.
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

// unreadError means that a file exists but could not be read for a temporary reason. It
// contains the path.
type unreadError struct{ error }

func (e *unreadError) Unwrap() error { return e.error }

// exhausted reports whether a resource for reading is exhausted, so that the file itself
// may be intact.
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

// Watch sends the record in a state directory as soon as there is one, and again whenever
// its generation has changed, until ctx ends; then it closes the channel. A slow receiver
// gets the latest record but not each one. While the record is missing, damaged or newer
// than this program, Watch sends nothing.
//
// The error means that the system has no resources for a watch.
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
