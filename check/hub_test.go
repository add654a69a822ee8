package check_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/store"
)

// hub is a TLS server that simulates an IoT hub at two ports.
type hub struct {
	ca     string // path of a file
	mqtt   net.Listener
	web    net.Listener
	read   sync.WaitGroup // readers at the MQTT port
	served sync.WaitGroup // handlers at the other port

	mu       sync.Mutex
	inside   []byte   // data received at the MQTT port inside TLS
	shown    int      // number of client certificates received
	requests []string // requests at the other port
	refuses  bool     // responds to requests of devices with 403
}

func newHub(t *testing.T, name string) *hub {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	h := &hub{ca: filepath.Join(t.TempDir(), "ca.pem")}
	if err := os.WriteFile(h.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	listen := func() net.Listener {
		l, err := tls.Listen("tcp", "127.0.0.1:0", config)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	h.mqtt, h.web = listen(), listen()
	h.read.Go(func() {
		for {
			c, err := h.mqtt.Accept()
			if err != nil {
				return
			}
			text, _ := io.ReadAll(c)
			h.mu.Lock()
			h.inside = append(h.inside, text...)
			h.shown += len(c.(*tls.Conn).ConnectionState().PeerCertificates)
			h.mu.Unlock()
			_ = c.Close()
		}
	})
	server := &http.Server{ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0), Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.refuses {
			w.WriteHeader(http.StatusForbidden)
			_, _ = io.WriteString(w, `{"errorCode":403012,"message":"Device disabled"}`)
		} else if r.Method == http.MethodGet {
			_, _ = io.WriteString(w, "[]")
		}
		h.shown += len(r.TLS.PeerCertificates)
		h.requests = append(h.requests, r.Method+" "+r.URL.Path+" "+r.Header.Get("Authorization"))
	})}
	h.served.Go(func() { _ = server.Serve(h.web) })
	t.Cleanup(func() { h.end(); _ = server.Close(); h.served.Wait() })
	return h
}

// end closes the MQTT port and returns when all data received there has been read.
func (h *hub) end() {
	_ = h.mqtt.Close()
	h.read.Wait()
}

// assigned publishes a record with the hub.
func assigned(t *testing.T, directory, endpoint, hub string) {
	t.Helper()
	publish(t, directory, store.Record{AssignedHub: hub, DeviceID: "gw-1", RegistrationID: "gw-1", IDScope: "0ne00000000", Endpoint: endpoint})
}

func publish(t *testing.T, directory string, rec store.Record) {
	t.Helper()
	s, err := store.Open(store.Options{Directory: directory, RuntimeDirectory: t.TempDir()}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = s.Save(rec, time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// withHub returns a gateway with an assigned hub. It resolves h.test and dps.test; no server
// listens at dps.test.
func withHub(t *testing.T, h *hub, listening map[string]net.Listener) *check.Gateway {
	t.Helper()
	resolve := func(_ context.Context, host string) ([]netip.Addr, error) {
		switch host {
		case "h.test":
			return []netip.Addr{netip.MustParseAddr("192.0.2.10")}, nil
		case "dps.test":
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		}
		return nil, &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}
	}
	g := gateway(t, resolve, func(ctx context.Context, address string) (net.Conn, error) {
		address = strings.Replace(address, "192.0.2.10", "h.test", 1)
		if l := listening[address]; l != nil {
			return (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		}
		return nil, refuse(syscall.ECONNREFUSED)
	})
	g.RuntimeDirectory = t.TempDir()
	g.Settings.Dialer.CAFile = h.ca
	return g
}

func TestTheCheckOfTheHubEndsAfterTLSWithoutSigningIn(t *testing.T) {
	h := newHub(t, "h.test")
	g := withHub(t, h, map[string]net.Listener{"h.test:8883": h.mqtt, "h.test:443": h.web})
	assigned(t, g.StateDirectory, "dps.test", "h.test")
	found := steps(t, g)
	for _, step := range []string{"hub-name h.test", "hub-tcp 192.0.2.10:8883", "hub-tcp 192.0.2.10:443", "hub-tls h.test:8883", "hub-tls h.test:443", "clock the hub"} {
		if r := found[step]; r.Status != check.OK {
			t.Errorf("%s: %+v", step, r)
		}
	}
	if r := found["clock the hub"]; !strings.Contains(r.Detail, "that of the hub") {
		t.Errorf("the time that the hub sends is not compared: %+v", r)
	}
	h.end()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.inside) > 0 || h.shown > 0 {
		t.Errorf("the hub received %q and %d certificates", h.inside, h.shown)
	}
	if len(h.requests) != 1 || h.requests[0] != "HEAD / " {
		t.Errorf("on port 443 it received %q", h.requests)
	}
}

func TestWithHubCheckTheHubIsAskedWhetherItAcceptsTheDevice(t *testing.T) {
	for name, tt := range map[string]struct {
		refuses bool
		profile string
		status  check.Status
		detail  string
	}{
		"accepted": {status: check.OK, detail: "the hub accepts gw-1"},
		"refused":  {refuses: true, status: check.Failed, detail: "403012"},
		"mqttV5":   {profile: "mqttV5", status: check.Skipped, detail: `profile "mqttV5"`},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHub(t, "h.test")
			h.refuses = tt.refuses
			g := withHub(t, h, map[string]net.Listener{"h.test:8883": h.mqtt, "h.test:443": h.web})
			key := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(key, []byte(base64.StdEncoding.EncodeToString(make([]byte, 32))), 0o600); err != nil {
				t.Fatal(err)
			}
			g.Settings.Credentials = []attest.Credential{attest.SymmetricKey{Key: attest.Reference{File: key}}}
			g.Settings.HubCheck = true
			publish(t, g.StateDirectory, store.Record{AssignedHub: "h.test", DeviceID: "gw-1", RegistrationID: "gw-1", IDScope: "0ne00000000", Endpoint: "dps.test", ConnectionProfile: tt.profile})
			if r := steps(t, g)["hub-device h.test"]; r.Status != tt.status || !strings.Contains(r.Detail, tt.detail) || (r.Code == fault.HubRefused) != tt.refuses {
				t.Errorf("%+v", r)
			}
			h.mu.Lock()
			defer h.mu.Unlock()
			asked := 0
			for _, r := range h.requests {
				if strings.HasPrefix(r, "GET /devices/gw-1/modules SharedAccessSignature sr=h.test%2Fdevices%2Fgw-1&") && !strings.Contains(r, "skn") {
					asked++
				}
			}
			if want := map[bool]int{true: 0, false: 1}[tt.profile != ""]; asked != want {
				t.Errorf("the hub received %q", h.requests)
			}
		})
	}
}

func TestTheCheckOfTheHubReportsTheProblem(t *testing.T) {
	h, other := newHub(t, "h.test"), newHub(t, "other.test")
	both := map[string]net.Listener{"h.test:8883": h.mqtt, "h.test:443": h.web}
	for _, test := range []struct {
		says      string
		hub       string
		trusts    *hub
		listening map[string]net.Listener
		step      string
		want      check.Status
		code      fault.Code
		advice    string
	}{
		{"a name that does not exist", "gone.test", h, both, "hub-name gone.test", check.Failed, fault.DNSFailed, "the hub was removed or renamed"},
		{"no server on either port", "h.test", h, nil, "hub-tcp 192.0.2.10:8883", check.Failed, fault.TCPRefused, "the firewall allows outbound connections to this port"},
		{"no server on one port is a warning if the other works", "h.test", h, map[string]net.Listener{"h.test:443": h.web}, "hub-tcp 192.0.2.10:8883", check.Warning, fault.TCPRefused, "the firewall"},
		{"roots that do not include its root", "h.test", other, both, "hub-tls h.test:8883", check.Failed, fault.TLSUntrusted, "ca_file"},
		{"a certificate for another name", "h.test", other, map[string]net.Listener{"h.test:8883": other.mqtt, "h.test:443": other.web}, "hub-tls h.test:443", check.Failed, fault.TLSWrongHost, "in place of the hub"},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := withHub(t, test.trusts, test.listening)
			assigned(t, g.StateDirectory, "dps.test", test.hub)
			if r := steps(t, g)[test.step]; r.Status != test.want || r.Code != test.code || !strings.Contains(r.Advice, test.advice) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func TestAnUnknownOrInvalidHubIsNotContacted(t *testing.T) {
	h := newHub(t, "h.test")
	for _, test := range []struct{ says, endpoint, hub, because string }{
		{"none is assigned", "", "", "no hub is assigned yet"},
		{"a simulator has assigned one of Azure's names", "dps.test", "simulated.azure-devices.net", "a simulator's hub, such as simulated.azure-devices.net, need not exist"},
	} {
		t.Run(test.says, func(t *testing.T) {
			g := withHub(t, h, nil)
			if test.hub != "" {
				assigned(t, g.StateDirectory, test.endpoint, test.hub)
			}
			found := steps(t, g)
			for _, step := range []string{"hub-name", "hub-tcp", "hub-tls"} {
				if r := found[step]; r.Status != check.Skipped || !strings.Contains(r.Detail, test.because) {
					t.Errorf("%s: %+v", step, r)
				}
			}
		})
	}
}

func TestASkippedStepContactsNoHost(t *testing.T) {
	for _, test := range []struct {
		says   string
		skip   []string
		dialed bool
		asked  bool // names were resolved
	}{
		{"none is left out", nil, true, true},
		{"all of the network", []string{check.Name, check.TCP, check.TLS, check.Connect, check.HubName, check.HubTCP, check.HubTLS}, false, false},
		{"all but the names", []string{check.TCP, check.TLS, check.Connect, check.HubTCP, check.HubTLS}, false, true},
	} {
		t.Run(test.says, func(t *testing.T) {
			asked, dialed := false, false
			g := gateway(t, func(context.Context, string) ([]netip.Addr, error) {
				asked = true
				return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
			}, func(context.Context, string) (net.Conn, error) {
				dialed = true
				return nil, errors.New("no server")
			})
			assigned(t, g.StateDirectory, "dps.test", "h.test")
			g.Skip = map[string]bool{}
			for _, name := range test.skip {
				g.Skip[name] = true
			}
			count := map[string]int{}
			g.Run(t.Context(), false, func(r check.Result) {
				name := r.Name
				if r.Protocol != "" {
					name += " " + r.Protocol
				}
				if count[name]++; g.Skip[r.Name] && (r.Status != check.Skipped || count[name] > 1) {
					t.Errorf("%d. %+v", count[name], r)
				}
			})
			for _, name := range test.skip {
				if count[name]+count[name+" mqtt"]+count[name+" websocket"] == 0 {
					t.Errorf("%s has no result", name)
				}
			}
			if asked != test.asked || dialed != test.dialed {
				t.Errorf("names were resolved: %t, connections made: %t", asked, dialed)
			}
		})
	}
}

func TestEveryStepThatAResultNamesIsListed(t *testing.T) {
	listed := map[string]bool{}
	for _, s := range check.Steps() {
		if s.Description == "" || listed[s.Name] {
			t.Errorf("%q is listed twice, or without a description", s.Name)
		}
		listed[s.Name] = true
	}
	h := newHub(t, "h.test")
	g := withHub(t, h, map[string]net.Listener{"h.test:8883": h.mqtt, "h.test:443": h.web})
	assigned(t, g.StateDirectory, "dps.test", "h.test")
	g.Run(t.Context(), false, func(r check.Result) {
		if !listed[r.Name] {
			t.Errorf("%s is not listed", r.Name)
		}
	})
}
