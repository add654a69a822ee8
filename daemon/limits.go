package daemon

import "time"

// The limits that are the daemon's own. What it waits between attempts is computed
// by package pace.
const (
	// holdLimit is the longest wait for a poll that keeps the connection open;
	// for a longer one dpsd disconnects and comes back when the poll is due.
	holdLimit = time.Minute
	// settle lets a file that is written in several steps, or several files,
	// come to rest before they are read.
	settle = 250 * time.Millisecond
	// changeGap is the least time between attempts that reach the service
	// because a file or the network changed, so that what changes all the time
	// does not become traffic.
	changeGap = 10 * time.Second
	// networkEvery is how often the network is looked at while it may be the cause of a
	// wait. Go reads resolv.conf again when it has not looked for 5 s.
	networkEvery = 5 * time.Second
	// inputsEvery is how often the inputs of this gateway are looked at while one of them is
	// the cause of a wait.
	inputsEvery = 10 * time.Second
	// reloadGap is the least time between two reloads. systemd waits at most this long,
	// and the time that it takes to read the file, for an answer.
	reloadGap = 500 * time.Millisecond
	// forcedGap is the least time between registrations that somebody asked for.
	forcedGap = time.Minute
	// idle is the longest sleep of the supervisor: once a day it looks at the
	// expiry of the certificate.
	idle = 24 * time.Hour
	// stopLimit bounds the farewell after SIGTERM: DISCONNECT and a save that
	// is under way.
	stopLimit = 1500 * time.Millisecond
	// extension is how far ahead EXTEND_TIMEOUT_USEC reaches; it is sent every
	// extension/4 or oftener.
	extension = time.Minute
	// overdue is what a phase may exceed its deadline by before the supervisor
	// counts as hung. The phases end themselves; this is for the ones that did not.
	overdue = 5 * time.Second
)

func or(d, standard time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return standard
}
