package main

import (
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/simulator/hub"
)

// maxShown is how many bytes of a message are shown.
const maxShown = 200

// describeTelemetry describes a message of a device to its hub in one line. It escapes what could
// confuse a terminal.
func describeTelemetry(t hub.Telemetry) string {
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
	return fmt.Sprintf("telemetry from %s at %s, %d bytes: %s%s", strconv.QuoteToGraphic(t.Device), strconv.QuoteToGraphic(t.Hub), len(t.Payload), text, rest)
}
