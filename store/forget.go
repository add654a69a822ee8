package store

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Forgotten is the result of Forget.
type Forgotten struct {
	// Removed contains the removed paths, in order.
	Removed []string
	// Kept is the file with the pause that the service requested, or "". Forget must not
	// circumvent it. The file contains the endpoint and the registration ID; the runtime
	// directory is lost at a reboot.
	Kept string
}

// Forget removes everything that dpsd has written about the gateway's identity: the record
// and the previous ones, damaged records, state.env, the record in the runtime directory,
// the confirmation, the last working transport, the recorded attempts, and temporary files
// of interrupted writes.
//
// Until the record itself is removed, the next start restores a complete state after a
// power failure; from then on, there is no record. An older record never reappears.
//
// The error is a *LockedError if a process has locked one of the directories, in which case
// nothing was removed; or a *WriteError, in which case its Path and the following files
// still exist.
func Forget(o Options) (Forgotten, error) { return forget(o, nil) }

// forget is Forget with a function that is called before each step.
func forget(o Options, before func(step, path string) error) (done Forgotten, err error) {
	state, runtime := o.writers()
	state.before, runtime.before = before, before
	for _, w := range []*writer{&state, &runtime} {
		// The service locks the runtime directory only while it cannot lock the state
		// directory, so the lock file must not remain here.
		if w.directory == "" || w == &runtime && !exists(w.path(lockName)) {
			continue
		}
		l, err := acquire(w)
		if errors.Is(err, fs.ErrNotExist) {
			continue // the directory does not exist
		}
		if err != nil {
			if locked, is := errors.AsType[*LockedError](err); is {
				return done, locked
			}
			return done, writeError(w.path(lockName), err)
		}
		defer func() { _ = l.release() }()
	}

	// Without state.json, a start restores the previous record, so that one is removed
	// first and durably. state.env is next, which a start writes again while there is a
	// record. A record in the runtime directory is the latest, and a start adopts it, so it
	// is removed last.
	for _, step := range []struct {
		in    *writer
		names []string
	}{
		{&state, []string{previousName}},
		{&state, []string{environmentName}},
		{&state, []string{stateName}},
		{&runtime, []string{environmentName, stateName}},
		{&state, state.remains()},
		{&runtime, runtime.remains()},
	} {
		if err := step.in.forget(&done, step.names); err != nil {
			return done, err
		}
	}
	if runtime.directory != "" && exists(runtime.path(floorName)) {
		done.Kept = runtime.path(floorName)
	}
	return done, nil
}

// forget removes the existing names and makes the removal durable.
func (w *writer) forget(done *Forgotten, names []string) error {
	changed := false
	for _, name := range names {
		path := w.path(name)
		if w.directory == "" || !exists(path) {
			continue
		}
		err := w.step("remove", path)
		if err == nil {
			err = os.RemoveAll(path) // it may be a directory; the target of a link is not removed
		}
		if err != nil {
			return writeError(path, err)
		}
		changed = true
		done.Removed = append(done.Removed, path)
	}
	if !changed {
		return nil
	}
	if err := w.sync(); err != nil {
		return writeError(w.directory, err)
	}
	return nil
}

// remains lists the files about an identity that are never read as a record.
func (w *writer) remains() []string {
	if w.directory == "" {
		return nil
	}
	whole := []string{transportName, confirmationName, recorderName}
	written := append([]string{stateName, environmentName, previousName, floorName, lockName}, whole...)
	var found []string
	for _, name := range w.list() {
		partOf := func(of string) bool {
			return temporaryOf(name, of) || strings.HasPrefix(name, of+asideSuffix)
		}
		if slices.Contains(whole, name) || slices.ContainsFunc(written, partOf) ||
			strings.HasPrefix(strings.TrimPrefix(name, "."), corruptPrefix) {
			found = append(found, name)
		}
	}
	return found
}
