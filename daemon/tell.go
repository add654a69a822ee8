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

// This file is the one place that decides how much dpsd logs. A journal on
// flash must outlive a gateway that is offline for a year, and whoever reads it
// wants to see what changed, not the same line every ten seconds.

const (
	// An event that repeats itself is told again after a pause, which doubles
	// from firstPause to longestPause: about 18 times on the first day, 4 times
	// on each further one.
	firstPause   = time.Second
	longestPause = 6 * time.Hour
	// renewed is how long it must not have happened to count as new.
	renewed = 24 * time.Hour
	// However different they are, an event is told burst times in a row at most,
	// then once in refill.
	burst  = 24
	refill = 30 * time.Minute
	// maxKinds bounds what is remembered.
	maxKinds = 64
)

// teller logs events, each at the priority of the catalogue. What would repeat
// what was told lately, and what is too much, goes to level debug and is counted;
// the next entry of its kind says how many there were. The supervisor
// and its attempt share one.
type teller struct {
	log *zap.Logger

	mu         sync.Mutex
	kinds      map[kind]*repetition
	allowances map[string]*allowance // of an event
}

// kind is an event and the values of the fields that tell one from another.
type kind struct{ event, values string }

// repetition is what is known of a kind that was told.
type repetition struct {
	told   time.Time
	last   time.Time // when it last happened, told or not
	pause  time.Duration
	untold int
}

// allowance is how many entries an event may still make.
type allowance struct {
	left int
	from time.Time // when left was so
}

func newTeller(log *zap.Logger) *teller {
	if log == nil {
		log = zap.NewNop()
	}
	return &teller{log: log, kinds: map[kind]*repetition{}, allowances: map[string]*allowance{}}
}

// tell logs an event of the catalogue.
func (t *teller) tell(name string, fields ...zap.Field) {
	e, _ := event.Describe(name)
	level := levelOf(e.Priority)
	if level > zapcore.DebugLevel {
		untold, since, now := t.pace(e, fields, time.Now())
		switch {
		case !now:
			level = zapcore.DebugLevel
		case untold > 0:
			fields = append(fields, zap.Int("repeated", untold), zap.Time("since", since))
		}
	}
	t.log.Log(level, name, fields...)
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

// pace decides whether an event is told now, and if so, how often it was not
// told since when.
func (t *teller) pace(e event.Entry, fields []zap.Field, now time.Time) (untold int, since time.Time, told bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := kindOf(e, fields)
	r := t.kinds[k]
	if r == nil || now.Sub(r.last) >= renewed {
		t.makeRoom()
		r = &repetition{}
		t.kinds[k] = r
	}
	r.last = now
	if now.Sub(r.told) < r.pause || !t.allowed(e.Name, now) {
		r.untold++
		return 0, time.Time{}, false
	}
	untold, since = r.untold, r.told
	if since.IsZero() { // the first ones were too much
		since = now
	}
	r.told, r.untold, r.pause = now, 0, min(max(firstPause, 2*r.pause), longestPause)
	return untold, since, true
}

// faultsMended makes the next fault a new one, whatever it is.
func (t *teller) faultsMended() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k := range t.kinds {
		if k.event == event.Fault {
			delete(t.kinds, k)
		}
	}
}

func (t *teller) allowed(name string, now time.Time) bool {
	a := t.allowances[name]
	if a == nil {
		a = &allowance{left: burst, from: now}
		t.allowances[name] = a
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

// makeRoom forgets the kind that has not happened for longest when there are
// too many.
func (t *teller) makeRoom() {
	if len(t.kinds) < maxKinds {
		return
	}
	var oldest kind
	var at time.Time
	for k, r := range t.kinds {
		if at.IsZero() || r.last.Before(at) {
			oldest, at = k, r.last
		}
	}
	delete(t.kinds, oldest)
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
