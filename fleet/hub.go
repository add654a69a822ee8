package fleet

import (
	"slices"
	"time"

	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/refusal"
)

// Hub is a model of the hub that all gateways are assigned to, and of a service on each gateway that uses
// the hub and reports each failed connection to dpsd. The zero value is a hub that always works, whose
// services are not modelled.
//
// The service is a realistic worst case: it connects again after a delay that doubles from 1 s to 2 min, as paho does
// by default, without jitter, so the services of all gateways fail at the same times.
type Hub struct {
	Trouble  Trouble       // "": none
	From     time.Duration // when the trouble begins; all services then lose their connections
	Until    time.Duration // when the trouble ends; 0: never
	Affected int           // the number of affected devices; these are the first ones
	Check    bool          // the gateways have hub_check = "https"
	Policy   refusal.Policy
}

// Trouble is how the hub fails.
type Trouble string

// The troubles.
const (
	Refusing Trouble = "refusing" // it refuses each connection with CONNACK 5
	Failing  Trouble = "failing"  // it answers each connection with CONNACK 3
	Deleted  Trouble = "deleted"  // its name does not exist
)

// Case selects a rehearsal of a hub that fails.
type Case string

// The cases.
const (
	HubRefuses     Case = "the hub refuses all devices for an hour"
	HubFails       Case = "the hub is not working for two hours"
	HubDeleted     Case = "the hub is deleted, and DPS assigns another"
	HubLost        Case = "the hub is deleted, and DPS still assigns it"
	DeviceDisabled Case = "one device is disabled at the hub"
)

// Cases lists all cases.
func Cases() []Case { return []Case{HubRefuses, HubFails, HubDeleted, HubLost, DeviceDisabled} }

// NewCase returns the rehearsal of a case. It ends six hours after the trouble has begun.
func NewCase(c Case, devices int) Fleet {
	f := New(Power, devices)
	f.OnBoot, f.Since, f.Limit = "if-needed", time.Hour, 7*time.Hour
	f.Hub = Hub{Trouble: Refusing, From: f.Since, Affected: devices}
	switch c {
	case HubRefuses:
		f.Hub.Until = f.Hub.From + time.Hour
	case HubFails:
		f.Hub.Trouble, f.Hub.Until = Failing, f.Hub.From+2*time.Hour
	case HubDeleted:
		f.Hub.Trouble, f.Service.MovedAt = Deleted, f.Hub.From
	case HubLost:
		f.Hub.Trouble = Deleted
	case DeviceDisabled:
		f.Hub.Affected = 1
	}
	return f
}

// The delays between two connections of a service to the hub, and how far apart the services of
// the gateways notice that their connections have ended.
const (
	firstReconnect   = time.Second
	longestReconnect = 2 * time.Minute
	noticed          = 10 * time.Second
)

// user is a service that uses the hub, with what dpsd knows from its reports.
type user struct {
	tracker refusal.Tracker
	delay   time.Duration // until the next connection
	moved   bool          // the device is assigned to the other hub
}

// startUsers starts the services that lose their connections.
func (r *run) startUsers() {
	if r.Hub.Trouble == "" {
		return
	}
	r.users = make([]user, r.Hub.Affected)
	for i := range r.users {
		r.use(int32(i))
		r.users[i].delay = firstReconnect
		r.at(r.Hub.From+upTo(noticed, r.random), int32(i), connects)
	}
}

// troubled reports whether the hub of a device does not work.
func (r *run) troubled(u *user, now time.Duration) bool {
	return !u.moved && now >= r.Hub.From && (r.Hub.Until == 0 || now < r.Hub.Until)
}

// serviceConnects simulates a connection of a gateway's service to the hub.
func (r *run) serviceConnects(i int32, now time.Duration) {
	u := &r.users[i]
	if !r.troubled(u, now) {
		r.result.Recovered = append(r.result.Recovered, now)
		return
	}
	code := map[Trouble]refusal.Code{Refusing: 5, Failing: 3, Deleted: refusal.Unreachable}[r.Hub.Trouble]
	before := u.tracker.Due()
	u.tracker.Report(refusal.Reason{Consumer: "service", Code: code}, r.situation(), now)
	if due := u.tracker.Due(); due != before && due > 0 {
		r.at(due, i, checks)
	}
	r.at(now+u.delay, i, connects)
	u.delay = min(2*u.delay, longestReconnect)
}

func (r *run) situation() refusal.Situation {
	return refusal.Situation{Policy: r.Hub.Policy, Spread: pace.HubCheck(refusal.Spread, r.random)}
}

// checkHub simulates the check of a gateway's hub by dpsd, if it is still due.
func (r *run) checkHub(i int32, d *device, now time.Duration) {
	u := &r.users[i]
	if due := u.tracker.Due(); due == 0 || due > now {
		return
	}
	u.tracker.Begin()
	r.result.HubChecks++
	decision := u.tracker.Found(r.find(u, now), r.situation(), now)
	if decision.Action != refusal.Reprovisioning {
		return
	}
	u.tracker.Scheduled(now)
	r.begin(i, d, now)
}

// find returns the finding of a check of the hub.
func (r *run) find(u *user, now time.Duration) refusal.Finding {
	switch troubled := r.troubled(u, now); {
	case troubled && r.Hub.Trouble == Deleted:
		return refusal.Gone
	case !r.Hub.Check || troubled && r.Hub.Trouble == Failing:
		return refusal.Verified
	case troubled:
		return refusal.Confirmed
	}
	return refusal.Accepted
}

// reassigned notes an assignment by DPS.
func (r *run) reassigned(i int32, hub string) {
	if int(i) < len(r.users) {
		r.users[i].moved = hub == movedHub
		r.users[i].tracker.Forget()
	}
}

// Busiest returns the maximum number of register requests in a minute.
func (r *Result) Busiest() (most int) {
	sum := 0
	for n, s := range r.Seconds {
		sum += int(s.Registers)
		if n >= 60 {
			sum -= int(r.Seconds[n-60].Registers)
		}
		most = max(most, sum)
	}
	return most
}

// Span returns the times of the first and the last register request, in whole seconds since Fleet.Since. It returns
// zeros if there was none.
func (r *Result) Span() (first, last time.Duration) {
	registers := func(s Second) bool { return s.Registers > 0 }
	n := slices.IndexFunc(r.Seconds, registers)
	if n < 0 {
		return 0, 0
	}
	first = time.Duration(n) * time.Second
	for n = len(r.Seconds) - 1; !registers(r.Seconds[n]); n-- {
	}
	return first - r.Fleet.Since, time.Duration(n)*time.Second - r.Fleet.Since
}
