package main

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/pace"
)

func TestHalfOfTheGatewaysAreBackWithin15SecondsAfterAnOutageOfAMinute(t *testing.T) {
	r, err := afterOutage(pace.Retry{}, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got := r.within(50); got > 15*time.Second || len(r.after) != 7*alone {
		t.Errorf("half of %d gateways are back after %s", len(r.after), got)
	}
	if r.connections >= 9 {
		t.Errorf("each tried %.1f times in a minute", r.connections)
	}
}

func TestHalfOfTheGatewaysAreBackWithinAMinuteAfterACorrectionInTheFirstTenMinutes(t *testing.T) {
	r, err := afterCorrection(pace.Retry{})
	if err != nil {
		t.Fatal(err)
	}
	if got := r.within(50); got > time.Minute || len(r.after) != 10*alone {
		t.Errorf("half of %d gateways are back after %s", len(r.after), got)
	}
	if r.connections >= 6 {
		t.Errorf("each was refused %.1f times", r.connections)
	}
}
