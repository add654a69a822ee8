package fleet

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/pace"
)

func TestHalfOfTheGatewaysAreBackWithin15SecondsAfterAnOutageOfAMinute(t *testing.T) {
	r, err := AfterOutage(pace.Retry{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Within(50); got > 15*time.Second || len(r.After) != 7*alone {
		t.Errorf("half of %d gateways are back after %s", len(r.After), got)
	}
	if r.Connections >= 9 {
		t.Errorf("each tried %.1f times in a minute", r.Connections)
	}
}

func TestHalfOfTheGatewaysAreBackWithinAMinuteAfterACorrectionInTheFirstTenMinutes(t *testing.T) {
	r, err := AfterCorrection(pace.Retry{})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.Within(50); got > time.Minute || len(r.After) != 10*alone {
		t.Errorf("half of %d gateways are back after %s", len(r.After), got)
	}
	if r.Connections >= 6 {
		t.Errorf("each was refused %.1f times", r.Connections)
	}
}

// When the service returns, a whole fleet comes at once: it must not be more than the
// service answers without 5xx.
func TestAFleetThatReturnsFromABriefOutageMeetsNo5xx(t *testing.T) {
	f := New(Brief, 10_000)
	r := rehearse(t, f)
	if all, ever := r.Until(100); !ever || r.Failed > 0 || all > f.Minimum()*5/4 {
		t.Errorf("%d requests are answered 5xx, all are back after %s", r.Failed, all)
	}
}
