// Package fleet simulates a fleet of gateways that registers with the Device Provisioning
// Service. It is a discrete-event simulation in virtual time, called a rehearsal.
//
// The simulated gateways run the daemon's own pure code: the state machine of the protocol
// (dps.Registration) on real topics and bodies, the classification of errors
// (classify.Classify), the computation of delays (pace), and the policies of [provisioning].
// The environment is modelled: the service (see [Service]), the latency of the network, and
// the times at which the gateways boot.
//
// What a gateway does between two requests depends on this gateway alone. It has its own
// random numbers, and the package computes it in advance. Therefore only little more than the
// arrivals at the service are events. There is one event queue, no goroutine and no clock.
// The same Fleet gives the same Result on every machine.
package fleet

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/pace"
)

// Client is the program that runs on the gateways.
type Client string

// The supported clients.
const (
	Dpsd Client = "dpsd"
	// SDK does what Microsoft's device SDKs for Node and Python do, for comparison: it polls
	// after 2 s. After a 429 or 5xx it sends the same request again on the same connection,
	// without limit, after Retry-After or 2 s, without jitter.
	SDK Client = "sdk"
)

// Fleet is one rehearsal. [New] returns a scenario with the default values. A Fleet that does
// not come from New needs Devices, Client and the fields of Service.
type Fleet struct {
	Devices int
	Client  Client
	Seed    uint64

	// Each gateway boots at a random time within Boot of the start, or at its time in Starts
	// if Starts is set.
	Boot   time.Duration
	Starts []time.Duration

	// These are the settings of the gateways, as in dpsd.toml. The gateways have been
	// provisioned before, and each has published a valid record.
	OnBoot       daemon.Policy
	BootDelayMax time.Duration
	Interval     time.Duration // 0: none
	Retry        pace.Retry

	Service Service
	Hub     Hub

	// Since is the time from which the times of the Result count. It is the time at which the
	// cause that kept the gateways from being provisioned was removed.
	Since time.Duration
	// Limit ends the rehearsal even if some gateways are not provisioned.
	Limit time.Duration
}

// Scenario selects what happens to the fleet.
type Scenario string

// The scenarios.
const (
	Power    Scenario = "power"     // the power returns to a whole region
	Outage   Scenario = "outage"    // and the service is down for an hour
	Brief    Scenario = "brief"     // and the service is down until a minute after the last gateway has booted
	WrongKey Scenario = "wrong-key" // and the group key is wrong; it is corrected after two hours
	Moved    Scenario = "moved"     // after a day and a half, all devices are moved to another hub
)

// Scenarios lists all scenarios.
func Scenarios() []Scenario { return []Scenario{Power, Outage, Brief, WrongKey, Moved} }

// New returns the rehearsal of a scenario with the documented defaults of dpsd and of the
// Service.
func New(s Scenario, devices int) Fleet {
	f := Fleet{
		Devices: devices, Client: Dpsd, Boot: 30 * time.Second, OnBoot: daemon.PolicyAlways,
		Service: Service{
			Instances: 1, Quota: 1000, Throttle: Bucket, RetryAfter: "30", PollQuota: 5, Capacity: 1000,
			Polls: 2, PollAfter: 3 * time.Second, Reply: time.Second,
			RoundTripMin: 20 * time.Millisecond, RoundTripMax: 300 * time.Millisecond,
		},
		Limit: 90 * 24 * time.Hour,
	}
	switch s {
	case Power:
	case Outage:
		f.Service.DownUntil = time.Hour
	case Brief:
		f.Service.DownUntil = f.Boot + time.Minute
	case WrongKey:
		f.Service.KeyRightAt = 2 * time.Hour
	case Moved:
		f.Interval, f.Service.MovedAt = 24*time.Hour, 36*time.Hour
	}
	f.Since = max(f.Service.DownUntil, f.Service.KeyRightAt, f.Service.MovedAt)
	return f
}

// Check returns an error if the fleet cannot be rehearsed.
func (f *Fleet) Check() error {
	s := &f.Service
	switch {
	case f.Devices < 1:
		return fmt.Errorf("%d devices: at least one is required", f.Devices)
	case f.Client != Dpsd && f.Client != SDK:
		return fmt.Errorf("client %q is neither %s nor %s", f.Client, Dpsd, SDK)
	case f.Starts != nil && len(f.Starts) != f.Devices:
		return fmt.Errorf("%d start times for %d devices", len(f.Starts), f.Devices)
	case f.Client == SDK && (s.DownUntil > 0 || s.KeyRightAt > 0 || s.MovedAt > 0):
		return fmt.Errorf("client %s supports only scenario %s: an SDK gives up after a refusal, and its application decides what happens next", SDK, Power)
	case f.Client == SDK && s.Loss > 0:
		return fmt.Errorf("client %s does not support losses: an SDK gives up after a lost request, and its application decides what happens next", SDK)
	case s.MovedAt > 0 && f.Interval <= 0 && f.Hub.Trouble == "":
		return fmt.Errorf("scenario %s requires an interval: without one, no gateway registers again", Moved)
	}
	return s.check()
}

// kind is the kind of an event.
type kind uint8

const (
	begins   kind = iota // an attempt begins by connecting; for retries see run.dpsd
	arrives              // its request arrives at the service
	connects             // the service on the gateway connects to the hub
	checks               // dpsd checks the hub because of its reports
)

// device is a gateway. A fleet has many of them, so the type is small.
type device struct {
	registration *dps.Registration // nil: no registration is in progress
	requestID    string            // of the request in progress
	poll         bool              // the request in progress is a poll
	provisioned  bool
	registers    uint32
	history      pace.History
	roundTrip    time.Duration
	random       rand.PCG
}

// run is the state of a rehearsal.
type run struct {
	*Fleet
	events  queue
	devices []device
	users   []user // of the hub, those of the first devices
	service *service
	left    int   // not provisioned yet
	last    event // the latest provisioning so far
	result  Result

	random *rand.Rand // of the current device
}

// epoch is the start of the rehearsal as a time for dps.Registration.
var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// Run runs the rehearsal. It returns an error if Check does.
func (f *Fleet) Run() (*Result, error) {
	if err := f.Check(); err != nil {
		return nil, err
	}
	r := &run{
		Fleet: f, devices: make([]device, f.Devices), left: f.Devices,
		result: Result{Fleet: *f, At: make([]time.Duration, 0, f.Devices)},
	}
	r.service = newService(&f.Service, f.Devices, &r.result)
	for i := range r.devices {
		r.start(int32(i))
	}
	r.startUsers()
	for {
		e, ok := r.events.pop()
		if !ok || r.left == 0 && e.compare(r.last) >= 0 && r.users == nil {
			break
		}
		switch d := r.use(e.device); e.kind {
		case begins:
			r.begin(e.device, d, e.at)
		case arrives:
			r.receive(e.device, d, e.at)
		case connects:
			r.serviceConnects(e.device, e.at)
		case checks:
			r.checkHub(e.device, d, e.at)
		}
	}
	for i := range r.devices {
		r.result.MostRegisters = max(r.result.MostRegisters, int(r.devices[i].registers))
	}
	r.result.finish()
	slices.Sort(r.result.Recovered)
	return &r.result, nil
}

// use returns a device, whose random numbers are the current ones.
func (r *run) use(i int32) *device {
	d := &r.devices[i]
	r.random = rand.New(&d.random) //nolint:gosec // a rehearsal is repeatable
	return d
}

// start boots a device according to the policies of [provisioning].
func (r *run) start(i int32) {
	d := &r.devices[i]
	d.random = *rand.NewPCG(r.Seed, uint64(i)+1)
	r.use(i)
	d.roundTrip = r.Service.RoundTripMin + upTo(r.Service.RoundTripMax-r.Service.RoundTripMin, r.random)
	up := upTo(r.Boot, r.random)
	if r.Starts != nil {
		up = r.Starts[i]
	}
	switch {
	case r.Client == SDK:
		r.at(up, i, begins)
	case r.OnBoot.Asks(true):
		r.at(up+pace.Boot(r.BootDelayMax, r.random), i, begins)
	default: // the existing record is sufficient
		r.assigned(i, d, up, hub)
		r.regular(i, up)
	}
}

// at adds an event to the queue, unless it is after the limit.
func (r *run) at(at time.Duration, i int32, k kind) {
	if at <= r.Limit {
		r.events.push(event{at, i, k})
	}
}

// request sends a request to the service.
func (r *run) request(i int32, d *device, now time.Duration, poll bool) {
	d.poll = poll
	r.at(now+d.roundTrip/2, i, arrives)
}

// receive passes a request to the service and the reply to the device. Either of them
// may be lost.
func (r *run) receive(i int32, d *device, now time.Duration) {
	if !d.poll {
		d.registers++
	}
	a := r.service.receive(i, d.poll, d.roundTrip, now)
	back := now + r.Service.Reply + d.roundTrip/2
	if r.Client == SDK {
		r.sdk(i, d, back, a)
		return
	}
	lost := r.Service.Loss > 0 && r.random.Float64() < r.Service.Loss
	if lost || epoch.Add(back).After(d.registration.Deadline()) {
		r.noReply(i, d)
		return
	}
	r.receiveReply(i, d, back, a)
}

// assigned is called when a device has been assigned to a hub.
func (r *run) assigned(i int32, d *device, now time.Duration, hub string) {
	if d.provisioned || now > r.Limit || r.Service.MovedAt > 0 && hub != movedHub {
		return
	}
	d.provisioned = true
	r.left--
	if e := (event{at: now, device: i}); r.last.compare(e) < 0 {
		r.last = e
	}
	r.result.At = append(r.result.At, now)
	r.result.second(now).Provisioned++
}

// upTo returns a random duration in [0, d].
func upTo(d time.Duration, random *rand.Rand) time.Duration {
	if d <= 0 {
		return 0
	}
	return time.Duration(random.Int64N(int64(d) + 1))
}

// Result is the result of a rehearsal.
type Result struct {
	Fleet Fleet

	At      []time.Duration // when each gateway was provisioned, in ascending order, since the start
	Seconds []Second        // one for each second since the start

	Connections int // started, including those that were refused
	Registers   int // register requests that reached the service …
	Polls       int // … and polls
	Throttled   int // of both, answered 429
	Failed      int // answered 5xx
	Refused     int // answered 401
	Early       int // arrived before the service's Retry-After had passed; always 0 with dpsd
	Assigned    int // answered with a hub

	HubChecks int             // checks of the hub because of reports
	Recovered []time.Duration // when the services of the gateways could use a hub again, in ascending order, since the start

	MostRegisters int // of one gateway
	Peak          int // requests in one second …
	PeakAt        time.Duration
}

// Second is one second of the rehearsal.
type Second struct {
	Registers, Polls  uint32 // requests that reached the service
	Throttled, Failed uint32 // of them
	Provisioned       uint32 // gateways that were provisioned
}

func (r *Result) second(at time.Duration) *Second {
	n := int(at / time.Second)
	r.Seconds = append(r.Seconds, make([]Second, max(0, n+1-len(r.Seconds)))...)
	return &r.Seconds[n]
}

func (r *Result) finish() {
	slices.Sort(r.At)
	for n, s := range r.Seconds {
		if requests := int(s.Registers + s.Polls); requests > r.Peak {
			r.Peak, r.PeakAt = requests, time.Duration(n)*time.Second
		}
	}
}

// Until returns the time, counted from Fleet.Since, after which the given percentage of the
// gateways was provisioned. It returns false if that percentage was not reached.
func (r *Result) Until(percent float64) (time.Duration, bool) {
	n := int(percent/100*float64(r.Fleet.Devices) + 0.999999)
	if n > len(r.At) || n < 1 {
		return 0, false
	}
	return max(0, r.At[n-1]-r.Fleet.Since), true
}

// Minimum returns how long the quota takes for that many registrations.
func (f *Fleet) Minimum() time.Duration {
	if f.Service.Quota <= 0 {
		return 0
	}
	return time.Duration(float64(f.Devices) / float64(f.Service.Quota*f.Service.Instances) * float64(time.Minute))
}
