package prometheus

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const (
	rules     = "dpsd.rules.yml"
	dashboard = "dpsd.dashboard.json"
	page      = "../../docs/operations.md"
)

// promtool runs Prometheus' own checker, from Debian's package prometheus. If it is missing, the
// test fails only in CI.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	path, err := exec.LookPath("promtool")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip("promtool is not here: rules and dashboard are not checked; on Debian it is in the package prometheus")
	}
	if out, err := exec.Command(path, args...).CombinedOutput(); err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func content(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestPromtoolAcceptsTheRules(t *testing.T) {
	promtool(t, "check", "rules", "--lint-fatal", rules)
}

func TestEachAlertFiresOnlyForItsCause(t *testing.T) {
	promtool(t, "test", "rules", "dpsd.rules.test.yml")
}

// alerts returns the names of all alerts.
func alerts(t *testing.T) (names []string) {
	for _, m := range regexp.MustCompile(`(?m)- alert: (\w+)$`).FindAllStringSubmatch(content(t, rules), -1) {
		names = append(names, m[1])
	}
	if len(names) < 12 {
		t.Fatalf("only %d alerts: %q", len(names), names)
	}
	return names
}

func TestEachAlertHasTestsForBothResultsAndAnExplanation(t *testing.T) {
	tests, explained := content(t, "dpsd.rules.test.yml"), content(t, page)
	for _, name := range alerts(t) {
		if !regexp.MustCompile(`\{eval_time: 90h, alertname: ` + name + `\}`).MatchString(tests) {
			t.Errorf("%s: no test that it does not fire for a healthy gateway", name)
		}
		if !regexp.MustCompile(`alertname: ` + name + `\n +exp_alerts: *(\[|\n)`).MatchString(tests) {
			t.Errorf("%s: no test that it fires", name)
		}
		if !strings.Contains(explained, "| `"+name+"` |") {
			t.Errorf("%s: %s does not say what to do", name, page)
		}
	}
}

// expressions returns the expressions of the dashboard by the title of their panel.
func expressions(t *testing.T) map[string][]string {
	t.Helper()
	var d struct {
		Title  string
		Panels []struct {
			ID      int
			Title   string
			Targets []struct{ Expr string }
		}
	}
	decoder := json.NewDecoder(strings.NewReader(content(t, dashboard)))
	if err := decoder.Decode(&d); err != nil {
		t.Fatal(err)
	}
	found, ids := map[string][]string{}, map[int]bool{}
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%q: the id %d belongs to a different panel", p.Title, p.ID)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			found[p.Title] = append(found[p.Title], target.Expr)
		}
	}
	if len(found) < 15 {
		t.Errorf("only %d panels", len(found))
	}
	return found
}

// The test replaces the variables of an expression as Grafana does.
func TestEachExpressionOfTheDashboardIsValid(t *testing.T) {
	var b strings.Builder
	b.WriteString("groups:\n  - name: dashboard\n    rules:\n")
	n := 0
	for title, list := range expressions(t) {
		for _, e := range list {
			n++
			e = strings.ReplaceAll(e, "$instance", "gateway:9100")
			if strings.Contains(e, "$") || e == "" {
				t.Errorf("%s: the dashboard does not define a variable of the expression %q", title, e)
			}
			fmt.Fprintf(&b, "      - {record: 'dashboard:%d', expr: %q}\n", n, e)
		}
	}
	file := filepath.Join(t.TempDir(), "dashboard.yml")
	if err := os.WriteFile(file, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file)
}

// If a metric were renamed, its alert would never fire.
func TestOnlyExistingMetricsAreUsed(t *testing.T) {
	var known []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(dpsd_\\w+)` \\|").FindAllStringSubmatch(content(t, page), -1) {
		known = append(known, m[1])
	}
	if len(known) < 15 {
		t.Fatalf("%s lists only %q", page, known)
	}
	used := regexp.MustCompile(`dpsd_\w+`).FindAllString(content(t, rules)+content(t, dashboard)+content(t, "dpsd.rules.test.yml"), -1)
	for _, name := range used {
		if !slices.Contains(known, name) && !slices.Contains(known, strings.TrimSuffix(name, "_bucket")) {
			t.Errorf("dpsd has no metric %s", name)
		}
	}
}
