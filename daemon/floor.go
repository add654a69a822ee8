package daemon

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/store"
)

// Floor is for how long yet the service wants to hear nothing from this gateway, as
// the service's last answer in this boot has it; 0 when it may be asked.
func Floor(runtime store.Runtime, endpoint, registrationID string) time.Duration {
	f := floors{runtime: runtime}
	return f.remaining(floorKey(endpoint, registrationID))
}

// floorKey ignores case, as host names and registration IDs at the service do.
func floorKey(endpoint, registrationID string) string {
	return strings.ToLower(endpoint + "|" + registrationID)
}

// floors remembers until when the service asked us to stay away, for each
// endpoint and registration ID: in memory, and in the runtime directory so
// that a restart within the same boot does not forget it. Times are
// CLOCK_BOOTTIME: no step of the wall clock moves them.
type floors struct {
	runtime  store.Runtime
	bootTime func() time.Duration // nil: CLOCK_BOOTTIME
	until    map[string]time.Duration
}

// raise makes the floor of key at least wait from now. The error says that the
// floor would not survive a restart.
func (f *floors) raise(key string, wait time.Duration) error {
	until := f.now() + wait
	if until <= f.load(key) {
		return nil
	}
	f.until[key] = until
	return f.runtime.SaveFloor(key, until)
}

// remaining is how long key still has to wait; 0 when it need not.
func (f *floors) remaining(key string) time.Duration {
	return max(0, f.load(key)-f.now())
}

func (f *floors) load(key string) time.Duration {
	if until, known := f.until[key]; known {
		return until
	}
	until, _ := f.runtime.LoadFloor(key)
	// A floor beyond a day was not written by dpsd in this boot.
	if until > f.now()+24*time.Hour {
		until = 0
	}
	if f.until == nil {
		f.until = map[string]time.Duration{}
	}
	f.until[key] = until
	return until
}

func (f *floors) now() time.Duration {
	if f.bootTime != nil {
		return f.bootTime()
	}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0 // not on Linux ≥ 2.6.39; then every floor counts from now
	}
	return time.Duration(t.Nano())
}
