package journal

import (
	"bytes"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/event"
)

func TestAnEntryIsWrittenAboveTheProgress(t *testing.T) {
	var screen bytes.Buffer
	plain := func(e zapcore.Entry, _ []zapcore.Field) record { return record{line: []byte(e.Message + "\n")} }
	l := start(plain, nil, &live{to: &screen})
	log := zap.New(l.Core(zapcore.InfoLevel))
	log.Info(event.Started)
	l.Progress("Connecting")
	log.Info(event.Connected)
	l.Progress("Registering")
	l.Progress("")
	log.Info(event.Stopping)
	l.Close()
	l.Progress("too late")
	const e = EraseLine
	if want := "started\n" + e + "Connecting" + e + "connected\n" + e + "Connecting" + e + "Registering" + e + "stopping\n"; screen.String() != want {
		t.Errorf("the terminal got %q, want %q", screen.String(), want)
	}
}

// A terminal that accepts no output must not stop dpsd, and skipped progress texts are not
// reported as lost.
func TestProgressNeverWaitsAndIsNotReportedAsLost(t *testing.T) {
	taken := make(chan struct{})
	stuck := writer(func(p []byte) (int, error) { <-taken; return len(p), nil })
	l := start(sentences(time.TimeOnly), nil, &live{to: stuck})
	for range 10 * queueLength {
		l.Progress("Connecting")
	}
	l.mu.Lock()
	lost := l.lost
	l.mu.Unlock()
	if lost != 0 {
		t.Errorf("%d entries are reported as lost", lost)
	}
	close(taken)
	l.Close()
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
