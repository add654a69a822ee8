package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

// good is a set of results within all budgets.
func good() []result {
	var results []result
	for _, v := range variants() {
		s := sample{
			cpu: 20 * time.Millisecond, peak: 12e6, beyond: 50 * time.Millisecond,
			bytesUp: 1100, bytesDown: 1700, connections: 1, packetsUp: 5, packetsDown: 6, roundTrips: 3 + v.polls,
		}
		results = append(results, result{v, []sample{s, s, s}})
	}
	return results
}

func TestBudgets(t *testing.T) {
	const size = 9e6
	change := func(runs int, f func(*sample)) func([]result) {
		return func(results []result) {
			for i := range runs {
				f(&results[0].samples[i])
			}
		}
	}
	for _, test := range []struct {
		says      string
		size      int64
		change    func([]result)
		over      bool
		disturbed bool
	}{
		{"what is within all budgets passes", size, func([]result) {}, false, false},
		{"a program of more than 9.5 MB is over", 9_500_001, func([]result) {}, true, false},
		{"one slow run is the machine's affair", size, change(1, func(s *sample) { s.beyond = time.Second }), false, false},
		{"slow in every run is over, and measured again", size, change(3, func(s *sample) { s.beyond = 101 * time.Millisecond }), true, true},
		{"CPU of one run is the machine's affair", size, change(1, func(s *sample) { s.cpu = time.Second }), false, false},
		{"CPU over in every run is over, and measured again", size, change(3, func(s *sample) { s.cpu = 41 * time.Millisecond }), true, true},
		{"memory over in most runs is over", size, change(2, func(s *sample) { s.peak = 15_100_000 }), true, false},
		{"a second connection in one run is over", size, change(1, func(s *sample) { s.connections = 2 }), true, false},
		{"a byte too many in one run is over", size, change(1, func(s *sample) { s.bytesUp = 1201 }), true, false},
		{"a round trip too many in one run is over", size, change(1, func(s *sample) { s.roundTrips++ }), true, false},
		{"bytes over are not measured again because time is over too", size, change(3, func(s *sample) { s.bytesUp, s.beyond = 1201, time.Second }), true, false},
	} {
		t.Run(test.says, func(t *testing.T) {
			results := good()
			test.change(results)
			all := budgets(test.size, results)
			text, over := verdicts(all)
			if over != test.over || strings.Contains(text, "| over |") != test.over || disturbed(all) != test.disturbed {
				t.Errorf("over %t, disturbed %t:\n%s", over, disturbed(all), text)
			}
		})
	}
	t.Run("bytes of a certificate, of WebSocket and of a second poll have no budget", func(t *testing.T) {
		results := good()
		for i := range results {
			if results[i].variant.credential == "key" && results[i].variant.protocol == "mqtt" && results[i].variant.polls == 1 {
				continue
			}
			results[i].samples[0].bytesUp = 2000
		}
		if text, over := verdicts(budgets(size, results)); over {
			t.Error(text)
		}
	})
}

func TestTableShowsMedianAndWorst(t *testing.T) {
	results := good()[:1]
	results[0].samples[0].bytesUp = 1000
	results[0].samples[1].bytesUp = 1300
	if text := table(results); !strings.Contains(text, "| 1100 (1300) | 1700 | 1 |") {
		t.Error(text)
	}
}

func TestRoundTrips(t *testing.T) {
	var entries []simulator.Entry
	for _, direction := range []string{"", "up", "down", "up", "", "down", "down", "up", "up", "down", "up", ""} {
		entries = append(entries, simulator.Entry{Direction: direction})
	}
	if n := roundTrips(entries); n != 3 {
		t.Errorf("%d round trips counted, want 3: each change from up to down", n)
	}
}

func TestInsert(t *testing.T) {
	file := filepath.Join(t.TempDir(), "page.md")
	write := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("the text between the markers is replaced, and nothing else", func(t *testing.T) {
		write("before\n" + beginMarker + "old\n" + endMarker + "after\n")
		if err := insert(file, "new\n"); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(file)
		if want := "before\n" + beginMarker + "new\n" + endMarker + "after\n"; err != nil || string(got) != want {
			t.Errorf("the page is %q, want %q (%v)", got, want, err)
		}
	})
	t.Run("a page without the end marker is left alone", func(t *testing.T) {
		write("before\n" + beginMarker + "old\n")
		if err := insert(file, "new\n"); err == nil {
			t.Error("no error")
		}
		if got, _ := os.ReadFile(file); string(got) != "before\n"+beginMarker+"old\n" {
			t.Errorf("the page is %q", got)
		}
	})
}

// The shell's peak is a megabyte or two; this process has more. Were it charged to
// the child, the child would have at least as much.
func TestRunChargesTheProgramAlone(t *testing.T) {
	if err := adoptOrphans(); err != nil {
		t.Fatal(err)
	}
	ballast := make([]byte, 64<<20)
	for i := range ballast {
		ballast[i] = 1
	}
	log := filepath.Join(t.TempDir(), "log")
	u, err := run(time.Minute, log, "/bin/sh", "-c", "echo said; exit 3")
	if err != nil {
		t.Fatal(err)
	}
	if u.status.ExitStatus() != 3 || u.peak <= 0 || u.elapsed <= 0 {
		t.Errorf("usage is %+v, want exit status 3", u)
	}
	if u.peak > 32<<20 {
		t.Errorf("a shell that says a word is charged with %d bytes; this process has %d more", u.peak, len(ballast))
	}
	if said, err := os.ReadFile(log); err != nil || string(said) != "said\n" {
		t.Errorf("the output is %q (%v)", said, err)
	}
}
