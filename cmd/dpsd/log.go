package main

import (
	"strings"

	"github.com/dpsd-project/dpsd/journal"
)

// complaint returns text for standard error about the failure of a command. The text is not
// an event, because the stream carries the name of the unit, which journald can no longer
// look up for a message of a process that has ended. journald takes the priority, err, from
// the beginning of each line (sd-daemon(3)).
func complaint(text string) string {
	if journal.ReadsStderr() {
		text = "<3>" + strings.ReplaceAll(text, "\n", "\n<3>")
	}
	return text + "\n"
}
