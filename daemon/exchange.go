package daemon

import (
	"cmp"
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/session"
	"github.com/dpsd-project/dpsd/transport"
)

// This file is the part of a registration that takes place on the network.

// exchange connects and registers, and returns the assignment, or none if DPS has asked for
// a wait, r.wait. A connection that resumed a TLS session and failed before DPS was asked for
// anything is repeated once with a full handshake. After a later failure the next attempt
// makes a full handshake: a server may fail on each resumed session.
func (a *registration) exchange(ctx context.Context, r *registered) (*dps.Assignment, error) {
	for {
		s, assignment, err := a.converse(ctx, r)
		if err == nil || s.Conn == nil || ctx.Err() != nil {
			return assignment, err
		}
		again, resumed := causedBySession(err, r.request.Proof.Certificate != nil), s.Conn.TLS.DidResume
		if again || resumed && !answered(err) {
			s.Conn.Forget()
		}
		if !again || !resumed {
			return nil, err
		}
		a.log(event.ResumptionFailed, zap.String("cause", classify.Circumstances{Secrets: r.request.Secrets()}.Classify(err).Error()))
		r.request.Dialer.FullHandshake = true
	}
}

// answered reports whether DPS has judged the request, so that the session has served its
// purpose. An internal error of DPS is not a judgement.
func answered(err error) bool {
	var said *dps.ServiceError
	return errors.As(err, &said) && (said.Throttled() || !said.Temporary())
}

// causedBySession reports whether a connection may have failed because its TLS session was
// resumed, so that a full handshake is worth an immediate retry: nothing was answered on it,
// or the device certificate was refused, which a server has to keep with the session.
func causedBySession(err error, certificate bool) bool {
	f := classify.Classify(err)
	switch {
	case f.Class == fault.Credential:
		return certificate
	case errors.As(err, new(*mqttv3.ConnackError)), errors.As(err, new(*mqttv3.SubackError)):
		return false
	}
	return f.Stage == fault.StageTLS || f.Stage == fault.StageConnect || f.Stage == fault.StageSubscribe
}

// converse opens a session, registers, and closes the session.
func (a *registration) converse(ctx context.Context, r *registered) (session.Session, *dps.Assignment, error) {
	dialer := &r.request.Dialer
	handshakes := len(dialer.Protocols)
	if dialer.Sessions != nil && !dialer.FullHandshake {
		handshakes++ // one that offers a session may have to be repeated
	}
	handshake := cmp.Or(dialer.Timeout, transport.DefaultTimeout)
	if r.request.Proof.Hardware() {
		handshake += hardwareLimit // a signature cannot be interrupted by the time-out
	}
	limit := cmp.Or(a.settings.ResponseTimeout, dps.DefaultResponseTimeout)
	r.request.Connected = func(conn *transport.Conn) error {
		a.connected(conn, r)
		a.enter(ctx, fault.StageConnect, limit, "Connected to "+conn.Address+" ("+string(conn.Protocol)+"); signing in as "+a.registrationID)
		return nil
	}
	a.enter(ctx, fault.StageTCP, handshake*time.Duration(handshakes), "Connecting to "+dialer.Host)
	s, err := r.request.Open(ctx)
	r.inspector = s.Inspector
	if err != nil {
		return s, nil, err
	}
	defer s.Close(ctx)
	a.enter(ctx, fault.StageSubscribe, limit, "Subscribing as "+a.registrationID)
	// QoS 0: a reply that is lost is lost with the connection, and sessions are not kept.
	// With QoS 1, each reply would only need an acknowledgement, a packet of its own.
	if err := s.Client.Subscribe(ctx, dps.ResponseFilter, 0); err != nil {
		return s, nil, classify.At(fault.StageSubscribe, err)
	}
	assignment, err := a.drive(ctx, s.Client, r)
	return s, assignment, err
}

// connected notes in r what the connection shows.
func (a *registration) connected(conn *transport.Conn, r *registered) {
	r.verified = a.now().Round(0)
	if !conn.Date.IsZero() {
		offset := a.now().Sub(conn.Date.Round(0)).Round(time.Second) // the server's time is no finer
		r.clockOffset = &offset
	}
	r.connection = &control.Connection{Protocol: string(conn.Protocol), Address: conn.Address, Proxy: conn.Proxy, At: stamp(a.now())}
	foreign.Strings(r.connection, foreign.MaxText)
	a.log(event.Connected, zap.String("protocol", string(conn.Protocol)), zap.String("address", conn.Address), zap.String("proxy", conn.Proxy))
}

// drive is where the protocol meets the network: it publishes what the registration wants
// to send, and gives it what arrives or is overdue.
func (a *registration) drive(ctx context.Context, client *mqttv3.Client, r *registered) (*dps.Assignment, error) {
	reg, stage := a.registration, fault.StageRegister
	step, err := reg.Begin(a.now())
	for {
		if reg.OperationID() != "" {
			stage = fault.StagePoll
		}
		switch {
		case err != nil:
			return nil, classify.At(stage, err)
		case step.Assignment != nil:
			return step.Assignment, nil
		case step.Send != nil:
			status := "Checking whether " + a.registrationID + " is assigned"
			if stage == fault.StageRegister {
				status = "Registering " + a.registrationID + " with " + a.settings.Dialer.Host
			}
			a.enter(ctx, stage, reg.Deadline().Sub(a.now()), status)
			if err := client.Publish(ctx, step.Send.Topic, step.Send.Payload, 1); err != nil {
				return nil, classify.At(stage, err)
			}
		case reg.Waiting():
			wait := reg.Deadline().Sub(a.now())
			if wait > holdLimit {
				r.wait = wait
				return nil, nil
			}
			a.enter(ctx, stage, wait, "DPS is assigning "+a.registrationID+"; checking again in "+wait.Round(time.Second).String())
		}
		step, err = a.receive(ctx, client, reg)
		if wait := reg.NotBefore().Sub(a.now()); wait > 0 {
			a.raiseFloor(wait)
		}
	}
}

// receive waits for one message or for the registration's deadline.
func (a *registration) receive(ctx context.Context, client *mqttv3.Client, reg *dps.Registration) (dps.Step, error) {
	timed, cancel := context.WithTimeout(ctx, reg.Deadline().Sub(a.now()))
	defer cancel()
	m, err := client.Receive(timed)
	switch now := a.now(); {
	case err == nil:
		return reg.Handle(now, dps.Message{Topic: m.Topic, Payload: m.Payload})
	case ctx.Err() != nil:
		return dps.Step{}, ctx.Err()
	case timed.Err() != nil:
		return reg.Advance(now)
	default:
		return dps.Step{}, err
	}
}
