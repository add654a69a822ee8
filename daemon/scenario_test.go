package daemon

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/scenario"
	"github.com/dpsd-project/dpsd/transport"
)

// example is a scenario of docs/simulator.md with the expected result of dpsd.
type example struct {
	name     string
	scenario *simulator.Scenario
	on       string   // "", "over WebSocket", "with a certificate" or withIssued
	outcome  []string // faults, and "assigned" at the end if so
}

// withIssued is a way to run dpsd: it requests a certificate.
const withIssued = "with an issued certificate"

// examples reads the examples. The first line of each states the result.
func examples(t *testing.T) []example {
	t.Helper()
	text, err := os.ReadFile("../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	var all []example
	said := regexp.MustCompile(`^# dpsd( [a-zA-Z ]+)?: (.+)\n`)
	for _, place := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllSubmatchIndex(text, -1) {
		block := text[place[2]:place[3]]
		if !bytes.Contains(block, []byte("[[rule]]")) && !bytes.Contains(block, []byte("[settings]")) {
			continue
		}
		line := 1 + bytes.Count(text[:place[0]], []byte("\n"))
		head := said.FindSubmatch(block)
		if head == nil {
			t.Errorf("docs/simulator.md:%d: the example does not state the result", line)
			continue
		}
		sc, err := scenario.Parse(fmt.Sprintf("docs/simulator.md:%d", line), bytes.NewReader(block))
		if err != nil {
			t.Error(err)
			continue
		}
		all = append(all, example{
			name: fmt.Sprintf("line %d: %s", line, head[2]), scenario: sc,
			on: strings.TrimSpace(string(head[1])), outcome: strings.Split(string(head[2]), ", "),
		})
	}
	return all
}

// gateway returns a gateway in the bubble that uses the example.
func (e *example) gateway(t *testing.T) *gateway {
	g := newGateway(t)
	if err := g.sim.SetScenario(e.scenario); err != nil {
		t.Fatal(err)
	}
	// A kernel does this while a listener is closed.
	dial := g.Settings.Dialer.DialContext
	g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		protocol := "mqtt"
		if strings.HasSuffix(address, ":443") {
			protocol = "websocket"
		}
		if g.sim.Refuses(protocol) {
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		return dial(ctx, network, address)
	}
	switch e.on {
	case "":
	case "over WebSocket":
		g.Settings.Dialer.Protocols = []transport.Protocol{transport.WebSocket}
	case "with a certificate":
		g.Settings.Credentials = []attest.Credential{g.certificate(device)}
	case withIssued:
		requesting(g)
	default:
		t.Fatalf("%q is not a way to run dpsd", e.on)
	}
	return g
}

// play runs dpsd until it is assigned, or for 30 hours, and returns the reported faults without
// repetitions.
func (e *example) play(g *gateway) []string {
	g.run()
	for begin := time.Now(); g.log.FilterMessage("assigned").Len() == 0 && time.Since(begin) < 30*time.Hour; {
		time.Sleep(time.Minute) // each check reads the whole log
		synctest.Wait()
	}
	got := slices.Compact(g.faults())
	if g.log.FilterMessage("assigned").Len() > 0 {
		got = append(got, "assigned")
	}
	if err := g.end(); err != nil {
		g.t.Errorf("the end of dpsd: %v", err)
	}
	return got
}

// The test runs dpsd with every example of the documentation.
func TestEveryScenarioOfTheDocumentation(t *testing.T) {
	all := examples(t)
	if len(all) < 50 {
		t.Errorf("%d examples were found", len(all))
	}
	for _, e := range all {
		t.Run(e.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := e.gateway(t)
				if d := cmp.Diff(e.outcome, e.play(g)); d != "" {
					t.Errorf("the document says (-) and dpsd reports (+):\n%s\nfaults: %v", d, g.log.FilterMessage("fault").All())
				}
				if v := simulator.Summarize(g.sim.Log()).Violations; len(v) > 0 {
					t.Errorf("dpsd violates a rule: %q", v)
				}
			})
		})
	}
}

// The assignment is published nevertheless. Two kinds of chain are unusual, but correct.
func TestEachFaultyChainIsRejected(t *testing.T) {
	for _, kind := range scenario.Chains {
		want := []string{"certificate-rejected", "assigned"}
		if kind == "leaf-only" || kind == "short-issuer" {
			want = want[1:]
		}
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				e := example{on: withIssued, scenario: &simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnRegister, CSR: true, Chain: kind}}}}
				g := e.gateway(t)
				if d := cmp.Diff(want, e.play(g)); d != "" {
					t.Errorf("%s\nfaults: %v", d, g.log.FilterMessage("fault").All())
				}
			})
		})
	}
}
