package main

import (
	"testing"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/control"
)

func TestTheStatusDescribesTheSocketForProgramsOfTheIdentityService(t *testing.T) {
	socket := control.Consumer{Name: aisapi.Listener, Scope: aisapi.Scope, Listening: true, ConsumerUse: control.ConsumerUse{Requests: 7, Limited: 2}}
	const want = "aziot-identity: read-only, for programs of the Azure IoT Identity Service, requests: 7, requests beyond the limits: 2"
	if got := (statusReport{}).consumer(socket, &terminal{}); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
