package check_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/daemon"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/transport"
)

// gateway returns a gateway with a simulated network.
func gateway(t *testing.T, resolve func(context.Context, string) ([]netip.Addr, error), dial func(ctx context.Context, address string) (net.Conn, error)) *check.Gateway {
	t.Helper()
	return &check.Gateway{
		Settings: &daemon.Settings{
			RegistrationID: attest.RegistrationID{Template: "gw-1"},
			Dialer: &transport.Dialer{
				Host: "dps.test", Protocols: []transport.Protocol{transport.MQTT}, Timeout: 20 * time.Second,
				DialContext: func(ctx context.Context, _, address string) (net.Conn, error) { return dial(ctx, address) },
			},
		},
		StateDirectory: t.TempDir(),
		Resolve:        resolve,
	}
}

// steps runs a check and returns the results by name and subject.
func steps(t *testing.T, g *check.Gateway) map[string]check.Result {
	t.Helper()
	found := map[string]check.Result{}
	g.Run(t.Context(), false, func(r check.Result) { found[strings.TrimSpace(r.Name+" "+r.Subject)] = r })
	return found
}

func addresses(text ...string) func(context.Context, string) ([]netip.Addr, error) {
	return func(context.Context, string) ([]netip.Addr, error) {
		var all []netip.Addr
		for _, a := range text {
			all = append(all, netip.MustParseAddr(a))
		}
		return all, nil
	}
}

func refuse(errno syscall.Errno) error { return &net.OpError{Op: "dial", Net: "tcp", Err: errno} }

func TestNames(t *testing.T) {
	for _, test := range []struct {
		says string
		err  error
		code fault.Code
	}{
		{"a name that does not exist", &net.DNSError{Err: "no such host", Name: "dps.test", IsNotFound: true}, fault.DNSFailed},
		{"no name server", &net.DNSError{Err: "read udp 127.0.0.1:1->127.0.0.1:53: read: connection refused", Name: "dps.test"}, fault.ResolverMissing},
		{"no network at all", &net.DNSError{Err: "dial udp 192.0.2.1:53: connect: network is unreachable", Name: "dps.test"}, fault.NetworkUnreachable},
		{"a name server that does not answer", &net.DNSError{Err: "i/o timeout", Name: "dps.test", IsTimeout: true}, fault.DNSFailed},
	} {
		t.Run(test.says, func(t *testing.T) {
			found := steps(t, gateway(t,
				func(context.Context, string) ([]netip.Addr, error) { return nil, test.err },
				func(_ context.Context, address string) (net.Conn, error) {
					t.Errorf("%s is dialed although its name is not resolved", address)
					return nil, errors.New("no")
				}))
			if r := found["name dps.test"]; r.Status != check.Failed || r.Code != test.code || r.Advice != fault.Describe(test.code).Advice {
				t.Errorf("%+v", r)
			}
			for _, later := range []string{"tls dps.test:8883", "connect dps.test:8883"} {
				if r := found[later]; r.Status != check.Skipped || !strings.Contains(r.Detail, "the name dps.test cannot be resolved") {
					t.Errorf("%s: %+v", later, r)
				}
			}
		})
	}
}

func TestANameThatABlocklistResolvesToThisGatewayIsReported(t *testing.T) {
	for host, blocked := range map[string]bool{
		"global.azure-devices-provisioning.net": true, "x.azure-devices-provisioning.cn": true,
		"dps.test": false, // a simulator may be on this gateway
	} {
		for address, subject := range map[string]string{"0.0.0.0": "0.0.0.0:8883", "127.0.0.1": "127.0.0.1:8883", "::": "[::]:8883", "::ffff:127.0.0.1": "127.0.0.1:8883"} {
			g := gateway(t, addresses(address), func(context.Context, string) (net.Conn, error) { return nil, refuse(syscall.ECONNREFUSED) })
			g.Settings.Dialer.Host = host
			r := steps(t, g)["tcp "+subject]
			if r.Status != check.Failed || (r.Code == fault.DNSBlocked && strings.Contains(r.Advice, "Allow the name")) != blocked {
				t.Errorf("%s at %s: %+v", host, address, r)
			}
		}
	}
}

func TestAddresses(t *testing.T) {
	hangUp := func() (net.Conn, error) {
		here, there := net.Pipe()
		_ = there.Close()
		return here, nil
	}
	t.Run("an address that does not answer is a warning if another does, and IPv6 may be missing", func(t *testing.T) {
		found := steps(t, gateway(t, addresses("2001:db8::1", "192.0.2.1", "192.0.2.2"), func(_ context.Context, address string) (net.Conn, error) {
			switch address {
			case "[2001:db8::1]:8883":
				return nil, refuse(syscall.ENETUNREACH)
			case "192.0.2.1:8883":
				return nil, refuse(syscall.ECONNREFUSED)
			}
			return hangUp()
		}))
		for subject, want := range map[string]check.Status{"tcp [2001:db8::1]:8883": check.Skipped, "tcp 192.0.2.1:8883": check.Warning, "tcp 192.0.2.2:8883": check.OK, "tls dps.test:8883": check.Failed} {
			if r := found[subject]; r.Status != want {
				t.Errorf("%s: %+v, want %s", subject, r, want)
			}
		}
	})
	t.Run("addresses that do not answer are tried in parallel until connect_timeout", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			start := time.Now()
			found := steps(t, gateway(t, addresses("2001:db8::1", "192.0.2.1"), func(ctx context.Context, _ string) (net.Conn, error) {
				<-ctx.Done()
				return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
			}))
			for _, subject := range []string{"tcp [2001:db8::1]:8883", "tcp 192.0.2.1:8883"} {
				if r := found[subject]; r.Status != check.Failed || r.Code != fault.ConnectTimeout || r.Detail != "no answer within 20s" {
					t.Errorf("%s: %+v", subject, r)
				}
			}
			if took := time.Since(start); took != 20*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	})
	t.Run("after cancellation no further step is started", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := gateway(t, addresses("192.0.2.1"), func(ctx context.Context, _ string) (net.Conn, error) {
			cancel()
			return nil, ctx.Err()
		})
		g.Run(ctx, false, func(r check.Result) {
			if r.Name == check.TCP || r.Name == check.Connect {
				t.Errorf("%+v", r)
			}
		})
	})
}

// issued returns a certificate for the host whose issuer has the name of the root.
func issued(t *testing.T, host, root string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, &x509.Certificate{Subject: pkix.Name{CommonName: root}}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestEachStepOfTLSAdvisesTheRootThatASovereignCloudNeeds(t *testing.T) {
	for host, want := range map[string]string{
		"global.azure-devices-provisioning.us":  "Set ca_file to a PEM file with the DigiCert Global Root CA (G1)",
		"global.azure-devices-provisioning.cn":  "Set ca_file to a PEM file with the DigiCert Global Root CA (G1)",
		"global.azure-devices-provisioning.net": "update ca-certificates",
	} {
		for _, protocols := range [][]transport.Protocol{{transport.MQTT}, {transport.WebSocket}, {transport.MQTT, transport.WebSocket}} {
			t.Run(fmt.Sprint(host, protocols), func(t *testing.T) {
				server, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{issued(t, host, "DigiCert Global Root CA")}})
				if err != nil {
					t.Fatal(err)
				}
				defer server.Close()
				go func() {
					for c, err := server.Accept(); err == nil; c, err = server.Accept() {
						_, _ = c.Read(make([]byte, 1)) // the handshake fails
						_ = c.Close()
					}
				}()
				g := gateway(t, addresses("192.0.2.1"), func(ctx context.Context, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "tcp", server.Addr().String())
				})
				g.Settings.Dialer.Host, g.Settings.Dialer.Protocols, g.Settings.Dialer.Roots = host, protocols, x509.NewCertPool()
				seen := 0
				g.Run(t.Context(), false, func(r check.Result) {
					if r.Name != check.TLS {
						return
					}
					seen++
					if r.Code != fault.TLSUntrusted || !strings.Contains(r.Advice, want) {
						t.Errorf("%+v, want %q", r, want)
					}
				})
				if seen != len(protocols) {
					t.Errorf("%d steps, want %d", seen, len(protocols))
				}
			})
		}
	}
}
