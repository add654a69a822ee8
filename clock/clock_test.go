package clock

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

// A test must not set the clock of the machine that runs it. A test in a virtual machine
// covers real steps: see docs/promises.md.

func TestStepsEndWithTheirContext(t *testing.T) {
	defer goleak.VerifyNone(t)
	ctx, cancel := context.WithCancel(context.Background())
	steps, err := Steps(ctx)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case step := <-steps:
		t.Errorf("a step of %s, but the clock was not set", step)
	default:
	}
	cancel()
}

func TestAStepIsSignificantFromAMinuteOn(t *testing.T) {
	for _, tt := range []struct {
		step time.Duration
		want bool
	}{
		{0, false}, {time.Second, false}, {-59 * time.Second, false},
		{time.Minute, true}, {-time.Minute, true}, {73 * 365 * 24 * time.Hour, true}, {-56 * 365 * 24 * time.Hour, true},
	} {
		if significant(tt.step) != tt.want {
			t.Errorf("a step of %s: %t", tt.step, !tt.want)
		}
	}
}

func TestStepsThatAreNotReceivedAreAddedUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		steps := make(chan time.Duration, 1)
		deliver(steps, time.Hour)
		deliver(steps, -2*time.Hour)
		if got := <-steps; got != -time.Hour {
			t.Errorf("got %s", got)
		}
	})
}

func TestTheOffsetOfTheWallClockIsConstantWithoutAStep(t *testing.T) {
	before, err := offset()
	if err != nil {
		t.Fatal(err)
	}
	after, err := offset()
	if err != nil {
		t.Fatal(err)
	}
	if significant(after - before) {
		t.Errorf("the offset of the wall clock changed by %s between two readings", after-before)
	}
}
