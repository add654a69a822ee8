package store

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Options says where a Store keeps its files.
type Options struct {
	// Directory is the state directory. It is made, 0755, when its parent is
	// there.
	Directory string
	// RuntimeDirectory is where the record is published while Directory cannot
	// be written. "" publishes nothing then.
	RuntimeDirectory string
	// Mode is that of the files, whatever the umask. 0 means 0644.
	Mode fs.FileMode
}

// Result says what a Save has done.
type Result int

// What a Save can have done.
const (
	// Unchanged: the files say so already; nothing was written.
	Unchanged Result = iota
	// FingerprintOnly: the same identity from another configuration; the
	// generation stays.
	FingerprintOnly
	// Written: a new identity, or one that had not reached the disk.
	Written
)

func (r Result) String() string {
	switch r {
	case Unchanged:
		return "unchanged"
	case FingerprintOnly:
		return "fingerprint"
	case Written:
		return "written"
	}
	return fmt.Sprintf("result %d", int(r))
}

// Store is the writer of the record. One process has it at a time; its methods
// may be called from several goroutines.
type Store struct {
	mu      sync.Mutex
	state   writer // the state directory
	runtime writer // the runtime directory; its directory is "" for none
	lock    *lock  // in the state directory, or for want of one in the runtime directory; nil: none

	published bool   // current is valid
	current   Record // what readers see: on disk or, until the disk takes it, under the runtime directory
	encoded   []byte // current as state.json
	durable   bool   // the state directory says what current says

	floor   uint64            // every new generation is above it
	newer   *NewerSchemaError // a later dpsd wrote the record: hands off
	unread  bool              // state.json could not be read yet
	notices []Notice
}

// Open takes the state directory: locks it, loads the record and mends what an
// interrupted write, a failing disk or a person left behind. What it found is
// told by Notices. A directory that cannot be written, or is not there, is no
// error but a notice: the record is held in memory then, see Save. now names
// the files that are set aside.
//
// The error is a *LockedError: another process has the directory.
func Open(o Options, now time.Time) (*Store, error) { return open(o, now, nil) }

// open is Open with a function that is called ahead of each step that changes
// the state directory.
func open(o Options, now time.Time, before func(step, path string) error) (*Store, error) {
	mode := o.Mode.Perm()
	if mode == 0 {
		mode = 0o644
	}
	s := &Store{state: writer{directory: o.Directory, mode: mode, before: before}, runtime: writer{mode: mode}}
	if o.RuntimeDirectory != "" && filepath.Clean(o.RuntimeDirectory) != filepath.Clean(o.Directory) {
		s.runtime.directory = o.RuntimeDirectory
	}
	if err := s.start(now); err != nil {
		return nil, err
	}
	return s, nil
}

func (s *Store) start(now time.Time) error {
	err := s.claim()
	var locked *LockedError
	if errors.As(err, &locked) {
		return locked
	}
	if err == nil {
		err = s.state.writable()
	}
	if err != nil {
		s.notice(Unwritable, s.state.directory, err)
	} else {
		s.sweep(&s.state, stateName, environmentName, previousName, transportName, recorderName)
	}
	if s.lock != nil {
		s.sweep(&s.runtime, stateName, environmentName, floorName, confirmationName, recorderName)
	}
	s.load(err == nil, now)
	for _, name := range s.state.list() {
		if name == stateName || name == environmentName || name == previousName || strings.HasPrefix(name, corruptPrefix) {
			s.state.settle(name)
		}
	}
	return nil
}

func (s *Store) sweep(w *writer, names ...string) {
	for _, path := range w.sweep(names...) {
		s.notice(StaleTemporary, path, nil)
	}
}

func (s *Store) notice(kind NoticeKind, path string, err error) {
	s.notices = append(s.notices, Notice{kind, path, err})
}

// claim makes sure of the lock in the state directory. While that directory
// refuses even a lock, the runtime directory's keeps a second process out, if
// it can. Errors: *LockedError, or why the state directory has no lock of ours.
func (s *Store) claim() error {
	if s.lock.in(s.state.directory) {
		if s.lock.covered(s.state.directory) {
			return &CoveredError{s.state.directory}
		}
		return nil
	}
	err := s.state.create()
	if err == nil {
		var l *lock
		if l, err = acquire(&s.state); err == nil {
			_ = s.lock.release()
			s.lock = l
			return nil
		}
	}
	var locked *LockedError
	if errors.As(err, &locked) || s.lock != nil || s.runtime.directory == "" || s.runtime.create() != nil {
		return err
	}
	l, second := acquire(&s.runtime)
	if errors.As(second, &locked) {
		return locked
	}
	s.lock = l
	return err
}

// load finds the record to publish, and writes what has to be mended.
func (s *Store) load(writable bool, now time.Time) {
	path := s.state.path(stateName)
	env, _ := readFile(s.state.path(environmentName))
	s.floor = environmentGeneration(env)

	rec, data, err := readRecord(path)
	linked := false
	known := rec.Generation // of the latest whole record in the state directory
	var damaged *DamagedError
	switch {
	case err == nil:
		linked = s.take(rec, data)
	case errors.As(err, &s.newer):
		s.notice(NewerSchema, path, s.newer)
		s.floor = max(s.floor, s.newer.Generation)
	case errors.As(err, new(*unreadError)):
		// Nothing is known to be wrong with it, so it stays, and no older record
		// takes its place. If the directory is the reason, a notice has said so.
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
	s.adoptRuntime(known)

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
		// A process that ended right after its rename has not synced it.
		err = s.state.sync()
	}
	if err != nil {
		s.durable = false
		if writable { // else a notice has said so
			s.notice(Unwritable, s.state.directory, err)
		}
		s.publish()
		return
	}
	s.withdraw()
}

// take adopts the record of state.json, and tells whether that is a link to a file.
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

// reread takes the record that could not be read before, if it can be read now.
func (s *Store) reread() {
	if !s.unread || s.published {
		return
	}
	if rec, data, err := readRecord(s.state.path(stateName)); err == nil {
		s.unread = false
		s.take(rec, data)
	}
}

// recover puts the previous record in the place of a state.json that is damaged
// or gone, and returns its generation. The lost one had prev + 1, so this one
// gets prev + 2. Without a usable previous record a damaged file moves aside.
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
	to, err := s.state.setAside(stamp(now), true)
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

// adoptRuntime takes the record that an earlier process could only publish
// under the runtime directory, when it is later than the one known: withdrawing
// it would break before make.
func (s *Store) adoptRuntime(known uint64) {
	if s.runtime.directory == "" {
		return
	}
	path := s.runtime.path(stateName)
	env, _ := readFile(s.state.path(environmentName))
	rec, data, err := readRecord(path)
	if err != nil || rec.Generation <= known {
		return
	}
	s.notice(RuntimeAdopted, path, nil)
	s.adopt(rec, data, false)
	if behind := environmentGeneration(env); behind > rec.Generation {
		rec.Generation = above(behind)
		s.hold(rec)
	}
}

// adopt takes rec and its file as what is published.
func (s *Store) adopt(rec Record, data []byte, durable bool) {
	s.published, s.current, s.encoded, s.durable = true, rec, data, durable
	s.floor = max(s.floor, rec.Generation)
}

// hold takes rec as what is to be published. A normalised record can always be
// encoded; were that ever untrue, the old one stays.
func (s *Store) hold(rec Record) {
	if rec, data, err := encode(rec); err == nil {
		s.adopt(rec, data, false)
	}
}

// Current returns the published record. Its slices must not be changed.
func (s *Store) Current() (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.published
}

// Durable tells whether the state directory holds the published record, and its
// state.env, safe from a power cut.
func (s *Store) Durable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.published && s.durable
}

// Notices returns what Open, and each Save and Mend since, found; in that order.
func (s *Store) Notices() []Notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Notice(nil), s.notices...)
}

// Writable tells, without writing, whether a Save could write: nil, or the
// reason. A full disk shows only in Save.
func (s *Store) Writable() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.newer != nil {
		return s.newer
	}
	return s.state.writable()
}

// Save publishes rec. It writes only what differs: nothing at all when the
// files already say the same, not even a time stamp. Generation, status,
// schema, provisionedAt and checksum are set here; Current has them afterwards.
//
// When Save returns nil, rec survives a power cut. A *WriteError says that the
// disk refused: then rec is what Current returns, is published under the
// runtime directory, and any later Save of the same tries again. An
// *InvalidError says that rec may not be published; nothing has changed.
func (s *Store) Save(rec Record, now time.Time) (Result, error) {
	rec, err := normalise(rec)
	if err != nil {
		return Unchanged, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()

	s.reread()
	result, owed := Written, s.published && !s.durable
	rec.Generation = above(s.floor)
	rec.ProvisionedAt = wholeSeconds(now)
	switch {
	case !s.published || !sameIdentity(s.current, rec):
		s.hold(rec)
	case s.current.ConfigFingerprint != rec.ConfigFingerprint:
		if !owed {
			result = FingerprintOnly
		}
		rec.Generation = s.current.Generation
		s.hold(rec)
	case s.durable && s.intact():
		return Unchanged, nil
	default:
		// The disk still owes this record: the same bytes once more.
		s.durable = false
	}
	if err := s.commit(now); err != nil {
		return result, s.refused(err)
	}
	return result, nil
}

// Mend puts back what is no longer in the state directory as it was written:
// a person, or another program, may have removed or changed a file, or the whole
// directory. The result is Unchanged when nothing had to be done, also while no
// record is published. The error is that of Save.
func (s *Store) Mend(now time.Time) (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reread()
	if !s.published {
		return Unchanged, nil
	}
	if s.durable && s.intact() {
		// Another file system may be mounted there now, or none any more.
		err := s.claim()
		if errors.As(err, new(*LockedError)) || errors.As(err, new(*CoveredError)) {
			return Unchanged, s.refused(err)
		}
		return Unchanged, nil
	}
	s.durable = false
	if err := s.commit(now); err != nil {
		return Written, s.refused(err)
	}
	return Written, nil
}

// intact tells whether the files are still what was written: reading wears
// nothing, and a person may have removed them.
func (s *Store) intact() bool {
	return s.state.has(stateName, s.encoded) && s.state.has(environmentName, environment(s.current))
}

// refused makes the WriteError of a failed commit and publishes the record
// where it can be.
func (s *Store) refused(err error) error {
	e := writeError(s.state.path(stateName), err)
	if s.publish() {
		e.Published = s.runtime.directory
	}
	return e
}

// commit writes the current record: state.json.prev, then state.json, which is
// the commit point, then state.env, then the directory. A crash between any two
// leaves whole files, and a state.env that Open repairs.
func (s *Store) commit(now time.Time) error {
	if err := s.claim(); err != nil {
		return err
	}
	if err := s.keepPrevious(now); err != nil {
		return err
	}
	if err := s.state.replace(stateName, s.encoded); err != nil {
		return err
	}
	if err := s.writeEnvironment(); err != nil {
		return err
	}
	s.durable, s.unread = true, false
	s.withdraw()
	return nil
}

// keepPrevious looks at the state.json that is about to be replaced. A whole
// one becomes state.json.prev, a damaged or unreadable one goes aside, and one that a later
// dpsd wrote is left alone.
func (s *Store) keepPrevious(now time.Time) error {
	s.newer = nil
	old, data, err := readRecord(s.state.path(stateName))
	var damaged *DamagedError
	var unread *unreadError
	switch {
	case err == nil && bytes.Equal(data, s.encoded):
		return nil // a retry: the commit got as far as that
	case err == nil:
		if old.Generation > s.current.Generation {
			// Not ours: somebody put a file back. It has been read, so go on from it.
			rec := s.current
			rec.Generation = above(old.Generation)
			s.hold(rec)
		}
		return s.state.replace(previousName, data)
	case errors.As(err, &s.newer):
		return s.newer
	case errors.As(err, &unread) && unread.exhausted():
		return unread // it is whole, for all that is known, and is to become state.json.prev
	case errors.As(err, &damaged), unread != nil:
		// Failing here would keep a whole record from readers for the sake of
		// a broken one.
		if to, err := s.state.setAside(stamp(now), false); err == nil && to != "" {
			s.notice(SetAside, to, nil)
		}
	}
	return nil
}

// writeEnvironment writes state.env, unless it says so already: who watches it
// is not to be woken for nothing. Then it syncs the directory.
func (s *Store) writeEnvironment() error {
	if err := s.claim(); err != nil {
		return err
	}
	want := environment(s.current)
	if !s.state.has(environmentName, want) {
		if err := s.state.replace(environmentName, want); err != nil {
			return err
		}
	}
	return s.state.sync()
}

// publish writes the record under the runtime directory.
func (s *Store) publish() bool {
	if s.runtime.directory == "" || s.runtime.create() != nil {
		return false
	}
	for _, file := range []struct {
		name string
		want []byte
	}{{stateName, s.encoded}, {environmentName, environment(s.current)}} {
		if s.runtime.has(file.name, file.want) {
			continue
		}
		if s.runtime.replace(file.name, file.want) != nil {
			return false
		}
	}
	return true
}

// withdraw removes the record from the runtime directory once it is on disk.
func (s *Store) withdraw() {
	if s.runtime.directory == "" {
		return
	}
	for _, name := range []string{environmentName, stateName} {
		if exists(s.runtime.path(name)) {
			_ = s.runtime.remove(name)
		}
	}
}

// Transport returns the name of the transport that worked last, "" when none is
// known.
func (s *Store) Transport() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := readFile(s.state.path(transportName))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}

// SaveTransport keeps the name of the transport that worked last. The same name
// again writes nothing. It is a hint, so it is not forced to disk. The error is
// a *WriteError.
func (s *Store) SaveTransport(name string) error {
	if s.Transport() == name {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.claim()
	if err == nil {
		err = s.state.replace(transportName, []byte(name+"\n"))
	}
	if err != nil {
		return writeError(s.state.path(transportName), err)
	}
	return nil
}

// Close lets go of the state directory. The files stay.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.lock.release()
	s.lock = nil
	return err
}

// above is the next generation. The limit is out of reach in a gateway's life.
func above(generation uint64) uint64 { return min(generation+1, maxGeneration) }

// stamp names a damaged record by the time it was found.
func stamp(now time.Time) string { return wholeSeconds(now).Format("20060102T150405Z") }
