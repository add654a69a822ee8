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

// handshakes are the round trips from nothing to SUBACK: TCP, two of TLS 1.2,
// CONNECT, SUBSCRIBE.
const handshakes = 5

// begin makes an attempt.
func (r *run) begin(i int32, d *device, now time.Duration) {
	if r.Client == SDK {
		r.result.Connections++
		r.request(i, d, now+handshakes*d.roundTrip, false)
		return
	}
	now, step, err := r.connect(i, d, now)
	r.dpsd(i, d, now, step, err)
}

// connect brings a gateway to its SUBACK, if it gets there.
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

// dpsd is what the daemon does with what its registration wants, up to its next
// request: its attempt.drive and supervisor.failed. Trying again belongs to it as long
// as the gateway is not provisioned, since the rehearsal does not end before; later
// attempts may begin after the end, so they have to wait for their turn.
func (r *run) dpsd(i int32, d *device, now time.Duration, step dps.Step, err error) {
	for {
		switch {
		case err != nil:
			// One credential: the keys of a group are wrong or right together.
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

// unheard leaves a gateway without a reply.
func (r *run) unheard(i int32, d *device) {
	r.service.unheard(i)
	deadline := d.registration.Deadline()
	step, err := d.registration.Advance(deadline)
	r.dpsd(i, d, deadline.Sub(epoch), step, err)
}

// heard hands a gateway what the service answered.
func (r *run) heard(i int32, d *device, now time.Duration, a answer) {
	m := a.reply(d.requestID, i)
	reply, err := dps.ParseReply(m)
	step, err := d.registration.Take(epoch.Add(now), m.Topic, reply, err)
	r.dpsd(i, d, now, step, err)
}

// regular waits for the next registration of the interval, if there is one.
func (r *run) regular(i int32, from time.Duration) {
	if r.Interval > 0 {
		r.at(from+pace.Regular(r.Interval, r.random), i, begins)
	}
}

// sdkWait is the pause that the SDKs make where the service names none.
const sdkWait = 2 * time.Second

// sdk is what Microsoft's SDKs do with an answer.
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

// requestID is the $rid of a request.
func requestID(topic string) string {
	_, parameters, _ := strings.Cut(topic, "$rid=")
	id, _, _ := strings.Cut(parameters, "&")
	return id
}
