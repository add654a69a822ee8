package daemon

import (
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/store"
)

// Floor returns the remaining wait that the service's last answer in this boot has asked for,
// or 0 if the gateway may contact the service.
func Floor(runtime store.Runtime, endpoint, registrationID string) time.Duration {
	f := floors{runtime: runtime}
	return f.remaining(floorKey(endpoint, registrationID))
}

// floorKey ignores case, as host names and the service's registration IDs do.
func floorKey(endpoint, registrationID string) string {
	return strings.ToLower(endpoint + "|" + registrationID)
}

// floors stores, for each endpoint and registration ID, the time before which the service asked
// not to be contacted: in memory, and in the runtime directory for a restart within the same
// boot. Times are of CLOCK_BOOTTIME, which steps of the wall clock do not affect.
type floors struct {
	runtime  store.Runtime
	bootTime func() time.Duration // nil: CLOCK_BOOTTIME
	until    map[string]time.Duration
}

// raise makes the floor of key at least wait from now. An error means that the floor would
// not survive a restart.
func (f *floors) raise(key string, wait time.Duration) error {
	until := f.now() + wait
	if until <= f.load(key) {
		return nil
	}
	f.until[key] = until
	return f.runtime.SaveFloor(key, until)
}

// remaining returns the remaining wait of key, or 0.
func (f *floors) remaining(key string) time.Duration {
	return max(0, f.load(key)-f.now())
}

func (f *floors) load(key string) time.Duration {
	if until, known := f.until[key]; known {
		return until
	}
	until, _ := f.runtime.LoadFloor(key)
	// dpsd did not write a floor of more than a day in this boot.
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
		return 0 // Linux before 2.6.39: every floor begins now
	}
	return time.Duration(t.Nano())
}
