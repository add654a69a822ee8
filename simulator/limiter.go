package simulator

import "time"

// The intervals of the service's limits, DPS page "Azure IoT Hub Device Provisioning Service
// limits".
const (
	pollInterval     = 10 * time.Second
	registerInterval = time.Minute
)

// limiter allows a burst of limit events, and after that one more event each
// interval/limit. If a client sends a little early, less of the burst is left for
// later. (Generic cell rate algorithm, ITU-T I.371.)
type limiter struct {
	next time.Time // when the next event would be due at an even rate
}

// take counts an event and returns 0. Above the limit it does not count the event, and returns
// the time until the next one is allowed.
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
