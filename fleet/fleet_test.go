package fleet

import (
	"bytes"
	"encoding/csv"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/pace"
	"github.com/dpsd-project/dpsd/test/imports"
)

func rehearse(t *testing.T, f Fleet) *Result {
	t.Helper()
	r, err := f.Run()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// rehearsals returns one rehearsal of each kind; the events happen early.
func rehearsals() map[string]Fleet {
	all := map[string]Fleet{}
	for _, s := range Scenarios() {
		all[string(s)] = New(s, 400)
	}
	for _, throttle := range []Throttle{Bucket, Window} {
		for _, retryAfter := range []string{"none", "free", "3", "600"} {
			f := New(Power, 400)
			f.Service.Quota, f.Service.Throttle, f.Service.RetryAfter = 30, throttle, retryAfter
			all[string(throttle)+", Retry-After "+retryAfter] = f
		}
	}
	f := New(Power, 400)
	f.Service.Capacity = 6
	all["5xx"] = f
	f = New(Power, 400)
	f.Service.Loss = 0.3
	all["losses"] = f
	f = New(Moved, 400)
	f.OnBoot, f.Service.Quota, f.Service.Loss, f.Service.Instances = daemon.PolicyIfNeeded, 5, 0.1, 3
	all["everything"] = f
	return all
}

// In every scenario: each gateway is provisioned once, no request arrives before the service's
// Retry-After has passed, no instance grants more than its quota, and the totals are
// consistent.
func TestEachGatewayIsProvisionedOnceWithinQuotaAndRetryAfter(t *testing.T) {
	for name, f := range rehearsals() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := rehearse(t, f)
			if len(r.At) != f.Devices || !slices.IsSorted(r.At) {
				t.Fatalf("%d of %d gateways are provisioned, in order %v", len(r.At), f.Devices, slices.IsSorted(r.At))
			}
			if r.At[0] < f.Since {
				t.Errorf("a gateway is provisioned %s after the start, but none can be before %s", r.At[0], f.Since)
			}
			if r.Early != 0 {
				t.Errorf("%d requests came before their Retry-After had passed", r.Early)
			}
			var sum Second
			granted := map[int]int{} // in a minute of the clock
			for n, s := range r.Seconds {
				sum.Registers += s.Registers
				sum.Polls += s.Polls
				sum.Throttled += s.Throttled
				sum.Failed += s.Failed
				sum.Provisioned += s.Provisioned
				granted[n/60] += int(s.Registers) - int(s.Throttled) - int(s.Failed)
			}
			if int(sum.Registers) != r.Registers || int(sum.Polls) != r.Polls || int(sum.Throttled) != r.Throttled ||
				int(sum.Failed) != r.Failed || int(sum.Provisioned) != f.Devices {
				t.Errorf("the seconds add up to %+v, the whole is %+v", sum, r.totals())
			}
			if r.Assigned < f.Devices && f.OnBoot.Asks(true) {
				t.Errorf("%d gateways are provisioned by %d assignments", f.Devices, r.Assigned)
			}
			if f.Service.KeyRightAt == 0 && f.Service.Loss == 0 {
				most := f.Service.Quota * f.Service.Instances
				if f.Service.Throttle == Bucket {
					most *= 2 // the burst and the refill
				}
				for minute, n := range granted {
					if n > most {
						t.Errorf("in minute %d the service grants %d registrations", minute, n)
					}
				}
			}
		})
	}
}

func (r *Result) totals() map[string]int {
	return map[string]int{"registers": r.Registers, "polls": r.Polls, "throttled": r.Throttled, "failed": r.Failed}
}

func TestTheSameSeedGivesTheSameResult(t *testing.T) {
	for name, f := range rehearsals() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, b := rehearse(t, f), rehearse(t, f)
			if !reflect.DeepEqual(a, b) {
				t.Error("two runs differ")
			}
			f.Seed++
			if reflect.DeepEqual(a.At, rehearse(t, f).At) {
				t.Error("another seed gives the same result")
			}
		})
	}
}

// The goals that determined the defaults, with 10,000 gateways, the documented quota and every
// service that is consistent with the documentation.
func TestTheDefaultDelaysReachTheirGoals(t *testing.T) {
	for n := range 8 {
		throttle, retryAfter := []Throttle{Bucket, Window}[n/4], []string{"none", "3", "30", "free"}[n%4]
		t.Run(string(throttle)+", Retry-After "+retryAfter, func(t *testing.T) {
			t.Parallel()
			f := New(Power, 10_000)
			f.Service.Throttle, f.Service.RetryAfter = throttle, retryAfter
			r := rehearse(t, f)
			if all, ever := r.Until(100); !ever || all > f.Minimum()*3/2 {
				t.Errorf("with the defaults all are provisioned after %s, the quota takes %s", all, f.Minimum())
			}
			if r.RegistersEach() >= 6.5 || r.Failed > 0 {
				t.Errorf("with the defaults a gateway makes %.2f registrations, and %d requests get a 5xx", r.RegistersEach(), r.Failed)
			}
			f.BootDelayMax = 10 * time.Minute
			r = rehearse(t, f)
			if all, ever := r.Until(100); !ever || all > f.Minimum()*5/4 {
				t.Errorf("with boot_delay_max 10m all are provisioned after %s, the quota takes %s", all, f.Minimum())
			}
			if r.RegistersEach() >= 1.5 || r.Failed > 0 {
				t.Errorf("with boot_delay_max 10m a gateway makes %.2f registrations, and %d requests get a 5xx", r.RegistersEach(), r.Failed)
			}
		})
	}
}

// A fleet that is twice as large for its quota takes twice as long, but each gateway does not
// send twice as many requests.
func TestLargerFleetsSpreadFurther(t *testing.T) {
	f := New(Power, 1000)
	f.Service.Quota = 100
	before := rehearse(t, f)
	f.Devices *= 2
	r := rehearse(t, f)
	if all, ever := r.Until(100); !ever || all > f.Minimum()*3/2 {
		t.Errorf("the gateways are provisioned after %s, the quota takes %s", all, f.Minimum())
	}
	if r.RegistersEach() > 1.7*before.RegistersEach() {
		t.Errorf("each makes %.2f registrations, in the smaller fleet %.2f", r.RegistersEach(), before.RegistersEach())
	}
}

func TestASingleGatewayTakesOneRegisterAndTwoPolls(t *testing.T) {
	f := New(Power, 1)
	f.Starts = []time.Duration{time.Minute}
	f.Service.RoundTripMin, f.Service.RoundTripMax = 100*time.Millisecond, 100*time.Millisecond
	// There are 5 round trips up to the SUBACK. The register request and the two polls take
	// a round trip and a second each, and there are three seconds before each poll.
	want := time.Minute + 500*time.Millisecond + 3*(100*time.Millisecond+time.Second) + 2*3*time.Second
	if r := rehearse(t, f); r.At[0] != want || r.Registers != 1 || r.Polls != 2 || r.Connections != 1 {
		t.Errorf("it is provisioned after %s with %d registers, %d polls, %d connections; want %s, 1, 2, 1", r.At[0], r.Registers, r.Polls, r.Connections, want)
	}
}

func TestOnBootPolicies(t *testing.T) {
	for policy, asks := range map[daemon.Policy]bool{daemon.PolicyAlways: true, daemon.PolicyVerify: true, daemon.PolicyIfNeeded: false} {
		f := New(Power, 50)
		f.OnBoot = policy
		if r := rehearse(t, f); (r.Registers == f.Devices) != asks || (r.Registers == 0) == asks || len(r.At) != f.Devices {
			t.Errorf("on_boot %s: %d registers, %d of %d provisioned", policy, r.Registers, len(r.At), f.Devices)
		}
	}
}

func TestGatewaysRecoverSoonAfterTheCauseIsRemoved(t *testing.T) {
	for scenario, within := range map[Scenario]time.Duration{
		Outage:   5*time.Minute + time.Minute,
		Brief:    time.Minute,
		WrongKey: 75*time.Minute + time.Minute,
		Moved:    24*time.Hour + time.Minute,
	} {
		f := New(scenario, 500) // the quota is not reached
		if last, ever := rehearse(t, f).Until(100); !ever || last > within {
			t.Errorf("%s: the last gateway is provisioned after %s, want %s at most", scenario, last, within)
		}
	}
}

func TestTheLimitEndsARehearsal(t *testing.T) {
	f := New(WrongKey, 100)
	f.Limit = time.Hour
	r := rehearse(t, f)
	if _, ever := r.Until(50); ever || len(r.At) != 0 {
		t.Errorf("%d gateways are provisioned with a wrong key", len(r.At))
	}
}

func TestAShorterLimitGivesTheBeginningOfTheSameResult(t *testing.T) {
	for name, f := range rehearsals() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			whole := rehearse(t, f)
			for _, n := range []int{0, 1, f.Devices / 2, f.Devices - 1} {
				f.Limit = whole.At[n]
				r := rehearse(t, f)
				until, _ := slices.BinarySearch(whole.At, f.Limit+1)
				if !slices.Equal(r.At, whole.At[:until]) {
					t.Errorf("within %s %d gateways are provisioned, in the whole course %d", f.Limit, len(r.At), until)
				}
				seconds := int(f.Limit / time.Second)
				if len(r.Seconds) > seconds+1 || !slices.Equal(r.Seconds[:seconds], whole.Seconds[:seconds]) {
					t.Errorf("within %s the result differs", f.Limit)
				}
			}
		})
	}
}

func TestNoConnectionIsCountedAfterTheLimit(t *testing.T) {
	f := New(Outage, 100)
	f.Boot, f.Limit = 0, time.Minute
	f.Retry = pace.Retry{Initial: 10 * time.Second, Max: 10 * time.Second} // half of it at least
	if r := rehearse(t, f); r.Connections < 7*f.Devices || r.Connections > 13*f.Devices {
		t.Errorf("%d gateways are refused %d times in a minute", f.Devices, r.Connections)
	}
}

// The simulation computes what a gateway does in advance. Events after the provisioning of the
// last gateway must not be part of the result.
func TestNothingIsCountedAfterTheEnd(t *testing.T) {
	f := New(Power, 60)
	f.OnBoot, f.Interval, f.Service.Quota = daemon.PolicyIfNeeded, 10*time.Minute, 1
	f.Starts = make([]time.Duration, f.Devices)
	for _, f.Starts[0] = range []time.Duration{time.Hour, time.Hour + time.Second, time.Hour + time.Minute} {
		// If nothing takes time, an attempt begins when its request arrives.
		f.Service.RoundTripMin, f.Service.RoundTripMax, f.Service.Reply = 0, 0, 0
		r := rehearse(t, f)
		if last := r.At[f.Devices-1]; last != f.Starts[0] || len(r.Seconds) != int(last/time.Second)+1 {
			t.Errorf("the last gateway is provisioned after %s, the course is %d s, and it boots after %s", last, len(r.Seconds), f.Starts[0])
		}
		if r.Throttled == 0 || r.Connections != r.Registers {
			t.Errorf("the other gateways make %d connections for %d registrations, %d 429 responses", r.Connections, r.Registers, r.Throttled)
		}
	}
}

func TestAnImpossibleFleetIsAnError(t *testing.T) {
	for want, change := range map[string]func(*Fleet){
		"0 devices":                   func(f *Fleet) { f.Devices = 0 },
		`client "x"`:                  func(f *Fleet) { f.Client = "x" },
		"2 start times for 3 devices": func(f *Fleet) { f.Starts = make([]time.Duration, 2) },
		"only scenario power":         func(f *Fleet) { f.Client = SDK; f.Service.DownUntil = 1 },
		"not support losses":          func(f *Fleet) { f.Client = SDK; f.Service.Loss = 0.1 },
		"requires an interval":        func(f *Fleet) { f.Service.MovedAt = 1 },
		`retry-after "soon"`:          func(f *Fleet) { f.Service.RetryAfter = "soon" },
		`retry-after "86401"`:         func(f *Fleet) { f.Service.RetryAfter = "86401" },
		`throttle "x"`:                func(f *Fleet) { f.Service.Throttle = "x" },
		"0 instances":                 func(f *Fleet) { f.Service.Instances = 0 },
		"negative":                    func(f *Fleet) { f.Service.Capacity = -1 },
		"0 polls":                     func(f *Fleet) { f.Service.Polls = 0 },
		"between polls":               func(f *Fleet) { f.Service.PollAfter = time.Millisecond },
		"loss 1 is not":               func(f *Fleet) { f.Service.Loss = 1 },
		"not valid times":             func(f *Fleet) { f.Service.RoundTripMax = 0 },
	} {
		f := New(Power, 3)
		change(&f)
		if _, err := f.Run(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error is %v, want one with %q", err, want)
		}
	}
}

// The SDKs are the reference for comparison, so their behaviour must be accurate: one
// connection, and 2 s between an answer and the next request.
func TestTheSDKsRetryAtAFixedInterval(t *testing.T) {
	f := New(Power, 2)
	f.Client, f.Starts = SDK, []time.Duration{0, 0}
	f.Service.Quota, f.Service.RetryAfter = 1, "none"
	f.Service.RoundTripMin, f.Service.RoundTripMax = 0, 0
	r := rehearse(t, f)
	// The first gateway uses up the quota. The other one retries every three seconds, and
	// is accepted in the next minute.
	if r.Throttled != 20 || r.Connections != 2 || r.Polls != 4 {
		t.Errorf("%d answers 429, %d connections, %d polls", r.Throttled, r.Connections, r.Polls)
	}
}

func TestTheQueueReturnsEventsInOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	var q queue
	var all []event
	now := time.Duration(0)
	// Many events are in one time slice, many in one second, and some far in the future.
	for _, scale := range []time.Duration{1, time.Second / 20, time.Second, time.Hour} {
		for device := range int32(1000) {
			e := event{at: now + time.Duration(random.IntN(100))*scale, device: device}
			all = append(all, e)
			q.push(e)
			if random.IntN(3) == 0 {
				got, _ := q.pop()
				least := slices.MinFunc(all, event.compare)
				if got != least {
					t.Fatalf("got %v before %v", got, least)
				}
				all = slices.DeleteFunc(all, func(e event) bool { return e == got })
				now = got.at
			}
		}
	}
	slices.SortFunc(all, event.compare)
	for _, want := range all {
		if got, ok := q.pop(); got != want || !ok {
			t.Fatalf("got %v, want %v", got, want)
		}
	}
	if e, ok := q.pop(); ok {
		t.Errorf("the empty queue returned %v", e)
	}
}

func TestReportAndCurveAgree(t *testing.T) {
	f := New(Power, 300)
	f.Service.Quota = 100
	f.Retry = pace.Retry{Spread: 5 * time.Second}
	r := rehearse(t, f)
	var report, curve bytes.Buffer
	if err := r.Write(&report); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteCurve(&curve); err != nil {
		t.Fatal(err)
	}
	rows, err := csv.NewReader(&curve).ReadAll()
	if err != nil || len(rows) < 2 {
		t.Fatal(rows, err)
	}
	sums := map[string]int{}
	for _, row := range rows[1:] {
		for n, column := range rows[0] {
			value, err := strconv.Atoi(row[n])
			if err != nil {
				t.Fatal(err)
			}
			sums[column] += value
		}
	}
	if sums["throttled"] != r.Throttled || sums["registers"] != r.Registers || rows[len(rows)-1][5] != "300" {
		t.Errorf("the curve adds up to %v, and ends with %v", sums, rows[len(rows)-1])
	}
	all, _ := r.Until(100)
	for _, want := range []string{"100 % provisioned after", all.Round(time.Second).String(), "shortest time that the quota allows", "3m0s", "429 responses", strconv.Itoa(r.Throttled)} {
		if !strings.Contains(report.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, report.String())
		}
	}
}

// A rehearsal represents dpsd only if it runs dpsd's code, and it is reproducible only if it
// uses neither a clock nor the network.
func TestDirectImports(t *testing.T) {
	all, err := imports.Direct(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, own := range []string{"dps", "classify", "daemon", "pace", "fault"} {
		if all["github.com/dpsd-project/dpsd/"+own] == "" {
			t.Errorf("package %s of the daemon is not used", own)
		}
	}
	for _, other := range []string{"net", "os", "context", "sync", "crypto/tls", "github.com/dpsd-project/dpsd/simulator", "github.com/dpsd-project/dpsd/mqttv3", "github.com/dpsd-project/dpsd/transport"} {
		if file := all[other]; file != "" {
			t.Errorf("%s imports %s", file, other)
		}
	}
}

// When the service returns, the whole fleet connects within a short time. It must not send more
// requests than the service handles without 5xx.
func TestAFleetCausesNo5xxAfterABriefOutage(t *testing.T) {
	f := New(Brief, 10_000)
	r := rehearse(t, f)
	if all, ever := r.Until(100); !ever || r.Failed > 0 || all > f.Minimum()*5/4 {
		t.Errorf("%d requests are answered 5xx, all are back after %s", r.Failed, all)
	}
}
