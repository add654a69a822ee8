// Package system tests the Debian packages as an operator uses them: apt installs them in a Debian
// 12 and a Debian 13 that systemd-nspawn boots, with the simulated service in the network of the
// container. "make test-system" builds packages and root file systems, and runs the tests as root.
package system

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// patience is the timeout for immediate reactions of a container, even on a busy host.
const patience = 100 * time.Second

// suite is a release of Debian or Ubuntu.
type suite struct {
	name    string
	systemd int // its version
}

var suites = []suite{{"bookworm", 252}, {"trixie", 257}}

// inBoth runs a test in both suites in parallel.
func inBoth(t *testing.T, test func(t *testing.T, s suite)) {
	t.Helper()
	inEach(t, suites, test)
}

// inEach runs a test in suites in parallel.
func inEach(t *testing.T, suites []suite, test func(t *testing.T, s suite)) {
	t.Helper()
	t.Parallel()
	need(t)
	for _, s := range suites {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			test(t, s)
		})
	}
}

// need returns the directory of the root file systems that the script "roots" has created. Without
// them it skips the test.
func need(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("DPSD_ROOTS")
	if dir == "" {
		t.Skip("no DPSD_ROOTS: make test-system makes them and runs this")
	}
	missing := t.Skip
	if os.Getenv("CI") != "" {
		missing = t.Fatal
	}
	for _, s := range suites {
		if _, err := os.Stat(filepath.Join(dir, s.name)); err != nil {
			missing("no root file system: ", err)
		}
	}
	if os.Getuid() != 0 {
		missing("only root boots a container")
	}
	return dir
}

// The programs and packages that "make test-system" has built, on this machine and in a gateway.
const (
	built = "../../bin/system"
	there = "/srv/test"
)

// gateway is a machine with its own disk: an overlay over the root file system of the suite. It can
// be booted repeatedly.
type gateway struct {
	t      *testing.T
	suite  suite
	lower  string // directories, the upper first, separated by colons
	dir    string // its directory on this machine
	boots  int
	leader int // the container's first process; 0: it is off
	ended  chan struct{}
}

func newGateway(t *testing.T, s suite) *gateway {
	t.Helper()
	return gatewayOver(t, s, filepath.Join(need(t), s.name))
}

func gatewayOver(t *testing.T, s suite, lower string) *gateway {
	t.Helper()
	dir, err := os.MkdirTemp("", ownFiles())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	g := &gateway{t: t, suite: s, lower: lower, dir: dir}
	for _, d := range []string{"upper", "root"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// ownFiles is the pattern for directories of this process. It is short, because paths of sockets
// have at most 107 bytes.
func ownFiles() string { return fmt.Sprintf("dpsd-system-%d-*", os.Getpid()) }

// booted returns a running gateway without dpsd.
func booted(t *testing.T, s suite) *gateway {
	t.Helper()
	g := newGateway(t, s)
	g.boot()
	return g
}

// withDpsd returns a running gateway with dpsd installed and not configured. It is made from an
// image: only tests of the installation install the package.
func withDpsd(t *testing.T, s suite) *gateway {
	t.Helper()
	g := gatewayOver(t, s, image(t, s))
	g.boot()
	return g
}

// image returns the directories of a root file system with dpsd, installed as image builders
// do.
func image(t *testing.T, s suite) string {
	t.Helper()
	images.Lock()
	defer images.Unlock()
	if images.of[s.name] == "" {
		g := newGateway(t, s)
		g.offline(install)
		kept := filepath.Join(images.dir, s.name)
		if err := os.Rename(filepath.Join(g.dir, "upper"), kept); err != nil {
			t.Fatal(err)
		}
		images.of[s.name] = kept + ":" + g.lower
	}
	return images.of[s.name]
}

// install installs dpsd in a root file system that is not running.
const install = `cp "$parts"/current/dpsd_*.deb "$root/dpsd.deb" && chroot "$root" apt-get -qq -y install /dpsd.deb && rm "$root/dpsd.deb"`

var images struct {
	sync.Mutex
	dir string
	of  map[string]string
}

func TestMain(m *testing.M) {
	images.of = make(map[string]string)
	removeStale(filepath.Join(os.TempDir(), "dpsd-system-*-*"), os.RemoveAll)
	var err error
	if images.dir, err = os.MkdirTemp("", ownFiles()); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	_ = os.RemoveAll(images.dir)
	os.Exit(status)
}

const (
	apt      = "apt-get -qq -y install "
	current  = there + "/current/dpsd_*.deb"
	previous = there + "/previous/dpsd_*.deb"
)

// mount is the beginning of a shell script that runs in its own mount namespace, so that nothing
// remains mounted in any case. $1 is the gateway's directory, $2 the lower directory. Nothing is
// flushed to a disk that is discarded.
const mount = `set -e
rm -rf "$1/work" && mkdir "$1/work"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work,volatile" "$1/root"
`

// A container starts in its own control groups, $3. Otherwise nspawn creates them at the
// top, where two containers collide. With --register=no and --keep-unit, it does not use the
// service manager of this machine.
const boot = mount + `
for group in $3; do echo $$ >"$group/cgroup.procs"; done
exec systemd-nspawn --quiet --register=no --keep-unit --link-journal=no --resolv-conf=off --timezone=off \
	--machine="$4" --directory="$1/root" --bind-ro="$5:` + there + `" --private-network $6 --boot
`

var containers atomic.Int64

// boot starts the gateway, and returns when multi-user.target is reached, which does not depend
// on a service that waits for the cloud. flags are the flags of nspawn.
func (g *gateway) boot(flags ...string) {
	g.t.Helper()
	if g.leader != 0 {
		g.t.Fatal("it runs already")
	}
	if err := watchersLeft(); err != nil {
		g.t.Fatal(err)
	}
	g.boots++
	g.write("/etc/hosts", "127.0.0.1 localhost "+endpoint+" "+simulatedHub+"\n", 0o644)
	// The name contains the ID of the process that runs the test.
	name := fmt.Sprintf("dpsd-%d-%d", os.Getpid(), containers.Add(1))
	groups := controlGroups(g.t, name)
	parts, err := filepath.Abs(built)
	if err != nil {
		g.t.Fatal(err)
	}
	notify := filepath.Join(g.dir, "notify")
	_ = os.Remove(notify)
	messages, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		g.t.Fatal(err)
	}
	defer messages.Close()

	console, err := os.Create(filepath.Join(g.dir, "console"))
	if err != nil {
		g.t.Fatal(err)
	}
	defer console.Close()
	// The process ID namespace around nspawn ends with unshare, and unshare ends with this
	// process in any case.
	cmd := exec.Command("unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc",
		"sh", "-c", boot, "boot", g.dir, g.lower, strings.Join(groups, " "), name, parts, strings.Join(flags, " "))
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET=" + notify,
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1"} // as on a gateway, regardless of this machine
	cmd.Stdout, cmd.Stderr = console, console
	g.ended = start(g.t, cmd)
	g.t.Cleanup(func() { // before the one that removes the groups
		if g.t.Failed() && g.leader != 0 {
			journal, _ := g.try("journalctl --no-pager --boot --lines=120 --output=short-monotonic; systemctl --no-pager list-jobs")
			g.t.Logf("the end of the journal:\n%s", journal)
		}
		g.cut()
	})
	g.leader = leader(g.t, messages, cmd, g.ended, console.Name())
	g.until("multi-user.target", "systemctl --quiet is-active multi-user.target")
}

// controlGroups creates groups of that name and removes them when the test ends. In the hybrid
// layout, systemd has two hierarchies.
func controlGroups(t *testing.T, name string) (groups []string) {
	t.Helper()
	tops := []string{"/sys/fs/cgroup/systemd", "/sys/fs/cgroup/unified"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		tops = []string{"/sys/fs/cgroup"}
	}
	for _, top := range tops {
		if _, err := os.Stat(top); err != nil {
			continue
		}
		removeStale(filepath.Join(top, "dpsd-*-*"), removeGroup)
		group := filepath.Join(top, name)
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := removeGroup(group); err != nil {
				t.Errorf("the control group stays: %v", err)
			}
		})
		groups = append(groups, group)
	}
	if groups == nil {
		t.Fatal("no control groups in /sys/fs/cgroup")
	}
	return groups
}

// removeStale removes the groups of tests that were killed: their names match …-PID-…. Their
// containers have already ended.
func removeStale(pattern string, remove func(path string) error) {
	left, _ := filepath.Glob(pattern)
	for _, path := range left {
		parts := strings.Split(filepath.Base(path), "-")
		pid, err := strconv.Atoi(parts[len(parts)-2])
		if err == nil && errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			_ = remove(path)
		}
	}
}

// removeGroup removes a control group from the leaves up. Processes that have just ended keep it
// busy for a moment.
func removeGroup(group string) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var out []byte
	for range 200 {
		out, _ = exec.Command("find", group, "-depth", "-type", "d", "-exec", "rmdir", "{}", "+").CombinedOutput()
		if _, err := os.Stat(group); os.IsNotExist(err) {
			return nil
		}
		<-tick.C
	}
	return errors.New(string(out))
}

// start runs a program until it or this process ends, for any reason. The channel is closed when
// the program has ended.
func start(t *testing.T, cmd *exec.Cmd) chan struct{} {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // Pdeathsig is about the thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	return ended
}

// startReady starts a program, and returns when it has printed a line.
func startReady(t *testing.T, cmd *exec.Cmd) (ended chan struct{}) {
	t.Helper()
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	complaints := new(strings.Builder)
	cmd.Stderr = complaints
	ended = start(t, cmd)
	ready := make(chan bool, 1)
	go func() {
		lines := bufio.NewReader(said)
		_, err := lines.ReadString('\n')
		ready <- err == nil
		_, _ = io.Copy(io.Discard, lines)
	}()
	select {
	case ok := <-ready:
		if !ok {
			<-ended
			t.Fatalf("%v: %s", cmd.Args, complaints)
		}
	case <-time.After(patience):
		t.Fatalf("%v does not get ready", cmd.Args)
	}
	return ended
}

// leader waits until nspawn reports that the container runs, and returns its first process:
// nspawn's only child, as nspawn is unshare's only child.
func leader(t *testing.T, messages *net.UnixConn, cmd *exec.Cmd, ended <-chan struct{}, console string) int {
	t.Helper()
	stop := context.AfterFunc(closed(ended), func() { messages.Close() })
	defer stop()
	if err := messages.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	message := make([]byte, 4096)
	for {
		n, err := messages.Read(message)
		if err != nil {
			text, _ := os.ReadFile(console)
			t.Fatalf("the container does not boot: %v\n%s", err, text)
		}
		if bytes.Contains(message[:n], []byte("READY=1")) {
			return child(t, child(t, cmd.Process.Pid))
		}
	}
}

func child(t *testing.T, pid int) int {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	id, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatalf("process %d has not one child: %q", pid, text)
	}
	return id
}

// closed returns when the channel is closed.
func closed(c <-chan struct{}) context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-c
		cancel()
	}()
	return ctx
}

// cut simulates a power cut.
func (g *gateway) cut() {
	if g.leader != 0 {
		_ = syscall.Kill(g.leader, syscall.SIGKILL)
		<-g.ended
		g.leader = 0
	}
}

// poweroff shuts the gateway down cleanly.
func (g *gateway) poweroff() {
	g.t.Helper()
	if err := syscall.Kill(g.leader, syscall.Signal(34+4)); err != nil { // SIGRTMIN+4, systemd(1)
		g.t.Fatal(err)
	}
	select {
	case <-g.ended:
	case <-time.After(patience):
		g.t.Fatalf("it does not power off within %s", patience)
	}
	g.leader = 0
}

// reboot shuts down and boots again.
func (g *gateway) reboot() {
	g.t.Helper()
	g.poweroff()
	g.boot()
}

// try runs a shell script in the gateway, and returns its output and exit status.
func (g *gateway) try(script string) (string, int) {
	g.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(g.leader), "--all", "--",
		"/usr/bin/env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8", "SYSTEMD_PAGER=cat", "DEBIAN_FRONTEND=noninteractive",
		"/bin/sh", "-ec", "cd\n"+script)
	cmd.WaitDelay = time.Second // processes that nsenter has started keep the output open
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if ctx.Err() != nil || err != nil && !errors.As(err, &exit) {
		g.t.Fatalf("%s\n%s: %v, %v\n%s", g.suite.name, script, err, ctx.Err(), out)
	}
	return strings.TrimRight(string(out), "\n"), cmd.ProcessState.ExitCode()
}

// run runs a shell script that must succeed, and returns its output.
func (g *gateway) run(script string) string {
	g.t.Helper()
	out, status := g.try(script)
	if status != 0 {
		g.t.Fatalf("%s\nends with %d:\n%s", script, status, out)
	}
	return out
}

// timed runs a shell script that must succeed, and returns how long it took.
func (g *gateway) timed(what, script string) {
	g.t.Helper()
	began := time.Now()
	g.run(script)
	g.t.Logf("%s: %s took %.1f s", g.suite.name, what, time.Since(began).Seconds())
}

// until waits for a condition: a shell command that succeeds.
func (g *gateway) until(what, condition string) {
	g.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	late := time.After(patience)
	for {
		out, status := g.try(condition)
		if status == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-g.ended:
			text, _ := os.ReadFile(filepath.Join(g.dir, "console"))
			g.t.Fatalf("the container has ended:\n%s", text)
		case <-late:
			g.t.Fatalf("not within %s: %s\n%s\n%s", patience, what, condition, out)
		}
	}
}

// write writes a file into the gateway, whether it runs or not.
func (g *gateway) write(path, text string, mode os.FileMode) {
	g.t.Helper()
	if g.leader == 0 {
		path = filepath.Join(g.dir, "upper", path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), mode), os.Chmod(path, mode)); err != nil {
			g.t.Fatal(err)
		}
		return
	}
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(g.leader), "--mount", "--", "/bin/sh", "-ec",
		`mkdir -p "${1%/*}"; cat >"$1.new"; chmod "$2" "$1.new"; mv "$1.new" "$1"`, "write", path, fmt.Sprintf("%o", mode))
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		g.t.Fatalf("%s: %v: %s", path, err, out)
	}
}

// show returns a property of a unit, systemctl(1).
func (g *gateway) show(unit, property string) string {
	g.t.Helper()
	return g.run("systemctl show --value --property=" + property + " " + unit)
}

// expect compares a unit's property with the expected value.
func (g *gateway) expect(unit, property, want string) {
	g.t.Helper()
	if got := g.show(unit, property); got != want {
		g.t.Errorf("%s of %s is %q, want %q", property, unit, got, want)
	}
}

// untilShown waits until a unit's property equals or contains a text.
func (g *gateway) untilShown(unit, property, text string) {
	g.t.Helper()
	g.until(fmt.Sprintf("%s of %s contains %q", property, unit, text),
		fmt.Sprintf("shown=$(systemctl show --value --property=%s %s); case $shown in *'%s'*) ;; *) echo \"$shown\"; exit 1 ;; esac", property, unit, text))
}

// entry is an entry of the journal, systemd.journal-fields(7).
type entry map[string]any

func (e entry) text(field string) string {
	text, _ := e[field].(string)
	return text
}

// journal returns the entries that match, the oldest first.
func (g *gateway) journal(match string) (entries []entry) {
	g.t.Helper()
	for line := range strings.Lines(g.run("journalctl --quiet --no-pager --output=json " + match)) {
		var e entry
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			g.t.Fatalf("%v: %s", err, line)
		}
		entries = append(entries, e)
	}
	return entries
}

// event waits for an event of dpsd, and returns its first entry.
func (g *gateway) event(name string) entry {
	g.t.Helper()
	g.until("the event "+name, "journalctl --quiet --no-pager --output=cat DPSD_EVENT="+name+" | grep -q .")
	return g.journal("DPSD_EVENT=" + name)[0]
}

// offline runs a shell script with the file system of a gateway that is off in $root, as image
// builders do. The build output is in $parts.
func (g *gateway) offline(script string) string {
	g.t.Helper()
	if g.leader != 0 {
		g.t.Fatal("it runs")
	}
	parts, err := filepath.Abs(built)
	if err != nil {
		g.t.Fatal(err)
	}
	out, err := exec.Command("unshare", "--mount", "--propagation=private", "sh", "-c", mount+`
export LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive root="$1/root" parts="$3"
`+script, "offline", g.dir, g.lower, parts).CombinedOutput()
	if err != nil {
		g.t.Fatalf("%s\n%v\n%s", script, err, out)
	}
	return strings.TrimRight(string(out), "\n")
}
