package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
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

// writers returns those of both directories. That of the runtime directory has none when
// nothing is published there.
func (o Options) writers() (state, runtime writer) {
	mode := permissions(o.Mode)
	state, runtime = writer{directory: o.Directory, mode: mode}, writer{mode: mode}
	if o.RuntimeDirectory != "" && filepath.Clean(o.RuntimeDirectory) != filepath.Clean(o.Directory) {
		runtime.directory = o.RuntimeDirectory
	}
	return state, runtime
}

// permissions are those of a file, 0 for the default.
func permissions(mode fs.FileMode) fs.FileMode { return cmp.Or(mode.Perm(), 0o644) }

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
	s := &Store{}
	s.state, s.runtime = o.writers()
	s.state.before = before
	if err := s.start(now); err != nil {
		return nil, err
	}
	return s, nil
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
	if errors.As(err, new(*LockedError)) || s.lock != nil || s.runtime.directory == "" || s.runtime.create() != nil {
		return err
	}
	l, second := acquire(&s.runtime)
	if errors.As(second, new(*LockedError)) {
		return second
	}
	s.lock = l
	return err
}

// adopt takes rec and its file as what is published.
func (s *Store) adopt(rec Record, data []byte, durable bool) {
	s.published, s.current, s.encoded, s.durable = true, rec, data, durable
	s.floor = max(s.floor, rec.Generation)
}

// hold takes rec as what is to be published.
func (s *Store) hold(rec Record) {
	rec, data := encode(rec)
	s.adopt(rec, data, false)
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
	if err := s.state.put(environmentName, environment(s.current)); err != nil {
		return err
	}
	return s.state.sync()
}

// publish writes the record under the runtime directory.
func (s *Store) publish() bool {
	return s.runtime.directory != "" && s.runtime.create() == nil &&
		s.runtime.put(stateName, s.encoded) == nil && s.runtime.put(environmentName, environment(s.current)) == nil
}

// withdraw removes the record from the runtime directory once it is on disk.
func (s *Store) withdraw() {
	if s.runtime.directory == "" {
		return
	}
	_ = s.runtime.remove(environmentName)
	_ = s.runtime.remove(stateName)
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
	if err != nil {
		return writeError(s.state.path(transportName), err)
	}
	return s.state.write(transportName, []byte(name+"\n"))
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
