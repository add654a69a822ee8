// Package store stores the gateway's provisioning record: the IoT hub and the device ID to
// which it is assigned.
//
// Other programs on the gateway read it with [Read] and watch it with [Watch]; neither
// takes a lock or requires dpsd to run:
//
//	rec, err := store.Read("/var/lib/dpsd")
//	if err != nil {
//		return err // store.ErrNoRecord: not provisioned yet
//	}
//	connect(rec.AssignedHub, rec.DeviceID)
//
// Only the daemon writes, through a [Store]. At any time, even after a crash or a power
// failure, a reader finds the complete old or new record with a valid checksum. The
// generation never decreases, and an unchanged assignment writes nothing.
//
// docs/state.md describes the files for programs in other languages.
package store
