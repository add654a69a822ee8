package daemon

import (
	"context"
	"crypto"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/tpm"
)

// This file decides when dpsd requests a certificate from DPS, and checks and publishes what
// DPS issues. A request is part of a registration. Because DPS issues a certificate for each
// request, a registration contains a request only if a certificate is due. Nothing here makes
// an assignment fail: a gateway is assigned even if it receives no certificate.

// lostLimit is how many registrations with a certificate request may fail, for a reason other
// than the request, before dpsd tries one without.
const lostLimit = 3

// whyCertificate is the reason for a registration that is due only because of a certificate.
const whyCertificate = "certificate"

// issuance is what the supervisor knows about the issued certificate.
type issuance struct {
	pair  store.Pair // the published one, as it was when no attempt was running
	found bool
	err   error // a *store.PairError

	requested   bool        // a person or a program has requested a new one
	notBefore   time.Time   // no request before this time
	next        time.Time   // a certificate that is due is no reason for a registration before this time; zero: none has failed
	publication time.Time   // when the certificate of progress is published; zero: there is none
	refusal     fault.Fault // DPS has refused the last request with it; zero: it has not
	history     pace.History
	expiry      expiry
	lost        int // registrations with a request in a row that have failed
	issued      int // in this run
	failed      int // in this run
}

// look reads the pair from the store. No attempt may be running, because the store belongs to
// a running attempt.
func (i *issuance) look(s *store.Store) {
	before := i.pair.SHA256
	i.pair, i.found, i.err = s.Pair()
	if i.pair.SHA256 != before {
		i.expiry = expiry{}
	}
}

// restart forgets the failures with the previous settings.
func (i *issuance) restart() {
	i.notBefore, i.next, i.publication = time.Time{}, time.Time{}, time.Time{}
	i.refusal, i.history, i.lost = fault.Fault{}, pace.History{}, 0
}

// need returns why a certificate is due, as text after "Requesting a certificate: ", or "" if
// none is due. found means that there is a usable pair, rec is the identity of this gateway,
// and requested means that a person or a program has requested a new certificate.
func (c *CertificateSettings) need(pair store.Pair, found bool, rec store.Record, requested bool, now time.Time) string {
	switch now = now.Round(0); { // by the wall clock, like the certificate
	case !found:
		return "there is no usable certificate"
	case pair.RegistrationID != rec.RegistrationID:
		return "the registration ID has changed"
	case rec.AssignedHub != "" && pair.DeviceID != rec.DeviceID:
		return "the device ID has changed"
	case rec.AssignedHub != "" && !store.SameHub(pair.AssignedHub, rec.AssignedHub):
		return "the assigned hub has changed"
	case !now.Before(pair.NotAfter):
		return "the certificate has expired"
	case pair.KeyType != string(c.KeyType):
		return "key_type has changed"
	case pair.KeyStore != c.store():
		return "key_store has changed"
	case !now.Before(c.renewAt(pair)):
		return "the renewal is due"
	case requested:
		return "a new certificate was requested"
	}
	return ""
}

// store returns the key store in the form that package store uses.
func (c *CertificateSettings) store() string {
	if c.KeyStore == certificate.InTPM {
		return string(certificate.InTPM)
	}
	return ""
}

func (c *CertificateSettings) renewAt(pair store.Pair) time.Time {
	return certificate.RenewAt(pair.NotBefore, pair.NotAfter, c.RenewAt, pair.SHA256)
}

// certificateState returns the state of the published certificate, by the wall clock.
func (s *supervisor) certificateState(now time.Time) string {
	i := &s.issuance
	rec, _ := s.store.Current()
	switch {
	case i.err != nil:
		return control.CertificateUnreadable
	case !i.found:
		return control.CertificateMissing
	case i.pair.RegistrationID != rec.RegistrationID || i.pair.DeviceID != rec.DeviceID || !store.SameHub(i.pair.AssignedHub, rec.AssignedHub):
		return control.CertificateForeign
	case !now.Round(0).Before(i.pair.NotAfter):
		return control.CertificateExpired
	}
	return control.CertificateValid
}

// certified reports whether the certificate is valid, or the settings do not require one.
func (s *supervisor) certified(now time.Time) bool {
	c := s.settings.Certificate
	return c == nil || !c.Required || s.certificateState(now) == control.CertificateValid
}

// needCertificate returns why a certificate is due, or "" if none is due or configured.
func (s *supervisor) needCertificate(now time.Time) string {
	c, i := s.settings.Certificate, &s.issuance
	rec, found := s.store.Current()
	switch {
	case c == nil || !found, s.progress.issued != nil:
		return ""
	case i.err != nil:
		return "the files of the certificate cannot be read"
	}
	return c.need(i.pair, i.found, rec, i.requested, now)
}

// planCertificate schedules a registration if a certificate is due, unless one is already
// scheduled for a reason other than the interval.
func (s *supervisor) planCertificate(now time.Time) {
	if s.running.active() || s.lookup || !s.schedule.due.IsZero() && s.schedule.why != whyInterval {
		return
	}
	if s.needCertificate(now) != "" {
		s.schedule.request(later(now, later(s.issuance.notBefore, s.issuance.next)), whyCertificate, false)
	}
}

// renewalDue returns when the certificate must be renewed, so that the loop wakes up. It is
// zero if that time is unknown or in the past.
func (s *supervisor) renewalDue(now time.Time) time.Time {
	c, i := s.settings.Certificate, &s.issuance
	if c == nil || !i.found {
		return time.Time{}
	}
	if wait := c.renewAt(i.pair).Sub(now.Round(0)); wait > 0 {
		return now.Add(wait)
	}
	return time.Time{}
}

// renewalGap is the minimum delay after a failed renewal; 0 if there is no valid certificate.
func (s *supervisor) renewalGap(now time.Time) time.Duration {
	if s.certificateState(now) != control.CertificateValid {
		return 0
	}
	return pace.Renewal(s.issuance.pair.NotAfter.Sub(now.Round(0)))
}

// issuing is what an attempt needs to request a certificate.
type issuing struct {
	*CertificateSettings      // nil: none is requested
	requested            bool // by a person or a program
	postponed            bool // the time for a request has not come yet
}

// issuing returns what the next attempt needs to request a certificate.
func (s *supervisor) issuing(now time.Time) issuing {
	return issuing{s.settings.Certificate, s.issuance.requested, s.issuance.notBefore.After(now)}
}

// issued is an accepted certificate that is not published yet.
type issued struct {
	pair  store.Pair
	chain []byte
}

// prepare adds a certificate request to the registration if one is due. The key of the
// request is durable before it is used, and an unanswered request is repeated with the same
// key. After an error, the registration contains no request.
func (a *registration) prepare(ctx context.Context, now time.Time) error {
	r := a.registration
	if r.OperationID() != "" {
		return nil // DPS knows the registration as it is
	}
	r.CSR, a.public = nil, nil
	c := a.issuing.CertificateSettings
	if c == nil || a.issuing.postponed || a.issued != nil {
		return nil
	}
	pair, found, err := a.store.Pair()
	if err != nil {
		return err
	}
	rec, _ := a.store.Current()
	if rec.RegistrationID != a.registrationID {
		rec = store.Record{RegistrationID: a.registrationID}
	}
	need := c.need(pair, found, rec, a.issuing.requested, now)
	if need == "" && pair.KeyStore == string(certificate.InTPM) && a.lost(ctx) {
		need = "the TPM cannot use the key"
	}
	if need == "" {
		return nil
	}
	key, err := a.pendingKey(ctx)
	if err != nil {
		return err
	}
	csr, err := certificate.Request(key, a.registrationID)
	public := key.Public()
	release(key)
	if err != nil {
		return err
	}
	a.log(event.CertificateRequested, zap.String("why", need), zap.String("keyType", string(c.KeyType)))
	r.CSR, a.public = csr, public
	return nil
}

// pendingKey returns the key of the next request, for release. It does not replace the key if the
// TPM is only unavailable.
func (a *registration) pendingKey(ctx context.Context) (crypto.Signer, error) {
	pending, found, err := a.store.PendingKey()
	if err != nil {
		return nil, err
	}
	wanted := store.PendingKey{RegistrationID: a.registrationID, KeyType: string(a.issuing.KeyType), KeyStore: a.issuing.store()}
	if found && pending.RegistrationID == wanted.RegistrationID && pending.KeyType == wanted.KeyType && pending.KeyStore == wanted.KeyStore {
		key, err := a.open(ctx, pending.PEM)
		if hardware, is := errors.AsType[*attest.HardwareError](err); err == nil || is && !hardware.Lost() {
			return key, err
		}
	}
	if wanted.PEM, err = a.newKey(ctx); err != nil {
		return nil, err
	}
	if err := a.store.SavePendingKey(wanted); err != nil {
		return nil, err
	}
	return a.open(ctx, wanted.PEM)
}

// newKey creates a private key, in the TPM if that is the key store.
func (a *registration) newKey(ctx context.Context) ([]byte, error) {
	if a.issuing.KeyStore == certificate.InTPM {
		return a.using(ctx, fault.StageCertificate, "a new key").CreateKey(ctx, tpm.Algorithm(a.issuing.KeyType))
	}
	return certificate.NewKey(a.issuing.KeyType)
}

// open returns the private key in a file of the store, for release.
func (a *registration) open(ctx context.Context, text []byte) (crypto.Signer, error) {
	if !tpm.Is(text) {
		return certificate.ParseKey(text)
	}
	key, err := a.using(ctx, fault.StageCertificate, "the key of the certificate").LoadKey(ctx, text)
	if err != nil {
		return nil, err
	}
	return key, nil
}

// release ends the use of a key.
func release(key crypto.Signer) {
	if hardware, is := key.(*attest.HardwareKey); is {
		_ = hardware.Close() // the key has served its purpose
	}
}

// lost reports whether the TPM can no longer use the key of the published certificate.
func (a *registration) lost(ctx context.Context) bool {
	text, err := a.store.PairKey()
	if err != nil || !tpm.Is(text) {
		return false
	}
	key, err := a.open(ctx, text)
	if err == nil {
		release(key)
		return false
	}
	hardware, is := errors.AsType[*attest.HardwareError](err)
	return is && hardware.Lost()
}

// accept checks the answer to the request, and drops an unusable chain.
func (a *registration) accept(as *dps.Assignment, now time.Time) error {
	key := a.public
	a.public = nil
	if key == nil {
		return nil
	}
	chain, err := certificate.Accept(as.IssuedCertificateChain, key, a.registrationID, now)
	if err != nil {
		as.DropIssuedCertificateChain()
		return err
	}
	pair := store.Pair{
		RegistrationID: a.registrationID, DeviceID: as.DeviceID, AssignedHub: as.AssignedHub,
		KeyType: string(a.issuing.KeyType), KeyStore: a.issuing.store(), Serial: chain.Serial(), SHA256: chain.Fingerprint(), Issuer: foreign.Line(chain.Issuer(), foreign.MaxText),
	}
	pair.NotBefore, pair.NotAfter, pair.ExpiresFirst = chain.Validity()
	a.issued = &issued{pair, chain.PEM()}
	return nil
}

// publish publishes the certificate. If its validity has not begun yet, publish returns the
// time until then. It returns what is left to publish: nothing after success, or if the key
// is lost. The error is a *classify.StageError.
func (i *issued) publish(to *store.Store, now time.Time) (left *issued, wait time.Duration, err error) {
	if wait = i.pair.NotBefore.Sub(now.Round(0)); wait > 0 {
		return i, wait, nil
	}
	err = to.SavePair(i.pair, i.chain, now)
	if err == nil || errors.Is(err, store.ErrKeyLost) {
		i = nil
	}
	return i, 0, classify.At(fault.StageCertificate, err)
}

// requestRefused reports whether DPS may have refused the registration because of the
// certificate request in it. The next registration contains none, so that the gateway is
// assigned.
func (r *registered) requestRefused() bool {
	if !r.requested || r.err == nil {
		return false
	}
	switch classify.Classify(r.err).Code {
	case fault.RequestRefused, fault.AllocationFailed:
		return true
	}
	return false
}

// requestLost postpones the next certificate request after a registration with one has failed
// at DPS or after it. DPS may have issued a certificate that this gateway has not received. While
// the published certificate is valid, the next registration contains no request. Otherwise,
// that is so after lostLimit failures, because DPS may fail only on registrations with a request.
func (s *supervisor) requestLost(r registered, failed failure, now time.Time) {
	i, gap := &s.issuance, s.renewalGap(now)
	f := classify.Classify(r.err)
	if !r.requested || f.Class != fault.Transient || f.Stage != fault.StageRegister && f.Stage != fault.StagePoll {
		return // DPS has issued no certificate
	}
	if i.lost++; gap > 0 {
		i.notBefore = now.Add(gap)
	} else if i.lost >= lostLimit {
		i.notBefore = now.Add(s.settings.Retry.Unanswered(failed.Wait, &i.history, s.random))
		s.progress.registration, s.progress.public = nil, nil
	}
}

// certificateRefused schedules a registration without a certificate request after DPS has
// refused one with it.
func (s *supervisor) certificateRefused(r registered, now time.Time) failure {
	r.certificateErr = classify.At(fault.StageCertificate, &certificate.RefusedError{Err: r.err})
	s.progress.registration, s.progress.public = nil, nil
	failed := s.certificateFailure(r, now)
	s.issuance.refusal = failed.Fault
	failed.Wait = s.settings.Retry.WithoutRequest(failed.Fault)
	s.reportCertificate(failed, r.certificateErr, now)
	s.schedule.set(now.Add(failed.Wait), "after "+string(failed.Fault.Code))
	s.waiting(now, lastFault(failed.Fault))
	return failed
}

// certificateIssued records a new pair.
func (s *supervisor) certificateIssued(now time.Time) {
	i := &s.issuance
	i.issued++
	i.requested, i.history, i.next, i.refusal, i.lost = false, pace.History{}, time.Time{}, fault.Fault{}, 0
	// If each certificate is unusable for some reason, DPS must not issue one after another.
	i.notBefore = now.Add(pace.RequestGap)
	s.log(event.CertificateIssued, zap.Time("notBefore", i.pair.NotBefore), zap.Time("notAfter", i.pair.NotAfter),
		zap.String("serial", i.pair.Serial), zap.String("issuer", i.pair.Issuer))
}

// certificateAnswered records what a successful registration has found out about the
// certificate. The error ends the daemon.
func (s *supervisor) certificateAnswered(r registered, now time.Time) error {
	if r.certificateErr == nil {
		s.publicationDue(r.validIn, now)
		return s.ends(s.issuance.refusal)
	}
	failed := s.certificateFailed(r, now)
	s.publicationDue(failed.Wait, now)
	if s.progress.issued == nil {
		s.issuance.next = now.Add(failed.Wait)
		s.schedule.request(s.issuance.next, "after "+string(failed.Fault.Code), false)
		s.schedule.lane = failed.Lane
	}
	if s.systemd.ready {
		s.systemd.setStatus(s.assignment(now))
	} else {
		s.waiting(now, lastFault(failed.Fault))
	}
	return s.ends(failed.Fault)
}

// ends returns a fault that ends the daemon with Once: one that only a person can correct, after
// an assignment without the certificate that is required.
func (s *supervisor) ends(f fault.Fault) error {
	if s.Once && !s.systemd.ready && f.Class == fault.Enrollment {
		return f
	}
	return nil
}

// certificateFailed reports that a certificate was not received or not published.
func (s *supervisor) certificateFailed(r registered, now time.Time) failure {
	failed := s.certificateFailure(r, now)
	s.reportCertificate(failed, r.certificateErr, now)
	return failed
}

// certificateFailure returns why a certificate was not received or not published, and
// postpones the next request.
func (s *supervisor) certificateFailure(r registered, now time.Time) failure {
	i := &s.issuance
	f := r.request.Circumstances(r.inspector, s.implausible(now)).Classify(r.certificateErr)
	failed := failure{Fault: f, Advice: f.Advice(), Credential: r.credential}
	failed.Wait, failed.Lane = s.settings.Retry.After(f, false, &i.history, s.random)
	if s.progress.issued == nil && f.Class != fault.Input { // otherwise, no further request is needed
		failed.Wait = max(failed.Wait, s.renewalGap(now))
		i.notBefore = now.Add(failed.Wait)
	}
	return failed
}

// reportCertificate counts and reports a failure; err is the error that its fault names.
func (s *supervisor) reportCertificate(failed failure, err error, now time.Time) {
	s.issuance.failed++
	s.suspectInputs(failed.Fault, err, now)
	s.history.failed(failed, now)
	s.logFailure(failed)
}

// renew schedules a registration with a certificate request that a client of the control
// socket asks for.
func (s *supervisor) renew(now time.Time) control.Reprovision {
	s.issuance.requested, s.issuance.notBefore, s.issuance.next = true, time.Time{}, time.Time{}
	return s.asked(s.schedule.force(now), now)
}

// missingCertificate returns what is wrong with the certificate, for STATUS=, or "".
func (s *supervisor) missingCertificate(now time.Time) string {
	if s.settings.Certificate == nil {
		return ""
	}
	switch s.certificateState(now) {
	case control.CertificateMissing:
		if p := s.progress.issued; p != nil && p.pair.NotBefore.After(now) {
			return "; the issued certificate is not valid before " + p.pair.NotBefore.UTC().Format("15:04:05 UTC")
		}
		return "; no certificate has been issued"
	case control.CertificateUnreadable:
		return "; the issued certificate cannot be read"
	case control.CertificateForeign:
		return "; the issued certificate is for a different identity"
	case control.CertificateExpired:
		return "; the issued certificate has expired"
	}
	return ""
}

// issuedStatus returns the part of a Status about the issued certificate, or nil if none is
// configured and none is published.
func (s *supervisor) issuedStatus(now time.Time) *control.IssuedCertificate {
	c, i := s.settings.Certificate, &s.issuance
	if c == nil && !i.found && i.err == nil {
		return nil
	}
	st := &control.IssuedCertificate{State: s.certificateState(now), Due: s.needCertificate(now), Issued: i.issued, Failed: i.failed}
	if c != nil {
		st.Request = map[bool]string{true: "required", false: "when-offered"}[c.Required]
	}
	if st.Due != "" && i.notBefore.After(now) {
		at := stamp(i.notBefore)
		st.NotBeforeNextRequest = &at
	}
	if i.err != nil || !i.found {
		return st
	}
	from, until := i.pair.NotBefore.UTC(), i.pair.NotAfter.UTC()
	st.NotBefore, st.NotAfter, st.Serial, st.SHA256, st.Issuer = &from, &until, i.pair.Serial, i.pair.SHA256, i.pair.Issuer
	if c != nil {
		at := stamp(c.renewAt(i.pair))
		st.RenewAt = &at
	}
	foreign.Strings(st, foreign.MaxText)
	return st
}

// issuedExpiry returns when the issued certificate expires, and the time from which that is
// announced: after the renewal should have succeeded.
func (s *supervisor) issuedExpiry() (e *expiry, from time.Time) {
	i := &s.issuance
	if !i.found {
		return nil, time.Time{}
	}
	i.expiry.what, i.expiry.at = issuedCertificate, i.pair.NotAfter
	if i.pair.ExpiresFirst > 0 {
		i.expiry.because = fmt.Sprintf("certificate %d in its chain", i.pair.ExpiresFirst+1)
	}
	if s.settings.Certificate == nil {
		return &i.expiry, time.Time{}
	}
	return &i.expiry, s.settings.Certificate.renewAt(i.pair).Add(pace.RequestGap)
}
