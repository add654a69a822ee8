package clients

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/test/sdk"
)

// limit is the time in which a client finishes, unless it hangs.
const limit = 2 * time.Minute

// want leaves the tests out, unless they are asked for: they install packages from registries.
func want(t *testing.T) {
	t.Helper()
	if os.Getenv("DPSD_CLIENTS") != "1" {
		t.Skip("DPSD_CLIENTS=1 is not set; make test-clients sets it")
	}
}

// built returns the path of dpsd-sim, which is built once.
var built = sync.OnceValues(func() (string, error) { return build("dpsd-sim") })

// build builds a program of this repository, and returns its path.
func build(name string) (string, error) {
	path, err := filepath.Abs("../../bin/clients/" + name)
	if err != nil {
		return "", err
	}
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", path, "../../cmd/"+name).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w\n%s", err, out)
	}
	return path, err
}

// installed is a directory with an SDK and the programs that use it.
type installed func(t *testing.T) string

// install installs an SDK when the first test needs it.
func install(k sdk.SDK) installed {
	install := sync.OnceValues(func() (string, error) {
		if what := k.Missing(); what != "" {
			return "", fmt.Errorf("%s is missing", what)
		}
		// go test has no directory that outlives a test, so "make clean" removes this one.
		dir, err := filepath.Abs(filepath.Join("../../bin/clients", k.Name))
		if err != nil {
			return "", err
		}
		if err := os.RemoveAll(dir); err != nil { // of another version
			return "", err
		}
		return dir, k.Install(context.Background(), "../..", dir)
	})
	return func(t *testing.T) string {
		t.Helper()
		dir, err := install()
		if err != nil {
			t.Fatalf("the SDK for %s: %v", k.Name, err)
		}
		return dir
	}
}

var (
	node   = install(sdk.Node())
	python = install(sdk.Python())
	java   = install(sdk.Java())
)

// mosquitto is the directory of the program that uses mosquitto's clients.
func mosquitto(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../../simulator/testdata/mosquitto")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// client is a row of the table.
type client struct {
	name, transport, credential string

	in      installed
	command []string
	prints  string
}

// What the programs print.
const (
	assigned      = "assigned 127.0.0.1 " + device + "\n"
	sent          = "telemetry sent\n"
	authenticated = "the hub has authenticated the device\n"
)

// table lists the clients, by transport and credential.
func table() (all []client) {
	names := map[string]string{"mqtt": "MQTT", "websocket": "WebSocket", "https": "HTTPS", "key": "a symmetric key", "x509": "an X.509 certificate"}
	add := func(name string, in installed, transport, credential, prints string, command ...string) {
		all = append(all, client{name: name, transport: names[transport], credential: names[credential], in: in, command: command, prints: prints})
	}
	for _, credential := range []string{"key", "x509"} {
		for _, transport := range []string{"mqtt", "websocket", "https"} {
			add("Microsoft's SDK for Node", node, transport, credential, assigned+sent, "node", "device.js", transport, credential)
			add("Microsoft's SDK for Java", java, transport, credential, assigned+sent, "sh", "run", transport, credential)
			if transport == "https" { // the SDK for Python does not have it
				add("Python's requests", python, transport, credential, assigned+authenticated, "venv/bin/python", "https.py", credential)
				continue
			}
			add("Microsoft's SDK for Python", python, transport, credential, assigned+sent, "venv/bin/python", "device.py", transport, credential)
			add("MQTT.js 5", node, transport, credential, assigned+sent, "node", "tutorial.js", "mqtt", transport, credential)
			add("MQTT.js 4", node, transport, credential, assigned+sent, "node", "tutorial.js", "mqtt4", transport, credential)
			add("Paho for Python", python, transport, credential, assigned+sent, "venv/bin/python", "tutorial.py", transport, credential)
		}
		add("mosquitto_sub and mosquitto_pub", mosquitto, "mqtt", credential, "subscribed\n"+sent, "./device", credential)
	}
	return all
}

func TestEveryClientIsAssignedAndConnectsToItsHub(t *testing.T) {
	want(t)
	for _, c := range table() {
		t.Run(fmt.Sprintf("%s over %s with %s", c.name, c.transport, c.credential), func(t *testing.T) {
			t.Parallel()
			r := runs(t, c.in(t), nil, c.command...)
			if r.err != nil || r.stdout != c.prints {
				t.Errorf("%v: it printed %q, want %q", r.err, r.stdout, c.prints)
			}
			if line := "dpsd-sim: telemetry from \"" + device + "\" at \"127.0.0.1\", 5 bytes: hello\n"; strings.Contains(c.prints, sent) && !strings.Contains(r.stderr, line) {
				t.Errorf("dpsd-sim does not print %q", line)
			}
			if r.violations != "" {
				t.Errorf("it violated the rules: %s", r.violations)
			}
			if refusals := r.refusals(); len(refusals) > 0 {
				t.Errorf("it was refused: %q", refusals)
			}
			if t.Failed() {
				t.Log(r.stderr)
			}
		})
	}
}

func TestMicrosoftsServiceSDKForNodeEnrollsDevicesThatThenRegister(t *testing.T) {
	want(t)
	r := runs(t, node(t), []string{"--service", "localhost:8080"}, "node", "service.js")
	if r.err != nil || r.stdout != assigned {
		t.Errorf("%v: it printed %q, want %q\n%s", r.err, r.stdout, assigned, r.stderr)
	}
	// The program makes one mistake, after it has removed an enrollment.
	if refused := regexp.MustCompile(`(?m)^dpsd-sim: refused .*$`).FindAllString(r.stderr, -1); len(refused) != 1 || !strings.Contains(refused[0], "press-7") {
		t.Errorf("the refusals are %q", refused)
	}
}

// device is the registration ID of every device.
const device = "sim-device-1"

// fault is a mistake of a device, or a decision of the service.
type fault struct {
	name     string
	flags    []string          // of exec
	replaced map[string]string // variables
	line     *regexp.Regexp    // that dpsd-sim prints
}

// faults lists what goes wrong most often.
func faults(t *testing.T) []fault {
	t.Helper()
	const wrongKey = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	dir := t.TempDir()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(path, "credentials", "--dir", filepath.Join(dir, "other"), "--registration-id", device).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	disabled := filepath.Join(dir, "disabled.toml")
	text := "[[individual]]\nregistration_id = \"" + device + "\"\ntype = \"symmetric-key\"\nprimary_key = \"" + wrongKey + "\"\ndisabled = true\n"
	if err := os.WriteFile(disabled, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	ca := filepath.Join(dir, "other", "ca.pem")
	return []fault{
		{
			name: "a wrong key", replaced: map[string]string{"PROVISIONING_SYMMETRIC_KEY": wrongKey},
			line: regexp.MustCompile(`(?m)^dpsd-sim: .*` + device + `.*token.*sign.*$`),
		},
		{
			name: "a wrong ID scope", replaced: map[string]string{"PROVISIONING_IDSCOPE": "0ne00000000"},
			line: regexp.MustCompile(`(?m)^dpsd-sim: .*` + device + `.*ID scope.*0ne00000000.*$`),
		},
		{
			name:     "a certificate authority that the client does not trust",
			replaced: map[string]string{"NODE_EXTRA_CA_CERTS": ca, "SSL_CERT_FILE": ca},
			line:     regexp.MustCompile(`(?m)^dpsd-sim: .*TLS.*(certificate|CA).*$`),
		},
		{
			name: "a disabled enrollment", flags: []string{"--enrollments", disabled},
			line: regexp.MustCompile(`(?m)^dpsd-sim: .*` + device + `.*disabled.*$`),
		},
	}
}

func TestEveryFaultIsNamedOnTheTerminal(t *testing.T) {
	want(t)
	for _, f := range faults(t) {
		for _, c := range table() {
			if !strings.HasPrefix(c.name, "Microsoft's") || c.transport != "MQTT" || c.credential != "a symmetric key" {
				continue
			}
			t.Run(fmt.Sprintf("%s of %s", f.name, c.name), func(t *testing.T) {
				t.Parallel()
				command := []string{"env"}
				for name, value := range f.replaced {
					command = append(command, name+"="+value)
				}
				r := runs(t, c.in(t), f.flags, append(command, c.command...)...)
				if r.err == nil || strings.Contains(r.stdout, "assigned") {
					t.Errorf("the client succeeds: %s", r.stdout)
				}
				line := f.line.FindString(r.stderr)
				if line == "" {
					t.Errorf("no line of %q matches %s", r.refusals(), f.line)
				}
				if strings.Contains(line, "AAAAAAAA") {
					t.Errorf("the line contains a key: %s", line)
				}
				t.Log(line)
				if t.Failed() {
					t.Log(r.stderr)
				}
			})
		}
	}
}

func TestAPublishWithoutASubscriptionIsNamedOnTheTerminal(t *testing.T) {
	want(t)
	r := runs(t, mosquitto(t), nil, "sh", "-c", `mosquitto_pub -V mqttv311 -h "$DPS_ENDPOINT" -p 8883 --cafile "$DPS_CA_FILE" \
		--cert "$DPS_CERTIFICATE_FILE" --key "$DPS_PRIVATE_KEY_FILE" -i "$DPS_REGISTRATION_ID" \
		-u "$DPS_ID_SCOPE/registrations/$DPS_REGISTRATION_ID/api-version=2019-03-31" -q 1 -t '$dps/registrations/PUT/iotdps-register/?$rid=1' -m '{}'`)
	line := regexp.MustCompile(`(?m)^dpsd-sim: .*` + device + `.*(subscri|SUBSCRIBE|SUBACK).*$`).FindString(r.stderr)
	if line == "" {
		t.Errorf("no line names the missing subscription: %q", r.refusals())
	}
	t.Log(line)
}

// result is what became of a client.
type result struct {
	stdout, stderr string
	err            error
	violations     string
}

// refusals returns the lines that dpsd-sim has printed, without telemetry.
func (r result) refusals() []string {
	lines := regexp.MustCompile(`(?m)^dpsd-sim: .*$`).FindAllString(r.stderr, -1)
	return slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "dpsd-sim: telemetry from ") })
}

// slots bounds how many clients run at the same time. waiting bounds those that mostly wait.
var slots, waiting = make(chan bool, 4), make(chan bool, 16)

// runs runs a client with "dpsd-sim exec" in a network namespace of its own. PACKETS is the name of
// the packet log.
func runs(t *testing.T, dir string, flags []string, command ...string) result {
	t.Helper()
	return runsIn(t, slots, dir, flags, command...)
}

// runsIn is runs with the slots for the client.
func runsIn(t *testing.T, slots chan bool, dir string, flags []string, command ...string) result {
	t.Helper()
	slots <- true
	defer func() { <-slots }()
	path, err := built()
	if err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(t.TempDir(), "packets.jsonl")
	args := append([]string{path, "exec", "--packet-log", log}, flags...)
	cmd := exec.Command("unshare", append(isolated(), append(append(args, "--"), command...)...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "PACKETS="+log)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.WaitDelay = 5 * time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// exec ends its command, and then itself, when it receives the signal.
	stop := time.AfterFunc(limit, func() { _ = cmd.Process.Signal(os.Interrupt) })
	defer stop.Stop()
	r := result{err: cmd.Wait(), stdout: stdout.String(), stderr: stderr.String()}
	packets, err := os.ReadFile(log)
	if err != nil {
		t.Fatalf("%v\n%s", err, r.stderr)
	}
	entries, err := simulator.ReadLog(bytes.NewReader(packets))
	if err != nil {
		t.Fatal(err)
	}
	r.violations = strings.Join(simulator.Summarize(entries).Violations, "; ")
	return r
}

// isolated returns the arguments with which unshare(1) runs a command in a network that consists
// of the loopback interface. An ordinary user needs a user namespace for it.
func isolated() []string {
	args := []string{"--net"}
	if os.Getuid() != 0 {
		args = []string{"--user", "--map-root-user", "--net"}
	}
	return append(args, "--", "sh", "-c", `ip link set lo up && exec "$@"`, "sh")
}
