package daemon

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/pace"
)

// noon is the reference time of these tests.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func after(d time.Duration) time.Time { return noon.Add(d) }

func TestTheEarlierRequestCounts(t *testing.T) {
	for name, tt := range map[string]struct {
		due     time.Time
		at      time.Time
		want    time.Time
		because string
	}{
		"nothing was due":          {time.Time{}, after(time.Minute), after(time.Minute), "request"},
		"a later attempt was due":  {after(time.Hour), after(time.Minute), after(time.Minute), "request"},
		"an earlier one was due":   {after(time.Second), after(time.Minute), after(time.Second), "before"},
		"one was due at that time": {after(time.Minute), after(time.Minute), after(time.Minute), "before"},
	} {
		s := schedule{due: tt.due, why: "before"}
		s.request(tt.at, "request", false)
		if !s.due.Equal(tt.want) || s.why != tt.because {
			t.Errorf("%s: due %s because of the %s, want %s because of the %s", name, s.due, s.why, tt.want, tt.because)
		}
	}
}

func TestARequestDuringAnAttemptWaitsForItsEnd(t *testing.T) {
	s := schedule{reached: noon}
	s.request(after(time.Second), "a file", true)
	if !s.due.IsZero() {
		t.Fatalf("due %s while an attempt is running", s.due)
	}
	s.requested()
	if want := after(changeGap); !s.due.Equal(want) || s.why != "a file" {
		t.Errorf("due %s because of %q, want %s: %s after the last contact", s.due, s.why, want, changeGap)
	}
	s = schedule{due: after(time.Hour)}
	if s.requested(); !s.due.Equal(after(time.Hour)) {
		t.Errorf("without a request the next attempt moved to %s", s.due)
	}
}

func TestRequestsOfPeopleWithinAMinuteBecomeOne(t *testing.T) {
	var s schedule
	for _, tt := range []struct{ now, want time.Duration }{
		{0, 0}, {time.Second, forcedGap}, {forcedGap - 1, forcedGap}, {forcedGap, 2 * forcedGap},
		{forcedGap + time.Second, 2 * forcedGap}, {time.Hour, time.Hour},
	} {
		if got := s.force(after(tt.now)); !got.Equal(after(tt.want)) {
			t.Errorf("asked at +%s: due %s, want +%s", tt.now, got.Sub(noon), tt.want)
		}
	}
}

func TestNewSettingsAreTriedImmediatelyUnlessAFileAsksTooOften(t *testing.T) {
	for name, tt := range map[string]struct {
		s    schedule
		want time.Time
	}{
		"a person asked":             {schedule{wanted: noon, forced: noon, reached: noon}, noon},
		"a person may ask again":     {schedule{wanted: after(forcedGap), forced: after(forcedGap), reached: noon}, after(forcedGap)},
		"a file changed":             {schedule{wanted: noon, reached: after(-time.Second)}, after(changeGap - time.Second)},
		"a file changed, long since": {schedule{wanted: noon, reached: after(-time.Hour)}, noon},
	} {
		if tt.s.restart(noon); !tt.s.due.Equal(tt.want) {
			t.Errorf("%s: due +%s, want +%s", name, tt.s.due.Sub(noon), tt.want.Sub(noon))
		}
	}
}

func TestARoundTriesEachCredentialOnce(t *testing.T) {
	const count = 3
	var c credentials
	refused := fault.New(fault.Unauthorized, fault.StageRegister, nil)
	var used []int
	for range count {
		used = append(used, c.current)
		lane := pace.LaneRefused
		if c.left(count) {
			lane = pace.LaneNext
		}
		c.failed(refused, lane, count)
	}
	if used[0] != 0 || used[1] != 1 || used[2] != 2 || c != (credentials{}) {
		t.Errorf("used %v, then %+v; want each once, then the first", used, c)
	}
}

func TestAFaultOfTheIdentityKeepsTheCredential(t *testing.T) {
	c := credentials{current: 1, tried: 1}
	c.failed(fault.New(fault.InputUnreadable, fault.StageIdentity, nil), pace.LaneRefused, 2)
	if c.current != 1 || c.tried != 1 {
		t.Errorf("got %+v", c)
	}
	if c.failed(fault.New(fault.NoReply, fault.StageRegister, nil), pace.LaneTransient, 2); c.current != 1 {
		t.Errorf("a transient fault changes to credential %d", c.current)
	}
}

func TestTheServiceLeavesNothingToTryOnceItHasRefusedEachCredentialOrTheEnrollment(t *testing.T) {
	var c credentials
	key, enrollment := fault.New(fault.Unauthorized, fault.StageRegister, nil), fault.New(fault.EnrollmentDisabled, fault.StageRegister, nil)
	if c.exhausted(key, 2) || c.exhausted(fault.New(fault.NoReply, fault.StageRegister, nil), 2) || !c.exhausted(key, 2) {
		t.Error("two of two refused credentials, and only they, leave nothing to try")
	}
	if c = (credentials{}); !c.exhausted(enrollment, 2) {
		t.Error("a refused enrollment leaves something to try")
	}
}

func TestTheExpiryIsAnnouncedAtItsDays(t *testing.T) {
	const day = 24 * time.Hour
	for left, want := range map[time.Duration]int{
		31 * day: 0, 30*day + 1: 0, 30 * day: 30, 8 * day: 30, 7*day + 1: 30, 7 * day: 7, day + 1: 7, day: 1, 1: 1, 0: ended, -day: ended,
	} {
		if got := (&expiry{at: after(left)}).due(noon); got != want {
			t.Errorf("%s before the end: %d, want %d", left, got, want)
		}
	}
}

func TestTenBusyAnswersInARowSuggestAWrongScope(t *testing.T) {
	var f failures
	busy := fault.New(fault.ConnackUnavailable, fault.StageConnect, nil)
	for n := 1; n <= busyAnswers+1; n++ {
		advice := f.add(busy, after(time.Duration(n)*time.Second))
		if suggests := advice != busy.Advice(); suggests != (n >= busyAnswers) {
			t.Errorf("answer %d: %s", n, advice)
		}
	}
	if f.count != busyAnswers+1 || !f.since.Equal(after(time.Second)) {
		t.Errorf("%d failures since %s", f.count, f.since)
	}
	f.add(fault.New(fault.NoReply, fault.StageConnect, nil), noon)
	if advice := f.add(busy, noon); advice != busy.Advice() {
		t.Errorf("after another failure: %s", advice)
	}
}
