package control

import (
	"bytes"
	"context"
	"encoding/json"
	"reflect"
	"sync"
	"time"
)

// Board holds the latest Status for all clients. Its zero value is empty and ready to use.
type Board struct {
	// Use returns what a local service has done in this run. It is called for each reader, so that
	// using a socket does not wake the daemon's loop. nil: this is not known.
	Use func(name string) ConsumerUse

	mu      sync.Mutex
	status  Status
	changed chan struct{} // closed at the next change

	document []byte // status as JSON; replaced, never modified
	made     time.Time
}

// shared is how long clients get the same document, unless the status changes.
const shared = 100 * time.Millisecond

// Post replaces the Status if s differs from it. It never waits for a reader. Afterwards,
// the caller must not change data that s refers to.
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

// Look returns the Status at the time now, and a channel that is closed when the Status
// changes.
func (b *Board) Look(now time.Time) (Status, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.look(now)
}

// look is Look for callers that hold the lock.
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
		s.Faults = []Fault{} // an empty list in JSON, not null
	}
	s.Consumers = append([]Consumer{}, s.Consumers...)
	for i := range s.Consumers {
		if c := &s.Consumers[i]; b.Use != nil && c.Listening {
			c.ConsumerUse = b.Use(c.Name)
		}
	}
	return s, b.changed
}

// Document returns the Status of Look as a line of JSON. Calls within a short time return
// the same bytes, which must not be modified, so that many slow readers share one copy.
func (b *Board) Document(now time.Time) ([]byte, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	s, changed := b.look(now)
	if b.document == nil || now.Sub(b.made) >= shared || now.Before(b.made) {
		var text bytes.Buffer
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false) // a "<" of a hostile peer would become six bytes
		_ = encoder.Encode(s)        // encoding strings, numbers and times into memory does not fail
		b.document, b.made = bytes.Clone(text.Bytes()), now
	}
	return b.document, changed
}

// Follow calls with for the current Document and for each new one, until ctx ends or with
// returns an error, which it returns. A slow with misses intermediate documents and gets
// the latest one; documents are not queued.
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

// wall returns t for display: in UTC, without monotonic reading, truncated to milliseconds.
func wall(t time.Time) time.Time { return t.UTC().Round(0).Truncate(time.Millisecond) }
