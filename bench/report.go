package main

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// result holds the samples of one variant.
type result struct {
	variant variant
	samples []sample
}

// values holds one property of the samples in ascending order.
func (r result) values(of func(sample) float64) []float64 {
	values := make([]float64, 0, len(r.samples))
	for _, s := range r.samples {
		values = append(values, of(s))
	}
	slices.Sort(values)
	return values
}

func best(sorted []float64) float64   { return sorted[0] }
func median(sorted []float64) float64 { return sorted[len(sorted)/2] }
func worst(sorted []float64) float64  { return sorted[len(sorted)-1] }

// The properties in the units of the report.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

const megabyte = 1e6

func cpu(s sample) float64          { return milliseconds(s.cpu) }
func peak(s sample) float64         { return float64(s.peak) / megabyte }
func beyond(s sample) float64       { return milliseconds(s.beyond) }
func up(s sample) float64           { return float64(s.bytesUp) }
func down(s sample) float64         { return float64(s.bytesDown) }
func opened(s sample) float64       { return float64(s.connections) }
func sent(s sample) float64         { return float64(s.packetsUp) }
func received(s sample) float64     { return float64(s.packetsDown) }
func roundTripsOf(s sample) float64 { return float64(s.roundTrips) }
func first(s sample) float64        { return milliseconds(s.first) }

// above returns by how many per cent the bytes sent exceed the minimum of the protocol.
func above(s sample) float64 { return 100 * (float64(s.bytesUp)/float64(s.smallest) - 1) }

// roundTrips returns the minimum number of round trips: for TCP, TLS, WebSocket, CONNECT,
// SUBSCRIBE, register and each poll.
func (v variant) roundTrips() int {
	trips := 1 + 1 + 3 + v.polls
	if v.tls == "1.2" {
		trips++
	}
	if v.protocol == "websocket" {
		trips++
	}
	return trips
}

// table shows the median and the worst value of each property, with a line per variant.
func table(results []result) string {
	columns := []struct {
		name string
		of   func(sample) float64
		form string
	}{
		{"CPU ms", cpu, "%.1f"}, {"peak MB", peak, "%.1f"}, {"first byte ms", first, "%.1f"},
		{"time beyond waits ms", beyond, "%.0f"},
		{"bytes up", up, "%.0f"}, {"above the smallest %", above, "%.1f"}, {"bytes down", down, "%.0f"}, {"connections", opened, "%.0f"},
		{"packets up", sent, "%.0f"}, {"packets down", received, "%.0f"}, {"MQTT round trips", roundTripsOf, "%.0f"}, {"all round trips", func(s sample) float64 { return float64(s.allRoundTrips) }, "%.0f"},
	}
	var b strings.Builder
	b.WriteString("| credential | protocol | TLS | polls |")
	for _, c := range columns {
		b.WriteString(" " + c.name + " |")
	}
	b.WriteString("\n| --- | --- | --- | --: |" + strings.Repeat(" --: |", len(columns)) + "\n")
	for _, r := range results {
		fmt.Fprintf(&b, "| %s | %s | %s | %d |", r.variant.credential, r.variant.protocol, r.variant.tls, r.variant.polls)
		for _, c := range columns {
			values := r.values(c.of)
			text := fmt.Sprintf(c.form, median(values))
			if last := fmt.Sprintf(c.form, worst(values)); last != text {
				text += " (" + last + ")"
			}
			b.WriteString(" " + text + " |")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// judge is how an exceeded budget is treated.
type judge int

const (
	strict judge = iota // depends only on the program: a failure
	noisy               // other load on the machine can only make it worse: a failure, but not in CI
)

// budget is a limit in the unit of its value.
type budget struct {
	name, unit   string
	value, limit float64
	judge        judge
}

func (b budget) over() bool { return b.value > b.limit }

// highest returns the largest value of a statistic of a property over the variants.
func highest(results []result, of func(sample) float64, statistic func([]float64) float64) float64 {
	largest := 0.0
	for _, r := range results {
		largest = max(largest, statistic(r.values(of)))
	}
	return largest
}

// budgets checks all budgets. For noisy budgets the best run counts, for strict budgets the
// worst.
func budgets(size int64, results []result) []budget {
	only := func(keep func(variant) bool) []result {
		return slices.DeleteFunc(slices.Clone(results), func(r result) bool { return !keep(r.variant) })
	}
	key := func(version string) []result {
		return only(func(v variant) bool { return v == variant{"key", "mqtt", version, 1} })
	}
	all := []budget{
		{"program, stripped", "MB", float64(size) / megabyte, 12, strict},
		{"peak memory, median of the runs", "MB", highest(results, peak, median), 13, noisy},
		{"CPU, best of the runs", "ms", highest(results, cpu, best), 16, noisy},
		{"from the start to the first byte sent, best of the runs", "ms", highest(results, first, best), 15, noisy},
		{"time beyond the waits, best of the runs", "ms", highest(results, beyond, best), 100, noisy},
		{"TCP connections", "", highest(results, opened, worst), 1, strict},
		{"bytes up with a key, MQTT, TLS 1.2, one poll", "", highest(key("1.2"), up, worst), 1200, strict},
		{"bytes up with a key, MQTT, TLS 1.3, one poll", "", highest(key("1.3"), up, worst), 1200, strict},
	}
	for _, version := range []string{"1.2", "1.3"} {
		for _, protocol := range []string{"mqtt", "websocket"} {
			those := only(func(v variant) bool { return v.tls == version && v.protocol == protocol })
			all = append(all, budget{"bytes up above the smallest possible, " + protocol + ", TLS " + version, "%", highest(those, above, median), 10, strict})
		}
	}
	for _, polls := range []int{1, 2} {
		name := fmt.Sprintf("MQTT round trips with polls %d: CONNECT, SUBSCRIBE, register, polls", polls)
		all = append(all, budget{name, "", highest(only(func(v variant) bool { return v.polls == polls }), roundTripsOf, worst), float64(3 + polls), strict})
	}
	extra := 0.0
	for _, r := range results {
		extra = max(extra, worst(r.values(func(s sample) float64 { return float64(s.allRoundTrips - r.variant.roundTrips()) })))
	}
	return append(all, budget{"round trips beyond TCP 1, TLS 1.2 2 or TLS 1.3 1, WebSocket 1, and those of MQTT", "", extra, 0, strict})
}

// disturbed reports whether another run may help: only noisy budgets are exceeded.
func disturbed(all []budget) bool {
	var exceeded bool
	for _, b := range all {
		if b.over() && b.judge == strict {
			return false
		}
		exceeded = exceeded || b.over()
	}
	return exceeded
}

// verdicts shows the budgets, and reports whether one is exceeded. With lenient, noisy budgets
// cannot fail.
func verdicts(all []budget, lenient bool) (text string, over bool) {
	var b strings.Builder
	b.WriteString("| worst of the lines above | value | budget | |\n| --- | --: | --: | --- |\n")
	for _, budget := range all {
		verdict := "ok"
		if budget.over() {
			verdict = "over"
			over = over || budget.judge == strict || !lenient
		}
		unit := budget.unit
		form := "%.0f"
		if unit != "" {
			unit, form = " "+unit, "%.1f"
		}
		fmt.Fprintf(&b, "| %s | "+form+"%s | %g%s | %s |\n", budget.name, budget.value, unit, budget.limit, unit, verdict)
	}
	return b.String(), over
}
