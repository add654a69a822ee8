package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// tick is the unit of CPU time in /proc: USER_HZ is 100 on Linux.
const tick = time.Second / 100

// scenario is what every registration costs in the measurement: two polls with retry-after=3.
// The answers are not delayed.
const scenario = "[settings]\npolls = 2\nretry_after = \"3\"\nreply_delay = \"0s\"\n"

// service is a dpsd-sim in its own process with the scenario and otherwise the default options:
// TLS 1.2, no packet log. Its page is open.
type service struct {
	dir     string
	process *exec.Cmd
	address *net.TCPAddr
	service string // address of the page
	scope   string
	key     []byte // of the group
	tls     *tls.Config
	page    io.Closer // the stream of changes that an open page reads
}

func (l *load) start() (_ *service, err error) {
	s := &service{}
	if s.dir, err = os.MkdirTemp("", "dpsd-load-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	file := filepath.Join(s.dir, "scenario.toml")
	if err := os.WriteFile(file, []byte(scenario), 0o600); err != nil {
		return nil, err
	}
	s.process = exec.Command(l.program, "serve", "--dir", s.dir, "--scenario", file, "--mqtt", "localhost:0", "--websocket", "", "--service", "localhost:0") //nolint:gosec // running what it is given is its purpose
	s.process.Stderr = os.Stderr
	out, err := s.process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.process.Start(); err != nil {
		return nil, err
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return nil, fmt.Errorf("%s did not become ready: %w", l.program, err)
	}
	if err := s.read(); err != nil {
		return nil, err
	}
	return s, s.open()
}

// open reads the changes of the page, as a browser does that shows it, until the simulator ends.
func (s *service) open() error {
	r, err := http.Get("http://" + s.service + "/events") //nolint:noctx,bodyclose // close ends it, and closes the body
	if err != nil {
		return err
	}
	s.page = r.Body
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("the page's changes: %s", r.Status)
	}
	go func() { _, _ = io.Copy(io.Discard, r.Body) }()
	return nil
}

// read reads what devices need from the simulator's directory.
func (s *service) read() error {
	var endpoint struct {
		MQTT    string `json:"mqtt"`
		IDScope string `json:"idScope"`
		Port    int    `json:"servicePort"`
	}
	text, err := os.ReadFile(filepath.Join(s.dir, "endpoint.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &endpoint); err != nil {
		return err
	}
	s.scope, s.service = endpoint.IDScope, net.JoinHostPort("localhost", strconv.Itoa(endpoint.Port))
	if s.address, err = net.ResolveTCPAddr("tcp", endpoint.MQTT); err != nil {
		return err
	}
	if text, err = os.ReadFile(filepath.Join(s.dir, "group-key")); err != nil {
		return err
	}
	if s.key, err = base64.StdEncoding.DecodeString(strings.TrimSpace(string(text))); err != nil {
		return err
	}
	s.tls, err = trust(filepath.Join(s.dir, "ca.pem"))
	return err
}

// trust creates the devices' TLS configuration. Without a session cache, no session is resumed.
func trust(file string) (*tls.Config, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(text) {
		return nil, errors.New(file + " contains no certificate")
	}
	return &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12}, nil
}

// close ends the simulator.
func (s *service) close() {
	if s.page != nil {
		_ = s.page.Close()
	}
	if s.process.Process != nil {
		_ = s.process.Process.Signal(unix.SIGTERM)
		_ = s.process.Wait()
	}
	_ = os.RemoveAll(s.dir)
}

// cpu returns the CPU time of the simulator so far, user and system, proc_pid_stat(5).
func (s *service) cpu() (time.Duration, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.process.Process.Pid))
	if err != nil {
		return 0, err
	}
	// The second field is the name in parentheses, and may contain any characters.
	fields := strings.Fields(string(text)[strings.LastIndexByte(string(text), ')')+1:])
	if len(fields) < 13 {
		return 0, errors.New("unexpected format of /proc/PID/stat")
	}
	var ticks int64
	for _, f := range fields[11:13] {
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// memory returns the current and the peak resident set size in bytes, proc_pid_status(5).
func (s *service) memory() (now, peak int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.process.Process.Pid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(text)) {
		key, value, _ := strings.Cut(line, ":")
		into := map[string]*int64{"VmRSS": &now, "VmHWM": &peak}[key]
		if into == nil {
			continue
		}
		kB, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		if err != nil {
			return 0, 0, err
		}
		*into = kB * 1024
	}
	if now == 0 || peak == 0 {
		return 0, 0, errors.New("unexpected format of /proc/PID/status")
	}
	return now, peak, nil
}

// machineCPU returns the CPU time of all processors so far, and the time that the hypervisor
// did not give to them, proc_stat(5).
func machineCPU() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var user, nice, system, idle, wait, hard, soft, steal int64
	if _, err := fmt.Sscanf(line, "cpu %d %d %d %d %d %d %d %d", &user, &nice, &system, &idle, &wait, &hard, &soft, &steal); err != nil {
		return 0, fmt.Errorf("unexpected format of /proc/stat: %w", err)
	}
	return time.Duration(user+nice+system+hard+soft+steal) * tick, nil
}

// ownCPU returns the CPU time of this process so far, user and system.
func ownCPU() (time.Duration, error) {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0, err
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano()), nil
}
