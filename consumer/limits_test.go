package consumer

import (
	"testing"
	"time"
)

func TestAtMostThirtyRequestsArePossibleInAnyMinute(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	var b bucket
	var taken []time.Time
	// The client requests as often as it is allowed to, after pauses of each length.
	for pause := time.Duration(0); pause < 2*time.Minute; pause += 7 * time.Second {
		now = now.Add(pause)
		for range 50 {
			wait := b.take(now)
			if wait > 0 {
				if early := b.take(now.Add(wait - 1)); early != 1 {
					t.Fatalf("a nanosecond earlier, the wait is %v", early)
				}
				now = now.Add(wait)
				if again := b.take(now); again != 0 {
					t.Fatalf("after the wait of %v, the next one is %v", wait, again)
				}
			}
			taken = append(taken, now)
		}
	}
	most := 0
	for i := range taken {
		n := 0
		for n < len(taken)-i && taken[i+n].Sub(taken[i]) < time.Minute {
			n++
		}
		most = max(most, n)
	}
	if most != 29 && most != 30 {
		t.Errorf("%d requests are possible in a minute", most)
	}
	first := 0
	for ; first < len(taken) && taken[first].Equal(taken[0]); first++ {
	}
	if first != 10 {
		t.Errorf("%d requests are possible at once", first)
	}
}

func TestAClockThatIsSetBackDoesNotLockAConsumerOut(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	var b bucket
	b.take(now)
	now = now.AddDate(-1, 0, 0)
	if wait := b.take(now); wait != interval {
		t.Errorf("the consumer must wait %v", wait)
	}
	if wait := b.take(now.Add(interval)); wait != 0 {
		t.Errorf("after that, the consumer must wait %v", wait)
	}
}
