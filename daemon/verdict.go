package daemon

import (
	"time"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/redact"
)

// classify names what ended an attempt, knowing what the supervisor knows.
func (s *supervisor) classify(r result, now time.Time) fault.Fault {
	c := classify.Circumstances{
		Inspector:   r.inspector,
		Implausible: s.implausible(now),
		Validity:    r.validity,
		Purpose:     r.purpose,
		Doubt:       r.doubt,
		Told:        r.secrets(),
	}
	return c.Classify(r.err)
}

// secrets are what peers were told in this attempt.
func (r *result) secrets() (known redact.Known) {
	for _, secret := range r.told {
		known.Add([]byte(secret))
	}
	return known
}

// repeats reports whether an assignment holds a secret that the peer was told.
func repeats(as *dps.Assignment, known redact.Known) bool {
	for _, text := range []string{string(as.State), as.AssignedHub, as.DeviceID, as.Substatus, as.ETag, as.ConnectionProfile, string(as.Payload)} {
		if known.Mask(text) != text {
			return true
		}
	}
	return false
}

// implausible reports whether the wall clock was later before: when the program
// was built, or at the last verified handshake.
func (s *supervisor) implausible(now time.Time) bool {
	return now.Round(0).Before(s.BuiltAt) || now.Round(0).Before(s.verified)
}
