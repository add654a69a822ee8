package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"
)

// quiet is the fraction of all processors that other load may use without a correction of the rate.
const quiet = 0.05

// report returns the measured values, and reports whether they break a promise. With -short, a rate
// that is too low does not: the cost is judged instead. It is the CPU time of the simulator in
// proportion to that of the devices, which have the same TLS handshakes, and so hardly depends on
// the speed of the machine.
func (l *load) report(m memory, t throughput) (text string, missed bool) {
	var b strings.Builder
	each := func(d time.Duration) float64 {
		return float64(d) / float64(time.Millisecond) / float64(max(1, t.registrations))
	}
	verdict := func(ok, counts bool) string {
		if ok {
			return "ok"
		}
		missed = missed || counts
		return "missed"
	}
	megabytes := func(n int64) float64 { return float64(n) / megabyte }
	row := func(name, form string, values ...any) {
		fmt.Fprintf(&b, "| %s | "+form+" | | |\n", append([]any{name}, values...)...)
	}
	fmt.Fprintf(&b, "%s, %d processors for simulator and devices together; MB are 10⁶ bytes.\n\n", runtime.Version(), runtime.NumCPU())
	b.WriteString("| one dpsd-sim whose page is open | measured | promised | |\n| --- | --: | --: | --- |\n")
	const rate = "registrations per second, each with a TLS handshake and two polls"
	disturbed := t.rate() < wantRate && t.share(t.others) > quiet
	if disturbed {
		row(rate, "%.0f", t.rate())
		fmt.Fprintf(&b, "| the same, corrected for the CPU time of others | %.0f | %d | %s |\n", t.alone(), wantRate, verdict(t.alone() >= wantRate, !l.short))
	} else {
		fmt.Fprintf(&b, "| %s | %.0f | %d | %s |\n", rate, t.rate(), wantRate, verdict(t.rate() >= wantRate, !l.short))
	}
	row("CPU per registration: simulator, device", "%.2f ms, %.2f ms", each(t.simulator), each(t.clients))
	cost := float64(t.simulator) / float64(max(1, t.clients))
	fmt.Fprintf(&b, "| CPU of the simulator, divided by that of the devices | %.2f | %.1f | %s |\n", cost, wantCost, verdict(cost <= wantCost, true))
	row("share of all processors: simulator, devices, others", "%.0f %%, %.0f %%, %.0f %%", 100*t.share(t.simulator), 100*t.share(t.clients), 100*t.share(t.others))
	row(fmt.Sprintf("peak memory with %d registering at the same time", l.registering), "%.0f MB", megabytes(t.peak))
	fmt.Fprintf(&b, "| peak memory with %d connected at the same time | %.0f MB | %d MB | %s |\n", l.devices, megabytes(m.peak), wantMemory, verdict(megabytes(m.peak) <= wantMemory, true))
	row("memory per connected device", "%.1f kB", float64(m.peak-m.idle)/float64(l.devices)/1e3)
	row("time until all were connected", "%.1f s", m.took.Seconds())
	return b.String(), missed
}
