package classify

import (
	"cmp"
	"errors"
	"net/http"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/store"
)

// ofHub classifies the errors of requests to the assigned hub. At the stage hub, these include all
// failures of the connection, regardless of its step.
func ofHub(err error, stage fault.Stage) (fault.Fault, bool) {
	if errors.As(err, new(*modules.ProfileError)) {
		return fault.New(fault.ModuleRefused, fault.StageHub, err), true
	}
	if errors.As(err, new(*store.ModulesError)) {
		return fault.New(fault.ModulesUnreadable, fault.StageHub, err), true
	}
	refused := errors.As(err, new(*modules.RefusedError))
	said, answered := errors.AsType[*hub.Error](err)
	switch {
	case answered:
		code := fault.HubUnavailable
		switch {
		case said.Status == http.StatusTooManyRequests:
			code = fault.HubThrottled
		case refused:
			code = fault.ModuleRefused
		case said.Status == http.StatusUnauthorized, said.Status == http.StatusForbidden, said.Status == http.StatusNotFound:
			code = fault.HubRefused
		}
		f := fault.New(code, fault.StageHub, err)
		f.ServiceCode, f.TrackingID, f.RetryAfter = said.Code, said.TrackingID, said.RetryAfter
		return f, true
	case refused:
		return fault.New(fault.ModuleRefused, fault.StageHub, err), true
	case errors.As(err, new(*modules.AnswerError)):
		return fault.New(fault.HubUnavailable, fault.StageHub, err), true
	case stage != fault.StageHub:
		return fault.Fault{}, false
	}
	f, known := ofTransport(err, stage)
	switch f.Code {
	case fault.CertificateRefused:
		f = fault.New(fault.HubRefused, stage, f.Err)
	case fault.TCPRefused, fault.ConnectTimeout, fault.ConnectionLost, fault.NoReply, fault.TLSVersion, fault.TLSFailed, fault.ProtocolViolation:
		f = fault.New(fault.HubUnavailable, stage, f.Err)
	default:
		f.Circumstance = cmp.Or(f.Circumstance, fault.AtHub)
	}
	f.Stage = stage
	return f, known
}
