package store

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
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
	// Modules are the identities of modules in the file modules.json that was removed. They remain
	// at their hubs.
	Modules []ModuleIdentity
}

// Forget removes everything that dpsd has written about the gateway's identity: the record
// and the previous ones, damaged records, state.env, the record in the runtime directory,
// the issued certificates and their keys, the keys of modules, the confirmation, the last working transport, the
// recorded attempts, and temporary files of interrupted writes.
//
// Until the record itself is removed, the next start restores a complete state after a
// power failure, though perhaps without the issued certificate; from then on, there is no
// record and no key. Neither an older record nor an older certificate reappears.
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

	recorded, _ := state.modules() // a file that cannot be read is removed, too
	done.Modules = recorded.Identities

	// Without state.json, a start restores the previous record, so that one is removed
	// first and durably. state.env is next, which a start writes again while there is a
	// record. A record in the runtime directory is the latest, and a start adopts it, so it
	// is removed last. In the same way, the published pair is removed after the others, because
	// a start would use one of them. No key remains without a record, and neither does the root
	// of the keys of modules.
	names := func(w *writer, names ...string) func() error {
		return func() error { return w.forget(&done, names) }
	}
	for _, step := range []func() error{
		names(&state, previousName),
		func() error { return state.forgetPairs(&done, false) },
		names(&state, state.formsOf(modulesName)...),
		names(&state, environmentName),
		func() error { return state.forgetPairs(&done, true) },
		names(&state, stateName),
		names(&runtime, environmentName, stateName),
		names(&state, state.remains()...),
		names(&runtime, runtime.remains()...),
	} {
		if err := step(); err != nil {
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

// forgetPairs removes the published pair and its link, or everything else in the directory of
// the certificates, and makes the removal durable. The directory itself stays, because only
// systemd-tmpfiles can give it its group.
func (w *writer) forgetPairs(done *Forgotten, published bool) error {
	if w.directory == "" {
		return nil
	}
	c, err := w.certificates()
	unreadable := (*PairError)(nil)
	switch {
	case errors.As(err, &unreadable) && unreadable.Path == w.path(certificatePath) && !isDirectory(unreadable.Path):
		return w.forget(done, []string{certificatePath})
	case errors.As(err, &unreadable):
		return writeError(unreadable.Path, unreadable.Err)
	case err != nil:
		return nil // there is none
	}
	defer c.close()
	numbers, err := c.numbers()
	if err != nil {
		return writeError(w.path(certificatePath), err)
	}
	keep := c.current()
	if !slices.Contains(numbers, keep) && len(numbers) > 0 {
		keep = numbers[0]
	}
	var names []string
	if published {
		names = append(names, currentPath)
	} else {
		names = append(names, pendingPath, newPendingPath, temporaryName(currentPath))
		all, _ := c.names()
		for _, name := range all {
			if strings.HasPrefix(name, filepath.Base(currentPath)+asideSuffix) {
				names = append(names, join(certificatePath, name))
			}
		}
	}
	for _, n := range numbers {
		if published == (n == keep) {
			names = append(names, pairPath(n))
		}
	}
	before := len(done.Removed)
	for _, name := range names {
		if err := c.removePair(name, func(path string) { done.Removed = append(done.Removed, path) }); err != nil {
			return writeError(w.path(name), err)
		}
	}
	if len(done.Removed) == before {
		return nil
	}
	if err := c.sync(certificatePath); err != nil {
		return writeError(w.path(certificatePath), err)
	}
	return nil
}

// formsOf lists the file with a name, and the files that interrupted writes of it have left behind.
func (w *writer) formsOf(of string) []string {
	if w.directory == "" {
		return nil
	}
	return slices.DeleteFunc(w.list(), func(name string) bool { return name != of && !partOf(name, of) })
}

// partOf reports whether a name is that of a temporary file of another, of a damaged one, or of
// something that was in its place.
func partOf(name, of string) bool {
	return temporaryOf(name, of) || strings.HasPrefix(name, of+asideSuffix) || strings.HasPrefix(name, of+corruptInfix)
}

// remains lists the files about an identity that are never read as a record.
func (w *writer) remains() []string {
	if w.directory == "" {
		return nil
	}
	whole := []string{transportName, confirmationName, refusalsName, recorderName}
	written := append([]string{stateName, environmentName, previousName, floorName, lockName}, whole...)
	var found []string
	for _, name := range w.list() {
		if slices.Contains(whole, name) || slices.ContainsFunc(written, func(of string) bool { return partOf(name, of) }) ||
			strings.HasPrefix(strings.TrimPrefix(name, "."), corruptPrefix) {
			found = append(found, name)
		}
	}
	return found
}
