package refusal_test

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/test/imports"
)

// start is the time of the first report. It is not 0, because a gateway has been up for some time.
const start = time.Hour

var refused = refusal.Reason{Consumer: "edge", Code: 5}

// reports makes edge report code 5 at the given times after start, and returns the last decision.
func reports(tracker *refusal.Tracker, s refusal.Situation, at ...time.Duration) (last refusal.Decision) {
	for _, after := range at {
		last = tracker.Report(refused, s, start+after)
	}
	return last
}

// checked performs the check of the hub that is due.
func checked(t *testing.T, tracker *refusal.Tracker, f refusal.Finding, s refusal.Situation) refusal.Decision {
	t.Helper()
	due := tracker.Due()
	if due == 0 {
		t.Fatal("no check of the hub is due")
	}
	tracker.Begin()
	return tracker.Found(f, s, due)
}

func TestThreeReportsOverFifteenMinutesAreNecessary(t *testing.T) {
	for name, tt := range map[string]struct {
		at   []time.Duration
		want refusal.Action
		due  time.Duration
	}{
		"one":                         {[]time.Duration{0}, refusal.Counting, 15 * time.Minute},
		"two over an hour":            {[]time.Duration{0, time.Hour}, refusal.Counting, time.Hour},
		"three within 14:59":          {[]time.Duration{0, time.Second, 15*time.Minute - time.Second}, refusal.Counting, 15 * time.Minute},
		"three over 15 min":           {[]time.Duration{0, time.Second, 15 * time.Minute}, refusal.Verifying, 15 * time.Minute},
		"three over three hours":      {[]time.Duration{0, 90 * time.Minute, 3 * time.Hour}, refusal.Verifying, 3 * time.Hour},
		"silence of two hours before": {[]time.Duration{0, time.Minute, 2*time.Hour + 2*time.Minute}, refusal.Counting, 2*time.Hour + 17*time.Minute},
	} {
		var tracker refusal.Tracker
		if d := reports(&tracker, refusal.Situation{}, tt.at...); d.Action != tt.want || d.At != start+tt.due {
			t.Errorf("%s: %+v, want %s at %s", name, d, tt.want, start+tt.due)
		}
	}
}

func TestTheReportsOfTwoConsumersAreCountedSeparately(t *testing.T) {
	var tracker refusal.Tracker
	for n := range 2 {
		for _, consumer := range []string{"a", "b"} {
			if d := tracker.Report(refusal.Reason{Consumer: consumer, Code: 5}, refusal.Situation{}, start+time.Duration(n)*20*time.Minute); d.Action != refusal.Counting {
				t.Errorf("report %d of %s: %+v", n+1, consumer, d)
			}
		}
	}
	for kind, want := range map[refusal.Kind]int{refusal.Identity: 2, refusal.Unavailable: 0} {
		if got := tracker.Count("a", kind, start+20*time.Minute); got.Reports != want {
			t.Errorf("%s: %+v, want %d reports", kind, got, want)
		}
	}
	if got := tracker.Count("a", refusal.Identity, start+3*time.Hour); got.Reports != 0 {
		t.Errorf("after hours: %+v", got)
	}
}

func TestRefusalsAndFailuresOfTheHubAreCountedSeparately(t *testing.T) {
	var tracker refusal.Tracker
	var last refusal.Decision
	for n, code := range []refusal.Code{5, 503, 5, 503} {
		last = tracker.Report(refusal.Reason{Consumer: "edge", Code: code}, refusal.Situation{}, start+time.Duration(n)*20*time.Minute)
	}
	if last.Action != refusal.Counting {
		t.Errorf("two reports of each kind: %+v", last)
	}
	// An outage can cause both kinds of reports.
	last = tracker.Report(refusal.Reason{Consumer: "edge", Code: refusal.Unreachable}, refusal.Situation{}, start+80*time.Minute)
	if last.Action != refusal.Verifying {
		t.Errorf("three reports that the hub is not working over an hour: %+v", last)
	}
}

func TestAnImplausibleClockPreventsARegistration(t *testing.T) {
	wrong := refusal.Situation{Implausible: true}
	var tracker refusal.Tracker
	if d := reports(&tracker, wrong, 0, 10*time.Minute, 20*time.Minute); d.Action != refusal.Counting || d.At != 0 || !strings.Contains(d.Because, "clock") {
		t.Errorf("%+v", d)
	}
	if d := reports(&tracker, refusal.Situation{}, 21*time.Minute); d.Action != refusal.Verifying {
		t.Errorf("after the clock was set: %+v", d)
	}
	if d := checked(t, &tracker, refusal.Verified, wrong); d.Action != refusal.None || !strings.Contains(d.Because, "clock") {
		t.Errorf("the clock is implausible after the check: %+v", d)
	}
}

func TestAReportOfAMissingModuleVerifiesTheModulesAtMostOnceAnHour(t *testing.T) {
	missing := refusal.Reason{Consumer: "edge", Code: 404010}
	var tracker refusal.Tracker
	for _, tt := range []struct {
		at     time.Duration
		policy refusal.Policy
		want   bool
	}{{0, refusal.ReportOnly, false}, {0, "", true}, {time.Hour - 1, "", false}, {time.Hour, "", true}, {time.Hour + 1, "", false}} {
		d := tracker.Report(missing, refusal.Situation{Policy: tt.policy}, start+tt.at)
		if d.Action != refusal.None || d.Modules != tt.want || d.At != 0 {
			t.Errorf("after %s with the policy %q: %+v", tt.at, tt.policy, d)
		}
		tracker.Forget() // an assignment does not shorten the hour
	}
}

func TestWithThePolicyReportDpsdNeverActs(t *testing.T) {
	for _, code := range []string{"5", "503", "unreachable", "429"} {
		if o := observe(t, code, refusal.Confirmed, refusal.Situation{Policy: refusal.ReportOnly}); len(o.registrations) > 0 || o.last.Action != refusal.None {
			t.Errorf("%s: %+v", code, o)
		}
	}
	// The policy may also change while the check is due.
	var tracker refusal.Tracker
	reports(&tracker, refusal.Situation{}, 0, 10*time.Minute, 20*time.Minute)
	if d := checked(t, &tracker, refusal.Confirmed, refusal.Situation{Policy: refusal.ReportOnly}); d.Action != refusal.None {
		t.Errorf("%+v", d)
	}
}

func TestAnImplausibleClockNeverCausesARegistration(t *testing.T) {
	for _, code := range []string{"5", "503", "unreachable"} {
		if o := observe(t, code, refusal.Confirmed, refusal.Situation{Implausible: true}); len(o.registrations) > 0 {
			t.Errorf("%s: %+v", code, o)
		}
	}
}

func TestARestartKeepsTheHourBetweenActions(t *testing.T) {
	var tracker refusal.Tracker
	reports(&tracker, refusal.Situation{}, 0, 10*time.Minute, 20*time.Minute)
	if d := checked(t, &tracker, refusal.Verified, refusal.Situation{}); d.Action != refusal.Reprovisioning || d.At != start+20*time.Minute {
		t.Fatalf("%+v", d)
	}
	tracker.Scheduled(start + 25*time.Minute) // Retry-After
	restarted := refusal.Tracker{Acted: tracker.Acted}
	if d := reports(&restarted, refusal.Situation{}, 30*time.Minute, 40*time.Minute, 84*time.Minute); d.Action != refusal.Counting || d.At != start+85*time.Minute || d.Because == "" {
		t.Errorf("59 minutes after the registration: %+v", d)
	}
	if d := reports(&restarted, refusal.Situation{}, 85*time.Minute); d.Action != refusal.Verifying {
		t.Errorf("an hour after it: %+v", d)
	}
}

func TestTheEarliestTimeOfTheNextActionIsAnHourAfterTheLastOne(t *testing.T) {
	const acted = start - 20*time.Minute
	for _, tt := range []struct {
		at    []time.Duration
		due   time.Duration
		limit bool // the hour is the reason
	}{
		{[]time.Duration{0}, 40 * time.Minute, true},
		{[]time.Duration{0, time.Minute, 2 * time.Minute}, 40 * time.Minute, true},
		{[]time.Duration{30 * time.Minute}, 45 * time.Minute, false},
		{[]time.Duration{0, 50 * time.Minute}, 50 * time.Minute, false},
	} {
		tracker := refusal.Tracker{Acted: acted}
		if d := reports(&tracker, refusal.Situation{}, tt.at...); d.Action != refusal.Counting || d.At != start+tt.due || strings.Contains(d.Because, "once an hour") != tt.limit {
			t.Errorf("reports after %v: %+v, want %s", tt.at, d, start+tt.due)
		}
	}
}

func TestAChangedAssignmentRestartsTheCount(t *testing.T) {
	var tracker refusal.Tracker
	reports(&tracker, refusal.Situation{Generation: 1}, 0, 10*time.Minute)
	if d := reports(&tracker, refusal.Situation{Generation: 2}, 20*time.Minute); d.Action != refusal.Counting || d.At != start+35*time.Minute {
		t.Errorf("another generation: %+v", d)
	}
	reports(&tracker, refusal.Situation{Generation: 2}, 30*time.Minute, 40*time.Minute)
	if tracker.Due() == 0 {
		t.Fatal("no check is due")
	}
	tracker.Forget()
	if tracker.Due() != 0 {
		t.Error("DPS has confirmed the assignment, and the check is still due")
	}
	if d := reports(&tracker, refusal.Situation{Generation: 2}, 50*time.Minute); d.Action != refusal.Counting {
		t.Errorf("after the assignment: %+v", d)
	}
}

func TestAnAssignmentDuringTheCheckMakesItsResultIrrelevant(t *testing.T) {
	var tracker refusal.Tracker
	reports(&tracker, refusal.Situation{}, 0, 10*time.Minute, 20*time.Minute)
	tracker.Begin()
	if tracker.Due() != 0 {
		t.Error("a check that is running is due again")
	}
	tracker.Forget()
	if d := tracker.Found(refusal.Confirmed, refusal.Situation{Generation: 1}, start+21*time.Minute); d != (refusal.Decision{}) {
		t.Errorf("%+v", d)
	}
}

func TestTheAnswerSaysWhenInBothClocks(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.FixedZone("", 3600))
	a := refusal.Decision{Action: refusal.Verifying, Because: "x.", At: start + 90*time.Second}.Answer(start, now)
	if a.In != 90 || !a.At.Equal(time.Date(2026, 11, 30, 11, 1, 30, 123e6, time.UTC)) || a.At.Location() != time.UTC {
		t.Errorf("%+v", a)
	}
	if a := (refusal.Decision{Action: refusal.Verifying, At: start}).Answer(start+time.Minute, now); a.In != 0 || a.At.Before(now.Truncate(time.Millisecond)) {
		t.Errorf("what is overdue happens now: %+v", a)
	}
	if a := (refusal.Decision{Action: refusal.None}).Answer(start, now); a.In != 0 || !a.At.IsZero() {
		t.Errorf("never is not a time: %+v", a)
	}
}

// Regardless of the reports and the findings, two checks of the hub and two registrations are at least an
// hour apart, and throttling alone never causes a registration.
func TestNoSequenceOfReportsCausesMoreThanOneRegistrationAnHour(t *testing.T) {
	codes := []refusal.Code{1, 2, 3, 4, 5, 400, 401, 404, 429, 429001, 500, 503, refusal.Unreachable, 401003, 404001, 403002}
	total := 0
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		var tracker refusal.Tracker
		var last time.Duration
		every := time.Duration(1+random.IntN(1200)) * time.Second
		first := map[string]time.Duration{}
		for now := start; now < start+48*time.Hour; now += time.Duration(random.Int64N(int64(every))) + 1 {
			s := refusal.Situation{Spread: time.Duration(random.Int64N(int64(refusal.Spread)))}
			if due := tracker.Due(); due > 0 && now >= due {
				reason := tracker.Begin()
				if now < first[reason.Consumer]+refusal.Refused {
					t.Fatalf("seed %d: a check %s after the first report", seed, now-first[reason.Consumer])
				}
				if d := tracker.Found(refusal.Findings()[random.IntN(len(refusal.Findings()))], s, now); d.Action == refusal.Reprovisioning {
					if last > 0 && now-last < time.Hour {
						t.Fatalf("seed %d: registrations at %s and %s", seed, last, now)
					}
					total++
					last = now
					tracker.Scheduled(now)
					if random.IntN(2) == 0 {
						tracker.Forget()
					}
				}
			}
			reason := refusal.Reason{Consumer: string(rune('a' + random.IntN(3))), Code: codes[random.IntN(len(codes))]}
			if kind := reason.Code.Kind(); (kind == refusal.Identity || kind == refusal.Unavailable) && first[reason.Consumer] == 0 {
				first[reason.Consumer] = now
			}
			if d := tracker.Report(reason, s, now); d.Action == refusal.Reprovisioning || d.At > 0 && d.At < now && d.Action == refusal.Counting || d.Because == "" {
				t.Fatalf("seed %d: %+v", seed, d)
			}
		}
	}
	if total < 1000 {
		t.Errorf("only %d registrations: the test shows little", total)
	}
}

// Decisions that depend on a clock, a file or the network cannot be simulated.
func TestDecisionsDependOnlyOnTheirArguments(t *testing.T) {
	all, err := imports.Direct(".")
	if err != nil {
		t.Fatal(err)
	}
	for path, file := range all {
		switch path {
		case "encoding/json", "errors", "fmt", "strconv", "time":
		default:
			t.Errorf("%s imports %s", file, path)
		}
	}
}
