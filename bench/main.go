// Command bench measures what one registration by the built dpsd costs, and judges
// it against the budgets: exit 1 when one is exceeded. It is run by "make bench".
//
// The simulator runs in this process, dpsd in its own, over loopback.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// stagger keeps registrations that run at the same time out of each other's way:
// each works for a few ms at 0 s, 2 s and 4 s of its own.
const stagger = 200 * time.Millisecond

func main() {
	program := flag.String("program", "bin/dpsd", "the dpsd to measure")
	runs := flag.Int("runs", 7, "how often each line of the table is measured; up to four times as often when the machine is too busy")
	document := flag.String("document", "", "a file that takes the report as well, between its bench markers")
	flag.Parse()
	if flag.NArg() > 0 || *runs < 1 {
		flag.Usage()
		os.Exit(2)
	}
	over, err := bench(*program, *document, *runs)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	if over {
		fmt.Fprintln(os.Stderr, "bench: a budget is exceeded")
		os.Exit(1)
	}
}

// bench prints the report and tells whether a budget is exceeded.
func bench(program, document string, runs int) (over bool, err error) {
	if program, err = filepath.Abs(program); err != nil {
		return false, err
	}
	info, err := os.Stat(program)
	if err != nil {
		return false, err
	}
	version, err := exec.Command(program, "version").Output()
	if err != nil {
		return false, fmt.Errorf("%s version: %w", program, err)
	}
	results, err := measure(program, info.Size(), runs)
	if err != nil {
		return false, err
	}
	asked, err := commands(program, runs)
	if err != nil {
		return false, err
	}
	judged, over := verdicts(append(budgets(info.Size(), results), asked...))
	report := fmt.Sprintf("%s on %s.\n\nMedian of %d runs each, in brackets the worst where it differs; MB are 10⁶ bytes.\n\n%s\n%s",
		strings.TrimSpace(string(version)), machine(), len(results[0].samples), table(results), judged)
	fmt.Print(report)
	if document != "" {
		err = insert(document, report)
	}
	return over, err
}

// measure runs all variants, in rounds, so that what the machine does beside them
// meets all alike.
func measure(program string, size int64, runs int) ([]result, error) {
	if err := adoptOrphans(); err != nil {
		return nil, fmt.Errorf("PR_SET_CHILD_SUBREAPER: %w", err)
	}
	dir, err := os.MkdirTemp("", "dpsd-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	var services []*service
	defer func() {
		for _, s := range services {
			s.server.Close()
		}
	}()
	all := variants()
	results := make([]result, len(all))
	for i, v := range all {
		directory := filepath.Join(dir, strconv.Itoa(i))
		if err := os.Mkdir(directory, 0o700); err != nil {
			return nil, err
		}
		s, err := newService(v, directory)
		if err != nil {
			return nil, err
		}
		services, results[i].variant = append(services, s), v
	}
	for n := 0; n < runs || n < 4*runs && disturbed(budgets(size, results)); n++ {
		failures := make([]error, len(all))
		var round sync.WaitGroup
		for i, s := range services {
			round.Go(func() {
				time.Sleep(time.Duration(i) * stagger)
				var got sample
				if got, failures[i] = s.register(program); failures[i] == nil {
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

// machine describes what the numbers depend on, as far as it can be found out.
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

const (
	beginMarker = "<!-- bench:begin -->\n"
	endMarker   = "<!-- bench:end -->\n"
)

// insert puts the report between the markers of a file.
func insert(file, report string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	before, rest, found := strings.Cut(string(text), beginMarker)
	_, after, ended := strings.Cut(rest, endMarker)
	if !found || !ended {
		return fmt.Errorf("%s has no %s and %s", file, strings.TrimSpace(beginMarker), strings.TrimSpace(endMarker))
	}
	return os.WriteFile(file, []byte(before+beginMarker+report+endMarker+after), 0o644) //nolint:gosec // a page of the documentation is for everyone
}
