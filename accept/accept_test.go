package accept_test

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/accept"
)

// scarce is a listener without free file descriptors until a time.
type scarce struct {
	net.Listener
	until time.Time
	calls []time.Duration // times of Accept, since the start
	start time.Time
}

func (s *scarce) Accept() (net.Conn, error) {
	s.calls = append(s.calls, time.Since(s.start))
	if time.Now().Before(s.until) {
		return nil, os.NewSyscallError("accept4", unix.EMFILE)
	}
	c, _ := net.Pipe()
	return c, nil
}

func (s *scarce) Close() error { return nil }

func TestAfterAnErrorAcceptTriesAgainLessAndLessOften(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		s := &scarce{start: now, until: now.Add(30 * time.Second)}
		reported := 0
		l := accept.New(s, func(err error) {
			if !errors.Is(err, unix.EMFILE) {
				t.Errorf("the reported error is %v", err)
			}
			reported++
		})
		if _, err := l.Accept(); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(now); took > 40*time.Second {
			t.Errorf("10 s are the longest wait, but the connection is accepted after %v", took)
		}
		if reported != 1 || len(s.calls) != 10 {
			t.Errorf("%d errors were reported; Accept was called at %v", reported, s.calls)
		}
		s.until = time.Now().Add(time.Second)
		if _, err := l.Accept(); err != nil || reported != 2 {
			t.Errorf("after a connection, %d errors were reported, %v", reported, err)
		}
	})
}

func TestCloseEndsTheWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		l := accept.New(&scarce{start: now, until: now.AddDate(1, 0, 0)}, nil)
		ended := make(chan error)
		go func() {
			_, err := l.Accept()
			ended <- err
		}()
		time.Sleep(15 * time.Second)
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) || time.Since(now) != 15*time.Second {
			t.Errorf("Accept: %v after %v", err, time.Since(now))
		}
		if err := l.Close(); err != nil { // as net/http does it
			t.Error(err)
		}
	})
}

// The kernel answers accept(2) with EINVAL on a socket that does not listen.
func TestASocketIsServedWhenTheErrorsOfTheKernelEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	socket, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	l := accept.New(socket, func(err error) { failed <- err })
	accepted := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err == nil {
			err = c.Close()
		}
		accepted <- err
	}()
	select {
	case err := <-failed:
		if !errors.Is(err, unix.EINVAL) {
			t.Errorf("the reported error is %v", err)
		}
	case err := <-accepted:
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := <-accepted; err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}
