package main

import (
	"fmt"
	"strings"

	"github.com/dpsd-project/dpsd/simulator"
)

// connection is what one of them has cost.
type connection struct {
	up, down   int64 // bytes, payload of TCP
	roundTrips int   // with that of TCP
}

// resumption is a connection and the next, on which the gateway says the same.
type resumption struct {
	variant       variant
	first, second connection
}

// refusals is a service that answers the first two register requests with an error, so
// that the gateway comes again twice: each time with a connection of its own, on which
// the same is said.
func refusals() simulator.Rule {
	return simulator.Rule{On: simulator.OnRegister, Status: 500, RetryAfter: "none", Times: 2}
}

// resume measures what a TLS session that is resumed saves. The service has been made
// with refusals.
func (s *service) resume(program string) (resumption, error) {
	r := resumption{variant: s.variant}
	if err := s.anew(); err != nil {
		return r, err
	}
	entries, _, err := s.serve(func() error {
		_, err := s.once(program)
		return err
	})
	if err != nil {
		return r, err
	}
	sum := simulator.Summarize(entries)
	if sum.Connections != 3 {
		return r, s.failed(fmt.Errorf("%d connections, want 3", sum.Connections))
	}
	for i, c := range []*connection{&r.first, &r.second} {
		var those []simulator.Entry
		for _, e := range entries {
			if e.Connection == entries[0].Connection+i {
				those = append(those, e)
			}
		}
		sum := simulator.Summarize(those)
		c.up, c.down, c.roundTrips = sum.BytesUp, sum.BytesDown, allRoundTrips(those)
	}
	return r, nil
}

// resumptions shows them.
func resumptions(all []resumption) string {
	var b strings.Builder
	b.WriteString("| credential | protocol | TLS | bytes up: first, resumed | bytes down | round trips |\n| --- | --- | --- | --: | --: | --: |\n")
	for _, r := range all {
		fmt.Fprintf(&b, "| %s | %s | %s | %d, %d | %d, %d | %d, %d |\n", r.variant.credential, r.variant.protocol, r.variant.tls,
			r.first.up, r.second.up, r.first.down, r.second.down, r.first.roundTrips, r.second.roundTrips)
	}
	return b.String()
}
