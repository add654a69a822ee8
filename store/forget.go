package store

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// Forgotten says what a Forget has done.
type Forgotten struct {
	// Removed are the paths that are gone, in that order.
	Removed []string
	// Kept is the file with the pause that the service asked for, which forgetting
	// must not be a way around; "" when there is none. It names endpoint and
	// registration ID, and the runtime directory ends with the boot.
	Kept string
}

// Forget removes all that dpsd has written about the gateway's identity: the
// record and the ones before it, damaged ones that were set aside, state.env,
// the record in the runtime directory, the confirmation, the transport that
// worked last, the recorded attempts, and what interrupted writes have left.
//
// Until the record itself goes, a power cut leaves a state that the next start
// makes whole again; from then on one that holds no record. An older one never
// comes back.
//
// The error is a *LockedError, with nothing removed, while a process has one of
// the directories; or a *WriteError, and what comes after its Path is still
// there.
func Forget(o Options) (Forgotten, error) { return forget(o, nil) }

// forget is Forget with a function that is called ahead of each step.
func forget(o Options, before func(step, path string) error) (done Forgotten, err error) {
	state, runtime := o.writers()
	state.before, runtime.before = before, before
	for _, w := range []*writer{&state, &runtime} {
		// The service takes the runtime directory's lock only while the state
		// directory refuses one: to take it here must not leave one behind.
		if w.directory == "" || w == &runtime && !exists(w.path(lockName)) {
			continue
		}
		l, err := acquire(w)
		if errors.Is(err, fs.ErrNotExist) {
			continue // no directory, nothing in it
		}
		if err != nil {
			var locked *LockedError
			if errors.As(err, &locked) {
				return done, locked
			}
			return done, writeError(w.path(lockName), err)
		}
		defer func() { _ = l.release() }()
	}

	// Without state.json a start restores the record before it, so that one goes
	// first, and for good. Then state.env, which a start writes again as long as
	// there is a record. The runtime directory's record is the latest, when
	// there is one, and a start takes it over: it goes last.
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

// forget removes the names that are there, and sees to it that they stay gone.
func (w *writer) forget(done *Forgotten, names []string) error {
	changed := false
	for _, name := range names {
		path := w.path(name)
		if w.directory == "" || !exists(path) {
			continue
		}
		err := w.step("remove", path)
		if err == nil {
			err = os.RemoveAll(path) // a directory may stand there; of a link only the link goes
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

// remains lists what tells of an identity but is never read as a record.
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
