package daemon

import (
	"io"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/session"
)

const global = "global.azure-devices-provisioning.net"

// unauthorized is DPS's answer to a wrong key.
var unauthorized = &dps.ServiceError{Status: 401, Code: 401000}

// invalid returns a request with a certificate that is not valid at the current time.
func invalid(validity error) session.Request {
	return session.Request{Proof: session.Proof{Validity: validity}}
}

func TestTheClockExplainsARefusal(t *testing.T) {
	built := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	s := (&Daemon{BuiltAt: built}).supervisor()
	refusal := classify.At(fault.StageRegister, unauthorized)
	for _, tt := range []struct {
		name string
		r    registered
		now  time.Time
		code fault.Code
	}{
		{"a 401 at a plausible time is caused by the credential", registered{err: refusal}, built.Add(time.Hour), fault.Unauthorized},
		{"a 401 before the build time of the program is caused by the clock", registered{err: refusal}, built.Add(-time.Hour), fault.ClockImplausible},
		{"a 401 with an expired certificate is caused by the certificate", registered{err: refusal, request: invalid(attest.ErrExpired)}, built.Add(time.Hour), fault.CertificateExpired},
		{"a 401 with a certificate that is not valid yet is caused by the clock", registered{err: refusal, request: invalid(attest.ErrNotYetValid)}, built.Add(time.Hour), fault.ClockImplausible},
		{"any other failure keeps its code", registered{err: classify.At(fault.StageConnect, io.EOF), request: invalid(attest.ErrExpired)}, built.Add(-time.Hour), fault.ConnectionLost},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if f := s.classify(tt.r, tt.now); f.Code != tt.code || f.Class != fault.Describe(tt.code).Class {
				t.Errorf("got %s (%s), want %s", f.Code, f.Class, tt.code)
			}
		})
	}
}

// With modules and without a network, an attempt to register and one to reach the hub fail in turn.
func TestFailuresOfTheHubAndOfRegistrationsAreOneFaultEach(t *testing.T) {
	var h statusHistory
	began := time.Date(2026, 11, 1, 0, 0, 0, 0, time.UTC)
	for n := range 10 {
		for _, stage := range []fault.Stage{fault.StageTCP, fault.StageHub} {
			h.noted(failure{Fault: fault.Fault{Code: fault.TCPRefused, Stage: stage}}, began.Add(time.Duration(n)*time.Minute))
		}
	}
	if len(h.faults) != 2 {
		t.Fatalf("%d faults, want 2: %+v", len(h.faults), h.faults)
	}
	for i, stage := range []fault.Stage{fault.StageHub, fault.StageTCP} {
		if f := h.faults[i]; f.Stage != string(stage) || f.Count != 10 || !f.First.Equal(began) {
			t.Errorf("%+v", f)
		}
	}
	h.noted(failure{Fault: fault.Fault{Code: fault.NoReply, Stage: fault.StageRegister}}, began)
	h.noted(failure{Fault: fault.Fault{Code: fault.TCPRefused, Stage: fault.StageTCP}}, began)
	if len(h.faults) != 4 || h.faults[0].Count != 1 {
		t.Errorf("the failures of registrations are not in their order: %+v", h.faults)
	}
}
