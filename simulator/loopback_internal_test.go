package simulator

import (
	"errors"
	"net"
	"os"
	"slices"
	"strconv"
	"syscall"
	"testing"
)

func TestTheSimulatorListensOnBothLoopbackAddresses(t *testing.T) {
	addresses := func(listeners []net.Listener) (all []string) {
		for _, l := range listeners {
			all = append(all, l.Addr().String())
			_ = l.Close()
		}
		return all
	}
	refusing := func(errno syscall.Errno, times int) func(network, address string) (net.Listener, error) {
		return func(network, address string) (net.Listener, error) {
			if network == "tcp6" && times != 0 {
				times--
				return nil, &net.OpError{Op: "listen", Net: network, Err: os.NewSyscallError("bind", errno)}
			}
			if network == "tcp6" {
				network, address = "tcp4", "127.0.0.1:0" // this machine may have no IPv6
			}
			return net.Listen(network, address)
		}
	}
	t.Run("the port is the same at 127.0.0.1 and at ::1", func(t *testing.T) {
		listeners, err := ListenLoopback(0)
		if err != nil {
			t.Fatal(err)
		}
		port := strconv.Itoa(listeners[0].Addr().(*net.TCPAddr).Port)
		want := []string{"127.0.0.1:" + port, "[::1]:" + port}
		if probe, err := net.Listen("tcp6", "[::1]:0"); err == nil {
			_ = probe.Close()
		} else if os.Getenv("CI") == "true" {
			t.Fatal("IPv6 is needed here:", err)
		} else {
			want = want[:1]
		}
		if got := addresses(listeners); !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	})
	t.Run("without IPv6 127.0.0.1 is enough", func(t *testing.T) {
		for _, errno := range []syscall.Errno{syscall.EAFNOSUPPORT, syscall.EADDRNOTAVAIL} {
			listeners, err := listenLoopback(0, refusing(errno, -1))
			if err != nil {
				t.Fatal(err)
			}
			if got := addresses(listeners); len(got) != 1 {
				t.Errorf("%v: %v", errno, got)
			}
		}
	})
	t.Run("port 0 is one that is free at both", func(t *testing.T) {
		listeners, err := listenLoopback(0, refusing(syscall.EADDRINUSE, 3))
		if err != nil {
			t.Fatal(err)
		}
		if got := addresses(listeners); len(got) != 2 {
			t.Error(got)
		}
	})
	t.Run("a fixed port that is in use at either address is an error, and the other is released", func(t *testing.T) {
		for i := range 2 {
			listeners, err := ListenLoopback(0)
			if err != nil {
				t.Fatal(err)
			}
			if i >= len(listeners) {
				break // no IPv6
			}
			port := listeners[0].Addr().(*net.TCPAddr).Port
			addresses(slices.Delete(slices.Clone(listeners), i, i+1))
			if again, err := ListenLoopback(port); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s is in use, and yet: %v, %v", listeners[i].Addr(), addresses(again), err)
			}
			_ = listeners[i].Close()
			again, err := ListenLoopback(port)
			if err != nil {
				t.Fatal(err)
			}
			addresses(again)
		}
	})
}
