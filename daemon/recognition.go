package daemon

import (
	"context"
	"time"
)

// This file compares the published record with the configuration for the local services, which get
// nothing for the record of another one.

// compare notes that an attempt is about to compare the record with the configuration, which takes
// milliseconds unless a disk or a TPM hangs. Until then, services learn nothing new: otherwise, each
// of them would be refused at every start, and would ask again only seconds later.
func (c *consumers) compare(now time.Time) {
	if c.found {
		c.comparing = now.Add(overdue)
	}
}

// recognize asks for a recognition if it is necessary.
func (s *supervisor) recognize(now time.Time) {
	if c := &s.consumers; s.usesHub() && c.found && !c.recognized {
		c.due = now
	}
}

// recognized notes the fingerprint of the configuration that an attempt has computed; "": it could
// not. The fingerprint of settings that have been replaced does not count.
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

// recognition finds out whether the published record belongs to the configuration. Otherwise,
// services would have to wait for the first registration, which the boot delay and the
// network can delay for a long time. It sends nothing. The next attempt reports its errors.
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
