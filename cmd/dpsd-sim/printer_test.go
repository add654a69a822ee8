package main

import (
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/synctest"
)

// stuck is a writer that blocks until it is released.
type stuck struct {
	strings.Builder
	release chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	<-s.release
	return s.Builder.Write(b)
}

func TestAPrinterWhoseReaderIsSlowDoesNotWaitAndCountsWhatIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := &stuck{release: make(chan struct{})}
		p := newPrinter(out, "dpsd-sim: ")
		for i := range maxLines + 10 {
			p.print(fmt.Sprint(i))
			synctest.Wait() // the first line is being written, the others wait
		}
		close(out.release)
		synctest.Wait()
		p.print("last")
		p.close()
		if got := out.String(); !strings.HasPrefix(got, "dpsd-sim: 0\ndpsd-sim: 9 more lines were not printed") ||
			!strings.HasSuffix(got, "dpsd-sim: last\n") || strings.Count(got, "\n") != maxLines+3 {
			t.Errorf("%d lines: %.200s", strings.Count(got, "\n"), got)
		}
	})
}

func TestAPrinterWithoutAReaderIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		defer r.Close() // ends the printer's goroutine
		p := newPrinter(w, "")
		p.print("a line")
		p.close()
	})
}
