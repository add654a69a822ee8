package main_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/test/shipped"
)

// device is the registration ID of the gateway in all tests of this package.
const device = "gw-1"

// workshop contains what all tests share: the built programs, which are in the PATH, and the
// files of a simulator and of a gateway that it has provisioned.
type workshop struct {
	simulator string // directory of the simulator, with the device's key and certificate
	record    string // state directory
	docs      string // docs/ in the repository
}

var shop workshop

func TestMain(m *testing.M) {
	os.Exit(inWorkshop(m.Run))
}

func inWorkshop(work func() int) int {
	dir, err := os.MkdirTemp("", "dpsd-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := build(filepath.Join(dir, "bin")); err != nil {
		fmt.Fprintln(os.Stderr, "building the programs:", err)
		return 1
	}
	docs, err := filepath.Abs("../../docs")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// Other users run the programs as well.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	shop = workshop{simulator: filepath.Join(dir, "simulator"), record: filepath.Join(dir, "state"), docs: docs}
	if err := shop.prepare(dir); err != nil {
		fmt.Fprintln(os.Stderr, "provisioning the first gateway:", err)
		return 1
	}
	return work()
}

// build builds the programs with the flags of a release and adds them to the PATH.
func build(bin string) error {
	if err := shipped.Build(bin); err != nil {
		return err
	}
	return os.Setenv("PATH", bin+string(os.PathListSeparator)+os.Getenv("PATH"))
}

// prepare creates the simulator's keys and the record of an earlier run.
func (w workshop) prepare(dir string) error {
	if out, err := exec.Command("dpsd-sim", "credentials", "--dir", w.simulator, "--registration-id", device).CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	scenario := filepath.Join(dir, "scenario.toml")
	if err := os.WriteFile(scenario, []byte(prompt), 0o600); err != nil {
		return err
	}
	sim, err := startSimulator(w.simulator, filepath.Join(dir, "packets"), "--scenario", scenario)
	if err != nil {
		return err
	}
	defer sim.kill()
	vars := sim.variables()
	vars["WORK"], vars["PROTOCOLS"] = dir, `"mqtt"`
	file := filepath.Join(dir, "dpsd.toml")
	if err := os.WriteFile(file, []byte(complete("", func(name string) string { return vars[name] })), 0o600); err != nil {
		return err
	}
	if out, err := exec.Command("dpsd", "run", "--once", "--timeout", "30s", "--config", file).CombinedOutput(); err != nil {
		return fmt.Errorf("%w\n%s", err, out)
	}
	return nil
}

// prompt is a scenario in which the service assigns immediately.
const prompt = "[settings]\npolls = 0\n"

// tables are the tables of a dpsd.toml for the simulator. $NAME is a variable of a script.
var tables = []struct{ header, text string }{
	{"[dps]", `
id_scope = "$ID_SCOPE"
registration_id = "` + device + `"
endpoint = "localhost"
`},
	{"[[credential]]", `
type = "symmetric-key"
key = "file:$WORK/simulator/` + device + `.key"
`},
	{"[transport]", `
protocols = [$PROTOCOLS]
mqtt_port = $MQTT_PORT
websocket_port = $WEBSOCKET_PORT
ca_file = "$WORK/simulator/ca.pem"
`},
	{"[retry]", `
initial = "100ms"
max = "1s"
`},
	{"[state]", `
directory = "$WORK/state"
`},
	{"[control]", `
socket = "$WORK/run/dpsd.sock"
`},
}

// complete adds the missing tables to a dpsd.toml.
func complete(text string, variable func(string) string) string {
	for _, table := range tables {
		if !strings.Contains("\n"+text, "\n"+table.header+"\n") {
			text += "\n" + table.header + table.text
		}
	}
	return os.Expand(text, variable)
}

// simulated is a running dpsd-sim.
type simulated struct {
	command *exec.Cmd
	dir     string
	address struct {
		MQTTPort      int
		WebSocketPort int
		IDScope       string
	}
}

// startSimulator starts a simulator and returns when it listens. If the ports are those of an
// earlier simulator, it waits until they are free, because the kernel may have assigned one of
// them to another test in the meantime.
func startSimulator(dir, log string, args ...string) (*simulated, error) {
	for limit := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		s, err := tryToStartSimulator(dir, log, args...)
		if err == nil || !strings.Contains(err.Error(), syscall.EADDRINUSE.Error()) || time.Now().After(limit) {
			return s, err
		}
	}
}

func tryToStartSimulator(dir, log string, args ...string) (*simulated, error) {
	s := &simulated{dir: dir}
	s.command = exec.Command("dpsd-sim", append([]string{"serve", "--dir", dir, "--hub", "dpsd-sim.azure-devices.net",
		"--mqtt", "localhost:0", "--websocket", "localhost:0", "--service", "", "--packet-log", log}, args...)...)
	var complaint strings.Builder
	s.command.Stderr = &complaint
	out, err := s.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.command.Start(); err != nil {
		return nil, err
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		s.kill()
		return nil, fmt.Errorf("dpsd-sim: %w\n%s", err, complaint.String())
	}
	text, err := os.ReadFile(filepath.Join(dir, "endpoint.json"))
	if err == nil {
		err = json.Unmarshal(text, &s.address)
	}
	if err != nil {
		s.kill()
		return nil, fmt.Errorf("dpsd-sim printed %q: %w", line, err)
	}
	return s, nil
}

func (s *simulated) variables() map[string]string {
	return map[string]string{
		"ID_SCOPE":       s.address.IDScope,
		"MQTT_PORT":      fmt.Sprint(s.address.MQTTPort),
		"WEBSOCKET_PORT": fmt.Sprint(s.address.WebSocketPort),
	}
}

func (s *simulated) kill() {
	_ = s.command.Process.Kill()
	_ = s.command.Wait()
}
