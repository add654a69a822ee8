package fleet

import (
	"fmt"
	"strconv"
	"time"

	"github.com/dpsd-project/dpsd/dps"
)

// Throttle is how the service counts its quota. Its documentation gives a number for a
// minute and does not say which minute; so a client must do well with either.
type Throttle string

// The ways of counting.
const (
	// Bucket lets a whole quota through at once, and then one more each time its
	// share of the minute has passed, as dpsd-sim does.
	Bucket Throttle = "bucket"
	// Window counts from minute to minute of the clock.
	Window Throttle = "window"
)

// Service is the model of the Device Provisioning Service, and of the way to it.
//
// Documented: 1,000 registrations a minute for each instance, 5 polls in 10 s for each
// device, both really throttled. Seen: replies after about a second, retry-after=3 with
// 202 and with 500, one or two polls. Not known: what a 429 says in Retry-After (a
// fixture of Microsoft's has 30), how the minute is counted, how much the service
// answers before it answers 5xx, and whether a refused key counts against the quota.
type Service struct {
	Instances  int // a gateway belongs to one of them
	Quota      int // registrations in a minute, for each instance; 0: no limit
	Throttle   Throttle
	RetryAfter string // in a 429 to a registration: seconds, "none", or "free" for the time until one is free
	PollQuota  int    // polls of one device in 10 s; 0: no limit
	Capacity   int    // requests in a second that each instance answers; those above get 500 with retry-after=3. 0: no limit

	Polls     int           // until the final answer; at least 1
	PollAfter time.Duration // retry-after of a 202; whole seconds, up to a minute
	Reply     time.Duration // between request and reply

	// The round-trip time of a gateway lies between these, and stays.
	RoundTripMin, RoundTripMax time.Duration
	// Loss is the chance that a request or its reply is lost, with its connection.
	Loss float64

	DownUntil  time.Duration // until then connections are refused
	KeyRightAt time.Duration // until then each key is refused by 401; this is judged before the quota
	MovedAt    time.Duration // from then on devices are told another hub
}

// The longest and the seen waits, in seconds.
const (
	longestRetryAfter = 86400
	failedRetryAfter  = 3
)

func (s *Service) check() error {
	switch seconds, err := strconv.Atoi(s.RetryAfter); {
	case s.RetryAfter == "none", s.RetryAfter == "free":
	case err != nil || seconds < 1 || seconds > longestRetryAfter:
		return fmt.Errorf("retry-after %q is none of 1 to %d seconds, none, free", s.RetryAfter, longestRetryAfter)
	}
	switch {
	case s.Throttle != Bucket && s.Throttle != Window:
		return fmt.Errorf("throttle %q is none of %s, %s", s.Throttle, Bucket, Window)
	case s.Instances < 1:
		return fmt.Errorf("%d instances: at least one is needed", s.Instances)
	case s.Quota < 0 || s.PollQuota < 0 || s.Capacity < 0:
		return fmt.Errorf("a limit is negative; 0 stands for none")
	case s.Polls < 1:
		return fmt.Errorf("%d polls: at least one is needed", s.Polls)
	case s.PollAfter < 0 || s.PollAfter > time.Minute || s.PollAfter%time.Second != 0:
		return fmt.Errorf("%s between polls is not whole seconds up to a minute", s.PollAfter)
	case s.Loss < 0 || s.Loss >= 1:
		return fmt.Errorf("a loss of %g is not at least 0 and less than 1", s.Loss)
	case s.RoundTripMin < 0 || s.RoundTripMax < s.RoundTripMin || s.Reply < 0:
		return fmt.Errorf("round trips from %s to %s and replies after %s are no times", s.RoundTripMin, s.RoundTripMax, s.Reply)
	}
	return nil
}

// The intervals of the documented limits.
const (
	quotaInterval = time.Minute
	pollInterval  = 10 * time.Second
)

// service is the model at work.
type service struct {
	*Service
	result    *Result
	devices   []record
	quotas    []limiter // of the instances
	capacity  []limiter
	throttled time.Duration // what RetryAfter says; 0: none or free
}

// record is what the service knows of a device.
type record struct {
	polls   limiter
	floor   time.Duration // nothing is wanted from it before
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

// answer is a reply before it is put into words.
type answer struct {
	retryAfter int32 // seconds; 0: not said
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

// receive answers the request of a device.
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
	// The device counts from the moment at which it has the reply, and its next
	// request takes the way again.
	d.floor = now + s.Reply + roundTrip/2 + time.Duration(a.retryAfter)*time.Second + roundTrip/2
	return a
}

// unheard is called when the device did not get the last answer.
func (s *service) unheard(i int32) { s.devices[i].floor = 0 }

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

// limiter counts events against a limit of an interval.
type limiter struct {
	next time.Duration // Bucket: when the next event would be due if all came evenly; Window: its end
	left int           // Window: events that it still has
}

// take counts an event and gives 0, or leaves it out and tells how long until one is free.
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

// reply is the message that a device receives.
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

// words are the service's for a status.
var words = map[uint16]string{401: "Unauthorized", 429: "Too many requests.", 500: "Internal server error."}

// operation is an operation ID in the form of the service.
func operation(i int32) string {
	return fmt.Sprintf("5.%016x.08f5e9a7-4e41-4ab8-bfeb-ea591a9492e0", i)
}
