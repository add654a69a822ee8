package journal

import (
	"net"
	"time"
)

const (
	// socket is where journald takes entries.
	socket = "/run/systemd/journal/socket"
	// sendLimit is how long a datagram waits for room in the reader's queue.
	sendLimit = time.Second
)

// SendTo returns a function that sends a datagram to a socket of systemd: that of journald,
// or that of the service manager, $NOTIFY_SOCKET ("@" stands for Linux's abstract name
// space). It waits for room for a second.
//
// journal.Send and SdNotify of go-systemd wait for ever: a reader that has stopped would
// stop provisioning, and SIGTERM with it. journal.Send also uses a socket that is not
// connected: for such a one the kernel cannot say when there is room, and Go tries again
// without a pause as long as the queue is full, which keeps one processor at 100 %.
func SendTo(socket string) func(datagram []byte) error {
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
