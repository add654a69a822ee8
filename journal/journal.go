// Package journal takes the events of dpsd to where they are read: as entries
// with fields to systemd's journal, as sentences to a terminal, or else as lines
// of JSON. Whoever logs never waits for whoever reads.
package journal

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/event"
)

const (
	// queueLength is how many entries wait for a reader that is slow; a busy
	// attempt at level debug makes about twenty.
	queueLength = 128
	// closeLimit is how long Close waits for them to be taken.
	closeLimit = time.Second
)

// record is an entry, ready to leave.
type record struct {
	datagram []byte // for the journal; nil: there is none
	line     []byte
}

// Log is a queue with one goroutine that empties it. When it is full, or when
// nobody reads, entries are lost. They are counted, and the next entry that gets
// through is followed by one that says how many were lost.
type Log struct {
	format func(zapcore.Entry, []zapcore.Field) record
	send   func(datagram []byte) error
	lines  io.Writer // for what is no datagram, or cannot be sent as one
	torn   bool      // the last line was written in part: the next one begins a new line

	mu     sync.Mutex
	queue  chan record
	closed bool
	lost   int
	since  time.Time // of the first one lost

	closing chan struct{}
	done    chan struct{}
}

// ReadsStderr reports whether standard error leads to the journal. A
// JOURNAL_STREAM that cannot be read does not name our standard error.
func ReadsStderr() bool {
	journal, err := sd.StderrIsJournalStream()
	return err == nil && journal
}

// Open finds out what standard error is, and writes there, or to the journal
// that it leads to. Close what it returns.
func Open() *Log {
	stderr := os.Stderr
	if ReadsStderr() {
		return start(structured(), SendTo(socket), stderr)
	}
	if info, err := stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		return start(sentences, nil, &live{to: stderr})
	}
	return start(jsonLines(), nil, stderr)
}

func start(format func(zapcore.Entry, []zapcore.Field) record, send func([]byte) error, lines io.Writer) *Log {
	l := &Log{
		format: format, send: send, lines: lines,
		queue: make(chan record, queueLength), closing: make(chan struct{}), done: make(chan struct{}),
	}
	go l.empty()
	return l
}

// Core is for zap.New. It writes entries of the level and above.
func (l *Log) Core(level zapcore.LevelEnabler) zapcore.Core {
	return &core{LevelEnabler: level, log: l}
}

// Close waits for what is queued to be taken, but not for long.
func (l *Log) Close() {
	l.mu.Lock()
	if !l.closed {
		l.closed = true
		close(l.closing)
		close(l.queue)
	}
	l.mu.Unlock()
	late := time.NewTimer(closeLimit)
	defer late.Stop()
	select {
	case <-l.done:
	case <-late.C: // the process ends, and the goroutine with it
	}
}

// add never waits.
func (l *Log) add(r record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	select {
	case l.queue <- r:
	default:
		l.lose(1, time.Now())
	}
}

// lose counts entries that are lost, the first of them at the given time. It is
// called with the lock.
func (l *Log) lose(n int, since time.Time) {
	if l.lost == 0 || since.Before(l.since) {
		l.since = since
	}
	l.lost += n
}

// errEnds means that dpsd ends, and waits for no reader any more.
var errEnds = errors.New("the log is being closed")

func (l *Log) empty() {
	defer close(l.done)
	for r := range l.queue {
		err := l.write(r)
		if err == nil {
			err = l.reportLoss()
		} else {
			l.mu.Lock()
			l.lose(1, time.Now())
			l.mu.Unlock()
		}
		if errors.Is(err, errEnds) {
			return
		}
	}
}

// reportLoss writes the entry about lost entries, if there are any.
func (l *Log) reportLoss() error {
	l.mu.Lock()
	lost, since := l.lost, l.since
	l.lost = 0
	l.mu.Unlock()
	if lost == 0 {
		return nil
	}
	e := zapcore.Entry{Level: zapcore.WarnLevel, Time: time.Now(), Message: event.LogLost}
	err := l.write(l.format(e, []zapcore.Field{zap.Int("lost", lost), zap.Time("since", since)}))
	if err != nil {
		l.mu.Lock()
		l.lose(lost, since)
		l.mu.Unlock()
	}
	return err
}

// write returns nil once the entry has reached a reader. Every datagram has a new
// connection, so that a journald that was started again gets the next one.
func (l *Log) write(r record) error {
	for r.datagram != nil {
		err := l.send(r.datagram)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break // there is no journal: the line may reach somebody
		}
		select {
		case <-l.closing:
			return errEnds
		default: // journald has stopped reading, and stderr leads to it as well
		}
	}
	line := r.line
	if l.torn {
		line = append([]byte("\n"), line...)
	}
	n, err := l.lines.Write(line)
	if n > 0 {
		l.torn = n < len(line)
	}
	return err
}

// core is what zap sees of a Log.
type core struct {
	zapcore.LevelEnabler
	log    *Log
	fields []zapcore.Field
}

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	return &core{c.LevelEnabler, c.log, c.all(fields)}
}

func (c *core) Check(e zapcore.Entry, to *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return to.AddCore(e, c)
	}
	return to
}

// Write formats at once: what the fields refer to may change later. It is where the text
// of an entry is made fit to be read, for every reader alike.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.add(c.log.format(e, clean(c.all(fields))))
	return nil
}

// Sync has nothing to do: Close waits.
func (c *core) Sync() error { return nil }

func (c *core) all(fields []zapcore.Field) []zapcore.Field {
	return append(c.fields[:len(c.fields):len(c.fields)], fields...)
}
