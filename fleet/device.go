package fleet

import (
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
)

// handshakes is the number of round trips from a new connection to the SUBACK: one of TCP,
// two of TLS 1.2, one each of CONNECT and SUBSCRIBE.
const handshakes = 5

// begin starts an attempt.
func (r *run) begin(i int32, d *device, now time.Duration) {
	if r.Client == SDK {
		r.result.Connections++
		r.request(i, d, now+handshakes*d.roundTrip, false)
		return
	}
	now, step, err := r.connect(i, d, now)
	r.dpsd(i, d, now, step, err)
}

// connect takes a gateway to its SUBACK, unless the connection fails.
func (r *run) connect(i int32, d *device, now time.Duration) (time.Duration, dps.Step, error) {
	r.result.Connections++
	if now < r.Service.DownUntil {
		return now, dps.Step{}, fault.New(fault.TCPRefused, fault.StageTCP, syscall.ECONNREFUSED)
	}
	now += handshakes * d.roundTrip
	if d.registration == nil {
		d.registration = &dps.Registration{
			Identity:   dps.Identity{IDScope: "0ne00000000", RegistrationID: registrationID(i), ClientVersion: "dpsd/fleet"},
			RequestIDs: 1000,
		}
	}
	step, err := d.registration.Begin(epoch.Add(now))
	return now, step, err
}

// dpsd does what the daemon does with the action that its registration requests, up to its
// next request: see attempt.drive and supervisor.failed in package daemon. A retry is part of
// this as long as the gateway is not provisioned, because the rehearsal does not end before
// that. Later attempts may begin after the end, so they wait in the queue.
func (r *run) dpsd(i int32, d *device, now time.Duration, step dps.Step, err error) {
	for {
		switch {
		case err != nil:
			// There is only one credential: the devices of a group have the same group key.
			wait, _ := r.Retry.After(classify.Classify(err), false, &d.history, r.random)
			now += wait
			if d.provisioned || now > r.Limit {
				r.at(now, i, begins)
				return
			}
			now, step, err = r.connect(i, d, now)
		case step.Assignment != nil:
			d.registration, d.requestID, d.history = nil, "", pace.History{}
			r.assigned(i, d, now, step.Assignment.AssignedHub)
			r.reassigned(i, step.Assignment.AssignedHub)
			r.regular(i, now)
			return
		case step.Send != nil:
			d.requestID = requestID(step.Send.Topic)
			r.request(i, d, now, strings.HasPrefix(step.Send.Topic, "$dps/registrations/GET/"))
			return
		default:
			now = d.registration.Deadline().Sub(epoch)
			step, err = d.registration.Advance(epoch.Add(now))
		}
	}
}

// noReply handles a request that got no reply.
func (r *run) noReply(i int32, d *device) {
	r.service.replyLost(i)
	deadline := d.registration.Deadline()
	step, err := d.registration.Advance(deadline)
	r.dpsd(i, d, deadline.Sub(epoch), step, err)
}

// receiveReply passes the reply of the service to a gateway.
func (r *run) receiveReply(i int32, d *device, now time.Duration, a answer) {
	m := a.reply(d.requestID, i)
	reply, err := dps.ParseReply(m)
	step, err := d.registration.Take(epoch.Add(now), m.Topic, reply, err)
	r.dpsd(i, d, now, step, err)
}

// regular schedules the next registration of the interval, if there is one.
func (r *run) regular(i int32, from time.Duration) {
	if r.Interval > 0 {
		r.at(from+pace.Regular(r.Interval, r.random), i, begins)
	}
}

// sdkWait is the delay that the SDKs use if the service does not specify one.
const sdkWait = 2 * time.Second

// sdk does what Microsoft's SDKs do with a reply.
func (r *run) sdk(i int32, d *device, now time.Duration, a answer) {
	wait := sdkWait
	switch {
	case a.status == 200:
		r.assigned(i, d, now, a.hub())
		return
	case a.status == 202:
		d.poll = true
	case a.retryAfter > 0:
		wait = time.Duration(a.retryAfter) * time.Second
	}
	r.request(i, d, now+wait, d.poll)
}

func registrationID(i int32) string { return "gw-" + strconv.Itoa(int(i)) }

// requestID returns the $rid of a request.
func requestID(topic string) string {
	_, parameters, _ := strings.Cut(topic, "$rid=")
	id, _, _ := strings.Cut(parameters, "&")
	return id
}
