package control

import (
	"bytes"
	"context"
	"encoding/json"
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

	document []byte // of status, as JSON; never changed, only replaced
	made     time.Time
}

// shared is how long a document is given to everybody who asks, until the next change.
const shared = 100 * time.Millisecond

// Post replaces the Status, if it is another one. It never waits for a reader. The
// caller must not change what s points to afterwards.
func (b *Board) Post(s Status) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if reflect.DeepEqual(b.status, s) {
		return
	}
	b.status, b.document = s, nil
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
	return b.look(now)
}

// look is Look, called with the lock.
func (b *Board) look(now time.Time) (Status, <-chan struct{}) {
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

// Document is the Status of Look as a line of JSON. All who ask at about the same time
// get the same bytes, which nobody may change: however many slow readers there are, they
// hold one copy.
func (b *Board) Document(now time.Time) ([]byte, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, changed := b.look(now)
	if b.document == nil || now.Sub(b.made) >= shared || now.Before(b.made) {
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false) // six bytes for each "<" of a hostile peer
		_ = encoder.Encode(s)        // strings, numbers and times always encode, into memory
		b.document, b.made = bytes.Clone(text.Bytes()), now
	}
	return b.document, changed
}

// Follow calls with for the present Document and for each that follows, until ctx
// ends or with returns an error, which it returns. A slow with gets the latest and
// none of those between: nothing piles up.
func (b *Board) Follow(ctx context.Context, with func(document []byte) error) error {
	for {
		document, changed := b.Document(time.Now())
		if err := with(document); err != nil {
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
