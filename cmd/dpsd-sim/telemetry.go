package main

import (
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/simulator/hub"
)

// maxShown is how many bytes of a message are printed.
const maxShown = 200

// printTelemetry prints a message of a device to its hub in one line. It escapes what could
// confuse a terminal.
func printTelemetry(w io.Writer, t hub.Telemetry) {
	payload, rest := t.Payload, ""
	if len(payload) > maxShown {
		payload, rest = payload[:maxShown], "…"
	}
	text := string(payload)
	for _, r := range text {
		if r == utf8.RuneError || !strconv.IsGraphic(r) {
			text = strconv.QuoteToGraphic(text)
			break
		}
	}
	fmt.Fprintf(w, "dpsd-sim: telemetry of %s at %s, %d bytes: %s%s\n", strconv.QuoteToGraphic(t.Device), strconv.QuoteToGraphic(t.Hub), len(t.Payload), text, rest)
}
