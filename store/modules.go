package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

const (
	modulesName = "modules.json"
	// secretMode is the mode of a file that only the owner of the directory may read.
	secretMode = 0o600
	// modulesSchema is the version of the format of modules.json.
	modulesSchema = 1
	// RootSize is the size of Modules.Root, in bytes.
	RootSize = 32
)

// Modules is the content of modules.json: the module identities that dpsd manages at IoT hubs. The
// zero value means that there are no identities, and no root yet.
type Modules struct {
	// Root is the secret from which the keys of the modules are derived, RootSize bytes. It
	// changes only if modules.json is lost.
	Root []byte
	// Identities are the modules that dpsd has created or is about to create, and has not removed.
	Identities []ModuleIdentity
}

// ModuleIdentity is a module of a device at a hub.
type ModuleIdentity struct {
	AssignedHub string `json:"assignedHub"`
	DeviceID    string `json:"deviceId"`
	ModuleID    string `json:"moduleId"`
	// Created reports whether the hub has confirmed the module with its keys.
	Created bool `json:"created"`
}

// modulesFile is the content of modules.json.
type modulesFile struct {
	Schema     int              `json:"schema"`
	Root       []byte           `json:"root"`
	Identities []ModuleIdentity `json:"modules"`
	Checksum   string           `json:"checksum"` // SHA-256 of the document with an empty checksum
}

// ModulesError means that modules.json exists but cannot be read, or is not as dpsd wrote it.
// SaveModules never overwrites such a file, because it may contain the only copy of the root.
type ModulesError struct {
	Path    string
	Err     error
	damaged bool // its content is lost
}

// Error returns the path and the cause.
func (e *ModulesError) Error() string { return e.Path + ": " + e.Err.Error() }

// Unwrap returns the cause.
func (e *ModulesError) Unwrap() error { return e.Err }

// Modules reads modules.json. Without the file, it returns the zero value. A damaged file is kept
// under another name, and counts as missing: the hub has the same modules, and they get new keys, so
// that nobody has to repair the gateway. A file that cannot be read, or that a newer version has
// written, may be intact, so it remains. The error is a *ModulesError.
func (s *Store) Modules(now time.Time) (Modules, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := s.state.modules()
	if failed, is := errors.AsType[*ModulesError](err); is && failed.damaged && s.lock.in(s.state.directory) {
		return Modules{}, s.setModulesAside(failed, now)
	}
	return m, err
}

// setModulesAside keeps a damaged modules.json under another name.
func (s *Store) setModulesAside(damaged *ModulesError, now time.Time) error {
	to, err := s.state.setAside(modulesName, stamp(now), true)
	if err == nil {
		err = s.state.sync()
	}
	if err != nil {
		return &ModulesError{Path: damaged.Path, Err: fmt.Errorf("%w; it cannot be renamed: %w", damaged.Err, withoutPath(err))}
	}
	secret := s.state
	secret.mode = secretMode
	secret.settle(filepath.Base(to))
	s.notice(Damaged, damaged.Path, damaged.Err)
	s.notice(SetAside, to, nil)
	return nil
}

// SaveModules stores m durably, with mode 0600. It writes nothing if the file already has this
// content. The error is a *WriteError or, if the existing file cannot be read, a *ModulesError.
func (s *Store) SaveModules(m Modules) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.state.modules(); err != nil {
		return err
	}
	err := s.claim()
	if err == nil {
		w := s.state
		w.mode = secretMode
		if data := encodeModules(m); !w.has(modulesName, data) {
			if err = w.replace(modulesName, data); err == nil {
				err = w.sync()
			}
		}
	}
	if err != nil {
		return writeError(s.state.path(modulesName), err)
	}
	return nil
}

// modules reads modules.json.
func (w *writer) modules() (Modules, error) {
	data, err := readFile(w.path(modulesName))
	if errors.Is(err, fs.ErrNotExist) {
		return Modules{}, nil
	}
	var m Modules
	if err == nil {
		m, err = parseModules(data)
	}
	damaged, lost := errors.AsType[*DamagedError](err)
	switch {
	case lost:
		err = errors.New(damaged.Reason)
	case err == nil:
		return m, nil
	}
	return Modules{}, &ModulesError{w.path(modulesName), withoutPath(err), lost}
}

// withoutPath returns the cause of an error about a file whose path is known.
func withoutPath(err error) error {
	if at, is := errors.AsType[*fs.PathError](err); is {
		return at.Err
	}
	if link, is := errors.AsType[*os.LinkError](err); is {
		return link.Err
	}
	return err
}

func parseModules(data []byte) (Modules, error) {
	var version struct { // a newer one may have other members
		Schema int `json:"schema"`
	}
	var f modulesFile
	err := json.Unmarshal(data, &version)
	if err == nil && version.Schema > modulesSchema {
		return Modules{}, fmt.Errorf("it has schema %d; this program supports schema %d", version.Schema, modulesSchema)
	}
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	if err != nil {
		return Modules{}, &DamagedError{Reason: "it is not a JSON document that dpsd wrote"} // the cause could quote the root
	}
	m := Modules{f.Root, f.Identities}
	if len(f.Root) != RootSize || !slices.Equal(data, encodeModules(m)) {
		return Modules{}, &DamagedError{Reason: "its content is not what dpsd wrote"}
	}
	return m, nil
}

func encodeModules(m Modules) []byte {
	f := modulesFile{Schema: modulesSchema, Root: m.Root, Identities: m.Identities}
	if f.Identities == nil {
		f.Identities = []ModuleIdentity{}
	}
	text := func() []byte {
		data, _ := json.MarshalIndent(f, "", "  ") // strings and numbers cannot fail
		return append(data, '\n')
	}
	f.Checksum = digest(text())
	return text()
}
