package control

import (
	"context"
	"reflect"
	"sync"
	"time"
)

// Board holds the latest Status for everybody who asks. Its zero value is ready
// and empty.
type Board struct {
	mu      sync.Mutex
	status  Status
	changed chan struct{} // closed at the next change
}

// Post replaces the Status, if it is another one. It never waits for a reader. The
// caller must not change what s points to afterwards.
func (b *Board) Post(s Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if reflect.DeepEqual(b.status, s) {
		return
	}
	b.status = s
	if b.changed != nil {
		close(b.changed)
	}
	b.changed = make(chan struct{})
}

// Look returns the Status as of now, and a channel that is closed when there is
// another.
func (b *Board) Look(now time.Time) (Status, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	s := b.status
	s.Now = wall(now)
	if s.Next != nil {
		next := *s.Next
		wait := max(0, next.due.Sub(now))
		next.In, next.At = wait.Seconds(), wall(now.Add(wait))
		s.Next = &next
	}
	if s.Faults == nil {
		s.Faults = []Fault{} // a list in JSON too
	}
	return s, b.changed
}

// Follow calls with for the present Status and for each that follows, until ctx
// ends or with returns an error, which it returns. A slow with gets the latest and
// none of those between: nothing piles up.
func (b *Board) Follow(ctx context.Context, with func(Status) error) error {
	for {
		s, changed := b.Look(time.Now())
		if err := with(s); err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wall is a time for people: without monotonic reading, to the millisecond.
func wall(t time.Time) time.Time { return t.UTC().Round(0).Truncate(time.Millisecond) }
