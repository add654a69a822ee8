// Package store keeps the gateway's provisioning record: which IoT hub it
// belongs to, and under which device ID.
//
// Other programs on the gateway read it with [Read] and follow it with [Watch];
// neither takes a lock nor needs dpsd to run:
//
//	rec, err := store.Read("/var/lib/dpsd")
//	if err != nil {
//		return err // store.ErrNoRecord: not provisioned yet
//	}
//	connect(rec.AssignedHub, rec.DeviceID)
//
// The daemon is the only writer, through a [Store]. A reader at any instant,
// through any crash or power cut, finds the old record or the new one, whole
// and with its checksum; the generation never goes backwards; and an answer of
// the service that says nothing new writes not a byte.
//
// docs/state.md describes the files for programs in other languages.
package store
