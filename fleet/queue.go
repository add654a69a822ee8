package fleet

import (
	"cmp"
	"slices"
	"time"
)

// event is something that happens to a device at a certain time. A device has at most one
// pending event of each kind.
type event struct {
	at     time.Duration
	device int32
	kind   kind
}

// compare orders events by time, and simultaneous events by device and kind, so the order in which
// events are added does not matter.
func (e event) compare(other event) int {
	return cmp.Or(cmp.Compare(e.at, other.at), cmp.Compare(e.device, other.device), cmp.Compare(e.kind, other.kind))
}

// queue returns events in order. Only the events of the current time slice are sorted. With a
// million gateways, a heap of all events would be larger than the CPU caches, and each of its
// levels would wait for memory.
type queue struct {
	moment time.Duration             // number of the current time slice
	soon   []event                   // events of the current slice, sorted
	later  map[time.Duration][]event // events of later slices, by slice number
}

// moment is short enough for few events in a slice, and long enough for few slices.
const moment = time.Second / 20

func (q *queue) push(e event) {
	n := e.at / moment
	if n <= q.moment {
		i, _ := slices.BinarySearchFunc(q.soon, e, event.compare)
		q.soon = slices.Insert(q.soon, i, e)
		return
	}
	if q.later == nil {
		q.later = map[time.Duration][]event{}
	}
	q.later[n] = append(q.later[n], e)
}

// pop removes and returns the next event. It returns false if the queue is empty.
func (q *queue) pop() (event, bool) {
	for len(q.soon) == 0 {
		if len(q.later) == 0 {
			return event{}, false
		}
		q.moment++
		q.soon = q.later[q.moment]
		slices.SortFunc(q.soon, event.compare)
		delete(q.later, q.moment)
	}
	e := q.soon[0]
	q.soon = q.soon[1:]
	return e, true
}
