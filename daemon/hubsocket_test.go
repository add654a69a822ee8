package daemon

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
)

func TestAMissingSocketAndAMissingConsumerAreLoggedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.serves("telemetry", "forgotten")
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}, {Name: "updater", Scope: consumer.Scope{Module: "updater"}}}
		s := g.supervised()
		g.until("assigned", 1)
		st := s.statusDocument()
		if len(st.Consumers) != 3 {
			t.Fatalf("%+v", st.Consumers)
		}
		for i, want := range []struct {
			name, scope string
			listening   bool
		}{{"forgotten", "", true}, {"telemetry", "device", true}, {"updater", "module:updater", false}} {
			if c := st.Consumers[i]; c.Name != want.name || c.Scope != want.scope || c.Listening != want.listening {
				t.Errorf("%+v, want %+v", c, want)
			}
		}
		for event, advice := range map[string]string{
			"consumer-without-socket": "Run: systemctl enable dpsd-hub@updater.socket && systemctl restart --no-block dpsd",
			"consumer-not-configured": "systemctl disable --now dpsd-hub@forgotten.socket && systemctl restart --no-block dpsd", // only a restart closes it
		} {
			entries := g.log.FilterMessage(event).All()
			if len(entries) != 1 || !strings.Contains(entries[0].ContextMap()["advice"].(string), advice) {
				t.Errorf("%s: %v", event, entries)
			}
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// requested sends a request to a socket, and returns the status and the members of the answer.
func (p *hubPipe) requested(t *testing.T, method, path, body string) (int, map[string]any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, "http://dpsd"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err := p.client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var members map[string]any
	if err := json.NewDecoder(response.Body).Decode(&members); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, members
}

func TestAServiceGetsATokenThatTheHubAccepts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		pipes := g.serves("telemetry", "forgotten")
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry", Lifetime: 10 * time.Minute}}
		g.run()
		if status, answer := pipes["telemetry"].requested(t, http.MethodPost, "/v1/token", ""); status != http.StatusServiceUnavailable || answer["code"] != string(consumer.NotAssigned) {
			t.Errorf("before the assignment: %d %v", status, answer)
		}
		g.until("assigned", 1)
		rec := g.wantAssigned()
		status, answer := pipes["telemetry"].requested(t, http.MethodPost, "/v1/token", "")
		token, _ := answer["token"].(string)
		if status != http.StatusOK || answer["expiresIn"] != 600.0 || strings.Contains(token, "skn") {
			t.Fatalf("%d %v", status, answer)
		}
		if code := g.atHub(t, rec.AssignedHub, token); code != http.StatusNoContent {
			t.Errorf("the hub answers %d", code)
		}
		if code := g.atHub(t, rec.AssignedHub, token+"1"); code != http.StatusUnauthorized {
			t.Errorf("with a changed token, the hub answers %d", code)
		}
		for _, path := range []string{"/v1/hub", "/v1/events", "/v1/certificate"} {
			if status, answer := pipes["forgotten"].requested(t, http.MethodGet, path, ""); status != http.StatusForbidden || answer["code"] != string(consumer.NotConfigured) {
				t.Errorf("%s without a [[consumer]]: %d %v", path, status, answer)
			}
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
		for name, pipe := range pipes {
			if _, err := pipe.Accept(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("at the end, the socket %s is open: %v", name, err)
			}
		}
	})
}

// atHub sends a message of the device to the hub with a token, and returns the status.
func (g *gateway) atHub(t *testing.T, host, token string) int {
	t.Helper()
	roots := g.Settings.Dialer.Roots
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: "localhost"},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return g.dial(ctx, network, "localhost:443")
		},
	}}
	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+host+"/devices/"+device+"/messages/events?api-version=2020-03-13", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", token)
	response, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	return response.StatusCode
}

func TestAReloadChangesWhatASocketIsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		pipe := g.serves("telemetry")["telemetry"]
		hangup, file := g.reloads()
		g.run()
		g.until("assigned", 1)
		wanted := func(path string, want any, member string) {
			t.Helper()
			if status, answer := pipe.requested(t, http.MethodGet, path, ""); answer[member] != want {
				t.Errorf("%d %v, want %s %v", status, answer, member, want)
			}
		}
		wanted("/v1/hub", "not-configured", "code")
		for _, test := range []struct {
			consumers []consumer.Consumer
			member    string
			want      any
		}{
			{[]consumer.Consumer{{Name: "telemetry", Scope: consumer.Scope{Events: true}}}, "scope", "device/messages/events"},
			{[]consumer.Consumer{{Name: "telemetry"}}, "scope", "device"},
			{nil, "code", "not-configured"},
		} {
			time.Sleep(time.Hour)
			changed := g.Settings
			changed.Consumers = test.consumers
			file.contains(&changed)
			hangup <- os.Interrupt
			synctest.Wait()
			wanted("/v1/hub", test.want, test.member)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestTheStatusShowsTheTokensOfAServiceWithoutWakingTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		pipe := g.serves("telemetry")["telemetry"]
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}}
		s := g.supervised()
		stop := s.serveConsumers(t.Context())
		g.until("assigned", 1)
		_, changed := s.board.Look(time.Now())
		if status, answer := pipe.requested(t, http.MethodPost, "/v1/token", `{"lifetime": 60}`); status != http.StatusOK {
			t.Fatal(status, answer)
		}
		synctest.Wait()
		select {
		case <-changed:
			t.Error("a token has changed the status, for which the loop woke up")
		default:
		}
		st, _ := s.board.Look(time.Now())
		use := st.Consumers[0].ConsumerUse
		if use.Tokens != 1 || use.Requests != 1 || !use.LastToken.Equal(stamp(time.Now())) || !use.TokenExpiry.Equal(stamp(time.Now().Truncate(time.Second).Add(time.Minute))) {
			t.Errorf("%+v", use)
		}
		var metrics strings.Builder
		s.measures.write(&metrics)
		for _, want := range []string{`dpsd_hub_tokens_total{consumer="telemetry"} 1`, `dpsd_hub_listening{consumer="telemetry"} 1`} {
			if !strings.Contains(metrics.String(), want+"\n") {
				t.Errorf("the metrics have no %s", want)
			}
		}
		stop()
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestAnUnreadableKeyIsLoggedAndTheServiceLearnsNothingAboutIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		pipe := g.serves("telemetry")["telemetry"]
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}}
		g.run()
		g.until("assigned", 1)
		if err := os.Remove(filepath.Join(g.dir, "device.key")); err != nil {
			t.Fatal(err)
		}
		status, answer := pipe.requested(t, http.MethodPost, "/v1/token", "")
		if status != http.StatusServiceUnavailable || answer["code"] != string(consumer.KeyUnavailable) || strings.Contains(answer["error"].(string), "device.key") {
			t.Errorf("%d %v", status, answer)
		}
		entries := g.log.FilterMessage("consumer-key-failed").All()
		if len(entries) != 1 || !strings.Contains(entries[0].ContextMap()["error"].(string), "device.key") {
			t.Errorf("%v", entries)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// A lasting error of accept(2) must not leave a service without dpsd until somebody restarts it.
func TestASocketIsServedAgainAfterErrorsOfAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		pipe := g.serves("telemetry")["telemetry"]
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}}
		pipe.fails(syscall.ENOMEM)
		g.run()
		g.until("assigned", 1)
		time.Sleep(time.Hour)
		entries := g.log.FilterMessage("consumer-failed").All()
		if len(entries) != 1 || entries[0].ContextMap()["consumer"] != "telemetry" || entries[0].ContextMap()["error"] != syscall.ENOMEM.Error() {
			t.Errorf("%v", entries)
		}
		pipe.fails(nil)
		if status, answer := pipe.requested(t, http.MethodGet, "/v1/hub", ""); status != http.StatusOK {
			t.Errorf("%d %v", status, answer)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

func TestOnlyAFailureOfTheKeyIsLoggedAndNotAClientThatHasGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		pipe := g.serves("telemetry")["telemetry"]
		g.Settings.Consumers = []consumer.Consumer{{Name: "telemetry"}}
		s := g.supervised()
		stop := s.serveConsumers(t.Context())
		g.until("assigned", 1)
		s.consumers.turn <- struct{}{} // as if a TPM were hanging
		for want, patience := range []time.Duration{time.Second, 2 * hardwareLimit} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://dpsd/v1/token", http.NoBody)
			if err != nil {
				t.Fatal(err)
			}
			response, err := pipe.client().Do(r)
			if (err == nil) != (want == 1) {
				t.Fatal(err)
			}
			if err == nil {
				_ = response.Body.Close()
			}
			cancel()
			synctest.Wait()
			if n := g.log.FilterMessage("consumer-key-failed").Len(); n != want {
				t.Errorf("the client waits for %v: %d entries", patience, n)
			}
		}
		<-s.consumers.turn
		stop()
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
