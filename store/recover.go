package store

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

func (s *Store) start(now time.Time) error {
	err := s.claim()
	if errors.As(err, new(*LockedError)) {
		return err
	}
	if err == nil {
		err = s.state.writable()
	}
	if err != nil {
		s.notice(Unwritable, s.state.directory, err)
	} else {
		s.sweep(&s.state, stateName, environmentName, previousName, transportName, recorderName, modulesName)
	}
	if s.lock != nil {
		s.sweep(&s.runtime, stateName, environmentName, floorName, confirmationName, refusalsName, recorderName)
	}
	s.startPairs(err == nil, now)
	s.load(err == nil, now)
	for _, name := range s.state.list() {
		if name == stateName || name == environmentName || name == previousName || strings.HasPrefix(name, corruptPrefix) {
			s.state.settle(name)
		}
		if name == modulesName || strings.HasPrefix(name, modulesName+corruptInfix) {
			secret := s.state
			secret.mode = secretMode
			secret.settle(name)
		}
	}
	return nil
}

func (s *Store) notice(kind NoticeKind, path string, err error) {
	s.notices = append(s.notices, Notice{kind, path, err})
}

// noticeOnce is notice for a problem that remains until a user corrects it.
func (s *Store) noticeOnce(kind NoticeKind, path string, err error) {
	n := Notice{kind, path, err}
	if !slices.ContainsFunc(s.notices, func(old Notice) bool { return old.String() == n.String() }) {
		s.notices = append(s.notices, n)
	}
}

func (s *Store) sweep(w *writer, names ...string) {
	for _, path := range w.sweep(names...) {
		s.notice(StaleTemporary, path, nil)
	}
}

// load finds the record to publish and repairs the files.
func (s *Store) load(writable bool, now time.Time) {
	path := s.state.path(stateName)
	env, _ := readFile(s.state.path(environmentName))
	behind := environmentGeneration(env)
	s.floor = behind

	rec, data, err := readRecord(path)
	linked := false
	known := rec.Generation // generation of the latest valid record in the state directory
	var damaged *DamagedError
	switch {
	case err == nil:
		linked = s.take(rec, data)
	case errors.As(err, &s.newer):
		s.notice(NewerSchema, path, s.newer)
		s.floor = max(s.floor, s.newer.Generation)
	case errors.As(err, new(*unreadError)):
		// The record may be intact, so no older record replaces it. If the directory is the
		// reason, there is already a notice.
		s.unread = true
		if !errors.As(err, new(*DirectoryError)) {
			s.notice(Unread, path, err)
		}
		if prev, _, err := readRecord(s.state.path(previousName)); err == nil {
			s.floor = max(s.floor, above(prev.Generation))
		}
		known = s.floor
	default:
		if errors.As(err, &damaged) {
			s.notice(Damaged, path, damaged)
		}
		known = s.recover(damaged != nil, now)
	}
	s.adoptRuntime(known, behind)
	if s.published && s.newer == nil && !s.certified() {
		// The record does not describe the published pair, because of an interruption, damage
		// or an earlier version of dpsd.
		rec := s.current
		rec.Generation = above(s.floor)
		s.hold(rec)
	}

	switch {
	case !s.published:
		return
	case s.newer != nil:
		s.durable = false
		return
	case !s.durable:
		if err = s.commit(now); err == nil && linked {
			s.notice(LinkReplaced, path, nil)
		}
	case !s.state.has(environmentName, environment(s.current)):
		if err = s.writeEnvironment(); err == nil {
			s.notice(EnvironmentRepaired, s.state.path(environmentName), nil)
		}
	case writable:
		// The previous process may have ended between rename and sync.
		err = s.state.sync()
	}
	if err != nil {
		s.durable = false
		if writable { // otherwise, there is already a notice
			s.notice(Unwritable, s.state.directory, err)
		}
		s.publish()
		return
	}
	s.withdraw()
}

// take adopts the record of state.json, and reports whether that is a link to a file.
func (s *Store) take(rec Record, data []byte) (linked bool) {
	path := s.state.path(stateName)
	raise := s.floor > rec.Generation
	linked = !regular(path)
	s.adopt(rec, data, !linked)
	if raise {
		s.notice(GenerationRaised, path, nil)
		rec.Generation = above(s.floor)
		s.hold(rec)
	}
	return linked
}

// reread adopts the record that could not be read before, if it is readable now.
func (s *Store) reread() {
	if !s.unread || s.published {
		return
	}
	if rec, data, err := readRecord(s.state.path(stateName)); err == nil {
		s.unread = false
		s.take(rec, data)
	}
}

// recover replaces a damaged or missing state.json by the previous record, and returns its
// generation. The lost record had prev + 1, so this one gets prev + 2. Without a usable
// previous record, recover renames a damaged file.
func (s *Store) recover(damaged bool, now time.Time) uint64 {
	prev, _, err := readRecord(s.state.path(previousName))
	if err == nil {
		if !damaged {
			s.notice(Missing, s.state.path(stateName), nil)
		}
		s.notice(PreviousRestored, s.state.path(previousName), nil)
		generation := prev.Generation
		prev.Generation = max(above(above(generation)), above(s.floor))
		s.hold(prev)
		return generation
	}
	var unusable *DamagedError
	switch {
	case errors.As(err, &unusable):
		s.notice(Damaged, s.state.path(previousName), unusable)
	case errors.As(err, new(*unreadError)):
		s.notice(Unread, s.state.path(previousName), err)
	}
	if !damaged || !s.lock.in(s.state.directory) {
		return 0
	}
	to, err := s.state.setAside(stateName, stamp(now), true)
	if err == nil {
		err = s.state.sync()
	}
	if err != nil {
		s.notice(Unwritable, s.state.path(stateName), err)
		return 0
	}
	s.notice(SetAside, to, nil)
	return 0
}

// adoptRuntime adopts the record that an earlier process could publish only in the runtime
// directory if it is later than the known one, since removing it would withdraw the current
// identity. behind is the generation in state.env.
func (s *Store) adoptRuntime(known, behind uint64) {
	if s.runtime.directory == "" {
		return
	}
	path := s.runtime.path(stateName)
	rec, data, err := readRecord(path)
	if err != nil || rec.Generation <= known {
		return
	}
	s.notice(RuntimeAdopted, path, nil)
	s.adopt(rec, data, false)
	if behind > rec.Generation {
		rec.Generation = above(behind)
		s.hold(rec)
	}
}

// setAside keeps a damaged file under another name and returns that name, or "" if it was already
// kept. The file itself remains, unless move is set or it is not a regular file. A hard link needs no space on a full disk and no reading from a failing one; on file
// systems without links, setAside makes a copy.
func (w *writer) setAside(name, stamp string, move bool) (string, error) {
	from, prefix := w.path(name), name+corruptInfix
	if info, err := os.Lstat(from); err == nil && !info.Mode().IsRegular() {
		move = true // a directory cannot be replaced by rename
	}
	if !move && w.aside(name) {
		return "", nil
	}
	to := w.path(prefix + stamp)
	for i := 2; exists(to); i++ {
		to = w.path(fmt.Sprintf("%s%s.%d", prefix, stamp, i))
	}
	if err := w.step("set-aside", to); err != nil {
		return "", err
	}
	var err error
	if move {
		err = os.Rename(from, to)
	} else if err = os.Link(from, to); err != nil {
		var data []byte
		if data, err = readFile(from); err == nil {
			err = w.replace(filepath.Base(to), data)
		}
	}
	if err != nil {
		return "", err
	}
	w.prune(prefix, filepath.Base(to))
	return to, nil
}

// aside reports whether a damaged file has already been kept by an earlier attempt to write.
func (w *writer) aside(file string) bool {
	info, err := os.Stat(w.path(file))
	if err != nil {
		return false
	}
	data, unreadable := readFile(w.path(file))
	for _, name := range w.list() {
		if !strings.HasPrefix(name, file+corruptInfix) {
			continue
		}
		if kept, err := os.Stat(w.path(name)); err == nil && os.SameFile(info, kept) {
			return true
		}
		if copied, err := readFile(w.path(name)); err == nil && unreadable == nil && bytes.Equal(data, copied) {
			return true
		}
	}
	return false
}

// prune keeps maxCorrupt damaged files: the new one and those with the latest names. The clock
// may be wrong, so the name of the new one need not be the last.
func (w *writer) prune(prefix, kept string) {
	var others []string
	for _, name := range w.list() {
		if strings.HasPrefix(name, prefix) && name != kept {
			others = append(others, name)
		}
	}
	for _, name := range others[:max(0, len(others)+1-maxCorrupt)] {
		_ = w.remove(name)
	}
}

// stamp returns the time now for the name of a damaged file.
func stamp(now time.Time) string { return wholeSeconds(now).Format("20060102T150405Z") }
