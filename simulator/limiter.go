package simulator

import "time"

// The intervals of the service's limits, DPS page "Azure IoT Hub Device Provisioning Service limits".
const (
	pollInterval     = 10 * time.Second
	registerInterval = time.Minute
)

// limiter lets limit events of an interval through at once, and after that
// one more each interval/limit. A client that comes a little early now and
// then lives on what it has left. (Generic cell rate algorithm, ITU-T I.371.)
type limiter struct {
	next time.Time // when the next event would be due if all came evenly
}

// take counts an event and gives 0, or leaves it out and tells how long until one is free.
func (l *limiter) take(now time.Time, limit int, interval time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	each := interval / time.Duration(limit)
	if early := l.next.Add(each - interval).Sub(now); early > 0 {
		return early
	}
	if l.next.Before(now) {
		l.next = now
	}
	l.next = l.next.Add(each)
	return 0
}
