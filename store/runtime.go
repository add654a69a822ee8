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
	refusalsName     = "refusals.json"
	// maxFloors limits the file: a gateway has one key, or a few while its configuration is
	// being changed.
	maxFloors = 16
	// runtimeMode is the mode of the files, which contain no secrets.
	runtimeMode = 0o644
)

// Runtime stores data that must survive a restart of the service but not of the machine.
// Its files are in the directory of the control socket; a damaged file counts as missing.
type Runtime struct {
	Directory string
}

// Confirmation is the service's last confirmation of the record.
type Confirmation struct {
	Generation        uint64    `json:"generation"`        // generation of the record
	At                time.Time `json:"at"`                // wall clock, UTC
	ConfigFingerprint string    `json:"configFingerprint"` // fingerprint of the configuration
}

// floor is a time before which the service must not be contacted.
type floor struct {
	Key string `json:"key"`
	// BootTime is CLOCK_BOOTTIME in nanoseconds, which includes suspend time and cannot be
	// set.
	BootTime time.Duration `json:"bootTimeNanoseconds"`
}

// Create creates the directory if its parent exists. systemd creates the directory of the
// service; this is for users who run dpsd manually.
func (r Runtime) Create() error {
	w := writer{directory: r.Directory}
	return w.create()
}

// SaveFloor stores the CLOCK_BOOTTIME until which the service asked not to be contacted.
// key contains the endpoint and the registration ID, so each identity has a separate floor.
// If until is 0, the floor is removed. The error is a *WriteError.
func (r Runtime) SaveFloor(key string, until time.Duration) error {
	floors := load[[]floor](r.Directory, floorName)
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

// LoadFloor returns the stored floor for key. CLOCK_BOOTTIME restarts at each boot, so a
// directory that survives a reboot contains a floor of another boot: the caller must check
// that it is plausible.
func (r Runtime) LoadFloor(key string) (time.Duration, bool) {
	for _, f := range load[[]floor](r.Directory, floorName) {
		if f.Key == key {
			return f.BootTime, true
		}
	}
	return 0, false
}

// SaveConfirmation replaces the stored confirmation by c. The error is a *WriteError.
func (r Runtime) SaveConfirmation(c Confirmation) error {
	c.At = wholeSeconds(c.At)
	return r.save(confirmationName, c)
}

// LoadConfirmation returns the stored confirmation.
func (r Runtime) LoadConfirmation() (Confirmation, bool) {
	c := load[Confirmation](r.Directory, confirmationName)
	return c, c.Generation != 0
}

// refusals is the content of the file about refusals by the hub.
type refusals struct {
	// Acted is the CLOCK_BOOTTIME at which dpsd last acted on them, in nanoseconds.
	Acted time.Duration `json:"actedBootTimeNanoseconds"`
}

// SaveRefusals stores the CLOCK_BOOTTIME at which dpsd last acted on refusals by the hub. The
// error is a *WriteError.
func (r Runtime) SaveRefusals(acted time.Duration) error {
	return r.save(refusalsName, refusals{acted})
}

// LoadRefusals returns the stored CLOCK_BOOTTIME, or 0. The time may belong to another boot; see
// LoadFloor.
func (r Runtime) LoadRefusals() time.Duration {
	return load[refusals](r.Directory, refusalsName).Acted
}

// load returns the value in a file, or the zero value if the file is missing or damaged.
func load[T any](directory, name string) (value T) {
	data, err := readFile(filepath.Join(directory, name))
	if err != nil || json.Unmarshal(data, &value) != nil {
		return *new(T)
	}
	return value
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
