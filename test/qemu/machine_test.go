// Package qemu tests what needs a whole machine: dpsd as a service of a booted systemd in QEMU.
// "make test-clock" boots machines with a wrong clock, and "make test-tpm-machine" machines with a
// TPM. The tests change neither the clock nor the devices of the machine that runs them.
package qemu

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is the timeout for immediate reactions of the emulated machine, even on a busy host. It
// is less than the shortest delay after a refusal, refused_initial (5 minutes here) minus a
// quarter: anything that happens within it did not wait for that delay.
const patience = 200 * time.Second

// host is the address of this machine's loopback interface in the network of QEMU. The guest has
// no route to any other network.
const host = "10.0.2.2"

// machine is a booted machine.
type machine struct {
	t       *testing.T
	events  <-chan event
	logged  []event           // all events that were received
	console string            // file
	ended   []<-chan struct{} // closed when QEMU and the TPM have ended
	shell   struct {
		sync.Mutex
		in  io.Writer
		out *bufio.Scanner
	}
}

// event is an entry of dpsd in the journal.
type event struct {
	name   string
	at     time.Duration     // since the machine's kernel began, by the monotonic clock
	fields map[string]string // systemd.journal-fields(7), and those of docs/journal.md
}

func (e event) String() string {
	return fmt.Sprintf("%8.3f %s: %s", e.at.Seconds(), e.name, e.fields["MESSAGE"])
}

// file is a file for the root file system of a machine.
type file struct {
	text     []byte
	mode     fs.FileMode
	modified time.Time // zero: now
}

// boot starts a machine whose battery-backed clock shows rtc, with files in addition to those of
// testdata/root and packaging/systemd, and waits until it accepts commands.
func boot(t *testing.T, rtc time.Time, files map[string]file) *machine {
	t.Helper()
	system := need(t)
	initrd := filepath.Join(newDir(t), "initrd")
	// systemd advances a clock that is behind its own release, or behind this file: here the
	// system is from the previous day.
	files["usr/lib/clock-epoch"] = file{mode: 0o644, modified: rtc.Add(-24 * time.Hour)}
	pack(t, initrd, filepath.Join(system, "system.cpio"), files)

	return launch(t, []string{
		"-kernel", filepath.Join(system, "vmlinuz"), "-initrd", initrd,
		"-append", commandLine + " rdinit=/usr/bin/init",
		"-rtc", "clock=vm,base=" + rtc.UTC().Format("2006-01-02T15:04:05"),
	})
}

// commandLine is that of the kernel. A kernel panic reboots, and a reboot ends QEMU. On a busy host,
// the kernel's check of the timer fails.
const commandLine = "console=ttyS0 quiet panic=-1 no_timer_check systemd.unit=gateway.target systemd.journald.forward_to_console=1"

// newDir returns a new directory. Its name is short: paths of sockets have at most 107 bytes.
func newDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "dpsd-qemu-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// launch starts QEMU with a kernel that boots the units of testdata/root, and waits until the
// machine accepts commands.
func launch(t *testing.T, args []string) *machine {
	t.Helper()
	dir := newDir(t)
	m := &machine{t: t, console: filepath.Join(dir, "console")}
	journal, shell := listen(t, filepath.Join(dir, "journal")), listen(t, filepath.Join(dir, "shell"))
	ended := start(t, "qemu-system-x86_64", append([]string{
		"-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "512",
		"-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "file:" + m.console,
		"-device", "virtio-serial-pci", // the first virtio device: its ports are /dev/vport0p1 …
		"-chardev", "socket,id=journal,path=" + journal.Addr().String(), "-device", "virtserialport,nr=1,chardev=journal",
		"-chardev", "socket,id=shell,path=" + shell.Addr().String(), "-device", "virtserialport,nr=2,chardev=shell",
		"-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile=",
	}, args...))
	m.ended = append(m.ended, ended)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of the console:\n%s\n\nthe log of dpsd:\n%s", tail(m.console), listing(m.logged))
		}
	})

	line := accept(t, shell, ended)
	m.shell.in, m.shell.out = line, bufio.NewScanner(line)
	m.events = follow(accept(t, journal, ended))
	m.run("true") // answered when the machine is up
	return m
}

// need returns the directory of the machine that the script "machine" has created.
func need(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("DPSD_MACHINE")
	if dir == "" {
		t.Skip("no DPSD_MACHINE: make test-clock builds one and runs this")
	}
	missing := t.Skip
	if os.Getenv("CI") != "" {
		missing = t.Fatal
	}
	if _, err := os.Stat(filepath.Join(dir, "system.cpio")); err != nil {
		missing("no machine: ", err)
	}
	if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
		missing(err)
	}
	return dir
}

// packaged lists the files that make dpsd a service, and their paths in the Debian package.
var packaged = map[string]string{
	"dpsd.service":            "usr/lib/systemd/system/dpsd.service",
	"dpsd-hub@.socket":        "usr/lib/systemd/system/dpsd-hub@.socket",
	"dpsd-provisioned.target": "usr/lib/systemd/system/dpsd-provisioned.target",
	"dpsd.sysusers":           "usr/lib/sysusers.d/dpsd.conf",
	"dpsd.tmpfiles":           "usr/lib/tmpfiles.d/dpsd.conf",
}

// pack writes an initramfs: that of the system, followed by a second archive with the additional
// files, which the kernel unpacks over the first.
func pack(t *testing.T, to, system string, files map[string]file) {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(root, os.DirFS("testdata/root")); err != nil {
		t.Fatal(err)
	}
	for from, to := range packaged {
		text, err := os.ReadFile(filepath.Join("../../packaging/systemd", from))
		if err != nil {
			t.Fatal(err)
		}
		files[to] = file{text: text, mode: 0o644}
	}
	for name, f := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, f.text, f.mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, f.modified, f.modified); err != nil { // zero changes nothing
			t.Fatal(err)
		}
	}
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := os.Open(system)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	cpio := exec.Command("sh", "-c", "find . | cpio --create --format=newc --owner=0:0 --quiet")
	cpio.Dir, cpio.Stdout, cpio.Stderr = root, out, &said
	if err := cpio.Run(); err != nil {
		t.Fatalf("cpio: %v: %s", err, said.String())
	}
}

// start runs a program until the test or this process ends, for any reason. It inherits the files, as
// 3 and the following descriptors. The channel is closed when the program has ended.
func start(t *testing.T, name string, args []string, inherited ...*os.File) <-chan struct{} {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var said bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = &said, &said, inherited
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // Pdeathsig is about the thread
		defer runtime.UnlockOSThread()
		if err := cmd.Run(); err != nil && ctx.Err() == nil {
			t.Errorf("%s: %v\n%s", name, err, said.String())
		}
	}()
	t.Cleanup(func() {
		stop()
		<-ended
	})
	return ended
}

func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// accept waits for QEMU to connect, which it does at its start.
func accept(t *testing.T, l *net.UnixListener, ended <-chan struct{}) net.Conn {
	t.Helper()
	stop := context.AfterFunc(closed(ended), func() { l.Close() })
	defer stop()
	if err := l.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
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

// follow reads journal entries, journalctl(1) --output=json, until the connection is closed.
// Entries of systemd about the unit are not events of dpsd.
func follow(line io.Reader) <-chan event {
	events := make(chan event, 1000)
	go func() {
		defer close(events)
		lines := bufio.NewScanner(line)
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			var entry map[string]any // also arrays of bytes if a value is not text
			if json.Unmarshal(lines.Bytes(), &entry) != nil || entry["DPSD_EVENT"] == nil {
				continue
			}
			e := event{fields: map[string]string{}}
			for name, value := range entry {
				e.fields[name] = fmt.Sprint(value)
			}
			microseconds, _ := strconv.ParseInt(e.fields["__MONOTONIC_TIMESTAMP"], 10, 64)
			e.at = time.Duration(microseconds) * time.Microsecond
			e.name = e.fields["DPSD_EVENT"]
			events <- e
		}
	}()
	return events
}

// next returns the next event of that name.
func (m *machine) next(name string) event {
	m.t.Helper()
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		select {
		case e, open := <-m.events:
			if !open {
				m.t.Fatalf("the journal ended before the event %q", name)
			}
			m.logged = append(m.logged, e)
			if e.name == name {
				return e
			}
		case <-late.C:
			m.t.Fatalf("no event %q within %s", name, patience)
		}
	}
}

// count returns the number of events of that name so far.
func (m *machine) count(name string) (n int) {
	for _, e := range m.sofar() {
		if e.name == name {
			n++
		}
	}
	return n
}

// sofar receives the events that have arrived, and returns all events.
func (m *machine) sofar() []event {
	for {
		select {
		case e, open := <-m.events:
			if !open {
				return m.logged
			}
			m.logged = append(m.logged, e)
		default:
			return m.logged
		}
	}
}

// run runs a command line and returns its output.
func (m *machine) run(command string) string {
	m.t.Helper()
	answer := make(chan string, 1)
	go func() {
		m.shell.Lock()
		defer m.shell.Unlock()
		defer close(answer)
		if _, err := fmt.Fprintln(m.shell.in, command); err != nil {
			return
		}
		var out strings.Builder
		for m.shell.out.Scan() {
			if status, is := strings.CutPrefix(m.shell.out.Text(), "status "); is {
				if status == "0" {
					answer <- strings.TrimSpace(out.String())
				}
				return
			}
			fmt.Fprintln(&out, m.shell.out.Text())
		}
	}()
	select {
	case out, ok := <-answer:
		if !ok {
			m.t.Fatalf("%s: failed, or the machine has ended", command)
		}
		return out
	case <-time.After(patience):
		m.t.Fatalf("%s: not done within %s", command, patience)
	}
	return ""
}

// write writes a file as root.
func (m *machine) write(path string, f file) {
	m.t.Helper()
	m.run(fmt.Sprintf("echo %s | base64 -d | install -D -m %o /dev/stdin /%s", base64.StdEncoding.EncodeToString(f.text), f.mode, path))
}

// off shuts the machine down.
func (m *machine) off() {
	m.t.Helper()
	m.shell.Lock()
	_, err := fmt.Fprintln(m.shell.in, "systemctl poweroff")
	m.shell.Unlock()
	if err != nil {
		m.t.Fatal(err)
	}
	for _, ended := range m.ended {
		select {
		case <-ended:
		case <-time.After(patience):
			m.t.Fatalf("the machine is still on after %s", patience)
		}
	}
}

// setClock sets the machine's clock like NTP or a person.
func (m *machine) setClock(to time.Time) {
	m.t.Helper()
	m.run("date -s @" + strconv.FormatInt(to.Unix(), 10))
}

// clock returns the time of the machine's clock.
func (m *machine) clock() time.Time {
	m.t.Helper()
	seconds, err := strconv.ParseInt(m.run("date +%s"), 10, 64)
	if err != nil {
		m.t.Fatal(err)
	}
	return time.Unix(seconds, 0)
}

// service is the state of dpsd in systemd.
type service struct {
	state    string // activating, active, …
	status   string // STATUS=
	process  string
	restarts string
	watchdog time.Duration // monotonic time of the last WATCHDOG=1, or READY=1
}

func (m *machine) service() (s service) {
	m.t.Helper()
	out := m.run("systemctl show dpsd.service -p ActiveState,StatusText,MainPID,NRestarts,WatchdogTimestampMonotonic")
	for line := range strings.Lines(out) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "ActiveState":
			s.state = value
		case "StatusText":
			s.status = value
		case "MainPID":
			s.process = value
		case "NRestarts":
			s.restarts = value
		case "WatchdogTimestampMonotonic":
			microseconds, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				m.t.Fatal(err)
			}
			s.watchdog = time.Duration(microseconds) * time.Microsecond
		}
	}
	return s
}

// until queries systemd about dpsd until the condition is met, or patience ends.
func (m *machine) until(what string, so func(service) bool) service {
	m.t.Helper()
	late := time.Now().Add(patience)
	for {
		s := m.service()
		if so(s) {
			return s
		}
		if time.Now().After(late) {
			m.t.Fatalf("not %s within %s: %+v", what, patience, s)
		}
		m.run("sleep 0.2")
	}
}

func tail(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text[max(0, len(text)-4000):])
}

func listing(events []event) string {
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintln(&b, e)
	}
	return b.String()
}
