package simulator

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
)

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
	// AtHub is the state of the identity of the device at its hub: atHubDisabled, atHubDeleted, or ""
	// if it has not changed since DPS created it.
	AtHub string `json:"atHub,omitempty"`
	// CertificateID is in every certificate that the service issues for the device; see
	// Server.RevokeDevice.
	CertificateID string `json:"certificateId,omitempty"`
}

// The values of AtHub.
const (
	atHubDisabled = "disabled"
	atHubDeleted  = "deleted"
)

// registration returns the assignment for callers outside the package.
func (a assignment) registration() Registration {
	return Registration{
		RegistrationID: a.RegistrationID, Group: a.Group, Hub: a.Hub, DeviceID: a.DeviceID,
		Substatus: a.Substatus, ETag: a.ETag, Created: a.Created, Updated: a.Updated, Payload: a.Payload,
	}
}

// assignments holds one assignment for each device, and writes them to a file.
type assignments struct {
	file *savedFile
	// gone is called when a hub no longer has the identity of a device.
	gone func(hub, deviceID string)

	mu  sync.Mutex
	all map[string]assignment // by lower-case registration ID
}

// loadAssignments reads the file in a directory if it exists. The directory "" means no file.
func loadAssignments(dir string, gone func(hub, deviceID string), onError func(error)) (*assignments, error) {
	a := &assignments{gone: gone, all: map[string]assignment{}}
	a.file = newSavedFile(dir, fileAssignments, 0o644, func() any { return a.list() }, onError)
	var list []assignment
	if err := a.file.load(&list); err != nil {
		return nil, err
	}
	for _, r := range list {
		if !enroll.IsRegistrationID(r.RegistrationID) || r.Hub == "" {
			return nil, fmt.Errorf("%s: the entry of %q has an invalid registration ID or no hub", a.file.path, r.RegistrationID)
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
// have been replaced since the operation began. A device that was deleted at its hub exists again,
// but a disabled device remains disabled, because DPS does not enable devices.
func (a *assignments) put(r assignment) {
	key := strings.ToLower(r.RegistrationID)
	a.mu.Lock()
	before := a.all[key]
	moved := before.Hub != "" && (!hub.Same(before.Hub, r.Hub) || before.DeviceID != r.DeviceID)
	r.CertificateID, r.AtHub = cmp.Or(before.CertificateID, r.CertificateID), ""
	if !moved && before.AtHub == atHubDisabled {
		r.AtHub = atHubDisabled
	}
	a.all[key] = r
	a.mu.Unlock()
	a.file.changed()
	if moved {
		a.gone(before.Hub, before.DeviceID)
	}
}

// setAtHub records a change of a device at its hub. It returns false if the device is
// unknown or has been deleted there.
func (a *assignments) setAtHub(registrationID, what string) (assignment, bool) {
	a.mu.Lock()
	key := strings.ToLower(registrationID)
	r, found := a.all[key]
	if found = found && r.AtHub != atHubDeleted; found {
		r.AtHub = what
		a.all[key] = r
	}
	a.mu.Unlock()
	if found {
		a.file.changed()
	}
	if found && what == atHubDeleted {
		a.gone(r.Hub, r.DeviceID)
	}
	return r, found
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
		a.file.changed()
	}
	return found
}

// remove forgets a device. It returns false if it does not know the device.
func (a *assignments) remove(registrationID string) bool {
	a.mu.Lock()
	key := strings.ToLower(registrationID)
	r, found := a.all[key]
	delete(a.all, key)
	a.mu.Unlock()
	if found {
		a.file.changed()
		a.gone(r.Hub, r.DeviceID)
	}
	return found
}

// list returns all assignments in the order of the registration IDs.
func (a *assignments) list() []assignment {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.SortedFunc(maps.Values(a.all), func(x, y assignment) int { return strings.Compare(x.RegistrationID, y.RegistrationID) })
}
