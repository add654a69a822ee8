package main

import (
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"time"
)

// answerLimit is how much CPU a command may use that a person or a script waits for.
const answerLimit = 50 * time.Millisecond

// commands measures what the commands cost that answer at once. Other work on the
// machine only adds to it: the best run counts.
func commands(program string, runs int) ([]budget, error) {
	dir, err := os.MkdirTemp("", "dpsd-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	// The way with most steps.
	s, err := newService(variant{"certificate", "websocket", "1.3", 1}, dir)
	if err != nil {
		return nil, err
	}
	defer s.server.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	var open sync.WaitGroup
	open.Go(func() { s.accept(listener, &open) })
	defer open.Wait()
	defer func() { _ = listener.Close() }()
	config := s.path("dpsd.toml")
	if err := os.WriteFile(config, []byte(s.configuration(listener.Addr().(*net.TCPAddr).Port)), 0o600); err != nil {
		return nil, err
	}
	var all []budget
	for _, command := range [][]string{{"check", "--offline"}, {"check"}} {
		var samples []time.Duration
		for range runs {
			u, err := run(limit, s.path("log"), append([]string{program, "--config", config}, command...)...)
			if err != nil {
				return nil, err
			}
			if u.status.ExitStatus() != 0 {
				return nil, s.failed(fmt.Errorf("%s %q ended with wait status %#x", program, command, u.status))
			}
			samples = append(samples, u.cpu)
		}
		name := "CPU of dpsd"
		for _, word := range command {
			name += " " + word
		}
		all = append(all, budget{name + ", best of the runs", "ms", milliseconds(slices.Min(samples)), milliseconds(answerLimit), true})
	}
	return all, nil
}
