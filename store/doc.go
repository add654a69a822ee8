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
// If DPS has issued a certificate, [Certificate.Read] returns it with its key:
//
//	chain, key, err := rec.Certificate.Read()
//	if err != nil {
//		return err
//	}
//	pair, err := tls.X509KeyPair(chain, key)
//
// Only the daemon writes, through a [Store]. At any time, even after a crash or a power
// failure, a reader finds the complete old or new record with a valid checksum. The
// generation never decreases, and an unchanged assignment writes nothing.
//
// docs/state.md describes the files for programs in other languages.
package store
