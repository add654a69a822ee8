package daemon

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-tpm/tpm2"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/certificate"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/modules"
	"github.com/dpsd-project/dpsd/signer"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

var update = flag.Bool("update", false, "rewrite testdata/faults.golden from what dpsd says")

// provocation makes dpsd report a code.
type provocation struct {
	rule   simulator.Rule
	set    func(*gateway) // before the start
	during func(*gateway) // a second after it
	event  string         // which one tells it; "" is fault
	// inject is passed to the supervisor as the result of an attempt, for failures that
	// cannot happen in a bubble.
	inject error
}

// ruled uses a key over TLS, which is sufficient for most codes.
func ruled(r simulator.Rule) provocation { return provocation{rule: r} }

// dialling fails like the operating system before anything is sent.
func dialling(err error) provocation {
	return provocation{set: func(g *gateway) {
		g.Settings.Dialer.DialContext = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: err}
		}
	}}
}

// proxied uses a proxy that a function implements, or the simulator's TLS if the function is
// nil.
func proxied(address string, proxy func(net.Conn)) provocation {
	return provocation{set: func(g *gateway) {
		g.Settings.Dialer.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse(address) }
		if proxy == nil {
			return
		}
		g.Settings.Dialer.DialContext = func(context.Context, string, string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go proxy(theirs)
			return newWire(ours), nil
		}
	}}
}

// leading makes the name resolve to an address at which nothing listens.
func leading(address string) func(*gateway) {
	return func(g *gateway) {
		g.Settings.Dialer.DialContext = func(context.Context, string, string) (net.Conn, error) {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: &net.TCPAddr{IP: net.ParseIP(address), Port: 8883}, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
	}
}

func answering(text string) func(net.Conn) {
	return func(c net.Conn) {
		defer c.Close()
		if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
			_, _ = io.WriteString(c, text)
		}
	}
}

// file writes a file and makes it the gateway's key.
func file(name, text string) func(*gateway) {
	return func(g *gateway) { g.write(name, text) }
}

// expired is a device certificate that expired a year ago.
func expired(g *gateway) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: device},
		NotBefore: g.start.AddDate(-2, 0, 0), NotAfter: g.start.AddDate(-1, 0, 0),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		g.t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		g.t.Fatal(err)
	}
	g.Settings.Credentials = []attest.Credential{g.certificate(device)}
	g.write("device.pem", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate})))
	g.write("device-key.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})))
}

// requesting makes the gateway request a certificate.
func requesting(g *gateway) {
	g.Settings.APIVersion = "2026-11-01"
	g.Settings.Certificate = &CertificateSettings{Required: true, KeyType: certificate.P256, RenewAt: 67}
}

// provocations has one entry for each code of the catalogue. All but two run end to end in a
// bubble: a second daemon is detected before there is a supervisor, and an unknown failure is
// by definition a defect that is not known.
var provocations = map[fault.Code]provocation{
	fault.ConfigurationInvalid: {event: "reload-refused", set: func(g *gateway) {
		hangup := make(chan os.Signal, 1)
		g.Hangup = hangup
		time.AfterFunc(time.Second, func() { hangup <- os.Interrupt }) // dpsd then waits for the assignment
		g.Reload = func() (*Settings, error) { return nil, errors.New("dpsd.toml:3:1: dps.id_scop: unknown key") }
	}},

	fault.InputUnreadable: {set: func(g *gateway) { g.Settings.PayloadFile = filepath.Join(g.dir, "payload.json") }},
	fault.InputInvalid: {set: func(g *gateway) {
		g.write("payload.json", "[1]")
		g.Settings.PayloadFile = filepath.Join(g.dir, "payload.json")
	}},
	fault.CredentialUnreadable: {set: func(g *gateway) { _ = os.Remove(filepath.Join(g.dir, "device.key")) }},
	fault.CredentialEncrypted:  {set: file("device.key", "Whxqht+dQJax1aZeCGLxmiAAAAABAAAADAAAABAAAABw\n")},
	fault.CredentialInvalid: {set: func(g *gateway) {
		g.Settings.Credentials = []attest.Credential{g.certificate("another-device")}
	}},
	fault.CertificateExpired: {set: expired},
	fault.TPMKeyUnusable:     {set: func(g *gateway) { g.inTPM().Reset() }},
	fault.TPMUnavailable:     {set: func(g *gateway) { g.inTPM().Absent = true }},
	fault.TPMLockedOut: {set: func(g *gateway) {
		g.inTPM().Before = func(c tpm2.TPMCC, _ int) (tpm2.TPMRC, error) {
			if c == tpm2.TPMCCLoad {
				return tpm2.TPMRCLockout, nil
			}
			return 0, nil
		}
	}},
	fault.SignerFailed: {set: func(g *gateway) {
		x := g.certificate(device).(attest.X509)
		x.PrivateKey = attest.Reference{Signer: filepath.Join(g.dir, "signer.sock")}
		g.Settings.Credentials = []attest.Credential{x}
	}},
	fault.SignerRefused: {inject: classify.At(fault.StageCredential, refusing(signer.Refused, signer.CodeRefused, "the PIN is wrong"))},

	fault.NetworkUnreachable: dialling(os.NewSyscallError("connect", syscall.ENETUNREACH)),
	fault.ResolverMissing:    dialling(&net.DNSError{Err: "read udp 127.0.0.1:41000->127.0.0.1:53: read: connection refused", Name: "global.azure-devices-provisioning.net", Server: "127.0.0.1:53"}),
	fault.DNSFailed:          dialling(&net.DNSError{Err: "no such host", Name: "global.azure-devices-provisioning.net", Server: "192.0.2.1:53", IsNotFound: true}),
	fault.DNSBlocked: {set: func(g *gateway) {
		g.Settings.Dialer.Host = global
		leading("0.0.0.0")(g)
	}},
	fault.TCPRefused:     dialling(os.NewSyscallError("connect", syscall.ECONNREFUSED)),
	fault.ConnectTimeout: ruled(simulator.Rule{On: simulator.OnAccept, Silent: true}),
	fault.ConnectionLost: ruled(simulator.Rule{On: simulator.OnPoll, Reset: true}),

	fault.ProxyAddress: {set: func(g *gateway) {
		g.Settings.Dialer.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse("socks5://proxy.test:1080") }
	}},
	fault.ProxyUnreachable: {set: func(g *gateway) {
		dialling(os.NewSyscallError("connect", syscall.ECONNREFUSED)).set(g)
		g.Settings.Dialer.Proxy = func(*url.URL) (*url.URL, error) { return url.Parse("http://proxy.test:3128") }
	}},
	fault.ProxyUntrusted: proxied("https://proxy.test:3129", nil),
	fault.ProxyAuth: proxied("http://proxy.test:3128",
		answering("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=\"x\"\r\n\r\n")),
	fault.ProxyAuthUnsupported: proxied("http://proxy.test:3128",
		answering("HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n")),
	fault.ProxyScheme:   proxied("http://proxy.test:3128", answering("\x15\x03\x01\x00\x02\x02\x28")),
	fault.ProxyUpstream: proxied("http://proxy.test:3128", answering("HTTP/1.1 503 Service Unavailable\r\n\r\n")),
	fault.ProxyRefused:  proxied("http://proxy.test:3128", answering("HTTP/1.1 403 Filtered\r\n\r\n")),

	fault.CAUnreadable: {set: func(g *gateway) { g.Settings.Dialer.CAFile = filepath.Join(g.dir, "ca.pem") }},
	fault.TLSUntrusted: ruled(simulator.Rule{On: simulator.OnTLS, ServerCertificate: "other-ca"}),
	fault.TLSIntercepted: {rule: simulator.Rule{On: simulator.OnTLS, ServerCertificate: "other-ca"},
		set: func(g *gateway) { g.Settings.Dialer.Host = global }},
	fault.TLSWrongHost:     ruled(simulator.Rule{On: simulator.OnTLS, ServerCertificate: "wrong-host"}),
	fault.TLSExpired:       ruled(simulator.Rule{On: simulator.OnTLS, ServerCertificate: "expired"}),
	fault.TLSVersion:       ruled(simulator.Rule{On: simulator.OnTLS, TLSMin: "1.0", TLSMax: "1.1"}),
	fault.TLSFailed:        ruled(simulator.Rule{On: simulator.OnTLS, Alert: "internal_error"}),
	fault.NotTLS:           ruled(simulator.Rule{On: simulator.OnAccept, Garbage: "SSH-2.0-OpenSSH_9.2\r\n"}),
	fault.CaptivePortal:    ruled(simulator.Rule{On: simulator.OnAccept, Garbage: "HTTP/1.1 302 Found\r\nLocation: http://login.test/\r\n\r\n"}),
	fault.WebSocketRefused: {rule: simulator.Rule{On: simulator.OnUpgrade, Status: 403}, set: func(g *gateway) { g.Settings.Dialer.Protocols = []transport.Protocol{transport.WebSocket} }},
	fault.ClockImplausible: ruled(simulator.Rule{On: simulator.OnTLS, ServerCertificate: "not-yet-valid"}),

	fault.CertificateRefused: {rule: simulator.Rule{On: simulator.OnTLS, Alert: "unknown_ca", AlertAt: "certificate"},
		set: func(g *gateway) { g.Settings.Credentials = []attest.Credential{g.certificate(device)} }},
	fault.NotMQTT:            ruled(simulator.Rule{On: simulator.OnConnect, Garbage: "HTTP/1.1 400 Bad Request\r\n\r\n"}),
	fault.ConnackRefused:     ruled(simulator.Rule{On: simulator.OnConnect, Connack: code(5)}),
	fault.ConnackUnavailable: ruled(simulator.Rule{On: simulator.OnConnect, Connack: code(3)}),
	fault.ConnackRejected:    ruled(simulator.Rule{On: simulator.OnConnect, Connack: code(2)}),
	fault.NotDPS:             ruled(simulator.Rule{On: simulator.OnSubscribe, Suback: code(128)}),
	fault.ProtocolViolation:  ruled(simulator.Rule{On: simulator.OnRegister, Garbage: "\xff\x00"}),

	fault.Unauthorized:       ruled(simulator.Rule{On: simulator.OnRegister, Status: 401, ErrorCode: 401002, RetryAfter: "none"}),
	fault.EnrollmentNotFound: ruled(simulator.Rule{On: simulator.OnRegister, Status: 404, ErrorCode: 404201, RetryAfter: "none"}),
	fault.EnrollmentDisabled: ruled(simulator.Rule{On: simulator.OnRegister, Status: 200, State: "disabled"}),
	fault.AllocationFailed:   ruled(simulator.Rule{On: simulator.OnPoll, Status: 200, State: "failed", ErrorCode: 400207, ErrorMessage: "Custom allocation failed"}),
	fault.RequestRefused:     ruled(simulator.Rule{On: simulator.OnRegister, Status: 400, ErrorCode: 400004, RetryAfter: "none"}),
	fault.Throttled:          ruled(simulator.Rule{On: simulator.OnRegister, Status: 429, RetryAfter: "600"}),
	fault.ServiceError:       ruled(simulator.Rule{On: simulator.OnRegister, Status: 500, RetryAfter: "none"}),
	fault.OperationLost:      ruled(simulator.Rule{On: simulator.OnPoll, Status: 404, RetryAfter: "none"}),
	fault.NoReply:            ruled(simulator.Rule{On: simulator.OnRegister, Silent: true}),
	fault.MalformedReply:     ruled(simulator.Rule{On: simulator.OnRegister, Cut: 20}),

	fault.CertificateNotIssued: {set: func(g *gateway) {
		requesting(g)
		e := *g.sim.Enrollments()
		for i := range e.Groups {
			e.Groups[i].NoCertificates = true
		}
		if err := g.sim.SetEnrollments(&e); err != nil {
			g.t.Fatal(err)
		}
	}},
	fault.CertificateRejected: {set: func(g *gateway) {
		requesting(g)
		body := `{"operationId":"5.1.a","status":"assigned","registrationState":{"registrationId":"gw-1","assignedHub":"hub.azure-devices.net","deviceId":"gw-1","status":"assigned","issuedCertificateChain":["Zm9v"]}}`
		if err := g.sim.SetScenario(&simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnRegister, Status: 200, Body: &body}}}); err != nil {
			g.t.Fatal(err)
		}
	}},
	fault.CertificateUnreadable: {set: func(g *gateway) {
		requesting(g)
		pending := filepath.Join(g.Store.Directory, "certificate", "pending")
		err := errors.Join(os.MkdirAll(filepath.Join(pending, "key.pem"), 0o755),
			os.WriteFile(filepath.Join(pending, "certificate.json"), []byte(`{"schema":1,"registrationId":"gw-1","keyType":"ec-p256"}`), 0o600))
		if err != nil {
			g.t.Fatal(err)
		}
	}},

	fault.HubRefused:     {inject: classify.At(fault.StageHub, &hub.Error{Status: 403, Code: 403012, Message: "Device disabled"})},
	fault.HubThrottled:   {inject: classify.At(fault.StageHub, &hub.Error{Status: 429, Code: 429001, RetryAfter: 17 * time.Second})},
	fault.HubUnavailable: {inject: classify.At(fault.StageHub, &hub.Error{Status: 503})},
	fault.ModuleRefused:  {inject: classify.At(fault.StageHub, &modules.RefusedError{Module: "telemetry", Reason: `the hub already has a module with this name that dpsd did not create; it is managed by "factory"`})},

	fault.ModulesUnreadable: {inject: classify.At(fault.StageHub, &store.ModulesError{Path: "/var/lib/dpsd/modules.json", Err: syscall.EIO})},

	fault.StateUnwritable: {during: func(g *gateway) {
		if err := errors.Join(os.RemoveAll(g.Store.Directory), os.WriteFile(g.Store.Directory, nil, 0o600)); err != nil {
			g.t.Fatal(err)
		}
	}},
	fault.StateNewerSchema: {set: func(g *gateway) {
		err := errors.Join(os.MkdirAll(g.Store.Directory, 0o755),
			os.WriteFile(filepath.Join(g.Store.Directory, "state.json"), []byte(`{"schema":2,"generation":7,"status":"assigned"}`), 0o600))
		if err != nil {
			g.t.Fatal(err)
		}
	}},
	fault.StateLocked: {inject: classify.At(fault.StageState, &store.LockedError{PID: 7})},
	fault.Internal:    {inject: classify.At(fault.StagePoll, errors.New("an error of a kind nobody has seen"))},
}

// provoke returns what dpsd reports for the code: the log entry, and the STATUS= that comes
// with it.
func (p provocation) provoke(t *testing.T, code fault.Code) string {
	var b strings.Builder
	synctest.Test(t, func(t *testing.T) {
		rules := []simulator.Rule{p.rule}
		if p.rule.On == "" {
			rules = nil
		}
		if code == fault.ProxyUntrusted {
			rules = []simulator.Rule{{On: simulator.OnTLS, ServerCertificate: "other-ca"}}
		}
		g := newGateway(t, rules...)
		if p.set != nil {
			p.set(g)
		}
		name := p.event
		if name == "" {
			name = event.Fault
		}
		if p.inject != nil {
			s := g.supervisor()
			now := time.Now()
			if _, err := s.failed(s.classify(registered{err: p.inject}, now), p.inject, "symmetric-key", now); err != nil {
				t.Errorf("the daemon ended: %v", err)
			}
		} else {
			g.run()
			if p.during != nil {
				time.Sleep(time.Second)
				synctest.Wait()
				p.during(g)
			}
			g.until(name, 1)
		}
		synctest.Wait()
		entry := g.log.FilterMessage(name).All()[0]
		fmt.Fprintf(&b, "%s %s\n", entry.Level, entry.Message)
		fields := entry.ContextMap()
		fmt.Fprintf(&b, "  MESSAGE=%s\n", event.Message(entry.Message, fields))
		if got := fields["fault"]; got != string(code) {
			t.Errorf("the code is %v: %v", got, fields)
		}
		for _, field := range slices.Sorted(maps.Keys(fields)) {
			if v := fields[field]; v != "" && v != int64(0) {
				fmt.Fprintf(&b, "  %s: %v\n", field, v)
			}
		}
		g.mu.Lock()
		for _, m := range g.notes {
			status, found := strings.CutPrefix(m.state, "STATUS=")
			if found && (strings.Contains(status, ": "+string(code)+":") || name != event.Fault && strings.Contains(status, "refused")) {
				fmt.Fprintf(&b, "  STATUS=%s\n", status)
				break
			}
		}
		g.mu.Unlock()
		if e := fault.Describe(code); name == event.Fault && fields["advice"] != e.Advice && fields["advice"] != e.Instead {
			t.Errorf("the advice is %q, that of the catalogue %q or %q", fields["advice"], e.Advice, e.Instead)
		}
		if p.inject == nil {
			if err := g.end(); err != nil {
				t.Error(err)
			}
		} else {
			g.sim.Close()
		}
		state := filepath.Dir(g.Store.Directory)
		text := strings.NewReplacer(g.dir, "/etc/dpsd", state, "/var/lib/dpsd").Replace(b.String())
		b.Reset()
		b.WriteString(text)
	})
	if text := b.String(); !strings.Contains(text, "  STATUS=") {
		t.Errorf("STATUS= says nothing of it:\n%s", text)
	}
	return b.String()
}

// Every failure has a name. It is the same in the log and in STATUS=, with the stage, the
// class, the reply of the service and one line of advice.
func TestPromise9EveryFailureHasAName(t *testing.T) {
	const golden = "testdata/faults.golden"
	var b strings.Builder
	for _, e := range fault.Catalogue() {
		p, found := provocations[e.Code]
		if !found {
			t.Errorf("no test provokes %s", e.Code)
			continue
		}
		t.Run(string(e.Code), func(t *testing.T) {
			fmt.Fprintf(&b, "== %s\n%s\n", e.Code, p.provoke(t, e.Code))
		})
	}
	if len(provocations) != len(fault.Catalogue()) {
		t.Errorf("%d provocations, %d codes", len(provocations), len(fault.Catalogue()))
	}
	if *update {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, []byte(b.String()), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(b.String(), "\n")); d != "" {
		t.Errorf("%s is (-), dpsd says (+); if that is better: go test ./daemon -run Promise9 -update\n%s", golden, d)
	}
}
