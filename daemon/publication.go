package daemon

import (
	"context"
	"time"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
)

// publication publishes a certificate that DPS has issued, but that the registration could not
// publish, because it was not valid yet, or because of the disk. It sends nothing.
type publication struct {
	reporter
	store  *store.Store
	issued *issued
}

type publicationOutcome struct {
	issued     *issued // nil: it is published, or its key is lost
	wait       time.Duration
	err        error // why it is not published, a *classify.StageError
	unrecorded bool  // it is published, but the record does not describe it yet
}

func (p *publication) run(ctx context.Context) outcome {
	p.enter(ctx, fault.StageCertificate, saveLimit, "Saving the issued certificate")
	o := publicationOutcome{}
	o.issued, o.wait, o.err = p.issued.publish(p.store, p.now())
	if o.err == nil && o.issued == nil {
		_, err := p.store.Repair(p.now())
		o.unrecorded = err != nil
	}
	return o
}

func (o publicationOutcome) learn(s *supervisor) {}

func (o publicationOutcome) finish(s *supervisor, now time.Time) error {
	s.progress.issued = o.issued
	switch {
	case o.err != nil:
		failed := s.certificateFailed(registered{certificateErr: o.err}, now)
		s.publicationDue(failed.Wait, now)
	case o.issued != nil:
		s.publicationDue(o.wait, now)
	default:
		s.certificateIssued(now)
		s.history.resolved(ofCertificate)
		if o.unrecorded { // a repair reports why
			s.repairs.due = now
			return nil
		}
		s.certificateRestored(now)
	}
	return nil
}

// publicationDue schedules the next attempt to publish the issued certificate.
func (s *supervisor) publicationDue(wait time.Duration, now time.Time) {
	s.issuance.publication = time.Time{}
	if s.progress.issued != nil {
		s.issuance.publication = now.Add(wait)
	}
}

// certificateRestored sends READY if only the certificate was missing.
func (s *supervisor) certificateRestored(now time.Time) {
	switch {
	case s.systemd.ready:
		if s.failures.last.Code == "" {
			s.systemd.setStatus(s.assignment(now))
		}
	case s.assigned && s.store.Durable() && s.certified(now):
		s.systemd.ready = true
		s.systemd.announceReady(s.assignment(now))
	}
}
