package daemon

import (
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/store"
)

func TestTheFloorIsReadableByOtherUsers(t *testing.T) {
	runtime := store.Runtime{Directory: t.TempDir()}
	f := floors{runtime: runtime}
	if err := f.raise(floorKey("dps.test", "gw-1"), time.Hour); err != nil {
		t.Fatal(err)
	}
	// Host names and registration IDs are compared regardless of case.
	if left := Floor(runtime, "DPS.test", "GW-1"); left <= 59*time.Minute || left > time.Hour {
		t.Errorf("%v are left of an hour", left)
	}
	if left := Floor(runtime, "dps.test", "gw-2"); left != 0 {
		t.Errorf("another gateway has to wait %v", left)
	}
}
