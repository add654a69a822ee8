package main

import (
	"net"
	"time"
)

// notifyLimit is how long a message may wait for room in the service manager's
// queue. sd_notify(3), and go-systemd after it, waits for ever: a manager that
// has stopped reading would stop provisioning, and SIGTERM with it.
const notifyLimit = time.Second

// notifyTo returns what sends a state to the service manager at the socket,
// $NOTIFY_SOCKET; "@" stands for Linux's abstract name space.
func notifyTo(socket string) func(state string) error {
	return func(state string) error {
		c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		if err := c.SetWriteDeadline(time.Now().Add(notifyLimit)); err != nil {
			return err
		}
		_, err = c.Write([]byte(state))
		return err
	}
}
