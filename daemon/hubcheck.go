package daemon

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/redact"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/transport"
)

// hubCheck checks the assigned hub before dpsd acts on reports from local services. It performs a TLS
// handshake or, if the settings allow it, requests the list of the device's modules over HTTPS, which
// changes nothing. It never connects with MQTT: a hub allows a device only one connection, and would
// end that of the service. A registration that becomes due interrupts the check.
type hubCheck struct {
	reporter
	hubAccess
	reason refusal.Reason
}

// hubChecked is the outcome of a check of the hub.
type hubChecked struct {
	reason  refusal.Reason
	host    string
	finding refusal.Finding
	err     error // a fault.Fault that explains the finding; nil: it needs no explanation
	// interrupted means that the check has no result: a registration was more urgent.
	interrupted bool
}

func (c *hubCheck) run(ctx context.Context) outcome {
	o := hubChecked{reason: c.reason, host: c.record.AssignedHub, finding: refusal.Unverified}
	var known redact.Known
	dialer, err := c.settings.connecting(c.secrets)
	if err == nil {
		known.Add([]byte(dialer.ProxyPassword()))
		o.finding, err = c.look(ctx, &dialer, &known)
	}
	if err != nil {
		o.err = classify.Circumstances{Secrets: known}.Classify(classify.At(fault.StageHub, err))
	}
	o.interrupted = ctx.Err() != nil
	return o
}

// look returns the finding, and an error that explains it.
func (c *hubCheck) look(ctx context.Context, dialer *transport.Dialer, known *redact.Known) (refusal.Finding, error) {
	limit := cmp.Or(dialer.Timeout, transport.DefaultTimeout)
	finding, err := c.contact(ctx, *dialer, limit, known)
	where, failed := errors.AsType[*transport.Error](err)
	switch {
	case !failed || where.Stage == transport.StageHTTP: // the handshake was complete
		return finding, err
	case errors.As(err, new(*transport.RefusedError)): // the hub had proved its name before it ended the handshake
		if classify.Classify(classify.At(fault.StageHub, err)).Code == fault.HubRefused {
			return refusal.Confirmed, err
		}
		return refusal.Verified, err
	case where.Stage != transport.StageName && where.Stage != transport.StageTCP && where.Stage != transport.StageProxy:
		return refusal.Unverified, err
	}
	// A handshake with DPS shows whether only the hub, or the whole network, is unreachable.
	c.enter(ctx, fault.StageHub, 2*limit, "")
	service, offline := dialer.Dial(ctx, nil)
	if offline != nil {
		return refusal.Offline, err
	}
	_ = service.Close()
	return refusal.Gone, err
}

// contact performs a handshake with the hub or, if the settings allow it and the device can sign in,
// sends a request to the hub.
func (c *hubCheck) contact(ctx context.Context, to transport.Dialer, limit time.Duration, known *redact.Known) (refusal.Finding, error) {
	var unproven error
	if c.settings.HubCheck && hub.Named(c.record.ConnectionProfile) == hub.Classic {
		c.enter(ctx, fault.StageHub, hardwareLimit, "")
		client, closing, err := c.client(ctx, c.now, known)
		if err == nil {
			defer closing()
			c.enter(ctx, fault.StageHub, 2*limit+hardwareLimit, "")
			var finding refusal.Finding
			if finding, err = ask(ctx, client); finding != "" {
				return finding, err
			}
		}
		unproven = err
	}
	c.enter(ctx, fault.StageHub, limit, "")
	to.Host, to.Protocols = c.record.AssignedHub, []transport.Protocol{transport.HTTPS}
	to.Sessions = nil // these sessions belong to DPS
	conn, err := to.Dial(ctx, nil)
	if err != nil {
		return refusal.Unverified, err
	}
	_ = conn.Close() // only the handshake was needed
	return refusal.Verified, unproven
}

// ask requests the list of the device's modules from the hub. The finding is "" if there is no token
// for the request.
func ask(ctx context.Context, client *modules.Client) (refusal.Finding, error) {
	_, err := client.List(ctx)
	said, answered := errors.AsType[*hub.Error](err)
	switch {
	case err == nil:
		return refusal.Accepted, nil
	case answered && refusal.Code(cmp.Or(said.Code, said.Status)).Kind() == refusal.Identity:
		return refusal.Confirmed, err
	case answered, errors.As(err, new(*modules.AnswerError)), errors.As(err, new(*transport.Error)):
		return refusal.Verified, err // for example after a 429, which says nothing about the identity
	}
	return "", err
}
