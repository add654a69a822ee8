// Command soak runs the built dpsd against the built dpsd-sim, which makes random faults, in
// real time. It prints the resources of dpsd at the start and at the end: memory, threads, file
// descriptors, log. "make soak" runs it.
//
// Its exit code is 1 if dpsd has ended, uses more resources than at the start, or was assigned
// too seldom.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/dpsd-project/dpsd/control"
)

const (
	// busy is how often the key file is rewritten. dpsd then registers, but at most every 10 s.
	busy = 11 * time.Second
	// warm is the time after which one-time allocations have been made.
	warm = 45 * time.Second
	// rest is the idle time of dpsd before it is measured.
	rest = 15 * time.Second

	moreMemory  = 6 << 20 // allowance for the garbage collector
	moreThreads = 4       // the runtime starts a thread if a system call blocks, and keeps it
)

// faults is the scenario: one of two or three connections has one of these faults.
const faults = `
[[rule]]
on = "accept"
reset = true
chance = 0.04
[[rule]]
on = "accept"
silent = true
chance = 0.02
[[rule]]
on = "accept"
garbage = "HTTP/1.1 302 Found\r\n\r\n"
chance = 0.02
[[rule]]
on = "accept"
protocol = "mqtt"
refuse = "3s"
chance = 0.02
[[rule]]
on = "tls"
server_certificate = "other-ca"
chance = 0.03
[[rule]]
on = "tls"
alert = "internal_error"
chance = 0.03
[[rule]]
on = "connect"
connack = 3
chance = 0.06
[[rule]]
on = "connect"
silent = true
chance = 0.02
[[rule]]
on = "connect"
garbage = "nobody"
chance = 0.02
[[rule]]
on = "subscribe"
close = true
chance = 0.03
[[rule]]
on = "register"
status = 500
retry_after = "none"
chance = 0.06
[[rule]]
on = "register"
status = 429
retry_after = "4"
chance = 0.06
[[rule]]
on = "register"
status = 401
retry_after = "none"
chance = 0.03
[[rule]]
on = "register"
silent = true
chance = 0.02
[[rule]]
on = "poll"
reset = true
chance = 0.05
[[rule]]
on = "poll"
cut = 30
chance = 0.04
[[rule]]
on = "poll"
status = 200
state = "assigned"
assigned_hub = "elsewhere.azure-devices.net"
chance = 0.05
`

const configuration = `
[dps]
id_scope        = %q
registration_id = "gw-soak"
endpoint        = "localhost"
[[credential]]
type = "symmetric-key"
key  = "file:%s"
[transport]
protocols        = ["mqtt", "websocket"]
mqtt_port        = %d
websocket_port   = %d
proxy            = "none"
ca_file          = %q
connect_timeout  = "5s"
response_timeout = "5s"
[retry]
initial         = "500ms"
max             = "10s"
refused_initial = "2s"
refused_max     = "10s"
[state]
directory = "%[6]s/state"
[control]
socket = "%[6]s/run/dpsd.sock"
`

func main() {
	duration := flag.Duration("for", time.Hour, "duration of the run")
	bin := flag.String("bin", "bin", "directory of dpsd and dpsd-sim")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := soak(ctx, *bin, *duration)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "soak:", err)
		os.Exit(1)
	}
}

func soak(ctx context.Context, bin string, duration time.Duration) error {
	if duration < 2*(warm+rest) {
		return fmt.Errorf("%s is too short: it must be at least %s", duration, 2*(warm+rest))
	}
	dir, err := os.MkdirTemp("", "dpsd-soak-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	service, err := startService(bin, dir)
	if err != nil {
		return err
	}
	defer func() { _ = end(service) }()
	d, err := startDaemon(bin, dir)
	if err != nil {
		return err
	}
	defer d.kill()

	var table bytes.Buffer
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "after\tRSS KiB\tthreads\tdescriptors\tlog KiB\tassigned\tfaults\t")
	began := time.Now()
	look := func(until time.Duration) (sample, error) {
		if err := d.work(ctx, until-rest-time.Since(began)); err != nil {
			return sample{}, err
		}
		if err := d.wait(ctx, rest); err != nil {
			return sample{}, err
		}
		s, err := d.least(ctx)
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t\n", time.Since(began).Round(time.Second), s.memory>>10, s.threads, s.files, s.log>>10, s.assigned, s.faults)
		fmt.Printf("%s of %s\n", time.Since(began).Round(time.Second), duration)
		return s, err
	}
	first, err := look(warm + rest)
	if err != nil {
		return err
	}
	last := first
	// The run takes up to six samples at equal intervals, each after a minute of activity.
	left := duration - time.Since(began)
	parts := max(1, min(6, left/(time.Minute+rest)))
	for n := range parts {
		if last, err = look(duration - left*(parts-1-n)/parts); err != nil {
			return err
		}
	}
	ended := end(d.process)
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Print(table.String())
	hours := time.Since(began).Hours()
	fmt.Printf("log: %.0f KiB/h at %.0f registrations/h\n", float64(last.log>>10)/hours, float64(last.assigned)/hours)
	return errors.Join(ended, judge(first, last))
}

// judge compares the end with the start.
func judge(first, last sample) error {
	var wrong []error
	if last.memory > first.memory+moreMemory {
		wrong = append(wrong, fmt.Errorf("memory grew from %d to %d KiB", first.memory>>10, last.memory>>10))
	}
	if last.threads > first.threads+moreThreads {
		wrong = append(wrong, fmt.Errorf("the number of threads grew from %d to %d", first.threads, last.threads))
	}
	if last.files > first.files {
		wrong = append(wrong, fmt.Errorf("the number of file descriptors grew from %d to %d", first.files, last.files))
	}
	if last.assigned < first.assigned+2 || last.faults == 0 {
		wrong = append(wrong, fmt.Errorf("%d registrations and %d faults are too few for a test", last.assigned, last.faults))
	}
	return errors.Join(wrong...)
}

func startService(bin, dir string) (*exec.Cmd, error) {
	scenario := filepath.Join(dir, "scenario.toml")
	if err := os.WriteFile(scenario, []byte(faults), 0o600); err != nil {
		return nil, err
	}
	program := filepath.Join(bin, "dpsd-sim")
	cmd := exec.Command(program, "serve", "--dir", filepath.Join(dir, "sim"), "--mqtt", "localhost:0", "--websocket", "localhost:0", "--service", "", "--scenario", scenario, "--seed", "1") //nolint:gosec // running what it is given is its purpose
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, errors.Join(fmt.Errorf("%s did not become ready: %w", program, err), end(cmd))
	}
	return cmd, nil
}

// daemon is the measured dpsd.
type daemon struct {
	process *exec.Cmd
	key     string // the file
	text    []byte // of the key
	log     string // the file
	socket  control.Client
}

func startDaemon(bin, dir string) (*daemon, error) {
	sim := filepath.Join(dir, "sim")
	if out, err := exec.Command(filepath.Join(bin, "dpsd-sim"), "credentials", "--dir", sim, "--registration-id", "gw-soak").CombinedOutput(); err != nil { //nolint:gosec // as above
		return nil, fmt.Errorf("dpsd-sim credentials: %w: %s", err, out)
	}
	text, err := os.ReadFile(filepath.Join(sim, "endpoint.json"))
	if err != nil {
		return nil, err
	}
	var endpoint struct {
		MQTTPort, WebSocketPort int
		IDScope, CAFile         string
	}
	if err := json.Unmarshal(text, &endpoint); err != nil {
		return nil, err
	}
	d := &daemon{
		key: filepath.Join(dir, "device.key"), log: filepath.Join(dir, "log"),
		socket: control.Client{Socket: filepath.Join(dir, "run", "dpsd.sock")},
	}
	if d.text, err = os.ReadFile(filepath.Join(sim, "gw-soak.key")); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, "dpsd.toml")
	if err := errors.Join(d.renew(), os.WriteFile(file, fmt.Appendf(nil, configuration, endpoint.IDScope, d.key, endpoint.MQTTPort, endpoint.WebSocketPort, endpoint.CAFile, dir), 0o600)); err != nil {
		return nil, err
	}
	log, err := os.Create(d.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()                                                             // dpsd has its own descriptor
	d.process = exec.Command(filepath.Join(bin, "dpsd"), "run", "--config", file) //nolint:gosec // as above
	d.process.Env, d.process.Stdout, d.process.Stderr = []string{}, log, log
	return d, d.process.Start()
}

// renew rewrites the key file, like an administrator who replaces the key.
func (d *daemon) renew() error {
	if err := os.WriteFile(d.key+".new", d.text, 0o600); err != nil {
		return err
	}
	return os.Rename(d.key+".new", d.key)
}

// work makes dpsd register continuously.
func (d *daemon) work(ctx context.Context, how time.Duration) error {
	for stop := time.Now().Add(how); time.Now().Before(stop); {
		if err := d.renew(); err != nil {
			return err
		}
		if err := d.wait(ctx, min(busy, max(0, time.Until(stop)))); err != nil {
			return err
		}
	}
	return nil
}

// wait waits for a duration, unless dpsd ends.
func (d *daemon) wait(ctx context.Context, how time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(how):
	}
	// A process that has ended without being waited for is a zombie.
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", d.process.Process.Pid))
	if err != nil || bytes.Contains(status, []byte("State:\tZ")) {
		log, _ := os.ReadFile(d.log)
		return fmt.Errorf("dpsd has exited; the end of its log:\n%s", log[max(0, len(log)-2000):])
	}
	return nil
}

// kill ends dpsd if end did not.
func (d *daemon) kill() {
	if d.process.ProcessState == nil {
		_ = d.process.Process.Kill()
		_ = d.process.Wait()
	}
}

// sample holds the resources of dpsd.
type sample struct {
	memory, log      int64 // bytes
	threads, files   int
	assigned, faults int // since the start
}

// least returns a sample at a time without a connection, which needs a descriptor.
func (d *daemon) least(ctx context.Context) (sample, error) {
	s, err := d.sample()
	for range 20 {
		if err == nil {
			err = d.wait(ctx, rest/30)
		}
		if err != nil {
			return s, err
		}
		var next sample
		if next, err = d.sample(); next.files > s.files {
			next.files = s.files
		}
		s = next
	}
	return s, err
}

func (d *daemon) sample() (s sample, err error) {
	proc := fmt.Sprintf("/proc/%d/", d.process.Process.Pid)
	status, err := os.ReadFile(proc + "status")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(status)) {
		fields := strings.Fields(line)
		switch {
		case len(fields) < 2:
		case fields[0] == "VmRSS:":
			s.memory, err = strconv.ParseInt(fields[1], 10, 64)
			s.memory <<= 10
		case fields[0] == "Threads:":
			s.threads, err = strconv.Atoi(fields[1])
		}
		if err != nil {
			return s, err
		}
	}
	files, err := os.ReadDir(proc + "fd")
	if err != nil {
		return s, err
	}
	log, err := os.ReadFile(d.log)
	if err != nil {
		return s, err
	}
	s.files, s.log = len(files), int64(len(log))
	// Repeated events are not logged each time; the control socket counts all of them.
	current, err := d.socket.Status(context.Background())
	if errors.Is(err, control.ErrNotRunning) {
		return s, nil // not yet
	}
	s.assigned, s.faults = current.Attempts.Assigned, current.Attempts.Failed
	return s, err
}

// end sends SIGTERM. The process must exit successfully within five seconds.
func end(cmd *exec.Cmd) error {
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	late := time.AfterFunc(5*time.Second, func() { _ = cmd.Process.Kill() })
	defer late.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(cmd.Path), err)
	}
	return nil
}
