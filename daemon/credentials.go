package daemon

import (
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
)

// credentials is the cycle through the configured credentials. In each round, dpsd tries them in
// their order. It uses each until it is refused or cannot be used, or until its TPM or signer has
// not been available for pace.HardwareGrace.
type credentials struct {
	current int // the index of the one to use
	tried   int // how many of this round have failed for a reason of their own
	refused int // how many of this round the service has refused

	answered bool // whether the service has refused one of this round; unlike refused, it is also set without Once
}

// first begins a round with the first credential.
func (c *credentials) first() { *c = credentials{} }

// left reports whether this round has another credential after the current one.
func (c *credentials) left(count int) bool { return c.tried+1 < count }

// failed chooses the credential for the attempt after f.
func (c *credentials) failed(f fault.Fault, lane pace.Lane, count int) {
	switch {
	case lane == pace.LaneNext:
		c.tried++
		c.answered = c.answered || f.Class == fault.Credential
		c.current = (c.current + 1) % count
	case lane == pace.LaneRefused && f.Stage != fault.StageIdentity:
		c.first()
	case pace.Hardware(f) && !c.answered:
		// The credential was the last one of the round. The delay is short, so a new round must
		// not begin with a credential that the service has refused.
		c.first()
	}
}

// exhausted counts f if the service has refused a credential with it, and reports whether
// nothing is left to try: the service has refused the enrollment, or every credential of
// this round. A missing file, a full disk, a wrong clock, and what is between this gateway
// and the service can change at any time.
func (c *credentials) exhausted(f fault.Fault, count int) bool {
	switch f.Class {
	case fault.Enrollment:
		return true
	case fault.Credential:
		c.refused++
		return c.refused == count
	}
	return false
}
