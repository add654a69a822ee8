package main

import (
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/simulator/hub"
)

func TestTelemetryIsDescribedInOneLineThatATerminalCanShow(t *testing.T) {
	for payload, want := range map[string]string{
		`{"t":21}`:               `8 bytes: {"t":21}`,
		"":                       `0 bytes: `,
		"a\nb\x1b[2J":            `7 bytes: "a\nb\x1b[2J"`,
		"\xff\x00":               `2 bytes: "\xff\x00"`,
		strings.Repeat("é", 200): `400 bytes: ` + strings.Repeat("é", 100) + "…",
	} {
		got := describeTelemetry(hub.Telemetry{Hub: "h", Device: "d", Payload: []byte(payload)})
		if got != `telemetry from "d" at "h", `+want {
			t.Errorf("%q: %s", payload, got)
		}
	}
}
