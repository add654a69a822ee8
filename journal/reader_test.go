package journal

import (
	"bufio"
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/event"
)

// watched reports the result of each write.
type watched struct {
	file  *os.File
	wrote chan error
}

func (w watched) Write(b []byte) (int, error) {
	n, err := w.file.Write(b)
	w.wrote <- err
	return n, err
}

// losing logs n entries, each of which fails with EPIPE.
func losing(t *testing.T, log *zap.Logger, w watched, n int) {
	t.Helper()
	for range n {
		log.Info(event.Stopping)
		if err := <-w.wrote; !strings.Contains(err.Error(), syscall.EPIPE.Error()) {
			t.Fatalf("a write without a reader: %v", err)
		}
	}
}

func TestEntriesWithoutAReaderAreCountedUntilThereIsAReader(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "log")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	read := func() *os.File {
		f, err := os.OpenFile(fifo, os.O_RDONLY|syscall.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	reader := read()
	writer, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	w := watched{writer, make(chan error, 1)}
	l := start(jsonLines(), nil, w)
	log := zap.New(l.Core(zapcore.InfoLevel))

	log.Info(event.Started)
	if err := <-w.wrote; err != nil {
		t.Fatal(err)
	}
	if line := bufio.NewScanner(reader); !line.Scan() { // otherwise, the FIFO keeps it for the next reader
		t.Fatal(line.Err())
	}
	reader.Close()
	before := time.Now().Truncate(time.Second)
	losing(t, log, w, 3)
	reader = read()
	log.Info(event.Assigned)
	if err := <-w.wrote; err != nil {
		t.Fatal(err)
	}
	l.Close()
	writer.Close()
	lines := bufio.NewScanner(reader)
	for _, want := range [][]string{{`"event":"assigned"`}, {`"event":"log-lost"`, `"lost":3`}} {
		lines.Scan()
		for _, text := range want {
			if !strings.Contains(lines.Text(), text) {
				t.Errorf("%s is not in %q", text, lines.Text())
			}
		}
	}
	if _, since, _ := strings.Cut(lines.Text(), `"since":"`); since < before.Format(time.RFC3339) {
		t.Errorf("lost since a time before the reader ended: %s", lines.Text())
	}
}

// If a report is lost, the entries that it reported count again.
func TestALossWhoseReportIsLostIsReportedLater(t *testing.T) {
	var lines bytes.Buffer
	limited := &limitedWriter{to: &lines}
	l := &Log{format: jsonLines(), lines: limited}
	l.lose(5, time.Unix(1e9, 0))
	if err := l.reportLoss(); err == nil {
		t.Fatal("writing the report did not fail")
	}
	l.lose(1, time.Unix(2e9, 0))
	limited.left = 1 << 10
	if err := l.reportLoss(); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"lost":6`, `"since":"` + time.Unix(1e9, 0).Format(time.RFC3339)} {
		if !strings.Contains(lines.String(), want) {
			t.Errorf("%s is not in %s", want, lines.String())
		}
	}
}

// limitedWriter is a disk with limited free space.
type limitedWriter struct {
	to   *bytes.Buffer
	left int
}

func (w *limitedWriter) Write(b []byte) (int, error) {
	n := min(w.left, len(b))
	w.left -= n
	w.to.Write(b[:n])
	if n < len(b) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

func TestAnIncompleteLineDoesNotDamageTheNext(t *testing.T) {
	var lines bytes.Buffer
	disk := &limitedWriter{to: &lines, left: 10}
	l := &Log{format: jsonLines(), lines: disk}
	first := record{line: []byte(`{"event":"started"}` + "\n")}
	for range 2 { // there is no space left for the second
		if err := l.write(first); err == nil {
			t.Fatal("the disk accepted too much")
		}
	}
	disk.left = 1 << 10
	for range 2 {
		if err := l.write(record{line: []byte("whole\n")}); err != nil {
			t.Fatal(err)
		}
	}
	if got, want := lines.String(), string(first.line[:10])+"\nwhole\nwhole\n"; got != want {
		t.Errorf("the file holds %q, want %q", got, want)
	}
}

// "systemctl stop systemd-journald" removes the socket and the reader of standard error. A
// start creates a new socket.
func TestEntriesReachARestartedJournald(t *testing.T) {
	dir, err := os.MkdirTemp("", "journal-") // short, since the path of a socket has at most 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "socket")
	listen := func() *net.UnixConn {
		journald, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { journald.Close() })
		return journald
	}
	want := func(journald *net.UnixConn, text string) {
		t.Helper()
		b := make([]byte, 1<<16)
		_ = journald.SetReadDeadline(time.Now().Add(30 * time.Second)) // longer than necessary
		n, err := journald.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(b[:n]), text) {
			t.Errorf("%q is not in %q", text, b[:n])
		}
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	reader.Close()
	w := watched{writer, make(chan error, 1)}
	l := start(structured(), SendTo(path), w)
	log := zap.New(l.Core(zapcore.InfoLevel))

	journald := listen()
	log.Info(event.Stopping)
	want(journald, "MESSAGE=Stopping\n")
	journald.Close()
	losing(t, log, w, 1) // the socket exists but refuses
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	losing(t, log, w, 1)
	journald = listen()
	log.Info(event.Stopping)
	want(journald, "MESSAGE=Stopping\n")
	want(journald, "\nDPSD_LOST=2\n")
	l.Close()
}
