package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/journal"
	"github.com/dpsd-project/dpsd/store"
)

// terminal is standard output or standard error of a command. If it is a file or a pipe, the
// output is plain text.
type terminal struct {
	io.Writer
	attended bool // the output is a terminal, so lines can be overwritten
	coloured bool
	columns  int
}

// terminalOn returns a terminal for f. A non-empty NO_COLOR (https://no-color.org) and the
// terminal type "dumb" disable colours.
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

// paint returns text in a colour. It returns the unchanged text if colours are disabled, or
// the colour is "".
func (t *terminal) paint(c colour, text string) string {
	if !t.coloured || c == "" || text == "" {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// rows returns a function that writes a row with a name in a column of its own.
func (t *terminal) rows(to io.Writer) func(name, format string, args ...any) {
	return func(name, format string, args ...any) {
		fmt.Fprintf(to, "%s%s%s\n", t.paint(bold, name), strings.Repeat(" ", max(1, 14-len(name))), fmt.Sprintf(format, args...))
	}
}

// progress shows what the command is waiting for, on one line of the terminal that the next
// call replaces. "" removes the line. It writes nothing to a file or a pipe.
func (t *terminal) progress(text string) {
	if t.attended {
		fmt.Fprint(t, journal.EraseLine, t.line(text))
	}
}

// line shortens text to one line of the terminal, because a longer text cannot be removed.
func (t *terminal) line(text string) string {
	text = printable(text)
	if runes := []rune(text); len(runes) >= t.columns {
		text = string(runes[:t.columns-2]) + "…"
	}
	return t.paint(faint, text)
}

// invalid returns the error for an invalid configuration.
func invalid(file string, err error) error {
	if store.Temporary(err) {
		return failed(err)
	}
	if errors.As(err, new(*unopenedError)) && file == check.InstalledFile && bootedSystemctl() != nil {
		err = fmt.Errorf("%w; then run: systemctl restart --no-block dpsd", err)
	}
	return &exitError{exitConfiguration, err, check.With(file, "dpsd check --offline")}
}

// maxComplaint is the maximum length of an error message, in bytes. A configuration may have
// many errors.
const maxComplaint = 32 << 10

// complain prints an error and, if it is known, the command to try next. The error may contain
// text of other parties, such as an answer of the daemon. It is not an event, because the
// stream carries the name of the unit, which journald can no longer look up for a message of
// a process that has ended. journald takes the priority, err, from the beginning of each line
// (sd-daemon(3)).
func (t *terminal) complain(err error, next string) {
	said := err.Error()
	if bootedSystemctl() == nil {
		said = check.WithoutSystemd(said)
	}
	text := t.paint(red, "dpsd:") + " " + foreign.Lines(said, maxComplaint)
	if next != "" {
		text += "\nTry: " + t.paint(bold, printable(next))
	}
	if journal.ReadsStderr() {
		text = "<3>" + strings.ReplaceAll(text, "\n", "\n<3>")
	}
	fmt.Fprintln(t, text)
}
