package simulator_test

import (
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// fullListener has no free descriptor for some time; its error is that of accept(2).
type fullListener struct {
	left    int // failures
	accepts int
	conns   chan net.Conn
	gone    chan struct{}
	closed  sync.Once
}

func (l *fullListener) Accept() (net.Conn, error) {
	l.accepts++
	if l.left > 0 {
		l.left--
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.gone:
		return nil, net.ErrClosed
	}
}

func (l *fullListener) Close() error   { l.closed.Do(func() { close(l.gone) }); return nil }
func (l *fullListener) Addr() net.Addr { return &net.TCPAddr{} }

func TestAcceptContinuesAfterTheDescriptorLimit(t *testing.T) {
	bubble(t, "without a free descriptor the listener reports the error once, waits and continues", func(t *testing.T) {
		var errs []string
		s, err := simulator.New(simulator.Options{OnError: func(err error) { errs = append(errs, err.Error()) }})
		if err != nil {
			t.Fatal(err)
		}
		l := &fullListener{left: 20, conns: make(chan net.Conn), gone: make(chan struct{})}
		begun, ended := time.Now(), make(chan error, 1)
		go func() { ended <- s.AcceptMQTT(l) }()
		mine, theirs := net.Pipe()
		l.conns <- theirs
		if waited := time.Since(begun); waited != 20*50*time.Millisecond {
			t.Errorf("%v for 20 failures", waited)
		}
		_ = mine.Close()
		synctest.Wait()
		if len(errs) != 1 || !strings.Contains(errs[0], "too many open files") || !strings.Contains(errs[0], "ulimit -n") {
			t.Errorf("%q", errs)
		}
		s.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}
