package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// rest is the cost of the service when the gateway is assigned and idle.
type rest struct {
	window  time.Duration
	wakeUps int   // times at which any of its threads ran
	beats   int   // of them, messages to the watchdog
	packets int   // entries of the simulator's log
	anon    int64 // RssAnon at the end of the window, in bytes
	peak    int64 // VmHWM, in bytes
}

// calm is the time after READY in which the program must close its connection, and the Go
// runtime must stop its threads.
const calm = 10 * time.Second

// idle runs the program as systemd does, with or without a watchdog, and measures it for a
// while after READY. The program ends when ctx ends.
func (s *service) idle(ctx context.Context, program string, watchdog, window time.Duration) (rest, error) {
	if err := s.anew(); err != nil {
		return rest{}, err
	}
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: s.path("notify")})
	if err != nil {
		return rest{}, err
	}
	defer func() { _ = os.Remove(s.path("notify")) }()
	defer func() { _ = manager.Close() }()
	var beats atomic.Int64
	ready := make(chan struct{}, 1)
	go func() {
		for b := make([]byte, 4096); ; {
			n, err := manager.Read(b)
			if err != nil {
				return
			}
			if bytes.Contains(b[:n], []byte("READY=1")) {
				ready <- struct{}{}
			}
			beats.Add(int64(bytes.Count(b[:n], []byte("WATCHDOG=1"))))
		}
	}()
	r := rest{window: window}
	_, _, err = s.serve(func() error {
		ctx, cancel := context.WithTimeout(ctx, limit+calm+window)
		defer cancel()
		command := exec.CommandContext(ctx, program, "--config", s.path("dpsd.toml"), "run") //nolint:gosec // running what it is given is its purpose
		command.Env = append(environment(), "NOTIFY_SOCKET="+s.path("notify"))
		if s.consumer != "" {
			closeSocket, err := s.pass(command)
			if err != nil {
				return err
			}
			defer closeSocket()
		}
		if watchdog > 0 {
			command.Env = append(command.Env, fmt.Sprintf("WATCHDOG_USEC=%d", watchdog.Microseconds()))
		}
		command.Cancel = func() error { return command.Process.Signal(syscall.SIGTERM) }
		command.WaitDelay = calm
		log, err := os.Create(s.path("log"))
		if err != nil {
			return err
		}
		defer log.Close()
		command.Stderr = log
		if err := command.Start(); err != nil {
			return err
		}
		err = s.watch(ctx, &r, command.Process.Pid, ready, &beats)
		_ = command.Process.Signal(syscall.SIGTERM)
		if ended := command.Wait(); err == nil && ended != nil {
			err = s.failed(ended)
		}
		return err
	})
	return r, err
}

// consumerTable configures the local service "service".
const consumerTable = `
[[consumer]]
name = "service"
scope = "device"
`

// pass makes a command inherit the socket of the consumer, as if systemd had passed it (sd_listen_fds(3)).
// LISTEN_PID is the process ID of the program, which only the process itself knows.
func (s *service) pass(command *exec.Cmd) (closeSocket func(), err error) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: s.path(s.consumer + ".sock")})
	if err != nil {
		return nil, err
	}
	file, err := l.File()
	if err != nil {
		_ = l.Close()
		return nil, err
	}
	command.Path, command.Args = "/bin/sh", append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}, command.Args...)
	command.Env = append(command.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES="+s.consumer)
	command.ExtraFiles = []*os.File{file}
	return func() {
		_ = file.Close()
		_ = l.Close()
	}, nil
}

// token requests a token for the consumer.
func (s *service) token(ctx context.Context) error {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.path(s.consumer+".sock"))
		},
	}}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://dpsd/v1/token", http.NoBody)
	if err != nil {
		return err
	}
	answer, err := client.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return s.failed(fmt.Errorf("the response to the request for a token was %s", answer.Status))
	}
	return nil
}

// watch measures the process during the window.
func (s *service) watch(ctx context.Context, r *rest, pid int, ready <-chan struct{}, beats *atomic.Int64) error {
	select {
	case <-ready:
	case <-time.After(limit):
		return s.failed(errors.New("dpsd sent no READY=1"))
	case <-ctx.Done():
		return ctx.Err()
	}
	if s.consumer != "" {
		if err := s.token(ctx); err != nil {
			return err
		}
	}
	select {
	case <-time.After(calm):
	case <-ctx.Done():
		return ctx.Err()
	}
	beatsBefore, packetsBefore := int(beats.Load()), len(s.server.Log())
	moments, err := wakeUps(pid, r.window)
	if err != nil {
		return err
	}
	r.wakeUps, r.beats, r.packets = moments, int(beats.Load())-beatsBefore, len(s.server.Log())-packetsBefore
	for name, value := range map[string]*int64{"RssAnon": &r.anon, "VmHWM": &r.peak} {
		n, err := statusOf(fmt.Sprintf("/proc/%d/status", pid), name)
		if err != nil {
			return err
		}
		*value = n * 1024
	}
	return nil
}

// glance is the sampling interval. The activity of the threads in one interval, or in
// several consecutive ones, is one wake-up: Go's monitor wakes some 10 ms before a timer
// is due, and sleeps some 10 ms after it.
const glance = 50 * time.Millisecond

// wakeUps counts the wake-ups of a process in the window.
func wakeUps(pid int, window time.Duration) (n int, err error) {
	before, err := switches(pid)
	if err != nil {
		return 0, err
	}
	awake := false
	looks := time.NewTicker(glance)
	defer looks.Stop()
	for end := time.Now().Add(window); time.Now().Before(end); <-looks.C {
		now, err := switches(pid)
		if err != nil {
			return 0, err
		}
		if now != before && !awake {
			n++
		}
		awake, before = now != before, now
	}
	return n, nil
}

// switches counts how often threads of a process have gone to sleep and therefore were woken.
func switches(pid int) (int64, error) {
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	if err != nil {
		return 0, err
	}
	var total int64
	for _, file := range threads {
		n, err := statusOf(file, "voluntary_ctxt_switches")
		if err != nil {
			return 0, err
		}
		total += n
	}
	if total == 0 {
		return 0, fmt.Errorf("process %d has no threads that sleep", pid)
	}
	return total, nil
}

// statusOf reads a number from proc_pid_status(5).
func statusOf(file, name string) (int64, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(line, ":"); key == name {
			return strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
		}
	}
	return 0, fmt.Errorf("%s: no %s", file, name)
}
