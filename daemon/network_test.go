package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/transport"
)

// unplugged has connections that fail with err until the network is restored.
func unplugged(t *testing.T, err error, rules ...simulator.Rule) (g *gateway, restored *atomic.Bool) {
	t.Helper()
	g, restored = newGateway(t, rules...), new(atomic.Bool)
	dial := g.Settings.Dialer.DialContext
	g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if err != nil && !restored.Load() {
			return nil, err
		}
		return dial(ctx, network, address)
	}
	// Every delay is long.
	g.Settings.Retry.Initial, g.Settings.Retry.Max, g.Settings.Retry.OfflineMax = time.Hour, time.Hour, time.Hour
	g.Settings.Retry.RefusedInitial = time.Hour
	g.Network = func([]netip.Addr) string { return fmt.Sprint(restored.Load()) }
	return g, restored
}

func refusedAt(address string) error {
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(netip.MustParseAddrPort(address)),
		Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
}

func TestAChangeOfTheNetworkEndsTheWaitsItMayHaveCaused(t *testing.T) {
	for code, err := range map[fault.Code]error{
		fault.NetworkUnreachable: &net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ENETUNREACH)},
		fault.TCPRefused:         refusedAt("198.51.100.7:8883"),
		fault.DNSFailed:          &net.DNSError{Err: "no such host", Name: "localhost", Server: "198.51.100.53:53", IsNotFound: true},
		fault.ConnectTimeout:     &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded},
		fault.ResolverMissing:    &net.DNSError{Err: "dial udp 127.0.0.1:53: connection refused", Name: "localhost"},
	} {
		t.Run(string(code), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, restored := unplugged(t, err)
				g.run()
				time.Sleep(12 * time.Minute)
				restored.Store(true)
				took := g.until("assigned", 1) - 12*time.Minute
				if most := networkEvery + settle + 2*time.Second + 6*time.Second; took > most {
					t.Errorf("assigned %s after the change, want %s at most", took, most)
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
				g.wantFaults(code)
				if n := g.log.FilterMessage("network-changed").Len(); n != 1 {
					t.Errorf("the change was logged %d times", n)
				}
			})
		})
	}
}

func TestAChangeOfTheNetworkDoesNotEndOtherWaits(t *testing.T) {
	cut := "{"
	for name, rule := range map[string]simulator.Rule{
		"429":                       {On: simulator.OnRegister, Status: 429, RetryAfter: "600"},
		"401":                       {On: simulator.OnRegister, Status: 401, RetryAfter: "none"},
		"500 with a Retry-After":    {On: simulator.OnRegister, Status: 500, RetryAfter: "600"},
		"a poll after a long time":  {On: simulator.OnRegister, RetryAfter: "600"},
		"a connection refused by 3": {On: simulator.OnConnect, Connack: code(3)},
		"500 without a Retry-After": {On: simulator.OnRegister, Status: 500, RetryAfter: "none"},
		"an answer that is no JSON": {On: simulator.OnRegister, Body: &cut},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, restored := unplugged(t, nil, rule)
				looks := 0
				g.Network = func([]netip.Addr) string { looks++; return fmt.Sprint(restored.Load()) }
				g.run()
				time.Sleep(time.Minute)
				restored.Store(true)
				time.Sleep(4 * time.Minute)
				synctest.Wait()
				if n := g.log.FilterMessage("network-changed").Len(); n != 0 || looks != 1 || len(simulator.Summarize(g.sim.Log()).Registers) > 1 {
					t.Errorf("the change was logged %d times, the network was checked %d times, DPS was asked %d times", n, looks, len(simulator.Summarize(g.sim.Log()).Registers))
				}
				if err := g.end(); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

func TestAnAssignedGatewayDoesNotCheckTheNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, restored := unplugged(t, refusedAt("198.51.100.7:8883"))
		g.Settings.Retry.Initial = time.Second
		looks := 0
		g.Network = func([]netip.Addr) string { looks++; return "" }
		g.run()
		g.until("fault", 1)
		restored.Store(true)
		time.Sleep(24 * time.Hour)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		g.wantFaults(fault.TCPRefused)
		if looks != 3 {
			t.Errorf("it looked %d times in a day, want before each of two attempts and after the first", looks)
		}
	})
}

func TestAContinuouslyChangingNetworkCausesOneAttemptInTenSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _ := unplugged(t, refusedAt("198.51.100.7:8883"))
		looks := 0
		g.Network = func([]netip.Addr) string { looks++; return fmt.Sprint(looks) }
		g.run()
		time.Sleep(10 * time.Minute)
		if err := g.end(); err != nil {
			t.Error(err)
		}
		if n := len(g.faults()); n < 40 || n > 61 {
			t.Errorf("%d attempts in ten minutes", n)
		}
	})
}

func TestAChangeDuringAnAttemptEndsTheWaitAfterIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, restored := unplugged(t, nil)
		dial, first := g.Settings.Dialer.DialContext, true
		g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			if first {
				first = false
				time.Sleep(20 * time.Second)
				restored.Store(true)
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: os.ErrDeadlineExceeded}
			}
			return dial(ctx, network, address)
		}
		g.run()
		if at := g.until("assigned", 1); at > time.Minute {
			t.Errorf("assigned after %s", at)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheNetworkIsCheckedForTheFailedDestinations(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, restored := unplugged(t, refusedAt("198.51.100.7:8883"))
		g.Network = func(to []netip.Addr) string {
			return fmt.Sprint(restored.Load() && len(to) == 1 && to[0] == netip.MustParseAddr("198.51.100.7"))
		}
		g.run()
		time.Sleep(time.Minute)
		restored.Store(true)
		if at := g.until("assigned", 1); at > 2*time.Minute {
			t.Errorf("assigned after %s", at)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheDestinationsOfAFailureAreItsPeersAndNameServers(t *testing.T) {
	failed := transport.Errors{
		{Stage: transport.StageTCP, Err: refusedAt("[2001:db8::7]:8883")},
		{Stage: transport.StageTCP, Err: fmt.Errorf("wrapped: %w", refusedAt("198.51.100.7:443"))},
		{Stage: transport.StageName, Err: &net.OpError{Op: "dial", Err: &net.DNSError{Server: "198.51.100.53:53"}}},
		{Stage: transport.StageTCP, Err: errors.Join(refusedAt("198.51.100.7:8883"), errors.New("no address"), &net.DNSError{Server: "none"})},
	}
	var got []string
	for _, to := range destinations(classify.At(fault.StageTCP, failed)) {
		got = append(got, to.String())
	}
	if want := strings.Fields("198.51.100.7 198.51.100.53 2001:db8::7"); !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
