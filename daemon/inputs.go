package daemon

import (
	"slices"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
)

// This file ends a wait that an input of this gateway may have caused, once the input has
// changed: one that failed, or the source of a registration ID that DPS has not assigned
// yet, which may be the wrong one. Inotify does not report everything: not a host name, a file of a pseudo file
// system or of a server, or a directory that may not be read. So the inputs are looked at
// every ten seconds. That sends nothing, and as long as nothing changes, it neither logs
// nor writes anything.

// inputs is what is known of inputs that failed.
type inputs struct {
	failed  []string      // why, for each that failed in this round
	due     time.Time     // of the next look; zero: no input can have caused a wait
	looking bool          // a look is under way; a file system can hang
	found   chan findings // of a look
}

// beginRound forgets the inputs of the round before.
func (i *inputs) beginRound() { i.failed = nil }

// suspectInputs lets the inputs be looked at during the wait after fault f, if one of them
// failed in this round, or the registration ID may become another one. err is the error
// that f names.
func (s *supervisor) suspectInputs(f fault.Fault, err error, now time.Time) {
	if f.Class == fault.Input && f.Code != fault.ProxyAddress { // the environment stays as it is
		s.inputs.failed = append(s.inputs.failed, err.Error())
	}
	s.inputs.due = time.Time{}
	if len(s.inputs.failed) > 0 || s.settings.RegistrationID.Varies() && s.kept() == "" {
		s.inputs.due = now.Add(inputsEvery)
	}
}

// lookAtInputs begins a look. It does not wait for it.
func (s *supervisor) lookAtInputs(now time.Time) {
	s.inputs.due = now.Add(inputsEvery)
	if s.inputs.looking {
		return
	}
	s.inputs.looking = true
	look := inputLook{settings: s.settings, secrets: s.Secrets, host: s.Host, registrationID: s.kept()}
	go func() { s.inputs.found <- look.find(time.Now()) }()
}

// foundInputs ends the wait when an input fails no longer as it did, or when the
// registration ID is another one.
func (s *supervisor) foundInputs(found findings, now time.Time) {
	s.inputs.looking = false
	changed := func(failed string) bool {
		// What an attempt says also names whom it wanted to reach.
		return !slices.ContainsFunc(found.failing, func(text string) bool { return strings.Contains(failed, text) })
	}
	renamed := found.registrationID != "" && s.registrationID != "" && found.registrationID != s.registrationID
	if s.attempt != nil || s.inputs.due.IsZero() || !renamed && !slices.ContainsFunc(s.inputs.failed, changed) {
		return
	}
	s.inputs.due = time.Time{}
	s.filesChanged(now)
}

// inputLook is one look at all inputs.
type inputLook struct {
	settings       Settings
	secrets        attest.Secrets
	host           attest.Host
	registrationID string // "": to be resolved
}

// findings are what a look at all inputs comes to.
type findings struct {
	registrationID string   // "": it cannot be resolved
	failing        []string // what is wrong with the inputs, in the words of an attempt
}

func (l *inputLook) find(now time.Time) (found findings) {
	met := func(err error) {
		if err != nil {
			found.failing = append(found.failing, err.Error())
		}
	}
	id := l.registrationID
	if id == "" {
		resolved, err := l.settings.RegistrationID.Resolve(l.host, l.secrets)
		met(err)
		id = resolved
	}
	found.registrationID = id
	_, err := ReadPayload(l.settings.PayloadFile)
	met(err)
	resource := dps.Identity{IDScope: l.settings.IDScope, RegistrationID: id}.Resource()
	for _, c := range l.settings.Credentials {
		_, err := c.Prove(attest.Subject{Resource: resource, RegistrationID: id}, l.secrets, now)
		met(err)
	}
	if l.settings.ProxyUser != "" {
		_, err := l.secrets.Password(l.settings.ProxyPassword)
		met(err)
	}
	for _, err := range l.settings.Dialer.FileErrors() {
		met(err)
	}
	return found
}
