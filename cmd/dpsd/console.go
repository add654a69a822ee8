package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/foreign"
)

// console asks a person on a terminal. It implements setup.Console.
type console struct {
	ctx    context.Context // cancels the questions
	in     *os.File
	out    *terminal
	lines  chan answer
	hidden *unix.Termios // the settings to restore; nil if the terminal displays input
}

// answer is a line of the terminal.
type answer struct {
	text []byte
	err  error
}

// errStopped means that the user has canceled the questions.
var errStopped = errors.New("stopped; nothing was written")

// newConsole returns a console. A read of the terminal cannot be interrupted, so it runs in a
// goroutine that ends with the program.
func newConsole(ctx context.Context, in *os.File, out *terminal) *console {
	return &console{ctx: ctx, in: in, out: out, lines: make(chan answer)}
}

// Say prints a text.
func (c *console) Say(text string) { fmt.Fprintln(c.out, foreign.Lines(text, maxComplaint)) }

// Ask prints a prompt and returns a line.
func (c *console) Ask(prompt string) (string, error) {
	if err := c.show(); err != nil {
		return "", err
	}
	fmt.Fprint(c.out, c.out.paint(bold, prompt))
	text, err := c.read()
	return string(text), err
}

// AskSecret is like Ask, but the terminal does not display what the user types, until the next
// Ask. It discards the earlier input, unless rest is true.
func (c *console) AskSecret(prompt string, rest bool) ([]byte, error) {
	fd := int(c.in.Fd())
	now, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, err
	}
	if c.hidden == nil {
		usual := *now
		c.hidden = &usual
	}
	now.Lflag = now.Lflag&^unix.ECHO | unix.ECHONL
	now.Cc[unix.VSUSP] = 0    // a shell displays what is typed while and after it has stopped a program
	set := uint(unix.TCSETSF) // also discards the input
	if rest {
		set = unix.TCSETS
	}
	if err := unix.IoctlSetTermios(fd, set, now); err != nil {
		return nil, err
	}
	fmt.Fprint(c.out, c.out.paint(bold, prompt))
	return c.read()
}

// show ends the effect of AskSecret. It discards the rest of the input, which may be part of a
// secret.
func (c *console) show() error {
	if c.hidden == nil {
		return nil
	}
	usual := c.hidden
	c.hidden = nil
	return unix.IoctlSetTermios(int(c.in.Fd()), unix.TCSETSF, usual)
}

// read returns the next line without its end.
func (c *console) read() ([]byte, error) {
	go func() {
		line := make([]byte, 4096) // the terminal returns one line of at most this size
		n, err := c.in.Read(line)
		if n == 0 && err == nil {
			err = io.EOF
		}
		c.lines <- answer{line[:n], err}
	}()
	select {
	case <-c.ctx.Done():
		fmt.Fprintln(c.out)
		return nil, errStopped
	case a := <-c.lines:
		if errors.Is(a.err, io.EOF) || c.ctx.Err() != nil {
			fmt.Fprintln(c.out)
			return nil, errStopped
		}
		return bytes.TrimRight(a.text, "\r\n"), a.err
	}
}
