package operations

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/manual"
	"github.com/dpsd-project/dpsd/test/shipped"
)

var update = flag.Bool("update", false, "write the transcripts into docs/operations.md")

const page = "../../docs/operations.md"

// failureVariable names the failure that a process in its own namespaces tests.
const failureVariable = "DPSD_OPERATIONS_FAILURE"

func TestMain(m *testing.M) {
	if name := os.Getenv(failureVariable); name != "" {
		g := newGateway(os.Getenv(workshopVariable))
		if work, found := failures[name]; found {
			work(g)
		} else {
			pages[name](g)
		}
		g.end()
		must(json.NewEncoder(os.Stdout).Encode(g.blocks))
		return
	}
	os.Exit(m.Run())
}

// furnish builds the programs and creates the keys.
func furnish(t *testing.T) string {
	t.Helper()
	workshop := t.TempDir()
	bin := filepath.Join(workshop, "bin")
	if err := shipped.Build(bin); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(bin, "dpsd-sim"), "credentials", "--dir", filepath.Join(workshop, "simulator"), "--registration-id", device).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := authority(filepath.Join(workshop, "simulator")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(workshop, "simulator", "id-scope"), []byte("0ne00A1B2C3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return workshop
}

// possible returns what this machine lacks. more are the tools that only some gateways use.
func possible(more ...string) error {
	for _, tool := range append([]string{"ip", "curl", "jq"}, more...) {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	if _, err := os.Stat("/etc/ssl/certs/ca-certificates.crt"); err != nil {
		return err
	}
	c := exec.Command("mount", "-t", "tmpfs", "none", "/mnt")
	c.SysProcAttr = separate()
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("no name spaces of one's own: %w: %s", err, out)
	}
	return nil
}

// orSkip skips a test if the machine does not permit such a gateway. In CI, the test fails.
func orSkip(t *testing.T, tools ...string) {
	t.Helper()
	err := possible(tools...)
	switch {
	case err == nil:
	case os.Getenv("CI") != "":
		t.Fatal(err)
	default:
		t.Skipf("there is no gateway of our own: %v", err)
	}
}

// play returns the blocks of a failure.
func play(t *testing.T, workshop, failure string) map[string]string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	c := exec.CommandContext(ctx, self)
	c.WaitDelay = time.Second // for child processes that are still running
	c.Env = append(os.Environ(), failureVariable+"="+failure, workshopVariable+"="+workshop,
		"GORACE=atexit_sleep_ms=0") // otherwise, the race detector waits a second at each exit
	c.SysProcAttr = separate()
	var complaint strings.Builder
	c.Stderr = &complaint
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v\n%s", err, complaint.String())
	}
	var blocks map[string]string
	if err := json.Unmarshal(bytes.TrimSpace(out), &blocks); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return blocks
}

// transcript is a block of the page.
var transcript = regexp.MustCompile("(?s)<!-- transcript ([a-z-]+): make operations -->\n```\n(.*?)```\n<!-- end -->")

func TestThePageShowsTheActualOutput(t *testing.T) {
	orSkip(t)
	workshop := furnish(t)
	var mu sync.Mutex
	seen := map[string]string{}
	t.Run("gateways", func(t *testing.T) {
		for name := range failures {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				blocks := play(t, workshop, name)
				mu.Lock()
				defer mu.Unlock()
				maps.Copy(seen, blocks)
			})
		}
	})
	if t.Failed() {
		return
	}
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	shown := map[string]bool{}
	now := transcript.ReplaceAllStringFunc(string(text), func(block string) string {
		m := transcript.FindStringSubmatch(block)
		name, have := m[1], m[2]
		shown[name] = true
		is, made := seen[name]
		if !made {
			t.Errorf("no failure creates the transcript %s", name)
			return block
		}
		if mask(have) == mask(is) {
			return block // only times and random values differ
		}
		if !*update {
			t.Errorf("%s: the output differs from the page; \"make operations\" rewrites it:\n%s", name, is)
		}
		return "<!-- transcript " + name + ": make operations -->\n```\n" + is + "```\n<!-- end -->"
	})
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if !shown[name] {
			t.Errorf("the page does not show the transcript %s:\n%s", name, seen[name])
		}
	}
	if *update {
		if err := manual.Compare(page, now, true); err != nil {
			t.Error(err)
		}
	}
}

// chance are the parts of a transcript that differ between runs.
var chance = []struct{ is, as string }{
	{`; (the next attempt starts now|next attempt in \S+, at \S+ UTC)`, "; NEXT ATTEMPT"},
	{`\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?Z| UTC)?`, "TIME"},
	{`\d\d:\d\d:\d\d UTC`, "TIME"},
	{`\d{4}-\d\d-\d\d`, "DATE"},
	{`[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}`, "ID"},
	{`serial( number is)? +[0-9a-f]{20,40}\b`, "serial$1 NUMBER"},
	{`\b(\d+h)?(\d+m)?\d+(\.\d+)?(ms|µs|s)\b`, "DURATION"},
	{`\b\d+ days \d+ h`, "DURATION"},
	{`\brunning for \d+ seconds?|clock is \d+ seconds? ahead`, "DURATION"},
	{`127\.0\.0\.1:\d{5}`, "127.0.0.1:PORT"},
	{`\b0ne[0-9A-F]{8}\b`, "SCOPE"},
	{`\b\d+ MB free`, "SPACE"},
	{`\b\d+ B (up|down)`, "N B $1"},
	{`"in": [0-9.]+`, `"in": N`},
	{`(?m)^(dpsd_\w+(seconds|seconds_sum|bytes_total)(\{.*\})?) .*$`, "$1 N"},
	{`version="[^"]*"|\bdpsd [0-9v][^ ,]*`, "VERSION"},
	{`, \d+ times\b`, ""},
	{`(failed attempts since TIME): \d+`, "$1: N"},
}

// mask replaces these parts.
func mask(text string) string {
	for _, c := range chance {
		text = regexp.MustCompile(c.is).ReplaceAllString(text, c.as)
	}
	return text
}

func TestOnlyVaryingPartsAreMasked(t *testing.T) {
	for a, b := range map[string]string{
		"next in 4m59s, at 2026-11-25T23:00:00Z":           "next in 5m1s, at 2027-01-01T01:02:03Z",
		"(serial 678637625c0d66e3255a9d3f4efb17c9, issued": "(serial 42eafe55421b7683807d52c221e61730, issued",
		"trackingId 0f8fad5b-d9cb-469f-a165-70867728950e":  "trackingId 00000000-d9cb-469f-a165-70867728950e",
		"read tcp 127.0.0.1:51234->127.0.0.1:8883":         "read tcp 127.0.0.1:60000->127.0.0.1:8883",
		"failed attempts since 2026-11-25 23:00:00 UTC: 3": "failed attempts since 2026-11-25 23:01:00 UTC: 4",
	} {
		if mask(a) != mask(b) {
			t.Errorf("%q and %q differ by chance only: %q, %q", a, b, mask(a), mask(b))
		}
	}
	for a, b := range map[string]string{
		"fault unauthorized while registering":                     "fault connack-refused while signing in",
		"(serial 678637625c0d66e3255a9d3f4efb17c9, issued by CN=a": "(serial 678637625c0d66e3255a9d3f4efb17c9, issued by CN=b",
		"errorCode 401002": "errorCode 401003",
		"127.0.0.1:8883":   "127.0.0.1:443",
		"generation    1, since 2026-11-25T23:00:00Z": "generation    2, since 2026-11-25T23:00:00Z",
	} {
		if mask(a) == mask(b) {
			t.Errorf("the difference between %q and %q is masked: %q", a, b, mask(a))
		}
	}
}
