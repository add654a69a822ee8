package daemon

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/store"
)

// This file ends a wait when an input of this gateway has changed: a key, a certificate, the
// serial number, the payload, a CA file or the host name. The files are watched. Inotify does
// not report everything: not a host name, a file of a pseudo file system or of a server, or a
// directory that may not be read. So the inputs are checked every ten seconds while one of
// them may be the cause of a wait: one that has failed, or the source of a registration ID
// that DPS has not assigned yet, which may be the wrong one. That sends nothing, and as long as nothing changes, it neither
// logs nor writes anything.

// inputs are the inputs of this gateway, as far as they are watched or have failed.
type inputs struct {
	changes <-chan struct{} // from Watch; nil: nothing is watched
	unwatch context.CancelFunc

	failed   []string      // why, for each that has failed in this round
	due      time.Time     // of the next check; zero: no input can have caused a wait
	checking bool          // a check is running; a file system can hang
	found    chan findings // of a check

	hardware hardware
}

// hardware is a TPM device or the socket of a signer that is watched because it was not
// available, or not permitted, for the last attempt.
type hardware struct {
	path    string          // "": none
	watched string          // the path of changes
	changes <-chan struct{} // from Watch; nil: nothing is watched
	unwatch context.CancelFunc
}

// follow watches the current path.
func (h *hardware) follow(ctx context.Context, watch func(context.Context, ...string) <-chan struct{}) {
	if h.path == h.watched {
		return
	}
	h.leave()
	ctx, h.unwatch = context.WithCancel(ctx)
	h.watched, h.changes = h.path, watch(ctx, h.path)
}

// leave ends the watch.
func (h *hardware) leave() {
	if h.unwatch != nil {
		h.unwatch()
	}
	h.watched, h.changes, h.unwatch = "", nil, nil
}

// hardwareChanged schedules an attempt, because the TPM or the signer may now be available.
func (s *supervisor) hardwareChanged(now time.Time) {
	s.credentials.first()
	s.request(s.schedule.afterChange(now.Add(settle)), "a TPM or a signer has changed")
}

// suspectHardware selects the TPM or the signer to watch: the one that err names. err is the error
// of an attempt. The watch continues while dpsd tries the other credentials of the round. If err is
// nil, the watch ends.
func (s *supervisor) suspectHardware(f fault.Fault, err error) {
	if err == nil || s.credentials.tried == 0 {
		s.inputs.hardware.path = ""
	}
	if of, is := errors.AsType[*attest.HardwareError](err); is && (f.Class == fault.Transient || of.Barred()) {
		s.inputs.hardware.path = of.Path
	}
}

// watchInputs watches the files that the settings name. Changes that the watch before has
// seen and not reported yet are lost.
func (s *supervisor) watchInputs(ctx context.Context) {
	if s.inputs.unwatch != nil {
		s.inputs.unwatch()
	}
	ctx, s.inputs.unwatch = context.WithCancel(ctx)
	paths := s.settings.RegistrationID.Paths(s.Secrets)
	for _, c := range s.settings.Credentials {
		for _, ref := range c.References() {
			paths = append(paths, s.Secrets.Paths(ref)...)
		}
	}
	paths = append(paths, s.Secrets.Paths(s.settings.ProxyPassword)...)
	paths = append(paths, s.settings.PayloadFile, s.settings.Dialer.CAFile, s.settings.Dialer.ProxyCAFile)
	s.inputs.changes = s.watchFiles(ctx, paths...)
}

// watchState watches the files that other services read. With Once, dpsd does not stay to
// repair them.
func (s *supervisor) watchState(ctx context.Context) {
	if !s.Once {
		s.repairs.touched = s.watchFiles(ctx, store.Files(s.Store.Directory)...)
	}
}

// watchFiles watches the files among paths that are not "". It returns nil if there are none,
// or if they cannot be watched.
func (s *supervisor) watchFiles(ctx context.Context, paths ...string) <-chan struct{} {
	paths = slices.DeleteFunc(paths, func(path string) bool { return path == "" })
	if s.Watch == nil || len(paths) == 0 {
		return nil
	}
	changes, err := s.Watch(ctx, paths...)
	if err != nil {
		s.log(event.WatchFailed, zap.Error(err))
		return nil
	}
	return changes
}

// inputsChanged schedules an attempt with the changed inputs.
func (s *supervisor) inputsChanged(now time.Time) {
	s.credentials.first()
	before := s.schedule.due
	s.request(s.schedule.afterChange(now.Add(settle)), "an input has changed")
	if s.schedule.due != before { // a file that changes all the time must not fill the journal
		s.log(event.FilesChanged, zap.Duration("attemptIn", s.schedule.due.Sub(now)))
	}
}

// suspectInputs schedules checks of the inputs during the wait after fault f, if one of them
// has failed in this round, or if the registration ID may change. err is the error that f
// names.
func (s *supervisor) suspectInputs(f fault.Fault, err error, now time.Time) {
	// The environment of a process does not change, and a check uses neither a TPM nor a signer.
	if f.Class == fault.Input && f.Code != fault.ProxyAddress && !ofHardware(err) {
		s.inputs.failed = append(s.inputs.failed, err.Error())
	}
	s.inputs.due = time.Time{}
	if len(s.inputs.failed) > 0 || s.settings.RegistrationID.Varies() && s.keptID() == "" {
		s.inputs.due = now.Add(inputsEvery)
	}
}

// ofHardware reports whether an error is about a TPM, a signer, or the key of a signer.
func ofHardware(err error) bool {
	secret, is := errors.AsType[*attest.SecretError](err)
	return is && secret.Reference.Signer != "" || errors.As(err, new(*attest.HardwareError))
}

// checkInputs starts a check, without waiting for it.
func (s *supervisor) checkInputs(now time.Time) {
	s.inputs.due = now.Add(inputsEvery)
	if s.inputs.checking {
		return
	}
	s.inputs.checking = true
	check := inputCheck{settings: s.settings, secrets: s.Secrets, host: s.Host, registrationID: s.keptID(), store: s.store}
	go func() { s.inputs.found <- check.run(now) }()
}

// foundInputs ends the wait if an input no longer fails as it did, or if the registration ID
// has changed.
func (s *supervisor) foundInputs(found findings, now time.Time) {
	s.inputs.checking = false
	changed := func(failed string) bool {
		// The error of an attempt also contains the address that it wanted to reach.
		return !slices.ContainsFunc(found.failing, func(text string) bool { return strings.Contains(failed, text) })
	}
	before := s.progress.registrationID
	renamed := found.registrationID != "" && before != "" && found.registrationID != before
	if s.running.active() || s.inputs.due.IsZero() || !renamed && !slices.ContainsFunc(s.inputs.failed, changed) {
		return
	}
	s.inputs.due = time.Time{}
	s.inputsChanged(now)
}

// inputCheck is one check of all inputs.
type inputCheck struct {
	settings       Settings
	secrets        attest.Secrets
	host           attest.Host
	registrationID string // "": to be resolved
	store          *store.Store
}

// findings are the result of a check.
type findings struct {
	registrationID string   // "": it cannot be resolved
	failing        []string // what is wrong with the inputs, in the words of an attempt
}

func (c *inputCheck) run(now time.Time) (found findings) {
	met := func(err error) {
		if err != nil {
			found.failing = append(found.failing, err.Error())
		}
	}
	id := c.registrationID
	if id == "" {
		resolved, err := c.settings.RegistrationID.Resolve(c.host, c.secrets)
		met(err)
		id = resolved
	}
	found.registrationID = id
	_, err := session.ReadPayload(c.settings.PayloadFile)
	met(err)
	c.secrets.FilesOnly = true // do not use a TPM or a signer every ten seconds
	resource := dps.Identity{IDScope: c.settings.IDScope, RegistrationID: id}.Resource()
	for _, credential := range c.settings.Credentials {
		_, err := credential.Prove(context.Background(), attest.Subject{Resource: resource, RegistrationID: id}, c.secrets, now)
		met(err)
	}
	if c.settings.ProxyUser != "" {
		_, err := c.secrets.Password(c.settings.ProxyPassword)
		met(err)
	}
	for _, err := range c.settings.Dialer.FileErrors() {
		met(err)
	}
	met(c.store.CheckPair())
	return found
}
