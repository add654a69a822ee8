package journal

import (
	"bytes"
	"io"
)

// EraseLine erases the line of the cursor: carriage return, and EL of ECMA-48, 8.3.41.
const EraseLine = "\r\x1b[K"

// Progress shows the current activity on a terminal, on a line below the entries. The next
// text replaces it, and "" removes it. Progress is for Logs that write to a terminal. It
// never waits: if the queue is full, the text is not shown and does not count as a dropped
// entry.
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

// live is a terminal whose last line may be a text of Progress. Entries are written above
// it.
type live struct {
	to    io.Writer
	shown []byte // the text with EraseLine before it; empty if there is none
}

// Write implements io.Writer. Each call has one entry or one text.
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
