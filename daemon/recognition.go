package daemon

import (
	"context"
	"time"
)

// This file compares the published record with the configuration for the local services, which get
// no credentials for the record of another configuration.

// compare records that an attempt is about to compare the record with the configuration, which takes
// milliseconds unless a disk or a TPM hangs. Until the comparison has a result, no new State is posted:
// otherwise, each service would be refused at every start, and would retry only seconds later.
func (c *consumers) compare(now time.Time) {
	if c.found {
		c.comparing = now.Add(overdue)
	}
}

// recognize schedules a recognition if one is necessary.
func (s *supervisor) recognize(now time.Time) {
	if c := &s.consumers; s.usesHub() && c.found && !c.recognized {
		c.due = now
	}
}

// recognized records the fingerprint of the configuration that an attempt has computed; "": it could
// not compute one. The fingerprint of settings that have been replaced does not count.
func (s *supervisor) recognized(fingerprint string) {
	if s.running.replaced {
		return
	}
	s.consumers.comparing = time.Time{}
	if fingerprint != "" {
		s.history.configured(fingerprint)
		s.consumers.recognized = true
	}
}

// recognition determines whether the published record belongs to the configuration, without sending
// anything. Without it, services would have to wait for the first registration, which the boot delay
// and the network can delay for a long time. It ignores errors, which the next attempt reports.
type recognition struct {
	reporter
	identification
}

type recognitionOutcome struct{ fingerprint string }

func (r *recognition) run(context.Context) outcome {
	_ = r.identify(r.now())
	return recognitionOutcome{r.fingerprint()}
}

func (o recognitionOutcome) learn(s *supervisor) { s.recognized(o.fingerprint) }

func (o recognitionOutcome) finish(*supervisor, time.Time) error { return nil }
