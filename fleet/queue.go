package fleet

import (
	"cmp"
	"slices"
	"time"
)

// event is what happens to a device at a time. Each device has one at most that is
// still to come.
type event struct {
	at     time.Duration
	device int32
	kind   kind
}

// compare orders events by time, and those of one time by device: so the order in
// which they were put in does not matter.
func (e event) compare(other event) int {
	return cmp.Or(cmp.Compare(e.at, other.at), cmp.Compare(e.device, other.device))
}

// queue gives the next event first. Only those of the moment that is under way are in
// order. A heap of all would be larger than the caches with a million gateways, and each
// of its levels a wait for memory.
type queue struct {
	moment time.Duration             // that is under way, by its number
	soon   []event                   // in their order
	later  map[time.Duration][]event // by moment
}

// moment is short enough for few events, and long enough that there are few moments.
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

// pop takes the next event; false when there is none.
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
