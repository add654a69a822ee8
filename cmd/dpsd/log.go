package main

import (
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/journal"
)

// newLogger writes events to where they are read. level is one of those of
// dpsd.toml.
func newLogger(to *journal.Log, level string) *zap.Logger {
	enabled, err := zapcore.ParseLevel(level)
	if err != nil {
		enabled = zapcore.InfoLevel // config.Parse lets no other through
	}
	return zap.New(to.Core(enabled))
}

// complaint is text for standard error on why a command fails. This is no event:
// the stream carries the name of the unit, which journald can no longer look up
// when it reads a message of a process that has ended. It takes the priority,
// err, from the beginning of each line, sd-daemon(3).
func complaint(text string) string {
	if journal.ReadsStderr() {
		text = "<3>" + strings.ReplaceAll(text, "\n", "\n<3>")
	}
	return text + "\n"
}
