// Package journal writes the events of dpsd as structured entries to systemd's journal, as
// sentences to a terminal or to the system logger, or as lines of JSON. Logging never waits
// for a reader.
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
	// queueLength is the number of entries that are queued for a slow reader. An attempt
	// logs about twenty at level debug.
	queueLength = 128
	// closeLimit is how long Close waits for queued entries.
	closeLimit = time.Second
)

// Output selects where a Log writes, and in which format.
type Output string

// The outputs.
const (
	// Auto selects the journal if standard error is connected to it, sentences if standard
	// error is a terminal, and otherwise JSON.
	Auto Output = "auto"
	// JSON writes lines of JSON to standard error.
	JSON Output = "json"
	// Text writes sentences with date and time to standard error.
	Text Output = "text"
	// Syslog sends sentences to the system logger, or to standard error if it is not running.
	Syslog Output = "syslog"
)

// record is a formatted entry.
type record struct {
	datagram []byte // for the journal or the system logger; nil if the entry is for neither
	line     []byte
}

// Log is a queue of entries with a goroutine that writes them. If the queue is full or has
// no reader, entries are dropped. The next entry that can be written is followed by one
// with the number of dropped entries.
type Log struct {
	name   string
	format func(zapcore.Entry, []zapcore.Field) record
	send   func(datagram []byte) error
	lines  io.Writer // for entries that are not or cannot be sent as datagrams
	torn   bool      // the last line is incomplete: the next entry begins a new line

	mu     sync.Mutex
	queue  chan record
	closed bool
	lost   int
	since  time.Time // time of the first dropped entry

	closing chan struct{}
	done    chan struct{}
}

// ReadsStderr reports whether standard error is connected to the journal. An invalid
// JOURNAL_STREAM does not match standard error.
func ReadsStderr() bool {
	journal, err := sd.StderrIsJournalStream()
	return err == nil && journal
}

// Open returns a Log. The caller must close it.
func Open(output Output) *Log {
	stderr := os.Stderr
	name := string(output)
	if output == Auto {
		name = detected(stderr)
	}
	var l *Log
	switch name {
	case "journal":
		l = start(structured(), SendTo(socket), stderr)
	case "terminal":
		l = start(sentences(time.TimeOnly), nil, &live{to: stderr})
	case string(Text):
		l = start(sentences(time.RFC3339), nil, stderr)
	case string(Syslog):
		l = start(toSyslog(os.Getpid()), SendTo(syslogSocket), stderr)
	default:
		l = start(jsonLines(), nil, stderr)
	}
	l.name = name
	return l
}

// detected returns the name of the output that Auto selects.
func detected(stderr *os.File) string {
	if ReadsStderr() {
		return "journal"
	}
	if info, err := stderr.Stat(); err == nil && info.Mode()&os.ModeCharDevice != 0 {
		return "terminal"
	}
	return string(JSON)
}

func start(format func(zapcore.Entry, []zapcore.Field) record, send func([]byte) error, lines io.Writer) *Log {
	l := &Log{
		format: format, send: send, lines: lines,
		queue: make(chan record, queueLength), closing: make(chan struct{}), done: make(chan struct{}),
	}
	go l.empty()
	return l
}

// Name returns the destination and the format in one word: "journal", "terminal", "json",
// "text" or "syslog".
func (l *Log) Name() string { return l.name }

// Core returns a core for zap.New. It writes entries of the level and above.
func (l *Log) Core(level zapcore.LevelEnabler) zapcore.Core {
	return &core{LevelEnabler: level, log: l}
}

// Close waits for the queued entries to be written, for a limited time.
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
	case <-late.C: // the process ends, and with it the goroutine
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

// lose counts n dropped entries, the first of which has the given time. The caller holds
// the lock.
func (l *Log) lose(n int, since time.Time) {
	if l.lost == 0 || since.Before(l.since) {
		l.since = since
	}
	l.lost += n
}

// errEnds means that dpsd is exiting and no longer waits for a reader.
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

// reportLoss writes the entry about dropped entries, if there are any.
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

// write returns nil after a reader has received the entry. Every datagram uses a new
// connection, so that a restarted journald receives the next one.
func (l *Log) write(r record) error {
	for r.datagram != nil {
		err := l.send(r.datagram)
		if err == nil {
			return nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break // there is no journal: the line may have a reader
		}
		select {
		case <-l.closing:
			return errEnds
		default: // journald has stopped reading, and standard error is connected to it too
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

// core is the zapcore.Core of a Log.
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

// Write formats the entry immediately, because objects in its fields may change later. It
// makes the texts safe to display for all readers.
func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	c.log.add(c.log.format(e, clean(c.all(fields))))
	return nil
}

// Sync does nothing, since Close waits for the entries.
func (c *core) Sync() error { return nil }

func (c *core) all(fields []zapcore.Field) []zapcore.Field {
	return append(c.fields[:len(c.fields):len(c.fields)], fields...)
}
