package daemon

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/transport"
)

// This file is the part of an attempt that takes place on the network.

// exchange connects and registers, and returns the assignment or the wait that the service
// asked for. A connection that resumed a TLS session, and failed before DPS was asked for
// anything, is made once more with a full handshake. After a later failure the next attempt
// makes one: a server may fail on each resumed session, for ever.
func (a *attempt) exchange(ctx context.Context, dialer transport.Dialer, proof attest.Proof, r *result) (*dps.Assignment, time.Duration, error) {
	for {
		conn, err := a.connect(ctx, &dialer, proof, r)
		if err != nil {
			return nil, 0, err
		}
		assignment, wait, err := a.converse(ctx, conn, proof)
		if err == nil || ctx.Err() != nil {
			return assignment, wait, err
		}
		again := mayComeOfTheSession(err, proof.Certificate != nil)
		if again || conn.TLS.DidResume && !answered(err) {
			conn.Forget()
		}
		if !again || !conn.TLS.DidResume {
			return nil, 0, err
		}
		a.tell(event.ResumptionFailed, zap.String("cause", Circumstances{Told: r.secrets()}.Classify(err).Error()))
		dialer.Afresh = true
	}
}

// answered reports whether DPS has judged the request, so that the session has served its
// purpose. An error of the service itself is no judgement.
func answered(err error) bool {
	var said *dps.ServiceError
	return errors.As(err, &said) && (said.Throttled() || !said.Temporary())
}

// mayComeOfTheSession reports whether a connection may have failed because its TLS session
// was resumed, and a full handshake is worth an immediate retry: nothing was answered on it,
// or the device certificate was refused, which a server has to keep with the session.
func mayComeOfTheSession(err error, certificate bool) bool {
	f := Classify(err)
	switch {
	case f.Class == fault.Credential:
		return certificate
	case errors.As(err, new(*mqttv3.ConnackError)), errors.As(err, new(*mqttv3.SubackError)):
		return false
	}
	return f.Stage == fault.StageTLS || f.Stage == fault.StageConnect || f.Stage == fault.StageSubscribe
}

// connect opens the stream to the service and notes in r what it learns on the way.
func (a *attempt) connect(ctx context.Context, dialer *transport.Dialer, proof attest.Proof, r *result) (*transport.Conn, error) {
	handshakes := len(dialer.Protocols)
	if dialer.Sessions != nil && !dialer.Afresh {
		handshakes++ // one that offers a session may have to be made again
	}
	limit := or(dialer.Timeout, transport.DefaultTimeout) * time.Duration(handshakes)
	a.enter(ctx, fault.StageTCP, limit, "Connecting to "+dialer.Host)
	conn, err := dialer.Dial(ctx, proof.Certificate)
	if err != nil {
		if refused := (*transport.RefusedError)(nil); errors.As(err, &refused) {
			r.inspector = Inspector(refused.Host, refused.Issuer)
		}
		return nil, at(fault.StageTCP, err)
	}
	r.inspector = Inspector(dialer.Host, conn.Issuer())
	r.protocol, r.verified = string(conn.Protocol), time.Now().Round(0)
	if !conn.Date.IsZero() {
		offset := time.Since(conn.Date.Round(0)).Round(time.Second) // the server's has no finer one
		r.clockOffset = &offset
	}
	r.connection = &control.Connection{Protocol: r.protocol, Address: conn.Address, Proxy: conn.Proxy, At: stamp(time.Now())}
	foreign.Strings(r.connection, foreign.MaxText)
	a.tell(event.Connected, zap.String("protocol", r.protocol), zap.String("address", conn.Address), zap.String("proxy", conn.Proxy))
	return conn, nil
}

// converse signs in over conn, which it closes, and registers.
func (a *attempt) converse(ctx context.Context, conn *transport.Conn, proof attest.Proof) (*dps.Assignment, time.Duration, error) {
	s, identity := &a.settings, a.registration.Identity
	limit := or(s.ResponseTimeout, dps.DefaultResponseTimeout)
	a.enter(ctx, fault.StageConnect, limit, "Connected to "+conn.Address+" ("+string(conn.Protocol)+"); signing in as "+identity.RegistrationID)
	client, err := mqttv3.Connect(ctx, conn, mqttv3.Options{
		ClientID: identity.ClientID(), UserName: identity.UserName(), Password: proof.Password,
		KeepAlive: s.KeepAlive, Timeout: limit, MaxPacket: maxReply,
	})
	if err != nil {
		return nil, 0, at(fault.StageConnect, err)
	}
	defer func() {
		// ctx may have ended; the farewell is owed to the service all the same.
		farewell, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewellLimit)
		defer cancel()
		_ = client.Close(farewell)
	}()
	a.enter(ctx, fault.StageSubscribe, limit, "Subscribing as "+identity.RegistrationID)
	// QoS 0: a reply that is lost is lost with the connection, and sessions are not kept;
	// QoS 1 would only have each reply acknowledged, by a packet of its own.
	if err := client.Subscribe(ctx, dps.ResponseFilter, 0); err != nil {
		return nil, 0, at(fault.StageSubscribe, err)
	}
	return a.drive(ctx, client)
}

// drive is where the protocol meets the network: what the registration wants
// sent is published, what arrives or is overdue is handed to it.
func (a *attempt) drive(ctx context.Context, client *mqttv3.Client) (*dps.Assignment, time.Duration, error) {
	reg, stage := a.registration, fault.StageRegister
	step, err := reg.Begin(time.Now())
	for {
		if reg.OperationID() != "" {
			stage = fault.StagePoll
		}
		switch {
		case err != nil:
			return nil, 0, at(stage, err)
		case step.Assignment != nil:
			return step.Assignment, 0, nil
		case step.Send != nil:
			a.enter(ctx, stage, time.Until(reg.Deadline()), a.asking(stage))
			if err := client.Publish(ctx, step.Send.Topic, step.Send.Payload, 1); err != nil {
				return nil, 0, at(stage, err)
			}
		case reg.Waiting():
			wait := time.Until(reg.Deadline())
			if wait > holdLimit {
				return nil, wait, nil
			}
			a.enter(ctx, stage, wait, "Asking again in "+wait.Round(time.Second).String()+": DPS is assigning "+a.registrationID)
		}
		step, err = a.turn(ctx, client)
		if wait := time.Until(reg.NotBefore()); wait > 0 {
			a.floor(wait)
		}
	}
}

// turn waits for one message or for the registration's deadline.
func (a *attempt) turn(ctx context.Context, client *mqttv3.Client) (dps.Step, error) {
	timed, cancel := context.WithDeadline(ctx, a.registration.Deadline())
	defer cancel()
	m, err := client.Receive(timed)
	switch now := time.Now(); {
	case err == nil:
		return a.registration.Handle(now, dps.Message{Topic: m.Topic, Payload: m.Payload})
	case ctx.Err() != nil:
		return dps.Step{}, ctx.Err()
	case timed.Err() != nil:
		return a.registration.Advance(now)
	default:
		return dps.Step{}, err
	}
}

func (a *attempt) asking(stage fault.Stage) string {
	if stage == fault.StageRegister {
		return "Registering " + a.registrationID + " with " + a.settings.Dialer.Host
	}
	return "Asking whether " + a.registrationID + " is assigned"
}
