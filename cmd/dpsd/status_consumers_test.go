package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/control"
)

func TestTheStatusDescribesEachServiceThatUsesTheHub(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) *time.Time { t := now.Add(d); return &t }
	use := func(c control.Consumer, u control.ConsumerUse) control.Consumer {
		c.Name, c.Listening, c.ConsumerUse = "telemetry", true, u
		return c
	}
	device := control.Consumer{Scope: "device"}
	for _, test := range []struct {
		consumer control.Consumer
		want     string
	}{
		{control.Consumer{Name: "telemetry", Scope: "module:telemetry"}, "telemetry: module:telemetry, no socket; run: systemctl enable dpsd-hub@telemetry.socket && systemctl restart --no-block dpsd"},
		{use(control.Consumer{}, control.ConsumerUse{}), "telemetry: dpsd.toml has no [[consumer]] with this name"},
		{use(device, control.ConsumerUse{Requests: 1}), "telemetry: device, no token since dpsd started"},
		{use(device, control.ConsumerUse{Tokens: 1, LastToken: at(-5 * time.Minute), TokenExpiry: at(10 * time.Minute)}), "telemetry: device, last token 5m0s ago, valid for 10m0s"},
		{use(device, control.ConsumerUse{Tokens: 1, LastToken: at(-time.Hour), TokenExpiry: at(-45 * time.Minute), Limited: 7, Refusals: 2}),
			"telemetry: device, last token 1h0m ago, expired, requests beyond the limits: 7, reports that the hub refuses it or is not working: 2"},
	} {
		var b bytes.Buffer
		r := statusReport{Running: true, Status: control.Status{Now: now, Health: control.OK, Consumers: []control.Consumer{test.consumer}}}
		if err := r.print(&terminal{Writer: &b}); err != nil {
			t.Fatal(err)
		}
		var got string
		for line := range strings.Lines(b.String()) {
			if text, found := strings.CutPrefix(line, "consumer"); found {
				got = strings.TrimSpace(text)
			}
		}
		if got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
	t.Run("the last report and what follows from it are shown", func(t *testing.T) {
		var b bytes.Buffer
		reported := use(device, control.ConsumerUse{Refusals: 1})
		reported.Report = &control.ConsumerReport{Code: "CONNACK 5", At: *at(-time.Minute), Because: "Further reports are necessary."}
		r := statusReport{Running: true, Status: control.Status{Now: now, Health: control.OK, Consumers: []control.Consumer{reported}}}
		if err := r.print(&terminal{Writer: &b}); err != nil || !strings.Contains(b.String(), "it reported CONNACK 5 1m0s ago: Further reports are necessary.") {
			t.Errorf("%v\n%s", err, b.String())
		}
	})
	t.Run("a fault of the hub has no tracking ID", func(t *testing.T) {
		var b bytes.Buffer
		refused := control.Fault{Code: "hub-refused", Stage: "hub", ServiceCode: 403012, First: now, Last: now, Count: 1, Unresolved: true}
		r := statusReport{Running: true, Status: control.Status{Now: now, Health: control.Degraded, Faults: []control.Fault{refused}}}
		if err := r.print(&terminal{Writer: &b}); err != nil || !strings.Contains(b.String(), " errorCode 403012\n") {
			t.Errorf("%v\n%s", err, b.String())
		}
	})
	t.Run("a fault that is over has no advice", func(t *testing.T) {
		var b bytes.Buffer
		over := control.Fault{Code: "hub-unavailable", Stage: "hub", Advice: "Check the firewall.", First: now, Last: now, Count: 1}
		r := statusReport{Running: true, Status: control.Status{Now: now, Health: control.OK, Faults: []control.Fault{over}}}
		err := r.print(&terminal{Writer: &b})
		if text := b.String(); err != nil || !strings.Contains(text, ", resolved, last at ") || strings.Contains(text, over.Advice) {
			t.Errorf("%v\n%s", err, text)
		}
	})
}
