package daemon

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

const (
	// saveLimit is how long the disk may take before the supervisor counts as hung.
	saveLimit = 30 * time.Second
	// farewellLimit bounds PUBACK and DISCONNECT on a connection that may be dead.
	farewellLimit = 500 * time.Millisecond
	// maxReply bounds a packet of the service, in bytes. The limit of its replies is not
	// known; this is 1 MiB, and room for the topic.
	maxReply = 1<<20 + 64<<10
	// maxProfile bounds the name of a connection profile, in bytes.
	maxProfile = 256
)

// attempt is one way from the credential to the saved record, or as far as it
// goes. It owns the store, the floors and the registration while it runs.
type attempt struct {
	settings Settings
	secrets  attest.Secrets
	host     attest.Host
	version  string
	store    *store.Store
	floors   *floors
	*teller
	phases chan<- phase // to the supervisor

	registrationID string            // "": to be resolved
	registration   *dps.Registration // nil: none is under way
	payload        []byte            // of registration
	credential     attest.Credential
	record         *store.Record // set: assigned already, only the save is missing
	look           bool          // only see whether the published record will do
	mend           bool          // only see that the state directory holds what was published
	recording      *recording    // for the flight recorder
}

// result is what an attempt hands back. Without err and wait the record is
// durable.
type result struct {
	registrationID string
	registration   *dps.Registration
	payload        []byte
	unsaved        *store.Record

	mended      bool          // nobody was asked: only the state directory was looked after
	looked      bool          // nobody was asked: only published was looked at
	published   bool          // looked: the durable record is of this configuration
	wait        time.Duration // the service asked to come back after this
	err         error         // *stageError
	expiry      expiry        // of the device certificate, when one was read
	verified    time.Time     // wall clock at a handshake whose certificate it was right for
	validity    error         // what the clock says about the certificate; explains a refusal
	doubt       error         // what speaks against the key; explains a refusal
	purpose     error         // that the certificate is not for clients; explains a refusal too
	credential  string
	told        []string // the secrets that peers were told, who may repeat them
	inspector   string   // who inspects the connection, by the root of an authority that this gateway trusts
	protocol    string
	connection  *control.Connection // nil: none was made
	clockOffset *time.Duration      // of this clock from the server's; nil: it did not say
	recording   *recording
	fingerprint string // of the configuration that was tried; "" when it could not be made
	saved       store.Result
	otherName   string // of the assigned hub, under which consumers knew it before; "": none
}

// stageError says in which stage an error came up.
type stageError struct {
	stage fault.Stage
	err   error
}

func (e *stageError) Error() string { return e.err.Error() }
func (e *stageError) Unwrap() error { return e.err }

func at(stage fault.Stage, err error) error {
	if err == nil {
		return nil
	}
	return &stageError{stage, err}
}

func (a *attempt) run(ctx context.Context) (r result) {
	r.unsaved, r.credential, r.recording = a.record, a.credential.String(), a.recording
	defer func() {
		a.recording.leave(time.Now())
		if a.registrationID != "" && !a.mend {
			r.fingerprint = a.fingerprint()
		}
		r.registrationID, r.registration, r.payload = a.registrationID, a.registration, a.payload
	}()
	if a.look {
		r.looked, r.err = true, at(fault.StageIdentity, a.identify(ctx))
		rec, found := a.store.Current()
		r.published = r.err == nil && found && a.store.Durable() && rec.ConfigFingerprint == a.fingerprint()
		return r
	}
	if a.mend {
		r.mended = true
		a.enter(ctx, fault.StageState, saveLimit, "")
		saved, err := a.store.Mend(time.Now())
		r.saved, r.err = saved, at(fault.StageState, err)
		return r
	}
	if r.unsaved == nil {
		if r.wait, r.err = a.provision(ctx, &r); r.err != nil || r.wait > 0 {
			return r
		}
	}
	a.enter(ctx, fault.StageState, saveLimit, "Saving the assignment")
	before, _ := a.store.Current()
	var err error
	if r.saved, err = a.store.Save(*r.unsaved, time.Now()); err != nil {
		if errors.As(err, new(*store.InvalidError)) {
			r.unsaved = nil // the next answer may be better; this one never will
		}
		r.err = at(fault.StageState, err)
		return r
	}
	r.unsaved = nil
	a.remember(r.protocol)
	rec, _ := a.store.Current()
	if before.AssignedHub != rec.AssignedHub && store.SameHub(before.AssignedHub, rec.AssignedHub) {
		r.otherName = before.AssignedHub
	}
	confirmation := store.Confirmation{Generation: rec.Generation, At: time.Now(), ConfigFingerprint: rec.ConfigFingerprint}
	if err := a.floors.runtime.SaveConfirmation(confirmation); err != nil {
		a.tell(event.ConfirmationNotKept, zap.Error(err)) // nobody relies on it for READY
	}
	return r
}

// provision goes from the credential to the assignment, r.unsaved, or to a
// wait that the service asked for.
func (a *attempt) provision(ctx context.Context, r *result) (time.Duration, error) {
	if err := a.identify(ctx); err != nil {
		return 0, at(fault.StageIdentity, err)
	}
	if wait := a.floors.remaining(a.floorKey()); wait > 0 {
		return wait, nil
	}
	s, identity := &a.settings, a.registration.Identity

	a.enter(ctx, fault.StageCredential, overdue, "Reading "+r.credential)
	proof, err := a.credential.Prove(attest.Subject{Resource: identity.Resource(), RegistrationID: identity.RegistrationID}, a.secrets, time.Now())
	// An expired certificate is tried all the same: the clock may be wrong, and
	// the service judges. What the clock says explains a refusal.
	if invalid := (*attest.CertificateError)(nil); errors.As(err, &invalid) {
		r.validity = err
		a.tell(event.CertificateNotValidNow, zap.Error(err))
	} else if err != nil {
		return 0, at(fault.StageCredential, err)
	}
	r.told = attest.Signature(proof.Password)
	r.doubt = proof.Doubt
	if proof.Certificate != nil {
		r.expiry, r.purpose = expiryOf(proof), attest.ForClients(proof.Certificate.Leaf)
	}

	dialer := *s.Dialer
	if s.ProxyUser != "" {
		password, err := a.secrets.Password(s.ProxyPassword)
		if err != nil {
			return 0, at(fault.StageProxy, err)
		}
		dialer.ProxyUser = url.UserPassword(s.ProxyUser, password)
	}
	r.told = append(r.told, dialer.ProxyPassword())
	dialer.DialContext = a.recording.counting(dialer.DialContext)
	dialer.Protocols = preferred(dialer.Protocols, transport.Protocol(a.store.Transport()))
	assignment, wait, err := a.exchange(ctx, dialer, proof, r)
	if err != nil || wait > 0 {
		return wait, err
	}
	a.registration = nil
	if repeats(assignment, r.secrets()) {
		// DPS has no reason to; and what others read must not hold it.
		return 0, at(fault.StageRegister, &dps.MalformedError{Reason: "it repeats a secret of this gateway"})
	}
	r.unsaved = a.toRecord(assignment)
	return 0, nil
}

// identify resolves the registration ID, reads the payload and sees to it that
// there is a registration for both.
func (a *attempt) identify(ctx context.Context) error {
	a.enter(ctx, fault.StageIdentity, overdue, "Finding out the registration ID")
	if a.registrationID == "" {
		id, err := a.settings.RegistrationID.Resolve(a.host, a.secrets)
		if err != nil {
			return err
		}
		a.registrationID = id
	}
	payload, err := ReadPayload(a.settings.PayloadFile)
	if err != nil {
		return err
	}
	if a.registration == nil || a.registration.Identity.RegistrationID != a.registrationID || !bytes.Equal(payload, a.payload) {
		a.payload = payload
		a.registration = &dps.Registration{
			Identity: dps.Identity{
				IDScope: a.settings.IDScope, RegistrationID: a.registrationID,
				APIVersion: a.settings.APIVersion, ClientVersion: "dpsd/" + a.version,
			},
			Payload:         payload,
			ResponseTimeout: a.settings.ResponseTimeout,
			// A range of its own, so that a stray reply answers nothing; from "10" to "zz",
			// because one is sent with every request.
			RequestIDs: 35 + uint64(time.Now().UnixMilli()%1_250),
		}
	}
	return nil
}

// floor notes that the service wants nothing from us for a while.
func (a *attempt) floor(wait time.Duration) {
	if err := a.floors.raise(a.floorKey(), wait); err != nil {
		a.tell(event.FloorNotKept, zap.Error(err), zap.Duration("wait", wait))
	}
}

func (a *attempt) floorKey() string { return floorKey(a.settings.Dialer.Host, a.registrationID) }

// enter tells the supervisor which step begins and when it will have ended. A
// step that is not worth a line to anybody has no status.
func (a *attempt) enter(ctx context.Context, stage fault.Stage, limit time.Duration, status string) {
	select {
	case a.phases <- phase{stage, status, time.Now().Add(limit)}:
	case <-ctx.Done():
	}
	a.recording.enter(stage, time.Now())
	a.tell(event.Phase, zap.String("stage", string(stage)), zap.String("status", status), zap.Duration("limit", limit))
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

// remember keeps the protocol that led to an assignment, for the next attempt
// and the next boot. As long as the configured order works, nothing is written.
func (a *attempt) remember(protocol string) {
	if protocol == "" || a.store.Transport() == "" && preferred(a.settings.Dialer.Protocols, "")[0] == transport.Protocol(protocol) {
		return
	}
	if err := a.store.SaveTransport(protocol); err != nil {
		a.tell(event.TransportNotKept, zap.Error(err)) // a hint, no more
	}
}

// toRecord is the one conversion between what the service said and what is
// kept: the schema on disk must not change because a parser did.
func (a *attempt) toRecord(as *dps.Assignment) *store.Record {
	host := a.settings.Dialer.Host
	return &store.Record{
		AssignedHub: as.AssignedHub, DeviceID: as.DeviceID, RegistrationID: a.registrationID,
		IDScope: a.settings.IDScope, Endpoint: host,
		Substatus:          foreign.Line(as.Substatus, foreign.MaxText),
		CreatedDateTimeUtc: foreign.Line(as.CreatedDateTimeUtc, foreign.MaxText), LastUpdatedDateTimeUtc: foreign.Line(as.LastUpdatedDateTimeUtc, foreign.MaxText),
		ETag: foreign.Line(as.ETag, foreign.MaxText), ConnectionProfile: foreign.Line(as.ConnectionProfile, maxProfile),
		Payload: as.Payload, RegistrationState: as.State,
		ConfigFingerprint: a.fingerprint(),
	}
}

func (a *attempt) fingerprint() string {
	return store.Fingerprint(a.settings.Dialer.Host, a.settings.IDScope, a.registrationID, a.payload)
}
