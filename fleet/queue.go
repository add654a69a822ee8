package fleet

import "time"

// event is what happens to a device at a time. Each device has one at most that is
// still to come.
type event struct {
	at     time.Duration
	device int32
	kind   kind
}

// before orders events by time, and those of one moment by device: so the order in
// which they were put in does not matter.
func (e event) before(other event) bool {
	return e.at < other.at || e.at == other.at && e.device < other.device
}

// queue is a heap of events, the next one first. container/heap would put each event
// into an interface, and so on the heap of Go.
type queue []event

func (q *queue) push(e event) {
	h := append(*q, e)
	*q = h
	n := len(h) - 1
	for n > 0 {
		parent := (n - 1) / 2
		if !e.before(h[parent]) {
			break
		}
		h[n] = h[parent]
		n = parent
	}
	h[n] = e
}

func (q *queue) pop() event {
	h := *q
	first, last := h[0], h[len(h)-1]
	h = h[:len(h)-1]
	*q = h
	if len(h) == 0 {
		return first
	}
	n := 0
	for {
		child := 2*n + 1
		if child >= len(h) {
			break
		}
		if child+1 < len(h) && h[child+1].before(h[child]) {
			child++
		}
		if !h[child].before(last) {
			break
		}
		h[n] = h[child]
		n = child
	}
	h[n] = last
	return first
}
