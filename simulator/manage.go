package simulator

import (
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/google/renameio/v2"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// Enrollments returns the enrollments in use. They must not be modified.
func (s *Server) Enrollments() *enroll.Enrollments { return s.enrollments.Load() }

// ChangeEnrollments makes one change, for subsequent connections, and writes it to the file of
// the enrollments, which it reads first, so that other changes in that file also take effect.
// A change that makes the enrollments invalid (*tomlfile.Error) changes nothing.
func (s *Server) ChangeEnrollments(c enroll.Change) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.file == "" {
		return s.setEnrollments(s.Enrollments().With(c))
	}
	text, err := os.ReadFile(s.file)
	if err != nil {
		return err
	}
	if text, err = enroll.Edit(s.file, text, c); err != nil {
		return err
	}
	e, err := enroll.Parse(s.file, bytes.NewReader(text))
	if err != nil {
		return err
	}
	file, err := filepath.EvalSymlinks(s.file) // a link stays a link
	if err != nil {
		return err
	}
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	mode := info.Mode().Perm()
	if c.HasKey() {
		mode &^= 0o077 // like the files of other keys
	}
	// WriteFile would keep the permissions of the existing file.
	pending, err := renameio.NewPendingFile(file, renameio.WithTempDir(filepath.Dir(file)), renameio.WithStaticPermissions(mode))
	if err != nil {
		return err
	}
	defer func() { _ = pending.Cleanup() }() // does nothing once the file is replaced
	if _, err := pending.Write(text); err != nil {
		return err
	}
	if err := pending.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return s.setEnrollments(e)
}

// ReloadEnrollments reads the file of the enrollments again, for subsequent connections. A file with an
// error changes nothing. No change is made between the reading and the use of the file, so the
// enrollments in use are always those of the file.
func (s *Server) ReloadEnrollments() error {
	s.changing.Lock()
	defer s.changing.Unlock()
	if s.file == "" {
		return nil
	}
	e, err := enroll.ReadFile(s.file)
	if err != nil {
		return err
	}
	return s.setEnrollments(e)
}

// Registration is the registration record of a device.
type Registration struct {
	RegistrationID string
	// Group is the name of the enrollment group, or "" for an individual enrollment.
	Group            string
	Hub, DeviceID    string
	Substatus, ETag  string
	Created, Updated time.Time
	Payload          json.RawMessage // nil for none
}

// Registrations returns the records of all assigned devices, in the order of their IDs.
func (s *Server) Registrations() []Registration {
	list := s.service.records.list()
	all := make([]Registration, 0, len(list))
	for _, a := range list {
		all = append(all, a.registration())
	}
	return all
}

// Registration returns the record of a device, if the device has been assigned.
func (s *Server) Registration(registrationID string) (Registration, bool) {
	a, found := s.service.records.get(registrationID)
	return a.registration(), found
}

// RemoveRegistration removes the record of a device: when the device registers again, it is
// new. It returns false if there is no record.
func (s *Server) RemoveRegistration(registrationID string) bool {
	return s.service.records.remove(registrationID)
}

// ServiceKey returns the key of the service API in base64. The name of the key is
// ServiceKeyName.
func (s *Server) ServiceKey() string { return base64.StdEncoding.EncodeToString(s.material.serviceKey) }

// ServiceKeyName is the name of the key of the service API, as in every instance of DPS.
const ServiceKeyName = "provisioningserviceowner"

// Certificate returns the certificate of the server, for listeners other than those of the
// server itself. It changes with the enrollments, because it contains the names of the hubs, and
// after half of its lifetime.
func (s *Server) Certificate() *tls.Certificate {
	current := s.certificate.Load()
	if s.now().Before(current.Leaf.NotAfter.Add(-leafLife / 2)) {
		return current
	}
	next, err := s.material.server.server("", slices.Concat(*s.hubNames.Load(), s.names), s.now())
	if err != nil {
		return current
	}
	s.certificate.CompareAndSwap(current, next) // not if the enrollments have changed
	return s.certificate.Load()
}
