package daemon

import (
	"errors"
	"time"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/store"
)

// recorderQueue is how many attempts may wait for the disk.
const recorderQueue = 8

var errDiskBehind = errors.New("the disk has not written the previous ones yet")

// recorder writes the flight recorder and the metrics file in a goroutine of its own,
// because a disk can hang and the loop must not wait for it.
type recorder struct {
	*eventLog
	flight      store.Recorder
	measures    *measures
	metricsFile string // "" for none

	attempts chan store.Attempt
	stale    chan struct{} // the metrics file is out of date; holds one
	done     chan struct{}
}

func newRecorder(d *Daemon, log *eventLog, m *measures) *recorder {
	return &recorder{
		eventLog: log, measures: m, metricsFile: d.MetricsFile,
		flight:   store.Recorder{Directory: d.Store.Directory, RuntimeDirectory: d.Store.RuntimeDirectory, Mode: d.Store.Mode},
		attempts: make(chan store.Attempt, recorderQueue), stale: make(chan struct{}, 1), done: make(chan struct{}),
	}
}

// add hands an attempt over without waiting.
func (w *recorder) add(a store.Attempt) {
	select {
	case w.attempts <- a:
	default:
		w.log(event.AttemptNotRecorded, zap.Error(errDiskBehind))
	}
}

// writeMetrics asks for a new metrics file without waiting.
func (w *recorder) writeMetrics() {
	if w.metricsFile == "" {
		return
	}
	select {
	case w.stale <- struct{}{}:
	default: // a request is pending already
	}
}

func (w *recorder) run() {
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
			if err := w.flight.Add(a, time.Now()); err != nil {
				w.log(event.AttemptNotRecorded, zap.Error(err))
			}
		case <-w.stale:
			w.write()
		}
	}
}

func (w *recorder) write() {
	if err := w.measures.textFile(w.metricsFile); err != nil {
		w.log(event.MetricsNotWritten, zap.Error(err))
	}
}

// stop waits until the disk has taken what was handed over, for closeLimit at most.
func (w *recorder) stop() {
	close(w.attempts)
	limit := time.NewTimer(closeLimit)
	defer limit.Stop()
	select {
	case <-w.done:
	case <-limit.C:
	}
}
