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

// queue gives the next event first. Only those of the second that is under way are in
// order. A heap of all would be larger than the caches with a million gateways, and each
// of its levels a wait for memory.
type queue struct {
	second time.Duration // that is under way, by its number
	soon   heap
	later  map[time.Duration][]event // by second
}

func (q *queue) push(e event) {
	second := e.at / time.Second
	if second <= q.second {
		q.soon.push(e)
		return
	}
	if q.later == nil {
		q.later = map[time.Duration][]event{}
	}
	q.later[second] = append(q.later[second], e)
}

// pop takes the next event; false when there is none.
func (q *queue) pop() (event, bool) {
	for len(q.soon) == 0 {
		if len(q.later) == 0 {
			return event{}, false
		}
		q.second++
		for _, e := range q.later[q.second] {
			q.soon.push(e)
		}
		delete(q.later, q.second)
	}
	return q.soon.pop(), true
}

// heap has the least event first. container/heap would put each into an interface, and
// so on the heap of Go.
type heap []event

func (q *heap) push(e event) {
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

func (q *heap) pop() event {
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
