package journal

import (
	"bytes"
	"io"
)

// EraseLine takes away the line on which the cursor is: carriage return, and EL of
// ECMA-48, 8.3.41.
const EraseLine = "\r\x1b[K"

// Progress shows on a terminal what is being done, on a line of its own below the
// entries; the next text replaces it, and "" takes it away. It is for Logs whose
// entries go to a terminal. It never waits, and is no entry: one that finds no room
// is skipped.
func (l *Log) Progress(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return
	}
	select {
	case l.queue <- record{line: []byte(EraseLine + text)}:
	default:
	}
}

// live is a terminal whose last line may be a text of Progress. An entry is written
// above it.
type live struct {
	to    io.Writer
	shown []byte // with EraseLine before it; empty: there is none
}

// Write implements io.Writer. It is called with one entry, or with one text.
func (l *live) Write(line []byte) (int, error) {
	if bytes.HasPrefix(line, []byte(EraseLine)) {
		l.shown = nil
		if len(line) > len(EraseLine) {
			l.shown = bytes.Clone(line)
		}
		return l.to.Write(line)
	}
	if l.shown == nil {
		return l.to.Write(line)
	}
	all := append([]byte(EraseLine), line...)
	if _, err := l.to.Write(append(all, l.shown...)); err != nil {
		return 0, err
	}
	return len(line), nil
}
