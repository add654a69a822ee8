package main

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
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
		// There is room, nearly always. The deadline's timer would wake the processor once
		// more a second later, after each message to the watchdog, though it is deleted.
		if err := writeAtOnce(c, state); !errors.Is(err, unix.EAGAIN) {
			return err
		}
		if err := c.SetWriteDeadline(time.Now().Add(notifyLimit)); err != nil {
			return err
		}
		_, err = c.Write([]byte(state))
		return err
	}
}

// writeAtOnce writes without waiting. The error is EAGAIN when there is no room.
func writeAtOnce(c *net.UnixConn, state string) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Write(func(fd uintptr) bool {
		_, result = unix.Write(int(fd), []byte(state))
		return true
	})
	return errors.Join(err, result)
}
