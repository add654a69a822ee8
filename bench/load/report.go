package main

import (
	"fmt"
	"runtime"
	"strings"
	"time"
)

func (l *load) report(m memory, t throughput) (text string, short bool) {
	var b strings.Builder
	rate := float64(t.registrations) / t.took.Seconds()
	each := func(d time.Duration) float64 {
		return float64(d) / float64(time.Millisecond) / float64(max(1, t.registrations))
	}
	share := func(d time.Duration) float64 { return 100 * d.Seconds() / t.took.Seconds() }
	verdict := func(ok bool) string {
		if ok {
			return "ok"
		}
		short = true
		return "short"
	}
	peak := float64(m.peak) / megabyte
	fmt.Fprintf(&b, "%s on %d processors.\n\n", runtime.Version(), runtime.NumCPU())
	b.WriteString("| of one dpsd-sim | measured | promised | |\n| --- | --: | --: | --- |\n")
	fmt.Fprintf(&b, "| registrations a second, each with its own TLS handshake and two polls | %.0f | %d | %s |\n", rate, wantRate, verdict(rate >= wantRate))
	fmt.Fprintf(&b, "| peak memory with %d devices connected at once | %.0f MB | %d MB | %s |\n", l.devices, peak, wantMemory, verdict(peak <= wantMemory))
	fmt.Fprintf(&b, "| the same for each device | %.1f kB | | |\n", float64(m.peak-m.idle)/float64(l.devices)/1e3)
	fmt.Fprintf(&b, "| time in which they connected | %.1f s | | |\n", m.took.Seconds())
	fmt.Fprintf(&b, "| peak memory with %d registering at the same time | %.0f MB | | |\n", l.registering, float64(t.peak)/megabyte)
	fmt.Fprintf(&b, "| CPU of the simulator, for one registration | %.2f ms | | |\n", each(t.simulator))
	fmt.Fprintf(&b, "| CPU of the devices, for one registration | %.2f ms | | |\n", each(t.clients))
	fmt.Fprintf(&b, "| CPU of the simulator and of the devices, of a processor | %.0f %% and %.0f %% | | |\n", share(t.simulator), share(t.clients))
	return b.String(), short
}
