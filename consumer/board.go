package consumer

import (
	"reflect"
	"sync"
)

// Board holds the latest State for all servers. Its zero value is ready to use, and holds the
// State of a device that DPS has not assigned.
type Board struct {
	mu      sync.Mutex
	state   State
	changed chan struct{} // closed at the next change, and at the next step of the clock
}

// Post replaces the State if s differs from it. It never waits for a reader. Afterwards, the
// caller must not change data that s refers to.
func (b *Board) Post(s State) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if reflect.DeepEqual(b.state, s) {
		return
	}
	b.state = s
	b.wake()
}

// ClockStepped makes the servers compare times again after a step of the wall clock.
func (b *Board) ClockStepped() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wake()
}

// wake closes the channel of Watch. The caller holds the lock.
func (b *Board) wake() {
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
}

// State returns the latest State, which the caller must not change.
func (b *Board) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// Watch returns the latest State, and a channel that is closed when it changes, or when the wall
// clock has stepped.
func (b *Board) Watch() (State, <-chan struct{}) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed == nil {
		b.changed = make(chan struct{})
	}
	return b.state, b.changed
}
