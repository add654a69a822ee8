package daemon

import (
	"encoding/json"
	"io"
	"net/http"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/aisapi"
	"github.com/dpsd-project/dpsd/control"
)

// asks sends a request of a program of the Identity Service.
func (p *hubPipe) asks(t *testing.T, path string) (status int, body string) {
	t.Helper()
	client := p.client()
	defer client.CloseIdleConnections()
	response, err := client.Get("http://identityd.sock/identities/" + path + "?api-version=2022-08-01")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, strings.TrimSpace(string(text))
}

// wantProvisioning compares the answer to GET /identities/provisioning.
func (g *gateway) wantProvisioning(p *hubPipe, payload string) {
	g.t.Helper()
	var got, want any
	status, body := p.asks(g.t, "provisioning")
	if status != http.StatusOK || json.Unmarshal([]byte(body), &got) != nil {
		g.t.Fatalf("%d %s", status, body)
	}
	text := `{"source": "dps", "auth": "symmetric_key", "endpoint": "https://` + g.Settings.Dialer.Host + `/", "scope_id": "` + g.Settings.IDScope +
		`", "registration_id": "` + device + `", "payload": ` + payload + `}`
	if err := json.Unmarshal([]byte(text), &want); err != nil {
		g.t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		g.t.Errorf("%s\nwant\n%s", body, text)
	}
}

func TestAProgramOfTheIdentityServiceLearnsTheAssignment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		socket := g.serves(aisapi.Listener)[aisapi.Listener]
		g.write("payload.json", "{\"site\": 1}\n")
		g.Settings.PayloadFile = filepath.Join(g.dir, "payload.json")
		s := g.supervised()
		defer s.serveConsumers(t.Context())()
		synctest.Wait()
		if status, body := socket.asks(t, "identity"); status != http.StatusServiceUnavailable {
			t.Errorf("before the assignment: %d %s", status, body)
		}
		g.until("assigned", 1)
		rec := g.wantAssigned()
		want := `{"type":"aziot","spec":{"hubName":"` + rec.AssignedHub + `","gatewayHost":"` + rec.AssignedHub + `","deviceId":"` + device + `"}}`
		if status, body := socket.asks(t, "identity"); status != http.StatusOK || body != want {
			t.Errorf("%d %s, want %s", status, body, want)
		}
		g.wantProvisioning(socket, `{"site": 1}`)
		if status, _ := socket.asks(t, "modules"); status != http.StatusNotFound {
			t.Errorf("status %d for the modules", status)
		}
		all := s.statusDocument().Consumers
		listed := slices.ContainsFunc(all, func(c control.Consumer) bool {
			return c.Name == aisapi.Listener && c.Scope == aisapi.Scope && c.Listening && c.Requests == 4
		})
		if !listed {
			t.Errorf("the status does not list the socket: %+v", all)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}

// The record is sufficient, so the program does not wait for DPS, which may take a long time to respond.
func TestAfterARestartAProgramOfTheIdentityServiceDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := restarted(t)
		socket := g.serves(aisapi.Listener)[aisapi.Listener]
		g.Settings.BootDelayMax = time.Hour
		s := g.supervised()
		defer s.serveConsumers(t.Context())()
		synctest.Wait()
		if status, body := socket.asks(t, "identity"); status != http.StatusOK {
			t.Errorf("%d %s", status, body)
		}
		g.wantProvisioning(socket, "{}")
		if waited := time.Since(g.start); waited != 0 {
			t.Errorf("after %s", waited)
		}
		if err := g.end(); err != nil {
			t.Error(err)
		}
	})
}
