package main

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// environment is the environment in dpsd.service, without the variables that systemd sets.
func environment() []string { return []string{"GOMAXPROCS=1"} }

// usage is the resource usage of a process, wait4(2).
type usage struct {
	cpu     time.Duration // user and system
	peak    int64         // ru_maxrss, in bytes
	started time.Time     // before it started
	elapsed time.Duration // until it ended
	status  unix.WaitStatus
}

// adoptOrphans makes this process the parent of processes whose parent has ended.
func adoptOrphans() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// process is a program that start has started.
type process struct {
	name    string
	pid     int
	started time.Time // immediately before it starts
}

// run runs a program until it ends, with an environment, and with its output in the file log.
// It kills the program after limit.
func run(limit time.Duration, environment []string, log string, command ...string) (usage, error) {
	p, err := start(environment, log, command...)
	if err != nil {
		return usage{}, err
	}
	// The process number remains reserved until wait has returned.
	killer := time.AfterFunc(limit, p.kill)
	defer killer.Stop()
	return p.wait()
}

// start starts a program. The caller must wait for it.
//
// A shell starts the program and exits immediately, and this process inherits the program. If this
// process started it, the program would be charged with the peak memory of this process: os/exec
// shares its memory with the child until execve(2), which keeps the larger peak.
func start(environment []string, log string, command ...string) (process, error) {
	p := process{name: command[0]}
	// The program starts when descriptor 3, the gate, is opened: if it ended before the
	// shell, the shell would wait for it.
	gate, opener, err := os.Pipe()
	if err != nil {
		return p, err
	}
	defer opener.Close()
	shell := exec.Command("/bin/sh", append([]string{"-c", `{ read -r _ <&3; exec "$@" 3<&-; } >"$0" 2>&1 </dev/null & echo $!`, log}, command...)...) //nolint:gosec // running what it is given is its purpose
	shell.Env = environment
	shell.ExtraFiles = []*os.File{gate}
	out, err := shell.Output()
	_ = gate.Close()
	if err == nil {
		p.pid, err = strconv.Atoi(string(bytes.TrimSpace(out)))
	}
	if err != nil {
		return p, fmt.Errorf("starting %s: %w", p.name, err)
	}
	p.started = time.Now()
	return p, nil
}

func (p process) kill() { _ = unix.Kill(p.pid, unix.SIGKILL) }

// wait waits until the program has ended.
func (p process) wait() (usage, error) {
	u := usage{started: p.started}
	var r unix.Rusage
	var err error
	for {
		_, err = unix.Wait4(p.pid, &u.status, 0, &r)
		if err != unix.EINTR { // a system call's error is never wrapped
			break
		}
	}
	if err != nil {
		return usage{}, fmt.Errorf("waiting for %s: %w", p.name, err)
	}
	u.elapsed = time.Since(u.started)
	u.cpu = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	u.peak = r.Maxrss * 1024
	return u, nil
}
