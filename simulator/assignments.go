package simulator

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
)

// assignmentInterval is the minimum time between two writes of the file, so that a
// fleet that registers does not cause a write for each device.
const assignmentInterval = time.Second

// assignment is the registration record of a device that has been assigned.
type assignment struct {
	RegistrationID string          `json:"registrationId"`
	Group          string          `json:"enrollmentGroupId,omitempty"`
	Hub            string          `json:"assignedHub"`
	Profile        string          `json:"connectionProfile,omitempty"`
	DeviceID       string          `json:"deviceId"`
	Attestation    string          `json:"attestation,omitempty"` // hub.ByKey, hub.ByCertificate, or "" if it is not known
	Substatus      string          `json:"substatus"`
	Created        time.Time       `json:"createdDateTimeUtc"`
	Updated        time.Time       `json:"lastUpdatedDateTimeUtc"`
	ETag           string          `json:"etag"`
	Payload        json.RawMessage `json:"payload,omitempty"`
	// CertificateID is in every certificate that the service issues for the device; see
	// Server.RevokeDevice.
	CertificateID string `json:"certificateId,omitempty"`
}

// registration returns the assignment for callers outside the package.
func (a assignment) registration() Registration {
	return Registration{
		RegistrationID: a.RegistrationID, Group: a.Group, Hub: a.Hub, DeviceID: a.DeviceID,
		Substatus: a.Substatus, ETag: a.ETag, Created: a.Created, Updated: a.Updated, Payload: a.Payload,
	}
}

// assignments holds one assignment for each device, and writes them to a file if a
// path is set.
type assignments struct {
	path    string // "" for memory only
	onError func(error)

	mu    sync.Mutex
	all   map[string]assignment // by lower-case registration ID
	dirty bool
	wake  chan struct{} // capacity 1: something has changed
}

// loadAssignments reads the file in a directory if it exists. The directory "" means no file.
func loadAssignments(dir string, onError func(error)) (*assignments, error) {
	a := &assignments{onError: onError, all: map[string]assignment{}, wake: make(chan struct{}, 1)}
	if dir == "" {
		return a, nil
	}
	a.path = filepath.Join(dir, fileAssignments)
	text, err := os.ReadFile(a.path)
	if errors.Is(err, fs.ErrNotExist) {
		return a, nil
	}
	if err != nil {
		return nil, err
	}
	var list []assignment
	if err := json.Unmarshal(text, &list); err != nil {
		return nil, fmt.Errorf("%s: %w", a.path, err)
	}
	for _, r := range list {
		if !enroll.IsRegistrationID(r.RegistrationID) || r.Hub == "" {
			return nil, fmt.Errorf("%s: the entry of %q has an invalid registration ID or no hub", a.path, r.RegistrationID)
		}
		a.all[strings.ToLower(r.RegistrationID)] = r
	}
	return a, nil
}

func (a *assignments) get(registrationID string) (assignment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, ok := a.all[strings.ToLower(registrationID)]
	return r, ok
}

// find returns the assignment of a device ID at a hub. Most devices have their registration ID
// as their device ID, so these are found without a search.
func (a *assignments) find(name, deviceID string) (assignment, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	is := func(r assignment) bool { return r.DeviceID == deviceID && hub.Same(r.Hub, name) }
	if r, ok := a.all[strings.ToLower(deviceID)]; ok && is(r) {
		return r, true
	}
	for _, r := range a.all {
		if is(r) {
			return r, true
		}
	}
	return assignment{}, false
}

// put stores an assignment. It keeps the stored identifier of the device's certificates, which may
// have been replaced since the operation began.
func (a *assignments) put(r assignment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := strings.ToLower(r.RegistrationID)
	r.CertificateID = cmp.Or(a.all[key].CertificateID, r.CertificateID)
	a.all[key] = r
	a.changed()
}

// renewCertificateID replaces the identifier of a device's certificates. It returns false if the
// device is unknown.
func (a *assignments) renewCertificateID(registrationID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := strings.ToLower(registrationID)
	r, found := a.all[key]
	if found {
		r.CertificateID = guid(randomBytes("", 16))
		a.all[key] = r
		a.changed()
	}
	return found
}

// remove forgets a device. It returns false if it does not know the device.
func (a *assignments) remove(registrationID string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	key := strings.ToLower(registrationID)
	_, found := a.all[key]
	delete(a.all, key)
	a.changed()
	return found
}

// list returns all assignments in the order of the registration IDs.
func (a *assignments) list() []assignment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sorted()
}

// sorted does what list does. The caller holds a.mu.
func (a *assignments) sorted() []assignment {
	return slices.SortedFunc(maps.Values(a.all), func(x, y assignment) int { return strings.Compare(x.RegistrationID, y.RegistrationID) })
}

// changed lets keep write the file. The caller holds a.mu.
func (a *assignments) changed() {
	a.dirty = true
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

// keep writes the file after changes until done is closed.
func (a *assignments) keep(done <-chan struct{}) {
	for {
		select {
		case <-a.wake:
		case <-done:
			return
		}
		begun := time.Now()
		a.flush()
		// The whole file is written. With many devices that takes time; it may take up to
		// a tenth of all time.
		if !pause(max(assignmentInterval, 9*time.Since(begun)), done) {
			return
		}
	}
}

// flush writes the whole file if there are changes.
func (a *assignments) flush() {
	a.mu.Lock()
	list := a.sorted()
	dirty := a.dirty
	a.dirty = false
	a.mu.Unlock()
	if !dirty || a.path == "" {
		return
	}
	text, err := json.MarshalIndent(list, "", "  ")
	if err == nil {
		err = renameio.WriteFile(a.path, append(text, '\n'), 0o644, renameio.WithTempDir(filepath.Dir(a.path)))
	}
	if err != nil {
		a.mu.Lock()
		a.dirty = true // the next change, or the end, retries
		a.mu.Unlock()
		a.onError(fmt.Errorf("cannot save the assignments: %w", err))
	}
}
