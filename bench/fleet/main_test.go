package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/fleet"
)

func TestTimesAreFormattedForComparison(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0:00", 59*time.Second + 600*time.Millisecond: "1:00", 10 * time.Minute: "10:00", time.Hour + 2*time.Minute + 3*time.Second: "1:02:03",
	} {
		if got := minutes(d); got != want {
			t.Errorf("%s is shown as %q, want %q", d, got, want)
		}
	}
}

func TestThePageShowsTheOutputOfDpsdSim(t *testing.T) {
	text, err := transcript()
	if err != nil {
		t.Fatal(err)
	}
	if page, err := os.ReadFile("../../docs/performance.md"); err != nil || !strings.Contains(string(page), text) {
		t.Errorf("docs/performance.md does not contain this; make fleet FLEETFLAGS='-document docs/performance.md' inserts it (%v):\n%s", err, text)
	}
}

func TestAMissedGoalIsNamed(t *testing.T) {
	r := &fleet.Result{Fleet: fleet.New(fleet.Power, 1000), At: make([]time.Duration, 1000), Registers: 2000}
	r.At[999] = 2 * time.Minute // the quota takes one
	var b bench
	b.goal("met", r, 2, 2.5)
	if len(b.missed) != 0 {
		t.Errorf("missed: %q", b.missed)
	}
	b.goal("too late", r, 1.25, 2.5)
	b.goal("too many", r, 2, 1.5)
	r.Failed = 1
	b.goal("5xx", r, 0, 0)
	r.At = r.At[:999]
	b.goal("never", r, 0, 0)
	for n, want := range []string{"too late: all are provisioned after 2:00, the goal is 1:15", "too many: 2.00 requests", "5xx: 1 requests", "never: all are provisioned after never"} {
		if len(b.missed) <= n || !strings.HasPrefix(b.missed[n], want) {
			t.Errorf("missed: %q, want %q", b.missed, want)
		}
	}
}

func TestAStormCausedByAHubIsReported(t *testing.T) {
	r := &fleet.Result{Fleet: fleet.NewCase(fleet.HubRefuses, 1000), Seconds: make([]fleet.Second, 100)}
	r.Seconds[10].Registers, r.Seconds[69].Registers, r.Seconds[70].Registers = 500, 500, 500
	var b bench
	b.calm("met", r)
	if len(b.missed) != 0 {
		t.Errorf("missed: %q", b.missed)
	}
	r.Seconds[68].Registers = 1
	b.calm("a storm", r)
	if len(b.missed) != 1 || b.missed[0] != "a storm: 1001 registrations in a minute, of which 0 were answered 429 and 0 5xx; the quota is 1000" {
		t.Errorf("missed: %q", b.missed)
	}
}

func TestARecoveryThatTakesTooLongIsNamed(t *testing.T) {
	r := &recovery{after: []time.Duration{time.Second, 16 * time.Second, time.Hour}}
	var b bench
	b.recovered("met", r, 16*time.Second)
	if len(b.missed) != 0 {
		t.Errorf("missed: %q", b.missed)
	}
	b.recovered("too late", r, 15*time.Second)
	if len(b.missed) != 1 || b.missed[0] != "too late: half of the gateways have recovered after 0:16, the goal is 0:15" {
		t.Errorf("missed: %q", b.missed)
	}
}

// Each plot names its axes with their units, and has a curve and a name for each rehearsal.
func TestPlotsNameTheirAxesAndCurves(t *testing.T) {
	var b bench
	for _, name := range []string{"one way", "another way"} {
		f := fleet.New(fleet.Power, 200)
		f.Service.Quota = 50
		r, err := f.Run()
		if err != nil {
			t.Fatal(err)
		}
		b.power, b.others = append(b.power, course{name, r}), append(b.others, course{name, r})
	}
	dir := t.TempDir()
	if err := b.draw(dir); err != nil {
		t.Fatal(err)
	}
	for file, texts := range map[string][]string{
		"fleet-power.svg":     {"gateways provisioned, %", "minutes after the power returned", "requests per second", "one way", "another way", "the quota, used evenly"},
		"fleet-scenarios.svg": {"gateways provisioned, %", "time after the cause ended", "12 h", "one way", "another way"},
	} {
		svg, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		for _, text := range texts {
			if !strings.Contains(string(svg), text) {
				t.Errorf("%s does not say %q", file, text)
			}
		}
	}
}
