package main

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"
)

// The limits of a printer.
const (
	maxLines   = 1000        // lines that wait
	flushLimit = time.Second // how long close waits for them
)

// printer prints lines in the background, so that a reader that is slow or absent does not
// stop the simulator. Lines for which there is no space are counted.
type printer struct {
	lines chan string
	lost  atomic.Int64
	done  chan struct{}
}

// newPrinter starts a printer, which begins each line with the prefix.
func newPrinter(w io.Writer, prefix string) *printer {
	p := &printer{lines: make(chan string, maxLines), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		for line := range p.lines {
			fmt.Fprintf(w, "%s%s\n", prefix, line)
			if n := p.lost.Swap(0); n > 0 {
				fmt.Fprintf(w, "%s%d more lines were not printed, because the reader was too slow\n", prefix, n)
			}
		}
	}()
	return p
}

// print never waits.
func (p *printer) print(line string) {
	select {
	case p.lines <- line:
	default:
		p.lost.Add(1)
	}
}

// close waits a moment until everything is printed. Nothing may be printed afterwards.
func (p *printer) close() {
	close(p.lines)
	select {
	case <-p.done:
	case <-time.After(flushLimit):
	}
}
