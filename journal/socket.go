package journal

import (
	"net"
	"time"
)

const (
	// socket is where journald takes entries.
	socket = "/run/systemd/journal/socket"
	// sendLimit is how long an entry waits for room in journald's queue before
	// it is looked whether dpsd ends.
	sendLimit = time.Second
)

// sendTo returns what sends an entry to journald at the socket. go-systemd's
// journal.Send has no limit, and uses a socket that is not connected: for such a
// one the kernel cannot say when there is room, and Go tries without a pause as
// long as journald's queue is full, one processor at 100 %.
func sendTo(socket string) func(datagram []byte) error {
	return func(datagram []byte) error {
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetWriteDeadline(time.Now().Add(sendLimit)); err != nil {
			return err
		}
		_, err = c.Write(datagram)
		return err
	}
}
