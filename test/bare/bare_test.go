package bare

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is the time limit for an expected event. A test that passes takes much less time, even
// on a busy machine.
const patience = 2 * time.Minute

const device = "gw-1"

// shop contains the simulator with its keys and the configuration, which the tests share.
var shop struct {
	directory string
	table     string // dpsd.toml without a credential
	key       string // of the device
}

func TestMain(m *testing.M) {
	if os.Getenv("DPSD_BARE") == "" {
		fmt.Println("test/bare: no DPSD_BARE: make test-bare runs these tests")
		os.Exit(0)
	}
	os.Exit(prepared(m))
}

func prepared(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	dir, err := os.MkdirTemp("", "dpsd-bare-")
	if err == nil {
		defer os.RemoveAll(dir)
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		return fail(err)
	}
	shop.directory = dir
	sim := exec.Command(program("dpsd-sim"), "serve", "--dir", dir+"/sim", "--fast", "--mqtt", "localhost:0", "--websocket", "", "--service", "")
	out, err := sim.StdoutPipe()
	if err == nil {
		sim.Stderr = os.Stderr
		err = sim.Start()
	}
	if err != nil {
		return fail(err)
	}
	defer func() { _ = sim.Process.Kill(); _ = sim.Wait() }()
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return fail(fmt.Errorf("dpsd-sim: %w", err))
	}
	go io.Copy(io.Discard, out)
	var endpoint struct {
		IDScope  string `json:"idScope"`
		MQTTPort int    `json:"mqttPort"`
	}
	text, err := os.ReadFile(dir + "/sim/endpoint.json")
	if err == nil {
		err = json.Unmarshal(text, &endpoint)
	}
	if err == nil {
		err = exec.Command(program("dpsd-sim"), "credentials", "--dir", dir+"/sim", "--registration-id", device).Run()
	}
	key, unread := os.ReadFile(dir + "/sim/" + device + ".key")
	if err = errors.Join(err, unread); err != nil {
		return fail(err)
	}
	shop.key = string(key)
	shop.table = fmt.Sprintf(`
[dps]
endpoint        = "localhost"
id_scope        = %q
registration_id = %q

[transport]
protocols = ["mqtt"]
mqtt_port = %d
ca_file   = "/etc/dpsd/ca.pem"
proxy     = "none"
`, endpoint.IDScope, device, endpoint.MQTTPort)
	return m.Run()
}

// program returns the path of a program that "make" has built.
func program(name string) string { return filepath.Join(os.Getenv("DPSD_BIN"), name) }

// need skips a test whose tools or privileges are missing; in CI, the test fails.
func need(t *testing.T, tools ...string) {
	t.Helper()
	missing := t.Skip
	if os.Getenv("CI") != "" {
		missing = t.Fatal
	}
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing(err)
		}
	}
	if os.Getuid() != 0 {
		missing("only root can enter the namespaces of another user")
	}
}

func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
		t.Fatal(err)
	}
}

// directory returns a new directory that the user 65532 may enter.
func directory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(shop.directory, "t-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// credential is the credential of dpsd.toml in a file.
const credential = "[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/etc/dpsd/device.key\"\n"

// configure writes the files of /etc/dpsd to a directory.
func configure(t *testing.T, dir, more string) {
	t.Helper()
	ca, err := os.ReadFile(shop.directory + "/sim/ca.pem")
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir+"/dpsd.toml", shop.table+more, 0o644)
	write(t, dir+"/ca.pem", string(ca), 0o644)
	write(t, dir+"/device.key", shop.key, 0o644)
}

// user is the user and group of the program in its namespaces.
const user = "65532"

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

// container is a dpsd that runs as process 1 in its own namespaces.
type container struct {
	pid  int // as the tests see it
	env  []string
	out  lockedBuffer
	done chan error
	root bool // without a user namespace
}

// place contains bwrap options for a container, in addition to a read-only root with dpsd.
type place struct {
	etc  string // directory for /etc/dpsd
	more []string
	env  []string
}

// start starts dpsd with the arguments: as user 65532, in namespaces without capabilities, with
// a read-only root file system that contains neither /run/dpsd nor /run/systemd.
func start(t *testing.T, p place, args ...string) *container {
	t.Helper()
	need(t, "bwrap", "nsenter", "setpriv")
	root := directory(t)
	for _, dir := range []string{"proc", "dev", "run", "tmp", "usr/bin", "etc/dpsd", "var/lib/dpsd"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(t, root+"/etc/hosts", "127.0.0.1 localhost\n::1 localhost\n", 0o644)
	write(t, root+"/usr/bin/dpsd", "", 0o755)
	write(t, root+"/usr/bin/busybox", "", 0o755)
	if p.etc == "" {
		p.etc = directory(t)
		configure(t, p.etc, credential)
	}
	c := &container{env: append([]string{"PATH=/usr/bin"}, p.env...), done: make(chan error, 1)}
	command := []string{"setpriv", "--reuid=" + user, "--regid=" + user, "--clear-groups", "bwrap", "--unshare-user", "--uid", user, "--gid", user,
		"--unshare-pid", "--unshare-ipc", "--unshare-uts", "--die-with-parent", "--as-pid-1", "--new-session", "--info-fd", "3",
		"--ro-bind", root, "/", "--ro-bind", program("dpsd"), "/usr/bin/dpsd", "--ro-bind", p.etc, "/etc/dpsd", "--proc", "/proc", "--dev", "/dev"}
	command = append(append(append(command, p.more...), "dpsd"), args...)
	run(t, c, command)
	// bwrap creates the process before it creates the file system.
	until(t, "process 1 is dpsd", func() bool { return !strings.HasPrefix(commandOf(c.pid), "bwrap") })
	return c
}

// run starts a command with bwrap, and waits until it has created the namespaces.
func run(t *testing.T, c *container, command []string) {
	t.Helper()
	read, info, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = c.env, &c.out, &c.out, []*os.File{info}
	cmd.WaitDelay = time.Second
	if path, err := exec.LookPath(command[0]); err == nil {
		cmd.Path = path
	}
	err = cmd.Start()
	info.Close()
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		c.done <- cmd.Wait()
		close(ended)
	}()
	var started struct {
		Child int `json:"child-pid"`
	}
	t.Cleanup(func() {
		if started.Child != 0 {
			_ = syscall.Kill(started.Child, syscall.SIGKILL) // and with it, its namespace
		}
		_ = cmd.Process.Kill()
		<-ended
	})
	if err := json.NewDecoder(read).Decode(&started); err != nil {
		t.Fatalf("bwrap: %v\n%s", err, c.out.String())
	}
	c.pid = started.Child
}

// exec returns a command in the namespaces.
func (c *container) exec(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	enter := []string{"nsenter", "--target", fmt.Sprint(c.pid), "--mount", "--pid", "--wdns=/"}
	if !c.root {
		enter = append(enter, "--setuid", user, "--setgid", user)
	}
	enter = append(enter, args...)
	cmd := exec.CommandContext(t.Context(), enter[0], enter[1:]...)
	cmd.Env = c.env
	return cmd
}

// exits runs a command in the namespaces, and returns its output and its exit code.
func (c *container) exits(t *testing.T, args ...string) (string, int) {
	t.Helper()
	// A service that the command starts may keep the file open, and would do so with a pipe.
	out, err := os.CreateTemp(shop.directory, "out-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := c.exec(t, args...)
	cmd.Stdout, cmd.Stderr = out, out
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	text, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	return string(text), cmd.ProcessState.ExitCode()
}

// must runs a command that must succeed, and returns its output.
func (c *container) must(t *testing.T, args ...string) string {
	t.Helper()
	out, code := c.exits(t, args...)
	if code != 0 {
		t.Fatalf("%s: exit code %d: %s\n%s", args, code, out, c.out.String())
	}
	return out
}

// wait waits for the end of process 1, and returns its exit code.
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
		t.Fatalf("it does not end:\n%s", c.out.String())
		return -1
	}
}

// end sends a signal to process 1, and returns its exit code.
func (c *container) end(t *testing.T, signal syscall.Signal) int {
	t.Helper()
	if err := syscall.Kill(c.pid, signal); err != nil {
		t.Fatal(err)
	}
	return c.wait(t)
}

// until waits until a condition is true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("not within " + patience.String() + ": " + what)
		}
	}
}

// logs waits until the log contains a text.
func (c *container) logs(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(patience); !strings.Contains(c.out.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the log does not contain %s within %s:\n%s", text, patience, c.out.String())
		}
	}
}

func contains(t *testing.T, what, text string, wanted ...string) {
	t.Helper()
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			t.Errorf("%s does not contain %q:\n%s", what, want, text)
		}
	}
}

// state returns the option for a writable state directory.
func state() []string { return []string{"--tmpfs", "/var/lib/dpsd"} }

func TestWithAReadOnlyRootAndOneVolumeDpsdRegistersAndSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	c := start(t, place{more: state()}, "run")
	c.must(t, "dpsd", "wait", "--timeout", patience.String())
	c.logs(t, `"event":"assigned"`)
	contains(t, "the log", c.out.String(), `"event":"control-failed","error":"the directory /run/dpsd does not exist and cannot be created: read-only file system"`)

	const noSocket = "dpsd is running (process 1), but has no control socket, because it cannot create files in /run/dpsd: no such file or directory"
	out, code := c.exits(t, "dpsd", "status")
	if code != 0 {
		t.Errorf("dpsd status exits with %d", code)
	}
	contains(t, "dpsd status", out, "now           dpsd cannot be reached\n", "why: "+noSocket, "what to do: Create the directory")
	out, code = c.exits(t, "dpsd", "health")
	if code != 1 {
		t.Errorf("dpsd health exits with %d", code)
	}
	contains(t, "dpsd health", out, "dpsd: not ready: "+noSocket)
	out = c.must(t, "dpsd", "check", "--offline")
	contains(t, "dpsd check", out, "warning  service               "+noSocket, "service-manager       ")
	if strings.Contains(out, "systemctl") || strings.Contains(out, "journalctl") {
		t.Errorf("dpsd check gives commands of systemd:\n%s", out)
	}
	if code := c.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d:\n%s", code, c.out.String())
	}
}

func TestWithoutAnyWritableDirectoryDpsdKeepsTheAssignmentInMemoryAndIsNotReady(t *testing.T) {
	t.Parallel()
	c := start(t, place{}, "run")
	c.logs(t, `"fault":"state-unwritable"`)
	contains(t, "the log", c.out.String(), "read-only file system")
	if out, code := c.exits(t, "dpsd", "health"); code != 1 || !strings.HasPrefix(out, "dpsd: not ready: ") {
		t.Errorf("dpsd health exits with %d: %s", code, out)
	}
	if code := c.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d", code)
	}
}

func TestTheHealthCheckSaysWhatToDoWithoutSystemd(t *testing.T) {
	t.Parallel()
	etc := directory(t)
	configure(t, etc, credential)
	if err := os.Remove(etc + "/device.key"); err != nil {
		t.Fatal(err)
	}
	c := start(t, place{etc: etc, more: append(state(), "--tmpfs", "/run")}, "run")
	c.logs(t, `"fault":"credential-unreadable"`)
	var out string
	until(t, "the health check names the fault", func() bool {
		var code int
		out, code = c.exits(t, "dpsd", "health")
		return code == 1 && strings.Contains(out, "credential-unreadable")
	})
	if strings.Contains(out, "systemctl") || !strings.Contains(out, "then restart dpsd") {
		t.Errorf("the advice is for systemd:\n%s", out)
	}
}

func TestTheHealthCheckOfADpsdThatHangsEnds(t *testing.T) {
	t.Parallel()
	c := start(t, place{more: append(state(), "--tmpfs", "/run")}, "run")
	c.must(t, "dpsd", "wait", "--for", "confirmed", "--timeout", patience.String())
	if err := syscall.Kill(c.pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if out, code := c.exits(t, "dpsd", "health"); code != 1 || !strings.HasPrefix(out, "dpsd: the service runs, but it does not answer\n") {
		t.Errorf("dpsd health exits with %d: %s", code, out)
	}
}

func TestDpsdCreatesItsRuntimeDirectoryWherePermitted(t *testing.T) {
	t.Parallel()
	c := start(t, place{more: append(state(), "--tmpfs", "/run")}, "run")
	c.must(t, "dpsd", "wait", "--for", "confirmed", "--timeout", patience.String())
	if out, code := c.exits(t, "dpsd", "health"); code != 0 || out != "Assigned to localhost as gw-1\n" {
		t.Errorf("dpsd health exits with %d: %s", code, out)
	}
	contains(t, "dpsd check", c.must(t, "dpsd", "check", "--offline"), "ok       service ",
		`ok       service-manager       notification: none; watchdog: none; credentials: none; log: json`)
	if code := c.end(t, syscall.SIGTERM); code != 0 {
		t.Errorf("exit code %d:\n%s", code, c.out.String())
	}
}

func TestAsProcess1DpsdHandlesSignalsAndLeavesNoZombies(t *testing.T) {
	t.Parallel()
	etc := directory(t)
	configure(t, etc, credential)
	busybox := directory(t) + "/busybox" // the user may not enter the directory of the original
	if out, err := exec.Command("cp", filepath.Join(inits(t), "bin/busybox"), busybox).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	c := start(t, place{etc: etc, more: append(state(), "--tmpfs", "/run", "--ro-bind", busybox, "/usr/bin/busybox")}, "run")
	c.must(t, "dpsd", "wait", "--for", "confirmed", "--timeout", patience.String())

	t.Run("an orphan is removed when it ends", func(t *testing.T) {
		// The shell ends before its child, which the kernel then gives to process 1.
		orphan := strings.TrimSpace(c.must(t, "busybox", "sh", "-c", "busybox sleep 1000 >/dev/null 2>&1 & echo $!"))
		if status := c.must(t, "busybox", "cat", "/proc/"+orphan+"/status"); !strings.Contains(status, "\nPPid:\t1\n") {
			t.Fatalf("process 1 is not its parent:\n%s", status)
		}
		c.must(t, "busybox", "kill", "-9", orphan)
		until(t, "the kernel has removed the orphan", func() bool {
			_, code := c.exits(t, "busybox", "test", "-e", "/proc/"+orphan)
			return code == 1
		})
	})
	t.Run("SIGHUP reloads", func(t *testing.T) {
		write(t, etc+"/dpsd.toml", shop.table+credential+"[retry]\nmax = \"4m\"\n", 0o644)
		if err := syscall.Kill(c.pid, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		c.logs(t, `"event":"reloaded"`)
	})
	for name, signal := range map[string]syscall.Signal{"SIGTERM": syscall.SIGTERM, "SIGINT": syscall.SIGINT} {
		t.Run(name+" ends it with 0", func(t *testing.T) {
			c := start(t, place{more: state()}, "run")
			c.must(t, "dpsd", "wait", "--timeout", patience.String())
			if code := c.end(t, signal); code != 0 {
				t.Errorf("exit code %d:\n%s", code, c.out.String())
			}
		})
	}
}

// commandOf returns the command line of a process, with spaces.
func commandOf(pid int) string {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(text), "\x00", " ")
}

// syslogd receives the messages of a system logger, and returns a function that waits for texts
// in them.
func syslogd(t *testing.T) (path string, receives func(texts ...string)) {
	t.Helper()
	path = directory(t) + "/log"
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		err = os.Chmod(path, 0o666)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	var all lockedBuffer
	go func() {
		for buffer := make([]byte, 64<<10); ; {
			n, err := l.Read(buffer)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintf(&all, "%s\n", buffer[:n])
		}
	}()
	return path, func(texts ...string) {
		t.Helper()
		for _, text := range texts {
			until(t, "the system logger receives "+text, func() bool { return strings.Contains(all.String(), text) })
		}
	}
}

func TestTheLogGoesToSyslogOrToStandardErrorAsJSONOrText(t *testing.T) {
	t.Parallel()
	once := func(output string) []string {
		return []string{"run", "--once", "--timeout", patience.String(), "--log", output}
	}
	t.Run("json", func(t *testing.T) {
		c := start(t, place{more: state()}, once("json")...)
		if code := c.wait(t); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, c.out.String())
		}
		for line := range strings.Lines(c.out.String()) {
			if !json.Valid([]byte(line)) {
				t.Errorf("not JSON: %s", line)
			}
		}
	})
	t.Run("text", func(t *testing.T) {
		c := start(t, place{more: state()}, once("text")...)
		if code := c.wait(t); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, c.out.String())
		}
		contains(t, "the log", c.out.String(), time.Now().UTC().Format("2006-"), " info  Assigned to localhost as gw-1 (generation 1, written)\n")
	})
	t.Run("syslog", func(t *testing.T) {
		path, receives := syslogd(t)
		c := start(t, place{more: append(state(), "--bind", path, "/dev/log")}, once("syslog")...)
		if code := c.wait(t); code != 0 || c.out.String() != "" {
			t.Fatalf("exit code %d:\n%s", code, c.out.String())
		}
		receives(" dpsd[1]: Assigned to localhost as gw-1 (generation 1, written)\n", "<29>", "<28>")
	})
	t.Run("syslog, without a system logger", func(t *testing.T) {
		c := start(t, place{more: state()}, once("syslog")...)
		if code := c.wait(t); code != 0 {
			t.Fatalf("exit code %d:\n%s", code, c.out.String())
		}
		contains(t, "standard error", c.out.String(), " info  Assigned to localhost as gw-1 (generation 1, written)\n")
	})
	t.Run("syslog also gets the reason why dpsd exits", func(t *testing.T) {
		etc := directory(t)
		configure(t, etc, "[dsp]\n")
		path, receives := syslogd(t)
		c := start(t, place{etc: etc, more: append(state(), "--bind", path, "/dev/log")}, once("syslog")...)
		if code := c.wait(t); code != 78 {
			t.Fatalf("exit code %d:\n%s", code, c.out.String())
		}
		receives("<27>", " dpsd[1]: /etc/dpsd/dpsd.toml:12:2: dsp: unknown table")
	})
}

// Docker, Podman and Kubernetes mount secrets as files. In Kubernetes, the files are links into a
// directory that is replaced atomically.
func TestASecretOfTheContainerEngineIsACredentialAndItsReplacementIsNoticed(t *testing.T) {
	t.Parallel()
	etc, secrets := directory(t), directory(t)
	configure(t, etc, "[[credential]]\ntype = \"symmetric-key\"\nkey = \"credential:dps-primary-key\"\n")
	write(t, secrets+"/..2026_1/dps-primary-key", base64.StdEncoding.EncodeToString(make([]byte, 32))+"\n", 0o644)
	write(t, secrets+"/..2026_2/dps-primary-key", shop.key, 0o644)
	for name, target := range map[string]string{"..data": "..2026_1", "dps-primary-key": "..data/dps-primary-key", "..data_tmp": "..2026_2"} {
		if err := os.Symlink(target, filepath.Join(secrets, name)); err != nil {
			t.Fatal(err)
		}
	}
	c := start(t, place{etc: etc, env: []string{"CREDENTIALS_DIRECTORY=/run/secrets"},
		more: append(state(), "--tmpfs", "/run", "--ro-bind", secrets, "/run/secrets")}, "run")
	c.logs(t, `"fault":"unauthorized"`)
	if err := os.Rename(secrets+"/..data_tmp", secrets+"/..data"); err != nil {
		t.Fatal(err)
	}
	c.must(t, "dpsd", "wait", "--for", "confirmed", "--timeout", patience.String())
	contains(t, "dpsd check", c.must(t, "dpsd", "check", "--offline"), "ok       credential            symmetric-key credential:dps-primary-key", "credentials: /run/secrets")
}
