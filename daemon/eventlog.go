package daemon

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/foreign"
)

// This file is the one place that decides how much dpsd logs. A journal on flash must
// survive a gateway that is offline for a year, and its reader wants to see what has
// changed, not the same line every ten seconds.

const (
	// A repeated event is logged again after a pause, which doubles from firstPause to
	// longestPause: about 18 times on the first day, 4 times on each further day.
	firstPause   = time.Second
	longestPause = 6 * time.Hour
	// An event that has not happened for renewed counts as new.
	renewed = 24 * time.Hour
	// However different its fields are, an event is logged at most burst times in a row,
	// then once per refill.
	burst  = 24
	refill = 30 * time.Minute
	// maxKinds bounds the number of kinds that are remembered.
	maxKinds = 64
)

// eventLog logs events, each at the priority of the catalogue. A repetition of what was
// logged recently, and an event that happens too often, are logged at level debug and
// counted; the next entry of the same kind gives their number. The supervisor and its
// attempts share one.
type eventLog struct {
	logger *zap.Logger

	mu         sync.Mutex
	kinds      map[kind]*repetition
	allowances map[string]*allowance // of an event
}

// kind is an event and the values of the fields that distinguish one from another.
type kind struct{ event, values string }

// repetition is what is known of a kind that has happened.
type repetition struct {
	logged  time.Time // when an entry was last made
	last    time.Time // when it last happened, with an entry or without
	pause   time.Duration
	skipped int // how often it has happened since logged
}

// allowance is the number of entries that an event may still make.
type allowance struct {
	left int
	from time.Time // when left was computed
}

func newEventLog(logger *zap.Logger) *eventLog {
	if logger == nil {
		logger = zap.NewNop()
	}
	return &eventLog{logger: logger, kinds: map[kind]*repetition{}, allowances: map[string]*allowance{}}
}

// log logs an event of the catalogue.
func (l *eventLog) log(name string, fields ...zap.Field) {
	e, _ := event.Describe(name)
	level := levelOf(e.Priority)
	if level > zapcore.DebugLevel {
		skipped, since, due := l.pace(e, fields, time.Now())
		switch {
		case !due:
			level = zapcore.DebugLevel
		case skipped > 0:
			fields = append(fields, zap.Int("repeated", skipped), zap.Time("since", since))
		}
	}
	l.logger.Log(level, name, fields...)
}

func levelOf(p event.Priority) zapcore.Level {
	switch p {
	case event.Error:
		return zapcore.ErrorLevel
	case event.Warning:
		return zapcore.WarnLevel
	case event.Debug:
		return zapcore.DebugLevel
	}
	return zapcore.InfoLevel
}

// pace decides whether an event is logged now. If so, it returns how often the event was
// skipped, and since when.
func (l *eventLog) pace(e event.Entry, fields []zap.Field, now time.Time) (skipped int, since time.Time, due bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := kindOf(e, fields)
	r := l.kinds[k]
	if r == nil || now.Sub(r.last) >= renewed {
		l.makeRoom()
		r = &repetition{}
		l.kinds[k] = r
	}
	r.last = now
	if now.Sub(r.logged) < r.pause || !l.allowed(e.Name, now) {
		r.skipped++
		return 0, time.Time{}, false
	}
	skipped, since = r.skipped, r.logged
	if since.IsZero() { // the first ones exceeded the allowance
		since = now
	}
	r.logged, r.skipped, r.pause = now, 0, min(max(firstPause, 2*r.pause), longestPause)
	return skipped, since, true
}

// faultsResolved makes the next fault count as new.
func (l *eventLog) faultsResolved() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for k := range l.kinds {
		if k.event == event.Fault {
			delete(l.kinds, k)
		}
	}
}

func (l *eventLog) allowed(name string, now time.Time) bool {
	a := l.allowances[name]
	if a == nil {
		a = &allowance{left: burst, from: now}
		l.allowances[name] = a
	}
	if n := int(now.Sub(a.from) / refill); n > 0 {
		a.left, a.from = min(burst, a.left+n), a.from.Add(time.Duration(n)*refill)
	}
	if a.left == 0 {
		return false
	}
	a.left--
	return true
}

// makeRoom forgets the kind that has not happened for the longest time, if there are too
// many.
func (l *eventLog) makeRoom() {
	if len(l.kinds) < maxKinds {
		return
	}
	var oldest kind
	var at time.Time
	for k, r := range l.kinds {
		if at.IsZero() || r.last.Before(at) {
			oldest, at = k, r.last
		}
	}
	delete(l.kinds, oldest)
}

func kindOf(e event.Entry, fields []zap.Field) kind {
	values := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(values)
	}
	same := make([]any, len(e.Same))
	for i, name := range e.Same {
		same[i] = values.Fields[name]
	}
	return kind{e.Name, foreign.Line(fmt.Sprintf("%q", same), 1<<10)}
}
