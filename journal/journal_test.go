package journal

import (
	"bytes"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/event"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// reader simulates journald: it reads entries or lets them wait.
type reader struct {
	mu    sync.Mutex
	stuck bool
	took  []string // the received MESSAGEs
}

func (r *reader) send(datagram []byte) error {
	r.mu.Lock()
	stuck := r.stuck
	r.mu.Unlock()
	if stuck {
		time.Sleep(sendLimit)
		return os.ErrDeadlineExceeded
	}
	for line := range strings.Lines(string(datagram)) {
		if message, is := strings.CutPrefix(line, "MESSAGE="); is {
			r.mu.Lock()
			r.took = append(r.took, strings.TrimSpace(message))
			r.mu.Unlock()
		}
	}
	return nil
}

func (r *reader) stick(yes bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stuck = yes
}

func (r *reader) messages() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.took...)
}

func TestLoggingNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stderr bytes.Buffer
		journald := &reader{stuck: true}
		l := start(structured(), journald.send, &stderr)
		log, began := zap.New(l.Core(zapcore.InfoLevel)), time.Now()
		time.AfterFunc(time.Hour, func() { journald.stick(false) })
		const logged = 1000
		for range logged {
			log.Info(event.Stopping)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("%d entries took %s", logged, took)
		}
		time.Sleep(time.Hour + 2*sendLimit)
		synctest.Wait()
		got := journald.messages()
		// One more entry may have been taken from the queue before it was full.
		kept := queueLength
		if len(got) == queueLength+2 {
			kept++
		}
		if len(got) != kept+1 {
			t.Fatalf("%d entries came through, want the %d of the queue and one about the dropped ones", len(got), queueLength)
		}
		lost := 0
		for _, m := range got {
			if m != "Stopping" {
				lost++
				if want := "log entries have been dropped since 2000-01-01 00:00:00 UTC"; !strings.Contains(m, want) || !strings.HasPrefix(m, strconv.Itoa(logged-kept)+" ") {
					t.Errorf("%q: want %d and %q", m, logged-kept, want)
				}
			}
		}
		if lost != 1 {
			t.Errorf("the loss was reported %d times", lost)
		}
		log.Info(event.Stopping)
		l.Close()
		if again := journald.messages(); len(again) != len(got)+1 || again[len(got)] != "Stopping" {
			t.Errorf("afterwards: %q", again[len(got):])
		}
		if stderr.Len() > 0 {
			t.Errorf("standard error, which is connected to the same journald, got %q", stderr.String())
		}
	})
}

func TestCloseWaitsForQueuedEntriesForALimitedTime(t *testing.T) {
	t.Run("a reader receives all queued entries", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			journald := &reader{}
			l := start(structured(), journald.send, nil)
			log := zap.New(l.Core(zapcore.InfoLevel))
			for range 100 {
				log.Info(event.Stopping)
			}
			l.Close()
			if n := len(journald.messages()); n != 100 {
				t.Errorf("%d of 100 came through", n)
			}
			log.Info(event.Stopping) // after Close, this has no effect
			l.Close()
		})
	})
	t.Run("a reader that has stopped does not delay the end", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			journald := &reader{stuck: true}
			l := start(structured(), journald.send, nil)
			log := zap.New(l.Core(zapcore.InfoLevel))
			for range 100 {
				log.Info(event.Stopping)
			}
			began := time.Now()
			l.Close()
			if took := time.Since(began); took > closeLimit {
				t.Errorf("it took %s", took)
			}
		})
	})
	t.Run("a full pipe does not delay the end", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		l := start(jsonLines(), nil, w)
		log := zap.New(l.Core(zapcore.InfoLevel))
		for range 10 * queueLength { // more than the capacity of a pipe
			log.Info(event.Waiting, zap.String("why", strings.Repeat("x", 1000)))
		}
		l.Close()
		w.Close()
		r.Close()
		<-l.done
	})
}

// Errors other than a full queue mean that there is no journal.
func TestWithoutAJournalTheLinesGoToStandardError(t *testing.T) {
	for what, failure := range map[string]error{
		"the socket is missing": &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ENOENT)},
		"it refuses":            &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)},
		"the sandbox forbids":   &net.OpError{Op: "dial", Err: os.NewSyscallError("socket", syscall.EPERM)},
		"an entry is too large": &net.OpError{Op: "write", Err: os.NewSyscallError("sendmsg", syscall.EMSGSIZE)},
	} {
		t.Run(what, func(t *testing.T) {
			var stderr bytes.Buffer
			l := start(structured(), func([]byte) error { return failure }, &stderr)
			zap.New(l.Core(zapcore.InfoLevel)).With(zap.String("deviceId", "gw-1")).Info(event.Assigned, zap.String("assignedHub", "hub.example"))
			l.Close()
			for _, want := range []string{`"event":"assigned"`, `"deviceId":"gw-1"`, `"assignedHub":"hub.example"`} {
				if !strings.Contains(stderr.String(), want) {
					t.Errorf("%s is not in %q", want, stderr.String())
				}
			}
		})
	}
}

func TestLevels(t *testing.T) {
	var lines bytes.Buffer
	l := start(jsonLines(), nil, &lines)
	log := zap.New(l.Core(zapcore.WarnLevel))
	log.Info(event.Assigned)
	log.Warn(event.Fault)
	l.Close()
	if got := lines.String(); strings.Contains(got, event.Assigned) || !strings.Contains(got, event.Fault) {
		t.Errorf("at level warn: %s", got)
	}
}

// This uses a real socket with the kernel's queue.
func TestTheSocket(t *testing.T) {
	listen := func(t *testing.T) (string, *net.UnixConn) {
		dir, err := os.MkdirTemp("", "journal-") // short, since the path of a socket has at most 107 bytes
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		path := filepath.Join(dir, "socket")
		socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { socket.Close() })
		return path, socket
	}
	take := func(t *testing.T, socket *net.UnixConn) string {
		b := make([]byte, 1<<20)
		n, err := socket.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		return string(b[:n])
	}
	t.Run("an entry of the maximum length arrives as one datagram", func(t *testing.T) {
		path, socket := listen(t)
		entry := bytes.Repeat([]byte("DPSD_ERROR="+strings.Repeat("x", valueLimit)+"\n"), 24)
		if err := SendTo(path)(entry); err != nil {
			t.Fatal(err)
		}
		if got := take(t, socket); got != string(entry) {
			t.Errorf("%d bytes of %d arrived", len(got), len(entry))
		}
	})
	t.Run("a full queue delays an entry until there is room, without using CPU time", func(t *testing.T) {
		path, socket := listen(t)
		queued := fill(t, path)
		var before, after unix.Rusage
		_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
		err := SendTo(path)([]byte("MESSAGE=x\n"))
		_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a full queue: %v", err)
		}
		if worked := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()); worked > sendLimit/4 {
			t.Errorf("waiting took %s of a processor", worked)
		}
		var stderr bytes.Buffer
		l := start(structured(), SendTo(path), &stderr)
		zap.New(l.Core(zapcore.InfoLevel)).Info(event.Stopping)
		for range queued {
			take(t, socket)
		}
		if got := take(t, socket); !strings.Contains(got, "MESSAGE=Stopping\n") {
			t.Errorf("got %q", got)
		}
		l.Close()
		if stderr.Len() > 0 {
			t.Errorf("standard error got %q", stderr.String())
		}
	})
	t.Run("a missing socket is an immediate error", func(t *testing.T) {
		if err := SendTo(filepath.Join(t.TempDir(), "none"))(nil); !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
}

// fill sends datagrams to a socket until its queue is full, see unix(7), and returns their
// number.
func fill(t *testing.T, path string) (n int) {
	t.Helper()
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	for {
		if err := unix.Sendto(c, []byte("X=1"), 0, &unix.SockaddrUnix{Name: path}); err != nil {
			if !errors.Is(err, syscall.EAGAIN) {
				t.Fatal(err)
			}
			return n
		}
		n++
	}
}
