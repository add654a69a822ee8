package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// recipe is a subsection of the page.
type recipe struct {
	name   string
	files  map[string]string // programs in blocks of their own
	blocks []string          // shell
}

// script returns what a person does who follows the page: save the programs, install the
// package, and run the blocks.
func (r recipe) script(install string) string {
	var b strings.Builder
	b.WriteString(install)
	for name, text := range r.files {
		fmt.Fprintf(&b, "mkdir -p \"$(dirname '%[1]s')\"\ncat >'%[1]s' <<'END OF FILE'\n%[2]sEND OF FILE\n", name, text)
	}
	return b.String() + strings.Join(r.blocks, "")
}

var (
	shell   = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")
	program = regexp.MustCompile("(?ms)^`([^`\n]+)`[^\n]*:\n\n```[a-z]+\n(.*?)^```$")
)

// page returns the recipes of docs/simulator.md, and how it installs the package.
func page(t *testing.T) (install string, recipes []recipe) {
	t.Helper()
	text, err := os.ReadFile("../../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	section := func(heading string) string {
		_, after, _ := strings.Cut(string(text), "\n## "+heading+"\n")
		before, _, _ := strings.Cut(after, "\n## ")
		return before
	}
	for _, m := range shell.FindAllStringSubmatch(section("Install"), -1) {
		install += m[1]
	}
	for _, part := range strings.Split(section("Recipes"), "\n### ")[1:] {
		name, rest, _ := strings.Cut(part, "\n")
		r := recipe{name: name, files: map[string]string{}}
		for _, m := range program.FindAllStringSubmatch(rest, -1) {
			r.files[m[1]] = m[2]
		}
		for _, m := range shell.FindAllStringSubmatch(rest, -1) {
			r.blocks = append(r.blocks, m[1])
		}
		recipes = append(recipes, r)
	}
	return install, recipes
}

// proofs are what the recipes print that can be followed here. For the others, a source that
// is in no registry is needed, or a device.
var proofs = map[string]string{
	"Node": "connected to the hub\n", "Python": "connected to the hub\n", "Java": "connected to the hub\n", "mosquitto": "connected to the hub\n",
	"Rust": `"status":"assigned"`, "Go": `"status":"assigned"`, "Paho": `"status":"assigned"`, "MQTT.js": `"status":"assigned"`,
}

var elsewhere = map[string]bool{"C": true, "azure-sdk-for-c": true, "C#": true, "ESP-IDF": true}

func TestThePageHasARecipeForEachClientThatIsNoLongerThanTenLines(t *testing.T) {
	install, recipes := page(t)
	if n := strings.Count(install, "\n"); n != 1 {
		t.Errorf("the package is installed in %d lines", n)
	}
	seen := map[string]bool{}
	for _, r := range recipes {
		seen[r.name] = true
		if len(r.blocks) != 1 {
			t.Errorf("%s has %d shell blocks", r.name, len(r.blocks))
		}
		for _, text := range r.blocks {
			if n := strings.Count(text, "\n"); n > 10 {
				t.Errorf("%s has %d lines", r.name, n)
			}
		}
		for name, text := range r.files {
			if n := strings.Count(text, "\n"); n > 10 {
				t.Errorf("%s of %s has %d lines", name, r.name, n)
			}
		}
		if (proofs[r.name] == "") == !elsewhere[r.name] {
			t.Errorf("%s must be in either proofs or elsewhere", r.name)
		}
	}
	for _, names := range []map[string]bool{elsewhere, keys(proofs)} {
		for name := range names {
			if !seen[name] {
				t.Errorf("the page has no recipe for %s", name)
			}
		}
	}
}

func keys(m map[string]string) map[string]bool {
	all := map[string]bool{}
	for k := range m {
		all[k] = true
	}
	return all
}

func TestEveryRecipeUsesOnlyVariablesAndFlagsThatExist(t *testing.T) {
	want(t)
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, "exec", "--mqtt", "localhost:0", "--websocket", "localhost:0", "--", "env").Output()
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		name, _, _ := strings.Cut(line, "=")
		set[name] = true
	}
	variable := regexp.MustCompile(`\b(DPS|PROVISIONING|IOTHUB|AZ_IOT|X509)_[A-Z0-9_]+\b`)
	flag := regexp.MustCompile(`(?m)dpsd-sim ([a-z]+)((?: [^\n]*)?)`)
	_, recipes := page(t)
	for _, r := range recipes {
		text := r.script("")
		for _, name := range variable.FindAllString(text, -1) {
			if name != "PROVISIONING_" && !set[name] {
				t.Errorf("%s uses %s, which exec does not set", r.name, name)
			}
		}
		for _, m := range flag.FindAllStringSubmatch(text, -1) {
			help, err := exec.Command(path, m[1], "--help").Output()
			if err != nil {
				t.Fatal(err)
			}
			flags, _, _ := strings.Cut(m[2], " -- ")
			for _, f := range regexp.MustCompile(`--[a-z-]+`).FindAllString(flags, -1) {
				if !strings.Contains(string(help), f+" ") {
					t.Errorf("%s uses %s, which %s does not have", r.name, f, m[1])
				}
			}
		}
	}
}

// TestFromThePackageToAConnectedDevice follows the page on a machine without dpsd-sim: it installs
// the package, and runs a recipe.
func TestFromThePackageToAConnectedDevice(t *testing.T) {
	want(t)
	if os.Getuid() != 0 {
		if os.Getenv("CI") == "true" {
			t.Fatal("only root can install a package")
		}
		t.Skip("only root can install a package")
	}
	deb := os.Getenv("DPSD_SIM_DEB")
	if deb == "" {
		t.Fatal("DPSD_SIM_DEB does not name the package; make test-clients sets it")
	}
	install, recipes := page(t)
	for _, r := range recipes {
		if elsewhere[r.name] {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			slots <- true
			defer func() { <-slots }()
			steps := filepath.Join(t.TempDir(), "steps")
			if err := os.WriteFile(steps, []byte(r.script(install)), 0o600); err != nil {
				t.Fatal(err)
			}
			begun := time.Now()
			cmd := exec.Command("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "./machine", deb, "/root/device", steps)
			cmd.WaitDelay = 5 * time.Second
			stop := time.AfterFunc(5*time.Minute, func() { _ = cmd.Process.Kill() })
			defer stop.Stop()
			out, err := cmd.CombinedOutput()
			if err != nil || !strings.Contains(string(out), proofs[r.name]) {
				t.Fatalf("%v: it does not print %q:\n%s", err, proofs[r.name], out)
			}
			t.Logf("%s from the package to a device", time.Since(begun).Round(time.Second))
		})
	}
}
