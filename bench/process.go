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

// run runs a program until it ends, with an environment, and with its output in the file log.
// It kills the program after limit.
//
// A shell starts the program and exits immediately, and run inherits the program. If this process
// started it, the program would be charged with the peak memory of this process: os/exec shares
// its memory with the child until execve(2), which keeps the larger peak.
// its memory with the child until execve(2), which keeps the larger peak.
func run(limit time.Duration, environment []string, log string, command ...string) (usage, error) {
	// The program starts when descriptor 3, the gate, is opened: if it ended before the
	// shell, the shell would wait for it.
	gate, opener, err := os.Pipe()
	if err != nil {
		return usage{}, err
	}
	defer opener.Close()
	shell := exec.Command("/bin/sh", append([]string{"-c", `{ read -r _ <&3; exec "$@" 3<&-; } >"$0" 2>&1 </dev/null & echo $!`, log}, command...)...) //nolint:gosec // running what it is given is its purpose
	shell.Env = environment
	shell.ExtraFiles = []*os.File{gate}
	out, err := shell.Output()
	_ = gate.Close()
	if err != nil {
		return usage{}, fmt.Errorf("starting %s: %w", command[0], err)
	}
	pid, err := strconv.Atoi(string(bytes.TrimSpace(out)))
	if err != nil {
		return usage{}, fmt.Errorf("starting %s: %w", command[0], err)
	}
	u := usage{started: time.Now()}
	_ = opener.Close()
	// The process number remains reserved until wait4 has returned.
	killer := time.AfterFunc(limit, func() { _ = unix.Kill(pid, unix.SIGKILL) })
	defer killer.Stop()
	var r unix.Rusage
	for {
		_, err = unix.Wait4(pid, &u.status, 0, &r)
		if err != unix.EINTR { //nolint:errorlint // a system call's error is never wrapped
			break
		}
	}
	if err != nil {
		return usage{}, fmt.Errorf("waiting for %s: %w", command[0], err)
	}
	u.elapsed = time.Since(u.started)
	u.cpu = time.Duration(r.Utime.Nano() + r.Stime.Nano())
	u.peak = r.Maxrss * 1024
	return u, nil
}
