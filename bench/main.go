// Command bench measures the cost of one registration by the built dpsd, and compares it with
// the budgets. Its exit code is 1 if one is exceeded. "make bench" runs it.
//
// The simulator runs in this process, dpsd in its own process, over the loopback interface.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/bench/page"
	"github.com/dpsd-project/dpsd/simulator"
)

// stagger keeps concurrent registrations from interfering with each other: each works for a
// few ms at 0 s, 2 s and 4 s of its own time.
const stagger = 200 * time.Millisecond

// bench is one run of all measurements.
type bench struct {
	program, version string
	size             int64
	runs             int
	idle             time.Duration
	short            bool
}

func main() {
	var b bench
	flag.StringVar(&b.program, "program", "bin/dpsd", "path of the dpsd to measure")
	flag.IntVar(&b.runs, "runs", 7, "number of runs for each line of the table; up to four times as many if the machine is too busy")
	flag.DurationVar(&b.idle, "idle", 10*time.Minute, "period in which the idle service is measured")
	flag.BoolVar(&b.short, "short", false, "for CI: three runs, a minute of idle time, and no failure because of time, CPU or memory")
	compare := flag.Bool("compare", false, "instead, install Microsoft's SDKs for Node and Python, and compare dpsd with them")
	aziotd := flag.String("identity-service", "", "instead, compare dpsd with Azure IoT Identity Service, whose program aziotd is this `file`; this requires root and swtpm")
	document := flag.String("document", "", "also write the report to this `file`, between its bench, compare or identity-service markers; -compare writes its plot next to it")
	flag.Parse()
	if flag.NArg() > 0 || b.runs < 1 || b.idle <= 0 {
		flag.Usage()
		os.Exit(2)
	}
	if b.short {
		b.runs, b.idle = min(b.runs, 3), min(b.idle, time.Minute)
	}
	run := b.run
	if *compare {
		run = b.runCompare
	}
	if *aziotd != "" {
		run = func(document string) (over bool, err error) { return false, b.runIdentityService(*aziotd, document) }
	}
	over, err := run(*document)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if over {
		fmt.Fprintln(os.Stderr, "bench: a budget is exceeded")
		os.Exit(1)
	}
}

// run prints the report, and reports whether a budget is exceeded.
func (b *bench) run(document string) (over bool, err error) {
	said, dir, err := b.prepare()
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	// The service idles while the other measurements run: only its own cost counts.
	var rested []budget
	var idleErr error
	var resting sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		resting.Wait()
	}()
	resting.Go(func() { rested, idleErr = b.rests(ctx) })
	results, err := b.measure(dir)
	if err != nil {
		return false, err
	}
	judged := budgets(b.size, results)
	asked, err := b.commands(dir)
	if err != nil {
		return false, err
	}
	written, err := b.boots(dir)
	if err != nil {
		return false, err
	}
	certified, err := b.issues(dir)
	if err != nil {
		return false, err
	}
	hardened, err := b.inTPM(dir)
	if err != nil {
		return false, err
	}
	resumed, saved, err := b.resumes(dir)
	if err != nil {
		return false, err
	}
	parts, allocated, err := allocations()
	if err != nil {
		return false, err
	}
	resting.Wait()
	if idleErr != nil {
		return false, idleErr
	}
	verdict, over := verdicts(slices.Concat(judged, asked, written, certified, hardened, saved, rested, allocated), b.short)
	report := fmt.Sprintf("%s on %s.\n\nMedian of %d runs each, with the worst in parentheses where it differs; MB are 10⁶ bytes.\n\n%s\n%s\n%s",
		said, machine(), len(results[0].samples), table(results), resumptions(resumed), verdict)
	fmt.Print(report)
	fmt.Fprint(os.Stderr, "\n", parts)
	if document != "" {
		err = page.Insert(document, "bench", report)
	}
	return over, err
}

// runCompare prints the comparison.
func (b *bench) runCompare(document string) (over bool, err error) {
	_, dir, err := b.prepare()
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	drawing := ""
	if document != "" {
		drawing = filepath.Join(filepath.Dir(document), "compare.svg")
	}
	report, err := b.compare(dir, drawing)
	if err != nil {
		return false, err
	}
	fmt.Print(report)
	if document != "" {
		err = page.Insert(document, "compare", report)
	}
	return false, err
}

// prepare determines what to measure, and creates a directory for it. It returns the output of
// the program's version command.
func (b *bench) prepare() (said, dir string, err error) {
	if b.program, err = filepath.Abs(b.program); err != nil {
		return "", "", err
	}
	info, err := os.Stat(b.program)
	if err != nil {
		return "", "", err
	}
	b.size = info.Size()
	out, err := exec.Command(b.program, "version").Output() //nolint:gosec // running what it is given is its purpose
	if err != nil {
		return "", "", fmt.Errorf("%s version: %w", b.program, err)
	}
	words := strings.Fields(string(out))
	if len(words) < 2 {
		return "", "", fmt.Errorf("%s version printed %q", b.program, out)
	}
	b.version = words[1]
	if err := adoptOrphans(); err != nil {
		return "", "", fmt.Errorf("PR_SET_CHILD_SUBREAPER: %w", err)
	}
	dir, err = os.MkdirTemp(quiet(), "dpsd-bench-")
	return strings.TrimSpace(string(out)), dir, err
}

// service creates a service for a variant, in its own directory.
func (b *bench) service(dir, name string, v variant, tickets bool, rules ...simulator.Rule) (*service, error) {
	directory := filepath.Join(dir, name)
	if err := os.Mkdir(directory, 0o700); err != nil {
		return nil, err
	}
	s, err := newService(v, directory, tickets, rules...)
	if err == nil {
		s.version = b.version
	}
	return s, err
}

// rests measures the idle service: with the watchdog of dpsd.service, without it, and without it
// but with an issued certificate, or with the socket of a local service that has received a token.
func (b *bench) rests(ctx context.Context) ([]budget, error) {
	dir, err := os.MkdirTemp(quiet(), "dpsd-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var with, without, certified, consumed rest
	watch := func(name, table, consumer string, watchdog time.Duration, r *rest) error {
		s, err := b.service(dir, name, variant{"key", "mqtt", "1.2", 1}, false)
		if err != nil {
			return err
		}
		s.table, s.consumer = table, consumer
		defer s.server.Close()
		*r, err = s.idle(ctx, b.program, watchdog, b.idle)
		return err
	}
	var errs [4]error
	var all sync.WaitGroup
	all.Go(func() { errs[0] = watch("watchdog", "", "", 30*time.Second, &with) })
	all.Go(func() { errs[1] = watch("idle", "", "", 0, &without) })
	all.Go(func() { errs[2] = watch("idle-issued", certificateTable, "", 0, &certified) })
	all.Go(func() { errs[3] = watch("idle-consumer", consumerTable, "service", 0, &consumed) })
	all.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return []budget{
		{"peak memory of the service", "MB", float64(without.peak) / megabyte, 13, noisy},
		{"private memory of the idle service", "MB", float64(without.anon) / megabyte, 2.5, noisy},
		{fmt.Sprintf("wake-ups in %s of idle time, without a watchdog", b.idle), "", float64(without.wakeUps), b.idle.Minutes(), noisy},
		{fmt.Sprintf("wake-ups in %s of idle time, in addition to %d watchdog messages", b.idle, with.beats), "", float64(with.wakeUps - with.beats), b.idle.Minutes(), noisy},
		{fmt.Sprintf("wake-ups in %s of idle time, with an issued certificate", b.idle), "", float64(certified.wakeUps), b.idle.Minutes(), noisy},
		{fmt.Sprintf("wake-ups in %s of idle time, with the socket of a local service that has a token", b.idle), "", float64(consumed.wakeUps), b.idle.Minutes(), noisy},
		{"private memory of the idle service, with the socket of a local service that has a token", "MB", float64(consumed.anon) / megabyte, 3, noisy},
		{"peak memory of the service that has requested a certificate", "MB", float64(certified.peak) / megabyte, 15, noisy},
		{"packets in this time", "", float64(with.packets + without.packets + certified.packets + consumed.packets), 0, strict},
	}, nil
}

// quiet returns a directory in which, and in whose parents, other programs rarely create
// files. dpsd watches the parents of its directory: in /tmp, temporary files of other programs
// would wake it, and the kernel takes 15 ms to add a watch to a directory with a hundred
// thousand names.
func quiet() string {
	const state = "/var/lib"
	if unix.Access(state, unix.W_OK) == nil {
		return state
	}
	if home, err := os.UserHomeDir(); err == nil {
		return home
	}
	return ""
}

// boots counts the changes that a boot with the same answer makes to the state directory.
func (b *bench) boots(dir string) ([]budget, error) {
	var all []budget
	for _, kind := range []struct{ name, budget, table string }{
		{"boot", "writes to the state directory on a boot with an unchanged answer", ""},
		{"boot-issued", "the same with a valid issued certificate", certificateTable},
	} {
		s, err := b.service(dir, kind.name, variant{"key", "mqtt", "1.2", 1}, false)
		if err != nil {
			return nil, err
		}
		s.table = kind.table
		events, err := s.unchangedBoot(b.program)
		s.server.Close()
		if err != nil {
			return nil, err
		}
		all = append(all, budget{kind.budget, "", float64(events), 0, strict})
	}
	return all, nil
}

// resumes measures what a resumed session saves when a gateway connects again.
func (b *bench) resumes(dir string) ([]comeback, []budget, error) {
	var all []comeback
	var budgets []budget
	for i, why := range reasons() {
		for _, v := range variants() {
			if v.protocol != "mqtt" || v.polls != 1 {
				continue
			}
			c := comeback{variant: v, why: why}
			for _, tickets := range []bool{false, true} {
				s, err := b.service(dir, fmt.Sprint("resume-", i, v.credential, v.tls, tickets), v, tickets, why.rule)
				if err != nil {
					return nil, nil, err
				}
				cost, err := s.second(b.program)
				s.server.Close()
				if err != nil {
					return nil, nil, err
				}
				if tickets {
					c.resumed = cost
				} else {
					c.full = cost
				}
			}
			all = append(all, c)
			budgets = append(budgets, budget{"round trips of " + why.name + ", resumed, " + v.credential + ", TLS " + v.tls,
				"", float64(c.resumed.roundTrips), float64(why.roundTrips), strict})
		}
	}
	return all, budgets, nil
}

// measure runs all variants in rounds, so that other load on the machine affects all of them
// equally.
func (b *bench) measure(dir string) ([]result, error) {
	var services []*service
	defer func() {
		for _, s := range services {
			s.server.Close()
		}
	}()
	all := variants()
	results := make([]result, len(all))
	for i, v := range all {
		s, err := b.service(dir, strconv.Itoa(i), v, false)
		if err != nil {
			return nil, err
		}
		services, results[i].variant = append(services, s), v
	}
	for n := 0; n < b.runs || !b.short && n < 4*b.runs && disturbed(budgets(b.size, results)); n++ {
		failures := make([]error, len(all))
		var round sync.WaitGroup
		for i, s := range services {
			round.Go(func() {
				time.Sleep(time.Duration(i) * stagger)
				var got sample
				if got, failures[i] = s.register(b.program); failures[i] == nil {
					results[i].samples = append(results[i].samples, got)
				}
			})
		}
		round.Wait()
		if err := errors.Join(failures...); err != nil {
			return nil, err
		}
	}
	return results, nil
}

// machine describes the conditions of the measurement, as far as they can be determined.
func machine() string {
	kernel := "Linux"
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		kernel += " " + unix.ByteSliceToString(name.Release[:])
	}
	processor := runtime.GOARCH
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			processor = strings.TrimSpace(value)
			break
		}
	}
	roots, _ := os.ReadFile("/etc/ssl/certs/ca-certificates.crt")
	return fmt.Sprintf("%s, %d × %s, %d system roots", kernel, runtime.NumCPU(), processor, strings.Count(string(roots), "BEGIN CERTIFICATE"))
}
