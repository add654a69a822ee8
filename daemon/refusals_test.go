package daemon

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/store"
)

// reporting is a gateway that is assigned, with a service that can report refusals by the hub.
type reporting struct {
	*gateway
	s       *supervisor
	client  *http.Client
	hub     atomic.Int32 // what happens to connections to the hub, and to DPS
	sockets func()       // closes the sockets
}

// What happens to connections.
const (
	reachable int32 = iota
	gone            // the name of the hub does not exist
	offline         // no name can be resolved
	intercepted
	silent      // the hub does not answer
	distrusting // the hub refuses every client certificate in the TLS handshake
	demanding   // the hub refuses clients without a certificate there
)

// newReporting returns such a gateway. Registrations are counted from then on.
func newReporting(t *testing.T, set func(*gateway), rules ...simulator.Rule) *reporting {
	t.Helper()
	r := &reporting{gateway: newGateway(t, rules...)}
	other, err := simulator.New(simulator.Options{Seed: 2})
	if err != nil {
		t.Fatal(err)
	}
	dial, configs := r.Settings.Dialer.DialContext, authenticating(r.gateway)
	r.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		isHub := strings.Contains(address, ".azure-devices.net")
		switch state := r.hub.Load(); {
		case state == offline, state == gone && isHub:
			return nil, &net.OpError{Op: "dial", Net: "tcp", Err: &net.DNSError{Err: "no such host", Name: address, IsNotFound: true}}
		case state == silent && isHub:
			ours, _ := net.Pipe()
			return newWire(ours), nil
		case state == intercepted && isHub:
			ours, theirs := net.Pipe()
			go other.ServeWebSocket(theirs)
			return newWire(ours), nil
		case (state == distrusting || state == demanding) && isHub:
			ours, theirs := net.Pipe()
			go func() {
				defer theirs.Close()
				_, _ = tls.Server(theirs, configs[state]).Read(make([]byte, 1))
			}()
			return newWire(ours), nil
		}
		return dial(ctx, network, address)
	}
	r.Settings.Consumers = []consumer.Consumer{{Name: "edge"}}
	r.client = r.serves("edge")["edge"].client()
	if set != nil {
		set(r.gateway)
	}
	r.start = time.Now()
	r.s = r.supervised()
	ctx, cancel := context.WithCancel(t.Context())
	stop := r.s.serveConsumers(ctx)
	r.sockets = func() { stop(); cancel(); other.Close() }
	r.until("assigned", 1)
	time.Sleep(time.Second)
	r.start = time.Now()
	return r
}

// authenticating returns the TLS configurations of a hub that decides about client certificates in the
// handshake: it refuses all of them, or it requires one.
func authenticating(g *gateway) map[int32]*tls.Config {
	const name = "dpsd-sim.azure-devices.net"
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: g.start.AddDate(-1, 0, 0), NotAfter: g.start.AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		g.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		g.t.Fatal(err)
	}
	own, err := x509.ParseCertificate(der)
	if err != nil {
		g.t.Fatal(err)
	}
	g.Settings.Dialer.Roots.AddCert(own)
	server := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	return map[int32]*tls.Config{
		distrusting: {Certificates: server, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: x509.NewCertPool()},
		// With TLS 1.3, a client without a certificate ends its handshake before the server refuses it.
		demanding: {Certificates: server, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12},
	}
}

func (r *reporting) finish() {
	r.t.Helper()
	r.sockets()
	if err := r.end(); err != nil {
		r.t.Error(err)
	}
}

// report reports a code, and returns the answer.
func (r *reporting) report(code string) (a refusal.Answer) {
	r.t.Helper()
	answer, err := r.client.Post("http://dpsd/v1/refused", "application/json", strings.NewReader(fmt.Sprintf(`{"code": %q}`, code)))
	if err != nil {
		r.t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		r.t.Fatalf("%s is answered with status %d", code, answer.StatusCode)
	}
	if err := json.NewDecoder(answer.Body).Decode(&a); err != nil {
		r.t.Fatal(err)
	}
	return a
}

// reportFor reports a code every five minutes, and returns the last answer.
func (r *reporting) reportFor(d time.Duration, code string) (last refusal.Answer) {
	r.t.Helper()
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(5 * time.Minute) {
		last = r.report(code)
	}
	return last
}

// registered returns the times of the registrations, since the start of the reports.
func (r *reporting) registered() (all []time.Duration) {
	for _, at := range simulator.Summarize(r.sim.Log()).Registers {
		if !at.Before(r.start) {
			all = append(all, at.Sub(r.start))
		}
	}
	return all
}

// findings returns the findings of the checks of the hub.
func (r *reporting) findings() (all []string) {
	for _, e := range r.log.FilterMessage("hub-checked").All() {
		all = append(all, e.ContextMap()["finding"].(string))
	}
	return all
}

// asked returns how often the hub was contacted over HTTPS, and how often with MQTT.
func (r *reporting) asked() (https, mqtt int) {
	for _, e := range r.sim.Log() {
		switch {
		case e.Service == "hub" && e.Packet == "REQUEST":
			https++
		case e.Service == "hub" && e.Packet == "CONNECT":
			mqtt++
		}
	}
	return https, mqtt
}

// The rows of docs/refusals.md, tested with the daemon, real requests and the simulated hub.
func TestTheTableOfRefusals(t *testing.T) {
	check := func(g *gateway) { g.Settings.HubCheck = true }
	certified := func(g *gateway) { check(g); g.Settings.Credentials = []attest.Credential{g.certificate(device)} }
	report := func(g *gateway) { g.Settings.OnRefusal = refusal.ReportOnly }
	later := func(g *gateway) { g.BuiltAt = time.Now().AddDate(1, 0, 0) }
	request := func(status int) simulator.Rule { return simulator.Rule{On: simulator.OnHubRequest, Status: status} }
	profile := strings.ReplaceAll(*assignedWith(`,"deviceId":"gw-1","connectionProfile":"mqttV5"`), "hub.azure", "dpsd-sim.azure")
	mqttV5 := simulator.Rule{On: simulator.OnRegister, Status: 200, Body: &profile}
	for _, tt := range []struct {
		name    string
		codes   []string
		set     func(*gateway)
		rule    simulator.Rule
		hub     int32
		do      func(*reporting)
		finding refusal.Finding
		after   time.Duration // a registration takes place at the earliest after this time, and at most 15 min later; 0: none does
		asks    bool          // dpsd contacts the hub over HTTPS
	}{
		{name: "the identity is refused", codes: []string{"5", "4", "2", "401", "403", "404", "401003", "403012", "404001"}, finding: refusal.Verified, after: 15 * time.Minute},
		{name: "the hub is not working", codes: []string{"3", "500", "503", "503001"}, finding: refusal.Verified, after: 30 * time.Minute},
		{name: "the hub cannot be reached, but dpsd reaches it", codes: []string{"unreachable"}, finding: refusal.Verified},
		{name: "the hub is gone", codes: []string{"unreachable", "503"}, hub: gone, finding: refusal.Gone, after: 30 * time.Minute},
		{name: "the hub refuses the identity and is gone", codes: []string{"5"}, hub: gone, finding: refusal.Gone},
		{name: "the gateway has no network", codes: []string{"unreachable", "5"}, hub: offline, finding: refusal.Offline},
		{name: "a proxy intercepts TLS", codes: []string{"5", "unreachable", "503"}, hub: intercepted, finding: refusal.Unverified},
		{name: "a limit", codes: []string{"429", "429001", "403002", "403004"}},
		{name: "a module, or a connection that has ended", codes: []string{"404010", "404103", "404104"}},
		{name: "a wrong request", codes: []string{"1", "400", "412", "400027"}},
		{name: "the policy report", codes: []string{"5", "503", "unreachable"}, set: report},
		{name: "an implausible clock", codes: []string{"5", "503"}, set: later},

		{name: "https: the device is disabled", codes: []string{"5"}, set: check, do: func(r *reporting) { r.sim.DisableDevice(device, true) }, finding: refusal.Confirmed, after: 15 * time.Minute, asks: true},
		{name: "https: the device is deleted", codes: []string{"5"}, set: check, do: func(r *reporting) { r.sim.DeleteDevice(device) }, finding: refusal.Confirmed, after: 15 * time.Minute, asks: true},
		{name: "https: 401", codes: []string{"5", "503"}, set: check, rule: request(401), finding: refusal.Confirmed, after: 15 * time.Minute, asks: true},
		{name: "https: the hub refuses the certificate in the TLS handshake", codes: []string{"5", "503"}, set: certified, hub: distrusting, finding: refusal.Confirmed, after: 15 * time.Minute},
		{name: "the hub requires a certificate in the TLS handshake", codes: []string{"5"}, hub: demanding, finding: refusal.Verified, after: 15 * time.Minute},
		{name: "https: the device is accepted", codes: []string{"5", "503", "unreachable"}, set: check, finding: refusal.Accepted, asks: true},
		{name: "https: 429 says nothing", codes: []string{"5"}, set: check, rule: request(429), finding: refusal.Verified, after: 15 * time.Minute, asks: true},
		{name: "https: 503 says nothing", codes: []string{"5"}, set: check, rule: request(503), finding: refusal.Verified, after: 15 * time.Minute, asks: true},
		{name: "https: never for mqttV5", codes: []string{"5"}, set: check, rule: mqttV5, finding: refusal.Verified, after: 15 * time.Minute},
		{name: "https: a proxy intercepts TLS", codes: []string{"5"}, set: check, hub: intercepted, finding: refusal.Unverified},
		{name: "https: the hub is gone", codes: []string{"unreachable"}, set: check, hub: gone, finding: refusal.Gone, after: 30 * time.Minute},
		{name: "https: the key cannot be read", codes: []string{"5"}, set: check, do: func(r *reporting) { _ = os.Remove(r.dir + "/device.key") }, finding: refusal.Verified},
	} {
		for _, code := range tt.codes {
			t.Run(tt.name+", "+code, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var rules []simulator.Rule
					if tt.rule.On != "" {
						rules = append(rules, tt.rule)
					}
					r := newReporting(t, tt.set, rules...)
					defer r.finish()
					r.hub.Store(tt.hub)
					if tt.do != nil {
						tt.do(r)
					}
					published, _ := r.record()
					r.reportFor(50*time.Minute, code)
					wantOne(t, r, tt.after, code)
					found := r.findings()
					if want := []string{string(tt.finding)}; tt.finding == "" && len(found) > 0 || tt.finding != "" && strings.Join(found, " ") != want[0] {
						t.Errorf("the checks of the hub have found %q, want %q", found, tt.finding)
					}
					https, mqtt := r.asked()
					if mqtt > 0 || (https == 1) != tt.asks || https > 1 {
						t.Errorf("the hub was asked %d times over HTTPS, and contacted %d times with MQTT", https, mqtt)
					}
					if now, err := r.record(); err != nil || now.AssignedHub != published.AssignedHub || now.Generation != published.Generation {
						t.Errorf("the published record was %+v, and is %+v (%v)", published, now, err)
					}
				})
			})
		}
	}
}

// wantOne fails unless exactly one registration takes place in 50 min, and after the given time.
func wantOne(t *testing.T, r *reporting, after time.Duration, code string) {
	t.Helper()
	if code == "503" && after > 0 {
		after = max(after, refusal.Down)
	}
	all := r.registered()
	switch {
	case after == 0 && len(all) > 0:
		t.Errorf("registrations after %v, want none", all)
	case after > 0 && (len(all) != 1 || all[0] < after || all[0] > after+refusal.Spread+time.Minute):
		t.Errorf("registrations after %v, want one after %s to %s", all, after, after+refusal.Spread)
	}
}

// The request counts towards a quota that all devices of the hub share.
func TestWithoutReportsTheHubIsNotChecked(t *testing.T) {
	for _, policy := range []Policy{PolicyAlways, PolicyVerify, PolicyIfNeeded} {
		synctest.Test(t, func(t *testing.T) {
			r := newReporting(t, func(g *gateway) {
				g.Settings.HubCheck, g.Settings.OnBoot, g.Settings.Interval = true, policy, 6*time.Hour
			})
			defer r.finish()
			time.Sleep(48 * time.Hour)
			https, mqtt := r.asked()
			if found := r.findings(); https > 0 || mqtt > 0 || len(found) > 0 {
				t.Errorf("on_boot = %q: the hub was asked %d times over HTTPS, and contacted %d times with MQTT; the checks have found %q", policy, https, mqtt, found)
			}
		})
	}
}

func TestTheAnswersSayWhatDpsdDoesAndWhen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newReporting(t, nil, simulator.Rule{On: simulator.OnPoll, Delay: 10 * time.Second})
		defer r.finish()
		first := r.report("5")
		if first.Action != refusal.Counting || first.In != 900 || !first.At.Equal(time.Now().Add(15*time.Minute).Truncate(time.Millisecond)) {
			t.Errorf("the first report: %+v", first)
		}
		r.reportFor(15*time.Minute, "5")
		verifying := r.report("5")
		if verifying.Action != refusal.Verifying || verifying.In <= 0 || verifying.In > refusal.Spread.Seconds() {
			t.Fatalf("after 15 min: %+v", verifying)
		}
		time.Sleep(time.Until(verifying.At) + 2*time.Second)
		if a := r.report("5"); a.Action != refusal.Reprovisioning || a.In != 0 {
			t.Errorf("during the registration: %+v", a)
		}
		r.until("assigned", 2)
		if a := r.report("5"); a.Action != refusal.Counting || a.In < 3500 || a.In > 3600 {
			t.Errorf("after the assignment: %+v", a)
		}
		entry := r.log.FilterMessage("hub-checked").All()[0].ContextMap()
		if entry["action"] != "reprovisioning" || entry["consumer"] != "edge" || entry["hub"] == "" {
			t.Errorf("%v", entry)
		}
		if trigger := attempts(t, r)[0].Trigger; trigger != whyRefusals {
			t.Errorf("the flight recorder has the trigger %q", trigger)
		}
		st := r.s.statusDocument().Consumers[0].Report
		if st == nil || st.Code != "CONNACK 5" || st.Action != "counting" || st.Counted != 1 || st.Due == nil || st.Because == "" {
			t.Errorf("%+v", st)
		}
		var metrics strings.Builder
		r.s.measures.write(&metrics)
		for _, want := range []string{`dpsd_hub_checks_total{finding="verified"} 1`, `dpsd_hub_checks_total{finding="gone"} 0`} {
			if !strings.Contains(metrics.String(), want+"\n") {
				t.Errorf("the metrics lack %s", want)
			}
		}
	})
}

// A hub refuses every token while the clock is wrong by more than five minutes.
func TestReportsBeforeTheClockWasSetDoNotCount(t *testing.T) {
	for step, want := range map[time.Duration]refusal.Action{
		-time.Hour: refusal.Counting, time.Hour: refusal.Counting, time.Minute: refusal.Verifying,
	} {
		t.Run(step.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				steps := make(chan time.Duration)
				r := newReporting(t, func(g *gateway) { g.ClockStepped = steps })
				defer r.finish()
				r.reportFor(15*time.Minute, "5")
				steps <- step
				if a := r.report("5"); a.Action != want {
					t.Errorf("%+v, want %s", a, want)
				}
			})
		})
	}
}

// attempts returns the recorded attempts, the latest first.
func attempts(t *testing.T, r *reporting) []store.Attempt {
	t.Helper()
	time.Sleep(time.Second)
	synctest.Wait()
	all := store.Attempts(r.Store.Directory, r.Store.RuntimeDirectory)
	if len(all) < 2 {
		t.Fatalf("%d attempts are recorded", len(all))
	}
	if all[0].At.Before(all[len(all)-1].At) {
		all[0] = all[len(all)-1]
	}
	return all
}
