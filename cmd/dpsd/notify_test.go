package main_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dpsd-project/dpsd/store"
)

// service is a built dpsd under a service manager that keeps every message that it receives
// at NOTIFY_SOCKET.
type service struct {
	t       *testing.T
	dir     string
	sim     *simulated
	command *exec.Cmd
	log     string
	socket  string
	reaped  bool

	mu       sync.Mutex
	messages []message
}

// message is one datagram of sd_notify(3) with the result of reading the state directory when
// it arrived.
type message struct {
	fields map[string]string
	at     time.Time
	record error // error of store.Read
}

func (m message) has(assignment string) bool {
	if assignment == "" {
		return true
	}
	name, value, _ := strings.Cut(assignment, "=")
	got, found := m.fields[name]
	return found && (value == "" || got == value)
}

// manner contains the options of a service.
type manner struct {
	abstract    bool     // the socket has a name in Linux's abstract namespace
	recorded    bool     // a record of an earlier run exists
	environment []string // in addition to NOTIFY_SOCKET
}

// startService starts the daemon against a simulator with the scenario.
func startService(t *testing.T, scenario string, how manner) *service {
	t.Helper()
	s := &service{t: t, dir: t.TempDir()}
	s.log = filepath.Join(s.dir, "log")
	if err := os.CopyFS(filepath.Join(s.dir, "simulator"), os.DirFS(shop.simulator)); err != nil {
		t.Fatal(err)
	}
	s.serve(prompt + scenario)
	t.Cleanup(func() { s.sim.kill() })

	// The path of a socket has at most 107 bytes; the directory of a test may have a longer path.
	short, err := os.MkdirTemp("", "notify-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(short) })
	name := filepath.Join(short, "socket")
	if how.abstract {
		name = "@" + name
	}
	s.socket = name
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	received := make(chan struct{})
	go func() {
		defer close(received)
		s.receive(socket)
	}()
	t.Cleanup(func() {
		socket.Close()
		<-received
	})

	if how.recorded {
		if err := os.CopyFS(filepath.Join(s.dir, "state"), os.DirFS(shop.record)); err != nil {
			t.Fatal(err)
		}
	}
	vars := s.sim.variables()
	vars["WORK"], vars["PROTOCOLS"] = s.dir, `"mqtt"`
	s.write("dpsd.toml", complete("", func(name string) string { return vars[name] }))
	s.command = exec.Command("dpsd", "run", "--config", filepath.Join(s.dir, "dpsd.toml"))
	s.command.Env = append([]string{"NOTIFY_SOCKET=" + name, "PATH=" + os.Getenv("PATH")}, how.environment...)
	log, err := os.Create(s.log)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s.command.Stderr = log
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !s.reaped {
			_ = s.command.Process.Kill()
			_ = s.command.Wait()
		}
		if t.Failed() {
			text, _ := os.ReadFile(s.log)
			t.Logf("%s", text)
		}
	})
	return s
}

// serve starts the simulator, or replaces it with a new one at the same ports.
func (s *service) serve(scenario string) {
	s.t.Helper()
	args := []string{"--scenario", s.write("scenario.toml", scenario)}
	if s.sim != nil {
		s.sim.kill()
		args = append(args, "--mqtt", fmt.Sprintf("127.0.0.1:%d", s.sim.address.MQTTPort), "--websocket", "")
	}
	var err error
	if s.sim, err = startSimulator(filepath.Join(s.dir, "simulator"), filepath.Join(s.dir, "packets"), args...); err != nil {
		s.t.Fatal(err)
	}
}

func (s *service) write(name, text string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// receive reads messages until the socket is closed.
func (s *service) receive(socket *net.UnixConn) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := socket.Read(buffer)
		if err != nil {
			return
		}
		m := message{at: time.Now(), fields: map[string]string{}}
		_, m.record = store.Read(filepath.Join(s.dir, "state"))
		for _, line := range strings.Split(string(buffer[:n]), "\n") {
			name, value, _ := strings.Cut(line, "=")
			m.fields[name] = value
		}
		s.mu.Lock()
		s.messages = append(s.messages, m)
		s.mu.Unlock()
	}
}

// got returns the messages with the assignment, "NAME=value" or "NAME". For "" it returns all
// messages.
func (s *service) got(assignment string) []message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.messages), func(m message) bool { return !m.has(assignment) })
}

// until waits for the n-th message with the assignment.
func (s *service) until(assignment string, n int) message {
	s.t.Helper()
	s.eventually("message "+strconv.Itoa(n)+" with "+assignment, func() bool { return len(s.got(assignment)) >= n })
	return s.got(assignment)[n-1]
}

func (s *service) eventually(what string, is func() bool) {
	s.t.Helper()
	for limit := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			s.t.Fatalf("no message with %s arrived", what)
		}
	}
}

// logged waits for a matching line of the log.
func (s *service) logged(pattern string) {
	s.t.Helper()
	re := regexp.MustCompile(pattern)
	s.eventually("the log to say "+pattern, func() bool {
		text, err := os.ReadFile(s.log)
		return err == nil && re.Match(text)
	})
}

func (s *service) packet(kind string) {
	s.t.Helper()
	s.eventually(kind, func() bool {
		text, err := os.ReadFile(filepath.Join(s.dir, "packets"))
		return err == nil && strings.Contains(string(text), `"packet":"`+kind+`"`)
	})
}

func (s *service) send(signal syscall.Signal) {
	s.t.Helper()
	if err := s.command.Process.Signal(signal); err != nil {
		s.t.Fatal(err)
	}
}

// stopping sends SIGTERM and expects STOPPING=1 and exit code 0. The tests of package daemon limit
// how long this takes, in virtual time: here, the kernel may take seconds to end the process.
func (s *service) stopping() {
	s.t.Helper()
	s.send(syscall.SIGTERM)
	err := s.command.Wait()
	s.reaped = true
	if err != nil {
		s.t.Errorf("SIGTERM: ended with %v, want exit code 0", err)
	}
	s.until("STOPPING=1", 1)
}

// monotonic returns CLOCK_MONOTONIC in microseconds.
func monotonic(t *testing.T) int64 {
	t.Helper()
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		t.Fatal(err)
	}
	return now.Nano() / 1000
}

func TestREADYMeansThatTheStateIsReadable(t *testing.T) {
	for _, abstract := range []bool{false, true} {
		t.Run(fmt.Sprintf("abstract socket %t", abstract), func(t *testing.T) {
			t.Parallel()
			s := startService(t, "", manner{abstract: abstract})
			if ready := s.until("READY=1", 1); ready.record != nil {
				t.Errorf("at READY=1 a reader found: %v", ready.record)
			} else if want := "Assigned to dpsd-sim.azure-devices.net as " + device; ready.fields["STATUS"] != want {
				t.Errorf("READY=1 comes with STATUS=%q, want %q", ready.fields["STATUS"], want)
			}
			s.stopping()
			if n := len(s.got("READY=1")); n != 1 {
				t.Errorf("READY=1 %d times", n)
			}
		})
	}
	t.Run("there is no READY while the state cannot be written", func(t *testing.T) {
		t.Parallel()
		s := startService(t, "[[rule]]\non = \"connect\"\ndelay = \"300ms\"\n", manner{})
		// A directory takes the path before the service answers.
		state := filepath.Join(s.dir, "state")
		s.packet("CONNECT")
		if err := os.RemoveAll(state); err != nil {
			t.Fatal(err)
		}
		s.write("state", "a file")
		s.logged(`"fault":"state-unwritable"`)
		if n := len(s.got("READY")); n != 0 {
			t.Errorf("READY %d times", n)
		}
		if err := os.Remove(state); err != nil {
			t.Fatal(err)
		}
		if ready := s.until("READY=1", 1); ready.record != nil {
			t.Errorf("at READY=1 a reader found: %v", ready.record)
		}
		s.stopping()
	})
	t.Run("there is no READY with a record of an earlier run until the service answers", func(t *testing.T) {
		t.Parallel()
		s := startService(t, "[[rule]]\non = \"register\"\nstatus = 503\n", manner{recorded: true})
		s.logged(`"fault":"service-error"`)
		if n := len(s.got("READY")); n != 0 {
			t.Errorf("READY %d times", n)
		}
		s.stopping()
	})
}

func TestAStateFileThatIsRemovedIsRestoredImmediately(t *testing.T) {
	t.Parallel()
	s := startService(t, "", manner{})
	s.until("READY=1", 1)
	state := filepath.Join(s.dir, "state")
	before, err := os.ReadFile(filepath.Join(state, "state.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	s.logged(`"event":"state-restored"`)
	if after, err := os.ReadFile(filepath.Join(state, "state.json")); err != nil || string(after) != string(before) {
		t.Errorf("state.json has changed: %v", err)
	}
	s.stopping()
}

func TestReloadUnderSystemd(t *testing.T) {
	t.Run("a SIGHUP before the first READY sends nothing", func(t *testing.T) {
		t.Parallel()
		s := startService(t, "[[rule]]\non = \"register\"\nstatus = 404\n", manner{})
		s.logged(`"fault":"enrollment-not-found"`)
		s.send(syscall.SIGHUP)
		s.logged(`"event":"reloaded"`)
		s.stopping()
		if n := len(s.got("RELOADING")) + len(s.got("READY")); n != 0 {
			t.Errorf("RELOADING or READY %d times", n)
		}
	})
	for _, broken := range []bool{false, true} {
		t.Run(fmt.Sprintf("after READY a SIGHUP sends RELOADING=1 and READY=1 within a second, invalid configuration %t", broken), func(t *testing.T) {
			t.Parallel()
			s := startService(t, "", manner{})
			s.until("READY=1", 1)
			// The registration that follows does not end.
			s.serve("[[rule]]\non = \"register\"\nsilent = true\n")
			if broken {
				s.write("dpsd.toml", "[dps]\nid_scop = \"0ne\"\n")
			}
			sent := monotonic(t)
			began := time.Now()
			s.send(syscall.SIGHUP)
			reloading, ready := s.until("RELOADING=1", 1), s.until("READY=1", 2)
			if took := ready.at.Sub(began); took > time.Second || ready.at.Before(reloading.at) {
				t.Errorf("READY=1 came %s after SIGHUP, RELOADING=1 %s", took, reloading.at.Sub(began))
			}
			usec, err := strconv.ParseInt(reloading.fields["MONOTONIC_USEC"], 10, 64)
			if err != nil || usec < sent || usec > monotonic(t) {
				t.Errorf("MONOTONIC_USEC=%q is not between %d and now: %v", reloading.fields["MONOTONIC_USEC"], sent, err)
			}
			want := "reloaded"
			if broken {
				want = `dpsd.toml:2:1: dps.id_scop: unknown key; did you mean "id_scope"?`
			}
			if !strings.Contains(ready.fields["STATUS"], want) {
				t.Errorf("STATUS=%q does not say %s", ready.fields["STATUS"], want)
			}
			if ready.record != nil {
				t.Errorf("the record is gone: %v", ready.record)
			}
			if !broken {
				s.packet("PUBLISH")
			}
			s.stopping()
		})
	}
}

func TestSIGTERMUnderSystemd(t *testing.T) {
	for _, tt := range []struct{ moment, scenario, packet string }{
		{"after TCP", "[[rule]]\non = \"accept\"\nsilent = true\n", "OPEN"},
		{"after CONNECT", "[[rule]]\non = \"connect\"\nsilent = true\n", "CONNECT"},
		{"after SUBSCRIBE", "[[rule]]\non = \"subscribe\"\nsilent = true\n", "SUBSCRIBE"},
		{"after the registration", "[[rule]]\non = \"register\"\nsilent = true\n", "PUBLISH"},
		{"while waiting for the poll", "[[rule]]\non = \"register\"\nstate = \"assigning\"\nstatus = 202\nretry_after = \"30\"\n", "PUBACK"},
		{"after the disconnect", "", "DISCONNECT"},
	} {
		t.Run(tt.moment+" SIGTERM sends STOPPING=1 and dpsd exits with 0 within two seconds", func(t *testing.T) {
			t.Parallel()
			s := startService(t, tt.scenario, manner{})
			s.packet(tt.packet)
			s.stopping()
		})
	}
}

func TestSupervisionBySystemd(t *testing.T) {
	const watchdog = "WATCHDOG_USEC=200000"
	t.Run("dpsd extends the start timeout before READY and sends watchdog messages after READY", func(t *testing.T) {
		t.Parallel()
		s := startService(t, "[[rule]]\non = \"connect\"\nconnack = 3\n", manner{environment: []string{watchdog}})
		extend := s.until("EXTEND_TIMEOUT_USEC", 2)
		if usec, err := strconv.Atoi(extend.fields["EXTEND_TIMEOUT_USEC"]); err != nil || usec < 1_000_000 {
			t.Errorf("EXTEND_TIMEOUT_USEC=%q", extend.fields["EXTEND_TIMEOUT_USEC"])
		}
		if n := len(s.got("WATCHDOG")); n != 0 {
			t.Errorf("WATCHDOG=1 %d times before READY", n)
		}
		s.serve(prompt)
		ready := s.until("READY=1", 1)
		s.until("WATCHDOG=1", 3)
		for _, m := range s.got("EXTEND_TIMEOUT_USEC") {
			if m.at.After(ready.at) {
				t.Error("the start is extended after READY=1")
			}
		}
		s.stopping()
	})
	for _, ready := range []bool{false, true} {
		t.Run(fmt.Sprintf("a stopped process sends nothing, READY %t", ready), func(t *testing.T) {
			t.Parallel()
			sign, scenario := "EXTEND_TIMEOUT_USEC", "[[rule]]\non = \"connect\"\nconnack = 3\n"
			if ready {
				sign, scenario = "WATCHDOG=1", ""
			}
			s := startService(t, scenario, manner{environment: []string{watchdog}})
			s.until(sign, 2)
			s.send(syscall.SIGSTOP)
			s.eventually("the process to stop", s.stopped)
			// All earlier messages have been read; within ten intervals no other one arrives.
			before := s.mark()
			time.Sleep(time.Second)
			if more := s.mark() - before - 1; more != 0 {
				t.Errorf("%d messages while the process is stopped", more)
			}
			s.send(syscall.SIGCONT)
			s.until(sign, len(s.got(sign))+1)
			s.stopping()
		})
	}
	t.Run("dpsd sends no watchdog messages if the watchdog is for another process", func(t *testing.T) {
		t.Parallel()
		s := startService(t, "", manner{environment: []string{watchdog, "WATCHDOG_PID=1"}})
		s.until("READY=1", 1)
		s.stopping()
		if n := len(s.got("WATCHDOG")); n != 0 {
			t.Errorf("WATCHDOG=1 %d times", n)
		}
	})
}

// mark sends a message of the test and returns the number of messages that arrived before it.
// The datagrams of one socket keep their order.
func (s *service) mark() int {
	s.t.Helper()
	conn, err := net.Dial("unixgram", s.socket)
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	n := len(s.got("MARK"))
	if _, err := conn.Write([]byte("MARK=1")); err != nil {
		s.t.Fatal(err)
	}
	s.until("MARK=1", n+1)
	return len(s.got(""))
}

// stopped reports whether the process is stopped (proc_pid_stat(5)).
func (s *service) stopped() bool {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", s.command.Process.Pid))
	_, rest, found := strings.Cut(string(text), ") ")
	return err == nil && found && strings.HasPrefix(rest, "T")
}

func TestANotifySocketWithoutAReaderDoesNotBlockDpsd(t *testing.T) {
	t.Parallel()
	full := filepath.Join(t.TempDir(), "full")
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: full, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { socket.Close() })
	fill(t, full)
	for name, path := range map[string]string{"one that is not there": "/nowhere/notify", "one whose queue is full": full} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := startService(t, "", manner{environment: []string{"NOTIFY_SOCKET=" + path}})
			s.logged(`"event":"notify-failed"`)
			s.logged(`"event":"assigned"`)
			s.send(syscall.SIGTERM)
			err := s.command.Wait()
			s.reaped = true
			if err != nil {
				t.Error(err)
			}
			if _, err := store.Read(filepath.Join(s.dir, "state")); err != nil {
				t.Error(err)
			}
		})
	}
}

// fill sends datagrams to a socket until its queue is full (unix(7)).
func fill(t *testing.T, path string) {
	t.Helper()
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(c)
	for err == nil {
		err = unix.Sendto(c, []byte("X=1"), 0, &unix.SockaddrUnix{Name: path})
	}
	if !errors.Is(err, syscall.EAGAIN) {
		t.Fatal(err)
	}
}
