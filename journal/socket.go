package journal

import (
	"net"
	"os"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/event"
)

const (
	// socket is journald's socket for native entries.
	socket = "/run/systemd/journal/socket"
	// syslogSocket is the socket of the system logger (syslog(3)).
	syslogSocket = "/dev/log"
	// sendLimit is how long a datagram waits for room in the reader's queue.
	sendLimit = time.Second
)

// ToSyslog sends a text to the system logger, each line as an error. It does nothing if the
// system logger is not running.
func ToSyslog(text string) {
	send := SendTo(syslogSocket)
	for line := range strings.Lines(text) {
		_ = send(syslogMessage(event.Error, time.Now(), os.Getpid(), strings.TrimSuffix(line, "\n")))
	}
}

// SendTo returns a function that sends a datagram to a socket of systemd: the socket of
// journald or the notification socket of the service manager, $NOTIFY_SOCKET ("@" means
// Linux's abstract namespace). It waits up to a second for room in the queue.
//
// journal.Send and SdNotify of go-systemd wait without a limit: a stopped reader would
// block provisioning and the handling of SIGTERM. journal.Send also uses an unconnected
// socket, for which the kernel cannot report when there is room. Go then retries
// continuously while the queue is full, which uses 100 % of a CPU.
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
