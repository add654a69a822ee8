package fleet

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
)

// handshakes are the round trips from nothing to SUBACK: TCP, two of TLS 1.2,
// CONNECT, SUBSCRIBE.
const handshakes = 5

// dpsd is what the daemon does at an event: its attempt.drive and supervisor.failed.
func (r *run) dpsd(e event, d *device) {
	now := epoch.Add(r.now)
	var step dps.Step
	var err error
	switch e.kind {
	case begins:
		r.result.Connections++
		if r.now < r.Service.DownUntil {
			err = fault.New(fault.TCPRefused, fault.StageTCP, syscall.ECONNREFUSED)
			break
		}
		r.at(r.now+handshakes*d.roundTrip, e.device, connected)
		return
	case published:
		r.assigned(d, hub)
		r.regular(e.device, r.now)
		return
	case connected:
		if d.registration == nil {
			d.registration = &dps.Registration{
				Identity:   dps.Identity{IDScope: idScope, RegistrationID: registrationID(e.device), ClientVersion: "dpsd/fleet"},
				RequestIDs: 1000,
			}
		}
		step, err = d.registration.Begin(now)
	case replied:
		step, err = r.handle(now, d, e.device)
	case due:
		step, err = d.registration.Advance(now)
	case arrives: // not the gateway's
	}
	switch {
	case err != nil:
		// One credential: the keys of a group are wrong or right together.
		wait, _ := r.Retry.After(daemon.Classify(err), false, &d.history, r.random)
		r.at(r.now+wait, e.device, begins)
	case step.Assignment != nil:
		d.registration, d.topic, d.history = nil, "", pace.History{}
		r.assigned(d, step.Assignment.AssignedHub)
		r.regular(e.device, r.now)
	case step.Send != nil:
		d.topic = step.Send.Topic
		r.at(r.now+d.roundTrip/2, e.device, arrives)
	default:
		r.at(d.registration.Deadline().Sub(epoch), e.device, due)
	}
}

// handle hands the registration what the service answered. What is the same for all,
// the errors, is read once.
func (r *run) handle(now time.Time, d *device, i int32) (dps.Step, error) {
	id := requestID(d.topic)
	reply, known := r.replies[d.answer]
	if !known {
		m := r.text.reply(d.answer, id, i)
		var err error
		if reply, err = dps.ParseReply(m); err != nil || reply.Error == nil {
			return d.registration.Take(now, m.Topic, reply, err)
		}
		r.replies[d.answer] = reply
	}
	said := *reply.Error // the registration writes the request into it
	reply.Error, reply.RequestID = &said, id
	return d.registration.Take(now, "", reply, nil)
}

// regular waits for the next registration of the interval, if there is one.
func (r *run) regular(i int32, from time.Duration) {
	if r.Interval > 0 {
		r.at(from+pace.Regular(r.Interval, r.random), i, begins)
	}
}

// sdkWait is the pause that the SDKs make where the service names none.
const sdkWait = 2 * time.Second

// sdk is what Microsoft's SDKs do at an event.
func (r *run) sdk(e event, d *device) {
	const register, poll = "$dps/registrations/PUT/iotdps-register/?$rid=1", pollPrefix
	switch e.kind {
	case begins:
		r.result.Connections++
		d.topic = register
		r.at(r.now+handshakes*d.roundTrip+d.roundTrip/2, e.device, arrives)
	case replied:
		wait := sdkWait
		switch {
		case d.answer.status == 200:
			r.assigned(d, d.answer.hub())
			return
		case d.answer.status == 202:
			d.topic = poll
		case d.answer.retryAfter > 0:
			wait = time.Duration(d.answer.retryAfter) * time.Second
		}
		r.at(r.now+wait+d.roundTrip/2, e.device, arrives)
	case published, connected, due, arrives: // dpsd's, and the service's
	}
}

const (
	idScope    = "0ne00000000"
	pollPrefix = "$dps/registrations/GET/"
)

func registrationID(i int32) string { return "gw-" + strconv.Itoa(int(i)) }

func isPoll(topic string) bool { return strings.HasPrefix(topic, pollPrefix) }

// requestID is the $rid of a request.
func requestID(topic string) string {
	_, parameters, _ := strings.Cut(topic, "$rid=")
	id, _, _ := strings.Cut(parameters, "&")
	return id
}
