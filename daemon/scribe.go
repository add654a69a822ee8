package daemon

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/store"
)

// scribeQueue is how many attempts may wait for the disk.
const scribeQueue = 8

var errDiskBehind = errors.New("the disk has not taken the ones before it")

// scribe writes what the loop must not wait for, because a disk can hang: the flight
// recorder and the metrics file. It is a goroutine of its own.
type scribe struct {
	*teller
	recorder    store.Recorder
	measures    *measures
	metricsFile string // "" for none

	attempts chan store.Attempt
	done     chan struct{}
}

func newScribe(d *Daemon, t *teller, m *measures) *scribe {
	return &scribe{
		teller: t, measures: m, metricsFile: d.MetricsFile,
		recorder: store.Recorder{Directory: d.Store.Directory, RuntimeDirectory: d.Store.RuntimeDirectory, Mode: d.Store.Mode},
		attempts: make(chan store.Attempt, scribeQueue), done: make(chan struct{}),
	}
}

// add hands an attempt over, and waits for nothing.
func (w *scribe) add(a store.Attempt) {
	select {
	case w.attempts <- a:
	default:
		w.tell(event.AttemptNotRecorded, zap.Error(errDiskBehind))
	}
}

func (w *scribe) run() {
	defer close(w.done)
	for a := range w.attempts {
		if err := w.recorder.Add(a, time.Now()); err != nil {
			w.tell(event.AttemptNotRecorded, zap.Error(err))
		}
		if w.metricsFile == "" {
			continue
		}
		if err := w.measures.textFile(w.metricsFile); err != nil {
			w.tell(event.MetricsNotWritten, zap.Error(err))
		}
	}
}

// stop lets the disk take what was handed over, but not for long.
func (w *scribe) stop() {
	close(w.attempts)
	late := time.NewTimer(farewellLimit)
	defer late.Stop()
	select {
	case <-w.done:
	case <-late.C:
	}
}
