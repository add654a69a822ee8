package main

import (
	"fmt"
	"strings"

	"github.com/dpsd-project/dpsd/simulator"
)

// reason is why a gateway connects a second time, and the behaviour of the service that
// causes it.
type reason struct {
	name       string
	rule       simulator.Rule
	roundTrips int // of TCP, TLS, CONNECT, SUBSCRIBE and the requests, with a resumed session
}

func reasons() []reason {
	return []reason{
		{"an attempt after a fault", simulator.Rule{On: simulator.OnRegister, Status: 500, RetryAfter: "none", Times: 1}, 6},
		{"a poll on a new connection", simulator.Rule{On: simulator.OnPoll, Close: true, Times: 1}, 5},
	}
}

// comeback is the cost of the second connection, with a full TLS handshake and with a resumed
// session.
type comeback struct {
	variant       variant
	why           reason
	full, resumed connection
}

// connection is the cost of one connection.
type connection struct {
	up, down   int64 // bytes, payload of TCP
	roundTrips int   // including those of TCP and TLS
}

// second runs the program and returns the cost of the last of its two connections.
func (s *service) second(program string) (connection, error) {
	if err := s.anew(); err != nil {
		return connection{}, err
	}
	entries, _, err := s.serve(func() error {
		_, err := s.once(program)
		return err
	})
	if err != nil {
		return connection{}, err
	}
	if n := simulator.Summarize(entries).Connections; n != 2 {
		return connection{}, s.failed(fmt.Errorf("%d connections, want 2", n))
	}
	last := entries[len(entries)-1].Connection
	var those []simulator.Entry
	for _, e := range entries {
		if e.Connection == last {
			those = append(those, e)
		}
	}
	sum := simulator.Summarize(those)
	return connection{sum.BytesUp, sum.BytesDown, allRoundTrips(those)}, nil
}

// resumptions shows the results.
func resumptions(all []comeback) string {
	var b strings.Builder
	b.WriteString("| second connection | credential | TLS | bytes up: in full, resumed | bytes down | round trips |\n| --- | --- | --- | --: | --: | --: |\n")
	for _, c := range all {
		fmt.Fprintf(&b, "| %s | %s | %s | %d, %d | %d, %d | %d, %d |\n", c.why.name, c.variant.credential, c.variant.tls,
			c.full.up, c.resumed.up, c.full.down, c.resumed.down, c.full.roundTrips, c.resumed.roundTrips)
	}
	return b.String()
}
