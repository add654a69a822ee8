package store

import (
	"bytes"
	"cmp"
	"errors"
	"io/fs"
	"path/filepath"
	"sync"
	"time"
)

// Options specifies the files of a Store.
type Options struct {
	// Directory is the state directory. It is created with mode 0755 if its parent exists.
	Directory string
	// RuntimeDirectory is the directory in which the record is published while Directory
	// cannot be written to. It may be "".
	RuntimeDirectory string
	// Mode is the mode of the files, independent of the umask. 0 means 0644.
	Mode fs.FileMode
	// CertificateGroup is the group that may read an issued certificate and its key. If it is
	// "", only the owner of the directory may.
	CertificateGroup string
}

// writers returns the writers of both directories. The directory of the second is "" if
// nothing is published there.
func (o Options) writers() (state, runtime writer) {
	mode := permissions(o.Mode)
	state, runtime = writer{directory: o.Directory, mode: mode}, writer{mode: mode}
	if o.RuntimeDirectory != "" && filepath.Clean(o.RuntimeDirectory) != filepath.Clean(o.Directory) {
		runtime.directory = o.RuntimeDirectory
	}
	return state, runtime
}

// permissions returns the permissions of a file; 0 means the default.
func permissions(mode fs.FileMode) fs.FileMode { return cmp.Or(mode.Perm(), 0o644) }

// Result is the result of a Save.
type Result int

// The results of a Save.
const (
	// Unchanged: the files were already up to date; nothing was written.
	Unchanged Result = iota
	// FingerprintOnly: the identity is the same but the configuration differs; the
	// generation is unchanged.
	FingerprintOnly
	// Written: a new identity, or one that was not durable before, was written.
	Written
)

func (r Result) String() string {
	return [...]string{Unchanged: "unchanged", FingerprintOnly: "fingerprint", Written: "written"}[r]
}

// Store writes the record. Only one process at a time can open it. Its methods may be
// called from several goroutines.
type Store struct {
	mu      sync.Mutex
	state   writer // the state directory
	runtime writer // the runtime directory; its directory is "" for none
	lock    *lock  // in the state directory or otherwise in the runtime directory; nil for none

	published bool   // current is valid
	current   Record // the published record: in the state directory or, until it can be written there, in the runtime directory
	encoded   []byte // current as state.json
	durable   bool   // the state directory contains current

	floor   uint64            // new generations are higher
	newer   *NewerSchemaError // a later dpsd wrote the record, which must not be changed
	unread  bool              // state.json could not be read yet
	notices []Notice

	pair  currentPair
	group string // see Options.CertificateGroup
}

// Open locks the state directory, loads the record and repairs damage from interrupted
// writes, failing disks or manual changes. Notices returns what it found. A directory that
// does not exist or cannot be written to is not an error but a notice: the record is then
// kept in memory, see Save. now is used in the names of damaged files that are kept.
//
// The error is a *LockedError if another process has locked the directory.
func Open(o Options, now time.Time) (*Store, error) { return open(o, now, nil) }

// open is Open with a function that is called before each step that changes the state
// directory.
func open(o Options, now time.Time, before func(step, path string) error) (*Store, error) {
	s := &Store{group: o.CertificateGroup}
	s.state, s.runtime = o.writers()
	s.state.before = before
	if err := s.start(now); err != nil {
		return nil, err
	}
	return s, nil
}

// claim ensures that the store holds the lock in the state directory. While that is
// impossible, it uses a lock in the runtime directory to exclude a second process. The
// error is a *LockedError, or the reason why the state directory cannot be locked.
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

// adopt makes rec, with its file, the published record.
func (s *Store) adopt(rec Record, data []byte, durable bool) {
	s.published, s.current, s.encoded, s.durable = true, rec, data, durable
	s.floor = max(s.floor, rec.Generation)
}

// hold makes rec the record to publish, with the published pair.
func (s *Store) hold(rec Record) {
	rec.Certificate = s.certificate(rec.Certificate)
	rec, data := encode(rec)
	s.adopt(rec, data, false)
}

// Current returns the published record. Its slices must not be changed.
func (s *Store) Current() (Record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current, s.published
}

// Durable reports whether the published record and its state.env are in the state directory
// and would survive a power failure.
func (s *Store) Durable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.published && s.durable
}

// Notices returns the notices of Open and of each Save and Repair since, in order.
func (s *Store) Notices() []Notice {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]Notice(nil), s.notices...)
}

// Save publishes rec. It writes only files that differ, and nothing, not even a timestamp,
// if all files are up to date. Save sets generation, status, schema, certificate,
// provisionedAt and checksum; Current then returns them.
//
// If Save returns nil, rec survives a power failure. If it returns a *WriteError, rec could
// not be written: Current then returns rec, it is published in the runtime directory, and a
// later Save of the same record tries again. If it returns an *InvalidError, rec must not
// be published, and nothing has changed.
func (s *Store) Save(rec Record, now time.Time) (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()

	s.reread()
	if s.pair.err != nil {
		_, _ = s.findPair(now, false)
	}
	rec.Certificate = s.certificate(s.current.Certificate)
	rec, err := normalise(rec)
	if err != nil {
		return Unchanged, err
	}
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
		// This record has not been written yet: try again with the same bytes.
		s.durable = false
	}
	if err := s.commit(now); err != nil {
		return result, s.refused(err)
	}
	return result, nil
}

// Repair restores files in the state directory that have been changed or removed, for
// example by a user or another program, or the whole directory. It restores
// certificate/current, and removes pairs that have expired by now. If the published pair is
// lost, the record gets another one or none, and the next generation. The result is Unchanged
// if no repair was necessary. Its errors are those of Save.
func (s *Store) Repair(now time.Time) (Result, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reread()
	restored, err := s.findPair(now, true)
	if err != nil {
		return Unchanged, writeError(s.state.path(currentPath), err)
	}
	result := Unchanged
	if restored {
		result = Written
	}
	if !s.published {
		return result, nil
	}
	if !s.certified() {
		rec := s.current
		rec.Generation = above(s.floor)
		s.hold(rec)
	}
	if s.durable && s.intact() {
		// A file system may have been mounted there or unmounted.
		err := s.claim()
		if errors.As(err, new(*LockedError)) || errors.As(err, new(*CoveredError)) {
			return Unchanged, s.refused(err)
		}
		s.tidyExpired(now)
		return result, nil
	}
	s.durable = false
	if err := s.commit(now); err != nil {
		return Written, s.refused(err)
	}
	return Written, nil
}

// intact reports whether the files have the written contents. A user may have removed them,
// and reading does not wear the flash.
func (s *Store) intact() bool {
	return s.state.has(stateName, s.encoded) && s.state.has(environmentName, environment(s.current))
}

// certified reports whether the record has the published pair.
func (s *Store) certified() bool {
	return sameCertificate(s.current.Certificate, s.certificate(s.current.Certificate))
}

// refused returns the WriteError of a failed commit and publishes the record in the runtime
// directory if possible.
func (s *Store) refused(err error) error {
	e := writeError(s.state.path(stateName), err)
	if s.publish() {
		e.Published = s.runtime.directory
	}
	return e
}

// commit writes the current record: state.json.prev, then state.json, which is the commit
// point, then state.env, then the directory. A crash between any two leaves complete files,
// and a state.env that Open repairs.
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
	s.tidyExpired(now)
	return nil
}

// keepPrevious keeps the state.json that is about to be replaced. A valid one becomes
// state.json.prev, and a damaged or unreadable one is kept under another name. One of a
// later dpsd is not replaced.
func (s *Store) keepPrevious(now time.Time) error {
	s.newer = nil
	old, data, err := readRecord(s.state.path(stateName))
	var damaged *DamagedError
	var unread *unreadError
	switch {
	case err == nil && bytes.Equal(data, s.encoded):
		return nil // this is a retry, and the earlier commit got this far
	case err == nil:
		if old.Generation > s.current.Generation {
			// A user has restored another file. It was read, so continue from it.
			rec := s.current
			rec.Generation = above(old.Generation)
			s.hold(rec)
		}
		return s.state.replace(previousName, data)
	case errors.As(err, &s.newer):
		return s.newer
	case errors.As(err, &unread) && unread.exhausted():
		return unread // it may be intact and must become state.json.prev
	case errors.As(err, &damaged), unread != nil:
		// Failing here would withhold a valid record from readers because of a damaged one.
		if to, err := s.state.setAside(stateName, stamp(now), false); err == nil && to != "" {
			s.notice(SetAside, to, nil)
		}
	}
	return nil
}

// writeEnvironment writes state.env unless it is up to date, so that watchers are not woken
// unnecessarily. Then it syncs the directory.
func (s *Store) writeEnvironment() error {
	if err := s.claim(); err != nil {
		return err
	}
	if err := s.state.put(environmentName, environment(s.current)); err != nil {
		return err
	}
	return s.state.sync()
}

// publish writes the record to the runtime directory.
func (s *Store) publish() bool {
	return s.runtime.directory != "" && s.runtime.create() == nil &&
		s.runtime.put(stateName, s.encoded) == nil && s.runtime.put(environmentName, environment(s.current)) == nil
}

// withdraw removes the record from the runtime directory after it has been written to the
// state directory.
func (s *Store) withdraw() {
	if s.runtime.directory == "" {
		return
	}
	_ = s.runtime.remove(environmentName)
	_ = s.runtime.remove(stateName)
}

// Transport returns the name of the last working transport, or "" if it is unknown.
func (s *Store) Transport() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	data, err := readFile(s.state.path(transportName))
	if err != nil {
		return ""
	}
	return string(bytes.TrimSpace(data))
}

// SaveTransport stores the name of the last working transport. It writes nothing if the
// name is unchanged. The name is only a hint, so it is not synced. The error is a
// *WriteError.
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

// Close releases the lock of the state directory. It does not change the files.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := s.lock.release()
	s.lock = nil
	return err
}

// above returns the next generation. A gateway cannot reach the limit in its lifetime.
func above(generation uint64) uint64 { return min(generation+1, maxGeneration) }
