package daemon

import "time"

// The daemon's own limits. Package pace computes the waits between attempts.
const (
	// holdLimit is the longest wait for a poll that keeps the connection open. For a longer
	// one, dpsd disconnects and connects again when the poll is due.
	holdLimit = time.Minute
	// settle is how long a file must stay unchanged before it is read: it may be written in
	// several steps, or together with other files.
	settle = 250 * time.Millisecond
	// changeGap is the least time between attempts that reach the service because a file or
	// the network has changed. It bounds the traffic if something changes all the time.
	changeGap = 10 * time.Second
	// networkEvery is how often the network is checked while it may be the cause of a wait.
	// Go reads resolv.conf again after 5 s.
	networkEvery = 5 * time.Second
	// inputsEvery is how often the inputs of this gateway are checked while one of them is
	// the cause of a wait.
	inputsEvery = 10 * time.Second
	// reloadGap is the least time between two reloads. systemd waits at most this long,
	// and the time that it takes to read the file, for an answer.
	reloadGap = 500 * time.Millisecond
	// keyLimit is how long it may take to create a key and write it to the disk.
	keyLimit = saveLimit + time.Minute
	// forcedGap is the least time between registrations that were requested.
	forcedGap = time.Minute
	// hardwareLimit is how long a TPM or a signer may take to make a key usable, or to sign a token
	// or a certificate request. A TPM performs two operations (each at most tpm.Deadline), and then
	// has five seconds to remove the key. A signer answers two requests (each at most
	// signer.Timeout).
	hardwareLimit = 65 * time.Second
	// idle is the longest sleep of the supervisor: once a day it checks the expiry of the
	// certificate.
	idle = 24 * time.Hour
	// stopLimit bounds what follows SIGTERM: DISCONNECT, and a save that is in progress.
	stopLimit = 1500 * time.Millisecond
	// extension is the value of EXTEND_TIMEOUT_USEC, which is sent at least every
	// extension/4.
	extension = time.Minute
	// closeLimit bounds the wait for the recorder when dpsd stops.
	closeLimit = 500 * time.Millisecond
	// overdue is by how much a phase may exceed its deadline before the attempt counts as
	// hung. Each phase has a time limit of its own; this is for a limit that fails.
	overdue = 5 * time.Second
)
