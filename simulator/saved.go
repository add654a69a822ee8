package simulator

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"
)

// saveInterval is the minimum time between two writes of a file, so that a registering fleet does not
// cause a write for each device.
const saveInterval = time.Second

// savedFile writes data to a file after changes. Create it with newSavedFile.
type savedFile struct {
	path    string // "" for memory only
	mode    fs.FileMode
	data    func() any // what the file contains, as JSON
	onError func(error)
	dirty   atomic.Bool
	wake    chan struct{} // capacity 1: something has changed
}

// newSavedFile returns a file in a directory. With the directory "", the data is only in memory.
func newSavedFile(dir, name string, mode fs.FileMode, data func() any, onError func(error)) *savedFile {
	f := &savedFile{mode: mode, data: data, onError: onError, wake: make(chan struct{}, 1)}
	if dir != "" {
		f.path = filepath.Join(dir, name)
	}
	return f
}

// load reads the file into v if it exists.
func (f *savedFile) load(v any) error {
	if f.path == "" {
		return nil
	}
	text, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		if err = json.Unmarshal(text, v); err != nil {
			err = fmt.Errorf("%s: %w", f.path, err)
		}
	}
	return err
}

// changed makes keep write the file.
func (f *savedFile) changed() {
	f.dirty.Store(true)
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// keep writes the file after changes until done is closed.
func (f *savedFile) keep(done <-chan struct{}) {
	for {
		select {
		case <-f.wake:
		case <-done:
			return
		}
		begun := time.Now()
		f.flush()
		// Writing the complete file takes long with many devices; it may take up to a tenth of
		// the time.
		if !pause(max(saveInterval, 9*time.Since(begun)), done) {
			return
		}
	}
}

// flush writes the complete file if there are changes.
func (f *savedFile) flush() {
	if f.path == "" || !f.dirty.Swap(false) { // before the data is read, so that no change is lost
		return
	}
	text, err := json.MarshalIndent(f.data(), "", "  ")
	if err == nil {
		err = renameio.WriteFile(f.path, append(text, '\n'), f.mode, renameio.WithTempDir(filepath.Dir(f.path)))
	}
	if err != nil {
		f.dirty.Store(true) // the next change, or the end, causes another attempt
		f.onError(fmt.Errorf("cannot save %s: %w", filepath.Base(f.path), err))
	}
}
