package refusal_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/manual"
	"github.com/dpsd-project/dpsd/refusal"
)

var update = flag.Bool("update", false, "rewrite the tables of docs/refusals.md")

// row is a row of the first table in docs/refusals.md: codes with the same result.
type row struct {
	reports string // in the table
	means   string
	codes   []string
	finding refusal.Finding // the one that causes the most registrations
}

func rows() []row {
	return []row{
		{"CONNACK 2, 4, 5", "the hub refuses the identity, the key or the certificate", []string{"2", "4", "5"}, refusal.Verified},
		{"401, 403, 404, and 401xxx, 403xxx, 404xxx except those below", "the same", []string{"401", "403", "404", "401001", "401002", "401003", "403000", "403001", "403012", "404000", "404001"}, refusal.Verified},
		{"CONNACK 3, 5xx, 500xxx to 599xxx", "the hub is not working", []string{"3", "500", "502", "503", "504", "599", "500001", "503003", "599999"}, refusal.Verified},
		{"`unreachable`", "no connection to the hub", []string{"unreachable"}, refusal.Gone},
		{"429, 429xxx, and 403002 to 403007", "a limit or a quota", []string{"429", "429000", "429001", "429999", "403002", "403003", "403004", "403005", "403006", "403007"}, refusal.Verified},
		{"404010, 404103, 404104", "a missing module, or a connection that has ended", []string{"404010", "404103", "404104"}, refusal.Verified},
		{"CONNACK 1, every other 4xx and 4xxxxx", "a wrong request", []string{"1", "400", "402", "405", "409", "412", "413", "428", "430", "499", "400027", "409001", "412002", "499999"}, refusal.Verified},
	}
}

// observation is the result of a simulation of one consumer.
type observation struct {
	registrations []time.Duration // since the first report
	last          refusal.Decision
}

// observe simulates one consumer that reports a code every five minutes for a day. The check of the
// hub always has the same result, takes 30 s, and is delayed by s.Spread.
func observe(t *testing.T, code string, finding refusal.Finding, s refusal.Situation) (o observation) {
	t.Helper()
	c, err := refusal.ParseCode(code)
	if err != nil {
		t.Fatal(err)
	}
	const boot, every = time.Hour, 5 * time.Minute
	var tracker refusal.Tracker
	for now := boot; now < boot+24*time.Hour; now += time.Second {
		if due := tracker.Due(); due > 0 && now >= due {
			tracker.Begin()
			now += 30 * time.Second
			if d := tracker.Found(finding, s, now); d.Action == refusal.Reprovisioning {
				o.registrations = append(o.registrations, now-boot)
				tracker.Scheduled(now)
				tracker.Forget()
			}
		}
		if (now-boot)%every == 0 {
			o.last = tracker.Report(refusal.Reason{Consumer: "edge", Code: c}, s, now)
		}
	}
	return o
}

// tables returns the tables of docs/refusals.md.
func tables(t *testing.T) string {
	var b strings.Builder
	b.WriteString("| reported | meaning | a registration is possible | not before | at the latest | at most, if nothing changes |\n| --- | --- | --- | --: | --: | --- |\n")
	for _, r := range rows() {
		var cells string
		for n, code := range r.codes {
			soonest := observe(t, code, r.finding, refusal.Situation{})
			latest := observe(t, code, r.finding, refusal.Situation{Spread: refusal.Spread})
			is := "no | – | – | none"
			if all := soonest.registrations; len(all) > 0 {
				gap := all[1] - all[0]
				for i := range all[1:] {
					gap = min(gap, all[i+1]-all[i])
				}
				if gap < time.Hour {
					t.Errorf("%s: two registrations within %s", code, gap)
				}
				is = fmt.Sprintf("yes | %d min | %d min | one an hour", int(all[0].Minutes()), int(latest.registrations[0].Minutes()))
			}
			if n > 0 && is != cells {
				t.Errorf("%s has the result %q, and %s has %q", r.codes[0], cells, code, is)
			}
			cells = is
		}
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.reports, r.means, cells)
	}
	b.WriteString("\nThe check of the hub decides:\n\n| result of the check | the identity is refused | the hub is not working | `unreachable` |\n| --- | --- | --- | --- |\n")
	for _, f := range refusal.Findings() {
		fmt.Fprintf(&b, "| %s: %s ", f, results[f])
		for _, code := range []string{"5", "503", "unreachable"} {
			does := "nothing"
			if len(observe(t, code, f, refusal.Situation{}).registrations) > 0 {
				does = "registers"
			}
			fmt.Fprintf(&b, "| %s ", does)
		}
		b.WriteString("|\n")
	}
	return b.String()
}

var results = map[refusal.Finding]string{
	refusal.Confirmed:  "the hub answers 401, 403 or 404 to the device, or refuses its certificate in the TLS handshake",
	refusal.Accepted:   "the hub answers 200 to the device",
	refusal.Verified:   "the hub has proved its name; nothing else is known",
	refusal.Unverified: "the server that answered has not proved the hub's name",
	refusal.Gone:       "the hub cannot be reached, but DPS can",
	refusal.Offline:    "neither the hub nor DPS can be reached",
}

func TestTheTablesInRefusalsMdMatchTheCode(t *testing.T) {
	const page, begin, end = "../docs/refusals.md", "<!-- tables: go test ./refusal -update -->\n", "<!-- end -->"
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(text), begin)
	_, after, ended := strings.Cut(rest, end)
	if !found || !ended {
		t.Fatalf("%s has no section %q … %q", page, begin, end)
	}
	if err := manual.Compare(page, before+begin+tables(t)+end+after, *update); err != nil {
		t.Error(err)
	}
}

func TestEveryCodeInARangeOfTheTableHasTheKindOfTheRange(t *testing.T) {
	kind := map[int]refusal.Kind{401: refusal.Identity, 403: refusal.Identity, 404: refusal.Identity, 429: refusal.Throttled}
	exceptions := map[int]bool{403002: true, 403003: true, 403004: true, 403005: true, 403006: true, 403007: true, 404010: true, 404103: true, 404104: true}
	for status := 400; status <= 599; status++ {
		want := kind[status]
		switch {
		case status >= 500:
			want = refusal.Unavailable
		case want == "":
			want = refusal.Other
		}
		if got := refusal.Code(status).Kind(); got != want {
			t.Errorf("%d is of the kind %s, want %s", status, got, want)
		}
		for code := status * 1000; code < (status+1)*1000; code++ {
			if got := refusal.Code(code).Kind(); got != want && !exceptions[code] {
				t.Fatalf("%d is of the kind %s, want %s", code, got, want)
			}
		}
	}
}
