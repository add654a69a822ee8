package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/journal"
	"github.com/dpsd-project/dpsd/store"
)

// terminal is where a command talks to a person: standard output or standard
// error. Written to a file or a pipe, it is plain text.
type terminal struct {
	io.Writer
	attended bool // a terminal: what was written can be written over
	coloured bool
	columns  int
}

// terminalOn tells what f is. NO_COLOR, when set to anything but nothing, means
// no colours (https://no-color.org), and so does a terminal that is "dumb".
func terminalOn(f *os.File) *terminal {
	// /dev/null is a character device too, but has no line settings (termios(3)).
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	t := &terminal{Writer: f, attended: err == nil, columns: 80}
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 2 {
		t.columns = int(size.Col)
	}
	t.coloured = t.attended && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return t
}

// colour is a parameter of SGR (ECMA-48, 8.3.117).
type colour string

const (
	bold   colour = "1"
	faint  colour = "2"
	red    colour = "31"
	green  colour = "32"
	yellow colour = "33"
)

// paint returns text in a colour, or text alone where colours are not wanted.
func (t *terminal) paint(c colour, text string) string {
	if !t.coloured || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// progress shows one line that the next one replaces: what is being waited for.
// "" takes it away. Only a terminal sees it.
func (t *terminal) progress(text string) {
	if t.attended {
		fmt.Fprint(t, journal.EraseLine, t.line(text))
	}
}

// line is text that fits on one line of the terminal: a longer one cannot be taken away.
func (t *terminal) line(text string) string {
	text = printable(text)
	if runes := []rune(text); len(runes) >= t.columns {
		text = string(runes[:t.columns-2]) + "…"
	}
	return t.paint(faint, text)
}

// invalid is the error of a configuration that is wrong.
func invalid(file string, err error) error {
	if store.Temporary(err) {
		return failed(err)
	}
	if errors.As(err, new(*unopenedError)) && file == check.InstalledFile && bootedSystemctl() != nil {
		err = fmt.Errorf("%w; then: systemctl restart --no-block dpsd", err)
	}
	return &exitError{exitConfiguration, err, check.With(file, "dpsd check --offline")}
}

// maxComplaint bounds what is said of an error, in bytes: a configuration may have many.
const maxComplaint = 32 << 10

// complain says what went wrong and, where it is known, what to try next. An error may
// hold the text of others, such as an answer of the daemon.
func (t *terminal) complain(err error, next string) {
	text := t.paint(red, "dpsd:") + " " + foreign.Lines(err.Error(), maxComplaint)
	if next != "" {
		text += "\nTry: " + t.paint(bold, printable(next))
	}
	fmt.Fprint(t, complaint(text))
}
