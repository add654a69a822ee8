package store

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"time"
)

const (
	floorName        = "retry-after.json"
	confirmationName = "confirmation.json"
	// maxFloors bounds the file: one gateway has one key, or a few while its
	// configuration is being worked on.
	maxFloors = 16
	// runtimeMode: neither file holds a secret.
	runtimeMode = 0o644
)

// Runtime keeps what is to survive a restart of the service but not of the
// machine. Its files are in the directory of the control socket, and one that
// is missing or damaged is as good as none.
type Runtime struct {
	Directory string
}

// Confirmation is the last time the service confirmed the record.
type Confirmation struct {
	Generation        uint64    `json:"generation"`        // of the record
	At                time.Time `json:"at"`                // wall clock, UTC
	ConfigFingerprint string    `json:"configFingerprint"` // of the configuration that asked
}

// floor is a time before which the service is not to be asked again.
type floor struct {
	Key string `json:"key"`
	// BootTime is CLOCK_BOOTTIME in nanoseconds: it goes on in suspend, and
	// nobody can set it.
	BootTime time.Duration `json:"bootTimeNanoseconds"`
}

// Create makes the directory when only it is missing: systemd makes the service's,
// so this is for a person who runs dpsd by hand.
func (r Runtime) Create() error {
	w := writer{directory: r.Directory}
	return w.create()
}

// SaveFloor keeps the CLOCK_BOOTTIME until which the service asked not to be
// contacted. key names endpoint and registration ID: another identity has a
// floor of its own. until 0 removes it. The error is a *WriteError.
func (r Runtime) SaveFloor(key string, until time.Duration) error {
	floors := r.floors()
	old := len(floors)
	floors = slices.DeleteFunc(floors, func(f floor) bool { return f.Key == key })
	if until == 0 && len(floors) == old {
		return nil
	}
	if until != 0 {
		floors = append(floors, floor{key, until})
	}
	return r.save(floorName, floors[max(0, len(floors)-maxFloors):])
}

// LoadFloor returns what SaveFloor kept for key. CLOCK_BOOTTIME starts anew with
// each boot, so a directory that outlives a boot yields a floor of another one:
// the caller knows how far ahead a floor can be.
func (r Runtime) LoadFloor(key string) (time.Duration, bool) {
	for _, f := range r.floors() {
		if f.Key == key {
			return f.BootTime, true
		}
	}
	return 0, false
}

func (r Runtime) floors() []floor {
	var floors []floor
	if !r.load(floorName, &floors) {
		return nil
	}
	return floors
}

// SaveConfirmation keeps c in place of the one before. The error is a
// *WriteError.
func (r Runtime) SaveConfirmation(c Confirmation) error {
	c.At = wholeSeconds(c.At)
	return r.save(confirmationName, c)
}

// LoadConfirmation returns what SaveConfirmation kept.
func (r Runtime) LoadConfirmation() (Confirmation, bool) {
	var c Confirmation
	if !r.load(confirmationName, &c) || c.Generation == 0 {
		return Confirmation{}, false
	}
	return c, true
}

func (r Runtime) load(name string, into any) bool {
	data, err := readFile(filepath.Join(r.Directory, name))
	return err == nil && json.Unmarshal(data, into) == nil
}

func (r Runtime) save(name string, v any) error {
	w := writer{directory: r.Directory, mode: runtimeMode}
	data, err := json.Marshal(v)
	if err == nil {
		err = w.create()
	}
	if err != nil {
		return writeError(w.path(name), err)
	}
	return w.write(name, append(data, '\n'))
}
