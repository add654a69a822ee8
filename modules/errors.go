package modules

import (
	"fmt"

	"github.com/dpsd-project/dpsd/foreign"
)

// RefusedError means that the hub accepts the device but not a change of one of its modules, or
// that dpsd must not make this change.
type RefusedError struct {
	Module string
	Reason string // why dpsd makes no change; "": the hub refuses it
	Err    error  // the answer of the hub, a *hub.Error; nil with a Reason
}

// Error names the module and the reason.
func (e *RefusedError) Error() string {
	why := e.Reason
	if e.Err != nil {
		why = e.Err.Error()
	}
	return fmt.Sprintf("module %q: %s", foreign.Line(e.Module, maxID), why)
}

// manager describes the program that manages a module, as far as the hub returns it.
func manager(m Module) string {
	if m.ManagedBy == "" {
		return ""
	}
	return fmt.Sprintf("; it is managed by %q", foreign.Line(m.ManagedBy, maxID))
}

// Unwrap returns the answer of the hub.
func (e *RefusedError) Unwrap() error { return e.Err }

// ProfileError means that the hub has a connection profile for which dpsd does not manage module
// identities.
type ProfileError struct{ Profile string }

// Error names the profile.
func (e *ProfileError) Error() string {
	return fmt.Sprintf("the hub has the connection profile %q, for which dpsd creates no module identities", foreign.Line(e.Profile, maxID))
}

// Remedy describes what to do.
func (e *ProfileError) Remedy() string {
	return "Use scope = \"device\" in [[consumer]], or assign the gateway to a hub with the classic profile."
}

// AnswerError means that a response has a success status, but not the content that a hub sends.
type AnswerError struct{ Err error }

// Error describes what is wrong with the response.
func (e *AnswerError) Error() string { return "the response of the hub is unusable: " + e.Err.Error() }

// Unwrap returns what is wrong.
func (e *AnswerError) Unwrap() error { return e.Err }
