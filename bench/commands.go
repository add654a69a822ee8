package main

import (
	"fmt"
	"os/exec"
	"slices"
	"time"
)

// answerLimit is the CPU time that an interactive or scripted command may use.
const answerLimit = 50 * time.Millisecond

// commands measures the cost of the commands that return immediately. Other load on the
// machine only increases it, so the best run counts.
func (b *bench) commands(dir string) ([]budget, error) {
	// WebSocket with a certificate has the most steps.
	s, err := b.service(dir, "commands", variant{"certificate", "websocket", "1.3", 1}, false)
	if err != nil {
		return nil, err
	}
	defer s.server.Close()
	var all []budget
	_, _, err = s.serve(func() error {
		for _, command := range [][]string{{"check", "--offline"}, {"check"}, {"status"}} {
			if command[0] == "status" { // it needs a running daemon; the others do not
				stop, err := s.serviceOf(b.program, s.path("dpsd.toml"))
				if err != nil {
					return err
				}
				defer stop()
			}
			var samples []time.Duration
			for range b.runs {
				u, err := run(limit, environment(), s.path("log"), append([]string{b.program, "--config", s.path("dpsd.toml")}, command...)...)
				if err != nil {
					return err
				}
				if u.status.ExitStatus() != 0 {
					return s.failed(fmt.Errorf("%s %q ended with wait status %#x", b.program, command, u.status))
				}
				samples = append(samples, u.cpu)
			}
			name := "CPU of dpsd"
			for _, word := range command {
				name += " " + word
			}
			all = append(all, budget{name + ", best of the runs", "ms", milliseconds(slices.Min(samples)), milliseconds(answerLimit), noisy})
		}
		return nil
	})
	return all, err
}

// serviceOf starts dpsd as a service and returns when it is assigned.
func (s *service) serviceOf(program, config string) (stop func(), err error) {
	c := exec.Command(program, "--config", config, "run") //nolint:gosec // the program to measure
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop = func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}
	u, err := run(limit, environment(), s.path("log"), program, "--config", config, "wait", "--for", "confirmed", "--timeout", "30s")
	if err == nil && u.status.ExitStatus() != 0 {
		err = s.failed(fmt.Errorf("%s did not get an assignment: wait status %#x", program, u.status))
	}
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}
