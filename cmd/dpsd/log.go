package main

import (
	"strings"

	"github.com/dpsd-project/dpsd/journal"
)

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
