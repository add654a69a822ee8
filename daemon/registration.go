package daemon

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

const (
	identifying = "Determining the registration ID"
	// maxProfile bounds the name of a connection profile, in bytes.
	maxProfile = 256
)

// registration goes from the credential to the saved record, or as far as it gets.
type registration struct {
	reporter
	identification
	store      *store.Store
	floors     *floors
	credential attest.Credential
	issuing    issuing
}

func (a *registration) run(ctx context.Context) outcome {
	r := registered{credential: a.credential.String(), recording: a.recording}
	r.err = a.register(ctx, &r)
	a.recording.leave(a.now())
	r.progress, r.fingerprint = a.progress, a.fingerprint()
	return r
}

// register goes all the way, and notes in r what it learns. It ends early if DPS asks for a
// wait.
func (a *registration) register(ctx context.Context, r *registered) error {
	if a.unsaved == nil {
		if err := a.provision(ctx, r); err != nil || r.wait > 0 {
			return err
		}
	}
	before, _ := a.store.Current()
	if a.issued != nil {
		a.enter(ctx, fault.StageCertificate, saveLimit, "Saving the issued certificate")
		left, wait, err := a.issued.publish(a.store, a.now())
		a.issued, r.validIn, r.certified = left, wait, err == nil && left == nil
		if err != nil {
			r.certificateErr = err
		}
	}
	a.enter(ctx, fault.StageState, saveLimit, "Saving the assignment")
	var err error
	if r.saved, err = a.store.Save(*a.unsaved, a.now()); err != nil {
		if errors.As(err, new(*store.InvalidError)) {
			a.unsaved, a.issued = nil, nil // the next answer may be better; this one will not
		}
		return classify.At(fault.StageState, err)
	}
	a.unsaved = nil
	if r.connection != nil {
		a.remember(r.connection.Protocol)
	}
	rec, _ := a.store.Current()
	if before.AssignedHub != rec.AssignedHub && store.SameHub(before.AssignedHub, rec.AssignedHub) {
		r.otherName = before.AssignedHub
	}
	confirmation := store.Confirmation{Generation: rec.Generation, At: a.now(), ConfigFingerprint: rec.ConfigFingerprint}
	if err := a.floors.runtime.SaveConfirmation(confirmation); err != nil {
		a.log(event.ConfirmationNotKept, zap.Error(err)) // READY does not depend on it
	}
	return nil
}

// provision goes from the credential to the assignment, a.unsaved, or to a wait that DPS
// has asked for.
func (a *registration) provision(ctx context.Context, r *registered) (err error) {
	a.enter(ctx, fault.StageIdentity, overdue, identifying)
	if err := a.identify(a.now()); err != nil {
		return classify.At(fault.StageIdentity, err)
	}
	if r.wait = a.floors.remaining(a.floorKey()); r.wait > 0 {
		return nil
	}
	if a.issuing.CertificateSettings != nil {
		a.enter(ctx, fault.StageCertificate, keyLimit, "Preparing the certificate request")
		if err := a.prepare(ctx, a.now()); err != nil {
			r.certificateErr = classify.At(fault.StageCertificate, err)
		}
		r.requested = a.public != nil
	}
	a.enter(ctx, fault.StageCredential, overdue, "Reading "+r.credential)
	r.request = session.Request{
		Identity: a.registration.Identity, Source: a.settings.RegistrationID,
		KeepAlive: a.settings.KeepAlive, ResponseTimeout: a.settings.ResponseTimeout,
	}
	secrets := a.using(ctx, fault.StageCredential, r.credential)
	if r.request.Proof, err = session.Prove(ctx, a.credential, r.request.Identity, secrets, a.now()); err != nil {
		return classify.At(fault.StageCredential, err)
	}
	defer func() { _ = r.request.Proof.Close() }() // an error does not change the result of the attempt
	if invalid := r.request.Proof.Validity; invalid != nil {
		a.log(event.CertificateNotValidNow, zap.Error(invalid))
	}
	if r.request.Proof.Certificate != nil {
		r.expiry = expiryOf(r.request.Proof.Proof)
	}
	if r.request.Dialer, err = a.dialer(); err != nil {
		return classify.At(fault.StageProxy, err)
	}
	assignment, err := a.exchange(ctx, r)
	if err != nil || r.wait > 0 {
		return err
	}
	a.registration = nil
	known := r.request.Secrets()
	if state := string(assignment.State); known.Mask(state) != state {
		// DPS has no reason to do so, and the record must not contain a secret.
		return classify.At(fault.StageRegister, &dps.MalformedError{Reason: "it repeats one of this gateway's secrets"})
	}
	if err := a.accept(assignment, a.now()); err != nil {
		r.certificateErr = classify.At(fault.StageCertificate, err)
	}
	a.unsaved = a.toRecord(assignment)
	return nil
}

// using returns the secrets for a step. If the step uses a TPM or a signer, the status shows this,
// and the step has its own time limit, because some need many seconds.
func (a *registration) using(ctx context.Context, stage fault.Stage, what string) attest.Secrets {
	s := a.secrets
	s.Waiting = func(hardware string) { a.enter(ctx, stage, hardwareLimit, "Waiting for "+hardware+" ("+what+")") }
	return s
}

// connecting returns the dialer of the settings with the proxy's password.
func (s *Settings) connecting(secrets attest.Secrets) (transport.Dialer, error) {
	d := *s.Dialer
	if s.ProxyUser != "" {
		password, err := secrets.Password(s.ProxyPassword)
		if err != nil {
			return d, err
		}
		d.ProxyUser = url.UserPassword(s.ProxyUser, password)
	}
	return d, nil
}

// dialer returns the dialer with the protocol that worked last in front, and with the flight
// recorder's count of bytes.
func (a *registration) dialer() (transport.Dialer, error) {
	d, err := a.settings.connecting(a.secrets)
	if err != nil {
		return d, err
	}
	d.DialContext = a.recording.counting(d.DialContext)
	d.Protocols = preferred(d.Protocols, transport.Protocol(a.store.Transport()))
	return d, nil
}

// raiseFloor notes that DPS has asked to wait.
func (a *registration) raiseFloor(wait time.Duration) {
	if err := a.floors.raise(a.floorKey(), wait); err != nil {
		a.log(event.FloorNotKept, zap.Error(err), zap.Duration("wait", wait))
	}
}

func (a *registration) floorKey() string {
	return floorKey(a.settings.Dialer.Host, a.registrationID)
}

// preferred returns the protocols with the one that worked last in front.
func preferred(protocols []transport.Protocol, last transport.Protocol) []transport.Protocol {
	if len(protocols) == 0 {
		protocols = []transport.Protocol{transport.MQTT, transport.WebSocket}
	}
	if !slices.Contains(protocols, last) {
		return protocols
	}
	others := slices.DeleteFunc(slices.Clone(protocols), func(p transport.Protocol) bool { return p == last })
	return append([]transport.Protocol{last}, others...)
}

// remember keeps the protocol that led to an assignment, for the next attempt and the next
// boot. Nothing is written while the first configured protocol works.
func (a *registration) remember(protocol string) {
	if a.store.Transport() == "" && preferred(a.settings.Dialer.Protocols, "")[0] == transport.Protocol(protocol) {
		return
	}
	if err := a.store.SaveTransport(protocol); err != nil {
		a.log(event.TransportNotKept, zap.Error(err)) // it is only a hint
	}
}

// toRecord is the one conversion from what DPS says to what is kept: a change of the parser
// must not change the schema on disk.
func (a *registration) toRecord(as *dps.Assignment) *store.Record {
	return &store.Record{
		AssignedHub: as.AssignedHub, DeviceID: as.DeviceID, RegistrationID: a.registrationID,
		IDScope: a.settings.IDScope, Endpoint: a.settings.Dialer.Host,
		Substatus:          foreign.Line(as.Substatus, foreign.MaxText),
		CreatedDateTimeUtc: foreign.Line(as.CreatedDateTimeUtc, foreign.MaxText), LastUpdatedDateTimeUtc: foreign.Line(as.LastUpdatedDateTimeUtc, foreign.MaxText),
		ETag: foreign.Line(as.ETag, foreign.MaxText), ConnectionProfile: foreign.Line(as.ConnectionProfile, maxProfile),
		Payload: as.Payload, RegistrationState: as.State,
		ConfigFingerprint: a.fingerprint(),
	}
}
