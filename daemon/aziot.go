package daemon

import (
	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/session"
)

// This file serves programs that were written for the Azure IoT Identity Service, on a socket
// that needs no [[consumer]]. Without this socket, it does nothing.

// registers describes how this device registers with DPS, for Provisioning of package aisapi.
type registers struct {
	credential, endpoint, idScope, registrationID, payloadFile string
}

// aziotConsumer returns the consumer of the socket.
func aziotConsumer() *consumer.Consumer { return &consumer.Consumer{Name: aisapi.Listener} }

// aziotServer returns the server of the socket.
func (s *supervisor) aziotServer(h *hubSocket) *consumer.Server {
	answers := &aisapi.Handler{State: s.consumers.board.State, Provisioning: s.consumers.provisioning}
	return &consumer.Server{Consumer: *aziotConsumer(), Handler: answers, Now: s.now, Usage: &h.usage}
}

// postRegisters posts how this device registers. The registration ID is known after the first
// attempt with the current settings, or if the record belongs to them.
func (s *supervisor) postRegisters() {
	c := &s.consumers
	id := s.progress.registrationID
	if id == "" && c.found && c.recognized && c.record.ConfigFingerprint == s.history.fingerprint {
		id = c.record.RegistrationID
	}
	if id == "" {
		c.registers.Store(nil)
		return
	}
	now := registers{s.hubCredential().Type().Name, s.settings.Dialer.Host, s.settings.IDScope, id, s.settings.PayloadFile}
	if last := c.registers.Load(); last == nil || *last != now {
		c.registers.Store(&now)
	}
}

// provisioning returns how this device registers, or nil if that is not known or the payload
// cannot be read. The server calls it.
func (c *consumers) provisioning() *aisapi.Provisioning {
	r := c.registers.Load()
	if r == nil {
		return nil
	}
	payload, err := session.ReadPayload(r.payloadFile)
	if err != nil {
		return nil
	}
	return &aisapi.Provisioning{Credential: r.credential, Endpoint: r.endpoint, IDScope: r.idScope, RegistrationID: r.registrationID, Payload: payload}
}
