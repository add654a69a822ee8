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
	stale    chan struct{} // the metrics file is; holds one
	done     chan struct{}
}

func newScribe(d *Daemon, t *teller, m *measures) *scribe {
	return &scribe{
		teller: t, measures: m, metricsFile: d.MetricsFile,
		recorder: store.Recorder{Directory: d.Store.Directory, RuntimeDirectory: d.Store.RuntimeDirectory, Mode: d.Store.Mode},
		attempts: make(chan store.Attempt, scribeQueue), stale: make(chan struct{}, 1), done: make(chan struct{}),
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

// writeMetrics has the metrics file written as the metrics are then, and waits for
// nothing.
func (w *scribe) writeMetrics() {
	if w.metricsFile == "" {
		return
	}
	select {
	case w.stale <- struct{}{}:
	default: // it will be anyway
	}
}

func (w *scribe) run() {
	defer close(w.done)
	if w.metricsFile != "" {
		store.Sweep(w.metricsFile)
	}
	for {
		select {
		case a, more := <-w.attempts:
			if !more {
				if len(w.stale) > 0 {
					w.write()
				}
				return
			}
			if err := w.recorder.Add(a, time.Now()); err != nil {
				w.tell(event.AttemptNotRecorded, zap.Error(err))
			}
		case <-w.stale:
			w.write()
		}
	}
}

func (w *scribe) write() {
	if err := w.measures.textFile(w.metricsFile); err != nil {
		w.tell(event.MetricsNotWritten, zap.Error(err))
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
