package fleet

import (
	"fmt"
	"strconv"
	"time"

	"github.com/dpsd-project/dpsd/dps"
)

// Throttle is how the service counts its quota. Its documentation gives a number per minute
// without defining the minute, so a client must work with either definition.
type Throttle string

// The ways to count a quota.
const (
	// Bucket accepts a whole quota in a burst, and then one more registration whenever
	// its share of the minute has passed, as dpsd-sim does.
	Bucket Throttle = "bucket"
	// Window counts per minute of the clock.
	Window Throttle = "window"
)

// Service is the model of the Device Provisioning Service and of the network path to it.
//
// Documented: 1,000 registrations per minute and instance, 5 polls in 10 s per device; the
// service enforces both. Observed: replies after about a second, retry-after=3 with 202 and
// with 500, one or two polls. Unknown: the Retry-After of a 429 (a fixture of Microsoft's has
// 30), how the minute is counted, how many requests the service handles before it answers
// 5xx, and whether a refused key counts against the quota.
type Service struct {
	Instances  int // each gateway belongs to one of them
	Quota      int // registrations in a minute, for each instance; 0: no limit
	Throttle   Throttle
	RetryAfter string // in a 429 to a registration: seconds, "none", or "free" for the time until one is free
	PollQuota  int    // polls of one device in 10 s; 0: no limit
	Capacity   int    // requests per second that each instance handles; more are answered 500 with retry-after=3. 0: no limit

	Polls     int           // until the final answer; at least 1
	PollAfter time.Duration // retry-after of a 202; whole seconds, up to a minute
	Reply     time.Duration // between request and reply

	// Each gateway has a constant round-trip time between these two values.
	RoundTripMin, RoundTripMax time.Duration
	// Loss is the probability that a request or its reply is lost, along with its connection.
	Loss float64

	DownUntil  time.Duration // connections are refused before this time
	KeyRightAt time.Duration // every key is refused with 401 before this time; the service checks the key before the quota
	MovedAt    time.Duration // devices are assigned to another hub from this time on
}

// The longest and the observed delays, in seconds.
const (
	longestRetryAfter = 86400
	failedRetryAfter  = 3
)

func (s *Service) check() error {
	switch seconds, err := strconv.Atoi(s.RetryAfter); {
	case s.RetryAfter == "none", s.RetryAfter == "free":
	case err != nil || seconds < 1 || seconds > longestRetryAfter:
		return fmt.Errorf("retry-after %q is not 1 to %d seconds, none or free", s.RetryAfter, longestRetryAfter)
	}
	switch {
	case s.Throttle != Bucket && s.Throttle != Window:
		return fmt.Errorf("throttle %q is neither %s nor %s", s.Throttle, Bucket, Window)
	case s.Instances < 1:
		return fmt.Errorf("%d instances: at least one is required", s.Instances)
	case s.Quota < 0 || s.PollQuota < 0 || s.Capacity < 0:
		return fmt.Errorf("a limit is negative; use 0 for no limit")
	case s.Polls < 1:
		return fmt.Errorf("%d polls: at least one is required", s.Polls)
	case s.PollAfter < 0 || s.PollAfter > time.Minute || s.PollAfter%time.Second != 0:
		return fmt.Errorf("%s between polls is not a whole number of seconds up to a minute", s.PollAfter)
	case s.Loss < 0 || s.Loss >= 1:
		return fmt.Errorf("loss %g is not at least 0 and below 1", s.Loss)
	case s.RoundTripMin < 0 || s.RoundTripMax < s.RoundTripMin || s.Reply < 0:
		return fmt.Errorf("round trips from %s to %s and replies after %s are not valid times", s.RoundTripMin, s.RoundTripMax, s.Reply)
	}
	return nil
}

// The intervals of the documented limits.
const (
	quotaInterval = time.Minute
	pollInterval  = 10 * time.Second
)

// service is the state of the model.
type service struct {
	*Service
	result    *Result
	devices   []record
	quotas    []limiter // of the instances
	capacity  []limiter
	throttled time.Duration // what RetryAfter says; 0: none or free
}

// record is what the service stores about a device.
type record struct {
	polls   limiter
	floor   time.Duration // no request is allowed before this time
	pending int           // polls still answered with "assigning"
}

func newService(s *Service, devices int, r *Result) *service {
	seconds, _ := strconv.Atoi(s.RetryAfter) // 0 for none and free
	return &service{
		Service: s, result: r, devices: make([]record, devices),
		quotas: make([]limiter, s.Instances), capacity: make([]limiter, s.Instances),
		throttled: time.Duration(seconds) * time.Second,
	}
}

// answer is a reply before it is encoded.
type answer struct {
	retryAfter int32 // seconds; 0: absent
	status     uint16
	moved      bool
}

const (
	hub      = "hub-a.azure-devices.net"
	movedHub = "hub-b.azure-devices.net"
)

func (a answer) hub() string {
	if a.moved {
		return movedHub
	}
	return hub
}

// receive returns the answer to a request of a device.
func (s *service) receive(i int32, poll bool, roundTrip, now time.Duration) answer {
	second, d := s.result.second(now), &s.devices[i]
	if poll {
		s.result.Polls++
		second.Polls++
	} else {
		s.result.Registers++
		second.Registers++
	}
	if now < d.floor {
		s.result.Early++
	}
	a := s.judge(i, poll, now)
	switch a.status {
	case 429:
		s.result.Throttled++
		second.Throttled++
	case 500:
		s.result.Failed++
		second.Failed++
	case 401:
		s.result.Refused++
	case 200:
		s.result.Assigned++
	}
	// The device counts from the time at which it has the reply, and its next
	// request takes half a round trip to the service again.
	d.floor = now + s.Reply + roundTrip/2 + time.Duration(a.retryAfter)*time.Second + roundTrip/2
	return a
}

// replyLost is called when the device did not receive the last answer.
func (s *service) replyLost(i int32) { s.devices[i].floor = 0 }

func (s *service) judge(i int32, poll bool, now time.Duration) answer {
	d, instance := &s.devices[i], int(i)%s.Instances
	if wait := s.capacity[instance].take(now, s.Capacity, time.Second, Bucket); wait > 0 {
		return answer{status: 500, retryAfter: failedRetryAfter}
	}
	if now < s.KeyRightAt {
		return answer{status: 401}
	}
	if poll {
		if wait := d.polls.take(now, s.PollQuota, pollInterval, Bucket); wait > 0 {
			return answer{status: 429, retryAfter: wholeSeconds(wait)}
		}
		if d.pending--; d.pending > 0 {
			return answer{status: 202, retryAfter: wholeSeconds(s.PollAfter)}
		}
		return answer{status: 200, moved: s.MovedAt > 0 && now >= s.MovedAt}
	}
	if wait := s.quotas[instance].take(now, s.Quota, quotaInterval, s.Throttle); wait > 0 {
		if s.RetryAfter != "free" {
			wait = s.throttled
		}
		return answer{status: 429, retryAfter: wholeSeconds(wait)}
	}
	d.pending = s.Polls
	return answer{status: 202, retryAfter: wholeSeconds(s.PollAfter)}
}

func wholeSeconds(d time.Duration) int32 { return int32((d + time.Second - 1) / time.Second) }

// limiter enforces a limit on the number of events per interval.
type limiter struct {
	next time.Duration // Bucket: when the next event would be due at an even rate; Window: the end of the window
	left int           // Window: events left
}

// take counts an event and returns 0. Above the limit it does not count the event, and returns the time until the next one is allowed.
func (l *limiter) take(now time.Duration, limit int, interval time.Duration, how Throttle) time.Duration {
	if limit <= 0 {
		return 0
	}
	if how == Window {
		if now >= l.next {
			l.next, l.left = (now/interval+1)*interval, limit
		}
		if l.left == 0 {
			return l.next - now
		}
		l.left--
		return 0
	}
	each := interval / time.Duration(limit)
	if early := l.next + each - interval - now; early > 0 {
		return early
	}
	l.next = max(l.next, now) + each
	return 0
}

// reply returns the message that a device receives.
func (a answer) reply(requestID string, i int32) dps.Message {
	topic := "$dps/registrations/res/" + strconv.Itoa(int(a.status)) + "/?$rid=" + requestID
	if a.retryAfter > 0 {
		topic += "&retry-after=" + strconv.Itoa(int(a.retryAfter))
	}
	var body string
	switch a.status {
	case 202:
		body = fmt.Sprintf(`{"operationId":%q,"status":"assigning"}`, operation(i))
	case 200:
		id := registrationID(i)
		body = fmt.Sprintf(`{"operationId":%q,"status":"assigned","registrationState":{"registrationId":%q,`+
			`"createdDateTimeUtc":"2026-01-01T00:00:00.267123Z","assignedHub":%q,"deviceId":%q,`+
			`"status":"assigned","substatus":"initialAssignment","lastUpdatedDateTimeUtc":"2026-01-01T00:00:00.5266581Z",`+
			`"etag":"IjY5MDAzNTUyLTAwMDAtMDcwMC0wMDAwLTYyNTlkOGI3MDAwMCI="}}`, operation(i), id, a.hub(), id)
	default:
		body = fmt.Sprintf(`{"errorCode":%d,"trackingId":"b07ca2d5-3d0b-4f0c-8e7b-0c3d0f4a9e11","message":%q,`+
			`"timestampUtc":"2026-01-01T00:00:00.5266581Z"}`, int(a.status)*1000, words[a.status])
	}
	return dps.Message{Topic: topic, Payload: []byte(body)}
}

// words returns the service's text for a status.
var words = map[uint16]string{401: "Unauthorized", 429: "Too many requests.", 500: "Internal server error."}

// operation returns an operation ID in the service's format.
func operation(i int32) string {
	return fmt.Sprintf("5.%016x.08f5e9a7-4e41-4ab8-bfeb-ea591a9492e0", i)
}
