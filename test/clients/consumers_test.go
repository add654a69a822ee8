package clients

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
)

// pageProgram matches a program in docs/consumers.md: a paragraph that begins with a file name, and a
// code block.
var pageProgram = regexp.MustCompile("(?ms)^`([^`\n]+)`[^\n]*(?:\n[^\n]+)*:\n\n```[a-z]+\n(.*?)^```$")

// programs returns the programs in docs/consumers.md by their file names.
func programs(t *testing.T) map[string]string {
	t.Helper()
	text, err := os.ReadFile("../../docs/consumers.md")
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for _, m := range pageProgram.FindAllStringSubmatch(string(text), -1) {
		all[m[1]] = m[2]
	}
	return all
}

// noCode matches the lines that are not counted: blank lines, comments, brackets and imports.
var noCode = regexp.MustCompile(`^\s*($|#[ !]|#include |//|[\[\](){};,]+$|import |package |const .*require\(|(mqtt )?"[a-z0-9/.]+"$)`)

func TestEachClientOfTheHubHasAtMostTwentyLines(t *testing.T) {
	all := programs(t)
	for name, text := range all {
		lines := 0
		for line := range strings.Lines(text) {
			if !noCode.MatchString(strings.TrimSuffix(line, "\n")) {
				lines++
			}
		}
		if lines == 0 || lines > 20 {
			t.Errorf("%s has %d lines", name, lines)
		}
	}
	for _, c := range hubClients {
		if all[c.file] == "" {
			t.Errorf("the page has no program %s", c.file)
		}
	}
	if len(all) != len(hubClients) {
		t.Errorf("the page has %d programs, and the tests run %d", len(all), len(hubClients))
	}
}

// prepared returns a directory that commands have prepared. It runs the commands only once.
func prepared(name string, commands ...[]string) installed {
	prepare := sync.OnceValues(func() (string, error) {
		dir, err := filepath.Abs(filepath.Join("../../bin/clients", name))
		if err != nil {
			return "", err
		}
		if err := os.RemoveAll(dir); err != nil { // it may belong to another version
			return "", err
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return "", err
		}
		for _, c := range commands {
			command := exec.Command(c[0], c[1:]...)
			command.Dir = dir
			if out, err := command.CombinedOutput(); err != nil {
				return "", fmt.Errorf("%v: %w\n%s", c, err, out)
			}
		}
		return dir, nil
	})
	return func(t *testing.T) string {
		t.Helper()
		dir, err := prepare()
		if err != nil {
			t.Fatal(err)
		}
		return dir
	}
}

var nodeRED = prepared("node-red", []string{"npm", "install", "--no-package-lock", "--ignore-scripts", "--no-audit", "--no-fund", "node-red@4.1.15"})

// hubClient is a program of docs/consumers.md. command returns how to run it in its directory.
type hubClient struct {
	name, file string
	command    func(t *testing.T, dir string) []string
}

// inDirectory runs a command in a directory, and fails with its output.
func inDirectory(t *testing.T, dir string, command ...string) {
	t.Helper()
	c := exec.Command(command[0], command[1:]...)
	c.Dir = dir
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", command, err, out)
	}
}

// bridge returns how to run a program that configures mosquitto, while messages are published to a topic.
func bridge(file, topic string) func(*testing.T, string) []string {
	return func(t *testing.T, _ string) []string {
		t.Helper()
		path, err := filepath.Abs("broker")
		if err != nil {
			t.Fatal(err)
		}
		return []string{path, topic, "sh", file}
	}
}

var hubClients = []hubClient{
	{"a shell", "meter.sh", func(*testing.T, string) []string { return []string{"sh", "meter.sh"} }},
	{"Python with Paho", "meter.py", func(t *testing.T, _ string) []string {
		interpreter := filepath.Join(python(t), "venv/bin/python")
		return []string{"env", "PYTHONPATH=" + paho2(t, interpreter), interpreter, "meter.py"}
	}},
	{"Microsoft's SDK for Node", "meter.js", func(t *testing.T, _ string) []string {
		return []string{"env", "NODE_PATH=" + filepath.Join(node(t), "node_modules"), "node", "meter.js"}
	}},
	{"Go with Paho", "main.go", func(t *testing.T, dir string) []string {
		inDirectory(t, dir, "go", "mod", "init", "meter")
		inDirectory(t, dir, "go", "get", "github.com/eclipse/paho.mqtt.golang@v1.5.1")
		inDirectory(t, dir, "go", "build", "-o", "meter", ".")
		return []string{"./meter"}
	}},
	{"C with libmosquitto", "meter.c", func(t *testing.T, dir string) []string {
		inDirectory(t, dir, "cc", "-Wall", "-Wextra", "-Werror", "meter.c", "-o", "meter", "-lcjson", "-lmosquitto")
		return []string{"./meter"}
	}},
	{"mosquitto as a bridge", "bridge.sh", bridge("bridge.sh", "uplink")},
	{"Node-RED", "flows.json", func(t *testing.T, dir string) []string {
		return []string{filepath.Join(nodeRED(t), "node_modules/.bin/node-red"), "--userDir", dir}
	}},
	{"the bridge for thin-edge.io", "thin-edge.sh", bridge("thin-edge.sh", "az/messages/events/")},
}

func TestEachClientOfTheHubWaitsForTheIdentityAndRenewsItsToken(t *testing.T) {
	want(t)
	daemon, err := builtDaemon()
	if err != nil {
		t.Fatal(err)
	}
	driver, err := filepath.Abs("consumer")
	if err != nil {
		t.Fatal(err)
	}
	all := programs(t)
	for _, c := range hubClients {
		scopes := []string{"module:meter", "device"}
		if c.file == "thin-edge.sh" { // it acts as the device
			scopes = scopes[1:]
		}
		for _, scope := range scopes {
			t.Run(c.name+" as "+scope, func(t *testing.T) {
				t.Parallel()
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, c.file), []byte(all[c.file]), 0o600); err != nil {
					t.Fatal(err)
				}
				command := append([]string{"env", "DPSD=" + daemon, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", driver, scope}, c.command(t, dir)...)
				r := runsIn(t, waiting, dir, []string{"--fast", "--hub", "localhost"}, command...)
				if r.err != nil || r.stdout != "done\n" {
					t.Errorf("%v: it printed %q", r.err, r.stdout)
				}
				if r.violations != "" {
					t.Errorf("it violated the rules: %s", r.violations)
				}
				for _, line := range r.refusals() {
					// DPS must refuse dpsd at first.
					if strings.HasPrefix(line, "dpsd-sim: refused ") && !strings.Contains(line, "error code 401000") {
						t.Errorf("it was refused: %s", line)
					}
				}
				if t.Failed() {
					t.Log(r.stderr)
				}
			})
		}
	}
}
