package daemon

import "github.com/dpsd-project/dpsd/fault"

// firstCredential begins a round: the credentials are tried in their order, each
// until it is refused or cannot be used.
func (s *supervisor) firstCredential() { s.credential, s.tried, s.refused = 0, 0, 0 }

// refuses counts the fault when the service has refused the credential with it, and
// reports whether the service leaves nothing to try: it has refused the enrollment, or
// every credential of this round. A file that is missing, a full disk or a wrong
// clock can change at any time, and so can what stands in the way to the service.
func (s *supervisor) refuses(f fault.Fault) bool {
	switch f.Class {
	case fault.Enrollment:
		return true
	case fault.Credential:
		s.refused++
		return s.refused == len(s.settings.Credentials)
	}
	return false
}
