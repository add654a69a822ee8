package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// patience is more than enough on any machine.
const patience = 30 * time.Second

// address is that of the container, in the range for documentation.
const address = "192.0.2.1"

// The names of DPS and of the assigned hub.
var serviceNames = []string{"global.azure-devices-provisioning.net", "dpsd-sim.azure-devices.net"}

// lab is a network of two hosts, a container and its client.
type lab struct {
	container, client string // names of the network namespaces
	hosts             string // the client's /etc/hosts
}

// newLab creates a network on which the container has the given names.
func newLab(t *testing.T, names ...string) *lab {
	t.Helper()
	need(t, true, "ip", "nsenter", "unshare", "runc", "skopeo", "umoci")
	unique := fmt.Sprintf("dpsd-image-%d-%d", os.Getpid(), time.Now().UnixNano())
	l := &lab{container: unique + "-s", client: unique + "-c", hosts: filepath.Join(t.TempDir(), "hosts")}
	for _, namespace := range []string{l.container, l.client} {
		run(t, "ip", "netns", "add", namespace)
		t.Cleanup(func() { run(t, "ip", "netns", "del", namespace) })
		run(t, "ip", "-n", namespace, "link", "set", "lo", "up")
	}
	run(t, "ip", "-n", l.container, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", l.client)
	run(t, "ip", "-n", l.container, "addr", "add", address+"/24", "dev", "eth0")
	run(t, "ip", "-n", l.client, "addr", "add", "192.0.2.2/24", "dev", "eth0")
	run(t, "ip", "-n", l.container, "link", "set", "eth0", "up")
	run(t, "ip", "-n", l.client, "link", "set", "eth0", "up")
	l.name(t, names...)
	return l
}

// name gives the container these names, in the client's /etc/hosts.
func (l *lab) name(t *testing.T, names ...string) {
	t.Helper()
	text := "127.0.0.1 localhost\n"
	if len(names) > 0 {
		text += address + " " + strings.Join(names, " ") + "\n"
	}
	if err := os.WriteFile(l.hosts, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// command returns a command of the client.
func (l *lab) command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	return exec.CommandContext(t.Context(), "nsenter", append([]string{"--net=/run/netns/" + l.client, "unshare", "--mount", "sh", "-ec", `mount --bind "$0" /etc/hosts; exec "$@"`, l.hosts}, args...)...)
}

// shared is a directory for what all tests use.
var shared string

func TestMain(m *testing.M) {
	var err error
	if shared, err = os.MkdirTemp("", "dpsd-image-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	_ = os.RemoveAll(shared)
	os.Exit(status)
}

// unpacked returns the bundle that umoci makes of an image for this machine: the file system
// and the configuration of the container.
func unpacked(name string) (string, error) { return bundles[name]() }

var bundles = map[string]func() (string, error){
	"dpsd":     sync.OnceValues(func() (string, error) { return unpack("dpsd") }),
	"dpsd-sim": sync.OnceValues(func() (string, error) { return unpack("dpsd-sim") }),
}

func unpack(name string) (string, error) {
	base := filepath.Join(os.Getenv("DPSD_DIST"), name+"_"+os.Getenv("DPSD_VERSION"))
	image, bundle := filepath.Join(shared, name+".image"), filepath.Join(shared, name+".bundle")
	return bundle, commands([][]string{
		{"skopeo", "copy", "oci-archive:" + base + ".oci.tar", "oci:" + image + ":this"},
		{"umoci", "unpack", "--image", image + ":this", bundle},
	})
}

// commands runs commands that must succeed.
func commands(all [][]string) error {
	for _, c := range all {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			return fmt.Errorf("%v: %w\n%s", c, err, out)
		}
	}
	return nil
}

// container is a running container.
type container struct {
	id, state string
	out       lockedBuffer
	done      chan error
}

// lockedBuffer is written by a process while the test reads it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// volume returns a new volume with the owner and the mode of /data in the image of the simulator,
// as container engines create it.
func volume(t *testing.T) string {
	t.Helper()
	return volumeOf(t, simulator, "data")
}

// volumeOf returns a new volume for a directory of an image.
func volumeOf(t *testing.T, image, directory string) string {
	t.Helper()
	bundle, err := unpacked(image)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "volume")
	run(t, "cp", "-a", filepath.Join(bundle, "rootfs", directory), dir)
	return dir
}

// simulator is the name of the image that place stands for if it names none.
const simulator = "dpsd-sim"

// place is what a container gets from its host.
type place struct {
	image       string            // "": the simulator
	namespace   string            // network namespace; "": that of the service
	volumes     map[string]string // directories of the host, by their paths in the container
	readOnly    []string          // paths that are read-only
	tmpfs       []string          // paths of file systems in memory that belong to the user
	environment []string          // in addition to that of the image
	notify      string            // path of the notification socket of the host's service manager; "" for none
	sysctls     map[string]string
}

// lowPorts lets an ordinary user listen on ports below 1024, as Docker does.
var lowPorts = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}

// start starts a container of the image: with the default command if there are no arguments,
// with a file system that is read-only, and without any capability.
func (l *lab) start(t *testing.T, p place, args ...string) *container {
	t.Helper()
	bundle, err := unpacked(cmp.Or(p.image, simulator))
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	var config specs.Spec
	if err := json.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	config.Process.Terminal = false
	config.Process.Capabilities = &specs.LinuxCapabilities{}
	if len(args) > 0 {
		config.Process.Args = append([]string{config.Process.Args[0]}, args...)
	}
	config.Root = &specs.Root{Path: filepath.Join(bundle, "rootfs"), Readonly: true}
	var mounts []specs.Mount
	for _, m := range config.Mounts {
		// The cgroups of the host may be of another version than those of this program.
		if m.Type != "cgroup" && p.volumes[m.Destination] == "" {
			mounts = append(mounts, m)
		}
	}
	for destination, source := range p.volumes {
		access := "rw"
		if slices.Contains(p.readOnly, destination) {
			access = "ro"
		}
		mounts = append(mounts, specs.Mount{Destination: destination, Type: "bind", Source: source, Options: []string{"rbind", access, "nosuid", "nodev"}})
	}
	for _, destination := range p.tmpfs {
		mounts = append(mounts, specs.Mount{Destination: destination, Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "mode=0755", "uid=65532", "gid=65532"}})
	}
	// Shorter paths first: a mount hides what is below it.
	slices.SortStableFunc(mounts, func(a, b specs.Mount) int { return cmp.Compare(len(a.Destination), len(b.Destination)) })
	config.Process.Env = append(config.Process.Env, p.environment...)
	config.Mounts = mounts
	for i, n := range config.Linux.Namespaces {
		if n.Type == specs.NetworkNamespace {
			config.Linux.Namespaces[i].Path = "/run/netns/" + cmp.Or(p.namespace, l.container)
		}
	}
	config.Linux.Sysctl = p.sysctls
	if text, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	// runc creates a socket there, whose path is limited to 107 bytes.
	state, err := os.MkdirTemp("", "r")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(state) })
	c := &container{id: filepath.Base(l.container) + "-" + strconv.FormatInt(time.Now().UnixNano(), 36), state: state, done: make(chan error, 1)}
	command := exec.Command("runc", "--root", c.state, "run", "--bundle", dir, c.id)
	command.Stdout, command.Stderr = &c.out, &c.out
	if p.notify != "" {
		command.Env = append(os.Environ(), "NOTIFY_SOCKET="+p.notify)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		c.done <- command.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		_ = exec.Command("runc", "--root", c.state, "delete", "--force", c.id).Run() // it may have ended
		<-ended
	})
	return c
}

// exec returns a command in the container.
func (c *container) exec(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", c.state, "exec", c.id}, args...)...)
}

// awaitReady waits until the health check of the image succeeds.
func (c *container) awaitReady(t *testing.T, check []string) {
	t.Helper()
	var out []byte
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var err error
		if out, err = c.exec(check...).CombinedOutput(); err == nil {
			return
		}
		select {
		case err := <-c.done:
			t.Fatalf("the container ended: %v\n%s", err, c.out.String())
		default:
		}
	}
	t.Fatalf("the container does not become ready: %s\n%s", out, c.out.String())
}

// wait waits for the end of the container, and returns its exit code.
func (c *container) wait(t *testing.T) int {
	t.Helper()
	select {
	case err := <-c.done:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		if err != nil {
			t.Fatal(err)
		}
		return 0
	case <-time.After(patience):
		t.Fatalf("the container does not end:\n%s", c.out.String())
		return -1
	}
}

// end sends a signal to process 1 of the container, and returns its exit code.
func (c *container) end(t *testing.T, signal string) int {
	t.Helper()
	run(t, "runc", "--root", c.state, "kill", c.id, signal)
	return c.wait(t)
}

// imageConfig returns the configuration of an image for this machine.
func imageConfig(t *testing.T, name string) v1.Config {
	t.Helper()
	for arch, m := range machines {
		if m.goarch == runtime.GOARCH {
			file, err := images(t, name)[arch].ConfigFile()
			if err != nil {
				t.Fatal(err)
			}
			return file.Config
		}
	}
	t.Fatalf("there is no image for %s", runtime.GOARCH)
	return v1.Config{}
}

// healthCheck returns the command of the health check of the simulator's image.
func healthCheck(t *testing.T) []string {
	t.Helper()
	return healthCheckOf(t, simulator)
}

func healthCheckOf(t *testing.T, name string) []string {
	t.Helper()
	check := imageConfig(t, name).Healthcheck
	if check == nil || len(check.Test) < 2 || check.Test[0] != "CMD" {
		t.Fatalf("the health check is %+v; without a shell, only CMD is possible", check)
	}
	return check.Test[1:]
}

// dpsd registers dpsd from the client's host, with the service's real name.
func (l *lab) dpsd(t *testing.T, data, protocol string) {
	t.Helper()
	dir := t.TempDir()
	scope, err := os.ReadFile(filepath.Join(data, "id-scope"))
	if err != nil {
		t.Fatal(err)
	}
	configuration := fmt.Sprintf(`
[dps]
id_scope        = %[1]q
registration_id = "gateway-1"

[[credential]]
type = "symmetric-key"
key  = "file:%[2]s/gateway-1.key"

[transport]
protocols      = [%[3]q]
websocket_port = 8443
ca_file        = "%[2]s/ca.pem"
proxy          = "none"

[state]
directory = "%[4]s/state"

[control]
socket = "%[4]s/run/dpsd.sock"
`, strings.TrimSpace(string(scope)), data, protocol, dir)
	if err := os.WriteFile(filepath.Join(dir, "dpsd.toml"), []byte(configuration), 0o600); err != nil {
		t.Fatal(err)
	}
	output(t, l.command(t, filepath.Join(os.Getenv("DPSD_BIN"), "dpsd"), "run", "--once", "--timeout", "1m", "--config", filepath.Join(dir, "dpsd.toml")))
	text, err := os.ReadFile(filepath.Join(dir, "state/state.json"))
	if err != nil {
		t.Fatal(err)
	}
	var record struct{ DeviceID, AssignedHub string }
	if err := json.Unmarshal(text, &record); err != nil {
		t.Fatal(err)
	}
	if record.DeviceID != "gateway-1" || record.AssignedHub != "dpsd-sim.azure-devices.net" {
		t.Errorf("the record is of %q in %q", record.DeviceID, record.AssignedHub)
	}
}

func TestAContainerServesDevicesOfOtherHostsWithoutPrivileges(t *testing.T) {
	t.Parallel()
	built(t, simulator)
	l := newLab(t, serviceNames...)
	data := volume(t)
	c := l.start(t, place{volumes: map[string]string{"/data": data}})
	c.awaitReady(t, healthCheck(t))

	t.Run("as an ordinary user, without capabilities, as process 1", func(t *testing.T) {
		text := run(t, "runc", "--root", c.state, "state", c.id)
		var state struct{ Pid int }
		if err := json.Unmarshal([]byte(text), &state); err != nil {
			t.Fatal(err)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", state.Pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"Uid:\t65532\t65532\t65532\t65532", "Gid:\t65532\t65532\t65532\t65532", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"} {
			if !strings.Contains(string(status), line+"\n") {
				t.Errorf("%q is missing:\n%s", line, status)
			}
		}
		endpoint, err := os.ReadFile(filepath.Join(data, "endpoint.json"))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(endpoint), `"pid": 1`) {
			t.Errorf("%s", endpoint)
		}
	})
	t.Run("dpsd registers over MQTT and WebSocket, with the names of Azure", func(t *testing.T) {
		output(t, c.exec("dpsd-sim", "credentials", "--dir", "/data", "--registration-id", "gateway-1"))
		for _, protocol := range []string{"mqtt", "websocket"} {
			l.dpsd(t, data, protocol)
		}
	})
	t.Run("SIGTERM ends it with 0, and a new container serves the same devices", func(t *testing.T) {
		if code := c.end(t, imageConfig(t, simulator).StopSignal); code != 0 {
			t.Errorf("exit code %d:\n%s", code, c.out.String())
		}
		if _, err := os.Stat(filepath.Join(data, "endpoint.json")); !errors.Is(err, fs.ErrNotExist) {
			t.Error("endpoint.json is left:", err)
		}
		again := l.start(t, place{volumes: map[string]string{"/data": data}})
		again.awaitReady(t, healthCheck(t))
		l.dpsd(t, data, "mqtt")
		if code := again.end(t, "INT"); code != 0 {
			t.Errorf("exit code %d after SIGINT:\n%s", code, again.out.String())
		}
	})
	t.Run("after it was killed, the health check fails", func(t *testing.T) {
		killed := l.start(t, place{volumes: map[string]string{"/data": data}})
		killed.awaitReady(t, healthCheck(t))
		if code := killed.end(t, "KILL"); code != 137 {
			t.Errorf("exit code %d", code)
		}
		check := l.start(t, place{volumes: map[string]string{"/data": data}}, healthCheck(t)[1:]...)
		if code := check.wait(t); code != 1 || !strings.Contains(check.out.String(), "no simulator is ready: /data/endpoint.json belongs to process 1, which has ended") {
			t.Errorf("exit code %d: %s", code, check.out.String())
		}
	})
}

func TestAContainerPrintsTheVersion(t *testing.T) {
	_, version := built(t, simulator)
	c := newLab(t).start(t, place{}, "--version")
	if code := c.wait(t); code != 0 || !strings.HasPrefix(c.out.String(), "dpsd-sim "+version+" linux/"+runtime.GOARCH+" ") {
		t.Errorf("exit code %d: %s", code, c.out.String())
	}
}

// The demonstration resolves localhost, which container engines list in /etc/hosts.
func TestAContainerRunsTheDemonstration(t *testing.T) {
	t.Parallel()
	built(t, simulator)
	l := newLab(t)
	c := l.start(t, place{volumes: map[string]string{"/tmp": volume(t), "/etc/hosts": l.hosts}}, "demo")
	if code := c.wait(t); code != 0 || !strings.Contains(c.out.String(), "READY=1") {
		t.Errorf("exit code %d: %s", code, c.out.String())
	}
}
