package simulator

import (
	"errors"
	"net"
	"strconv"
	"syscall"
)

// loopbackTries is the number of attempts to find a port that is free at both 127.0.0.1 and ::1.
const loopbackTries = 100

// ListenLoopback listens on the same port of both loopback addresses, 127.0.0.1 and ::1. Which
// of them a device tries first for "localhost" depends on its system, and not every client
// tries the second. Port 0 chooses a port that is free at both. Without IPv6 there is only the
// listener at 127.0.0.1; otherwise it is the first of two.
func ListenLoopback(port int) ([]net.Listener, error) {
	return listenLoopback(port, net.Listen)
}

func listenLoopback(port int, listen func(network, address string) (net.Listener, error)) ([]net.Listener, error) {
	var taken []net.Listener // kept open until the end, so that the next attempt gets a different port
	defer func() {
		for _, l := range taken {
			_ = l.Close()
		}
	}()
	for {
		four, err := listen("tcp4", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			return nil, err
		}
		_, chosen, err := net.SplitHostPort(four.Addr().String())
		if err != nil {
			return nil, errors.Join(err, four.Close())
		}
		six, err := listen("tcp6", net.JoinHostPort("::1", chosen))
		switch {
		case err == nil:
			return []net.Listener{four, six}, nil
		case errors.Is(err, syscall.EAFNOSUPPORT), errors.Is(err, syscall.EADDRNOTAVAIL): // no IPv6 in the kernel, or not on this machine
			return []net.Listener{four}, nil
		case port == 0 && errors.Is(err, syscall.EADDRINUSE) && len(taken) < loopbackTries:
			taken = append(taken, four)
		default:
			return nil, errors.Join(err, four.Close())
		}
	}
}
