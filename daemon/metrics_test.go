package daemon

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/manual"
	"github.com/dpsd-project/dpsd/simulator"
)

// holds checks lines of the metrics, which are patterns.
func holds(t *testing.T, where string, text []byte, lines ...string) {
	t.Helper()
	for _, want := range lines {
		if !regexp.MustCompile("(?m)^" + want + "$").Match(text) {
			t.Errorf("%s: %s is not there:\n%s", where, want, text)
		}
	}
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t, simulator.Rule{On: simulator.OnRegister, Status: 500, Times: 2})
		g.MetricsFile = filepath.Join(g.dir, "dpsd.prom")
		g.Settings.Interval = time.Hour
		s := g.supervised()
		g.until("fault", 1)
		synctest.Wait()
		text, err := os.ReadFile(g.MetricsFile)
		if err != nil {
			t.Fatal(err)
		}
		holds(t, "the file after a fault", text, `dpsd_provisioned 0`, `dpsd_fault_standing 1`,
			`dpsd_fault_info\{code="service-error",class="transient",stage="register"\} 1`, `dpsd_next_attempt_timestamp_seconds [1-9]\d+(\.\d+)?`)
		g.until("assigned", 1)
		synctest.Wait()
		if text, err = os.ReadFile(g.MetricsFile); err != nil {
			t.Fatal(err)
		}
		var served bytes.Buffer
		s.measures.write(&served)
		for where, text := range map[string][]byte{"the file": text, "the socket": served.Bytes()} {
			holds(t, where, text, `dpsd_faults_total\{code="service-error"\} 2`, `dpsd_faults_total\{code="unauthorized"\} 0`,
				`dpsd_attempts_total\{outcome="assigned"\} 1`, `dpsd_attempts_total\{outcome="fault"\} 2`,
				`dpsd_ready 1`, `dpsd_provisioned 1`, `dpsd_generation 1`, `dpsd_fault_standing 0`, `dpsd_interval_seconds 3600`,
				`dpsd_assignment_info\{hub="[^"]+",device_id="[^"]+"\} 1`, `dpsd_confirmed_timestamp_seconds [1-9]\d+(\.\d+)?`,
				`dpsd_network_bytes_total\{direction="sent"\} [1-9]\d*`, `dpsd_time_to_assigned_seconds_count 1`)
			if bytes.Contains(text, []byte("dpsd_fault_info")) {
				t.Errorf("%s: a fault that has ended is still present:\n%s", where, text)
			}
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// A start that only reads the record makes no attempt, but writes the file nevertheless:
// otherwise the file from before the reboot would remain for weeks.
func TestAStartWithoutAnAttemptWritesTheMetricsFile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.run()
		g.until("assigned", 1)
		if err := g.end(); err != nil {
			t.Fatal(err)
		}
		g.MetricsFile = filepath.Join(g.dir, "dpsd.prom")
		g.Settings.OnBoot = PolicyIfNeeded
		g.run()
		g.until("published", 1)
		synctest.Wait()
		text, err := os.ReadFile(g.MetricsFile)
		if err != nil {
			t.Fatal(err)
		}
		holds(t, "the file", text, `dpsd_ready 1`, `dpsd_provisioned 1`, `dpsd_confirmed_timestamp_seconds 0`, `dpsd_attempts_total\{outcome="assigned"\} 0`)
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// everyMetric returns the metrics when every family has a value.
func everyMetric() []byte {
	at := time.Date(2026, 11, 23, 8, 15, 42, 0, time.UTC)
	var board control.Board
	board.Post(control.Status{
		Version: "1.0", StartedAt: at, Ready: true, Confirmed: &at, Next: control.Due(at.Add(time.Hour), "interval", ""),
		Identity:    &control.Identity{AssignedHub: "hub", DeviceID: `a"b\cé`, Generation: 3},
		Certificate: &control.Certificate{NotAfter: at},

		Consumers: []control.Consumer{
			{Name: "telemetry", Scope: "module:telemetry", Listening: true, Module: control.ModuleReady, ConsumerUse: control.ConsumerUse{
				Requests: 9, Tokens: 4, LastToken: &at, Limited: 3, Refusals: 2,
			}},
			{Name: "camera", Scope: "module:camera", Module: control.ModulePending},
			{Name: "bridge", Scope: "device"},
		},

		IssuedCertificate: &control.IssuedCertificate{State: "valid", NotAfter: &at, RenewAt: &at, Issued: 2, Failed: 1},

		Faults: []control.Fault{{Code: string(fault.NoReply), Class: "transient", Stage: "poll", Unresolved: true}},
	})
	m := newMeasures(&board)
	m.clock(2 * time.Second)
	m.asksEvery(time.Hour)
	m.took.Update(3)
	var text bytes.Buffer
	m.write(&text)
	return text.Bytes()
}

func TestTheMetricsDescribeEachLocalService(t *testing.T) {
	text := everyMetric()
	for _, of := range []struct{ name, telemetry, camera string }{
		{"dpsd_hub_listening", "1", "0"}, {"dpsd_hub_requests_total", "9", "0"}, {"dpsd_hub_tokens_total", "4", "0"}, {"dpsd_hub_token_timestamp_seconds", "1795421742", "0"},
		{"dpsd_hub_limited_total", "3", "0"}, {"dpsd_hub_refusals_total", "2", "0"}, {"dpsd_hub_module_ready", "1", "0"},
	} {
		holds(t, "the text", text, of.name+`\{consumer="telemetry"\} `+of.telemetry, of.name+`\{consumer="camera"\} `+of.camera)
	}
	if bytes.Contains(text, []byte(`dpsd_hub_module_ready{consumer="bridge"}`)) {
		t.Error("a service without a module has a metric about its module")
	}
}

func TestEveryMetricFollowsTheConventionsOfPrometheus(t *testing.T) {
	text := everyMetric()
	holds(t, "the text", text, regexp.QuoteMeta(`dpsd_assignment_info{hub="hub",device_id="a\"b\\cé"} 1`), `dpsd_confirmed_timestamp_seconds 1795421742`)
	for _, f := range families {
		holds(t, "the text", text, "# TYPE "+f.name+" "+f.kind, `(?s:# HELP `+f.name+` [A-Z0-9\[].*)`, `(?:`+f.name+`(?:_count|\{.*\})? [0-9.]+)`)
	}
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("promtool is not here: what it makes of the metrics is not checked; on Debian it is in the package prometheus")
	}
	c := exec.Command(promtool, "check", "metrics")
	c.Stdin = bytes.NewReader(text)
	if out, err := c.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%v: %s\n%s", err, out, text)
	}
}

// The table of docs/operations.md is generated from the families.
func TestThePageOfOperationsListsTheMetrics(t *testing.T) {
	const page, begin, end = "../docs/operations.md", "<!-- metrics: make operations -->\n", "<!-- end -->"
	labels := map[string][]string{}
	for _, m := range regexp.MustCompile(`(?m)^(\w+)\{(.*)\}`).FindAllStringSubmatch(string(everyMetric()), -1) {
		name := strings.TrimSuffix(m[1], "_bucket")
		labels[name] = nil
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[2], -1) {
			labels[name] = append(labels[name], "`"+l[1]+"`")
		}
	}
	var b strings.Builder
	b.WriteString("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
	for _, f := range families {
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", f.name, f.kind, strings.Join(labels[f.name], " "), f.help)
	}
	have, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, found := strings.Cut(string(have), begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		t.Fatalf("%s has lost its marks", page)
	}
	if err := manual.Compare(page, before+begin+b.String()+end+after, *update); err != nil {
		t.Error(err)
	}
}

func TestTheRestOfAnInterruptedWriteOfTheMetricsFileIsRemovedAtTheStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.MetricsFile = filepath.Join(g.dir, "dpsd.prom")
		g.write(".dpsd.prom123", "")
		g.write(".other.prom123", "")
		g.run()
		g.until("assigned", 1)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		for name, left := range map[string]bool{".dpsd.prom123": false, ".other.prom123": true, "dpsd.prom": true} {
			if err := readable(filepath.Join(g.dir, name)); (err == nil) != left {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}
