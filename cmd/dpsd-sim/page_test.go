package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/simulator"
)

// openForPage opens a simulator with a page.
func openForPage(t *testing.T, f pageFlags) (*endpoint, error) {
	t.Helper()
	e, err := (&flags{dir: t.TempDir(), mqtt: freePort, webSocket: freePort, quiet: true, fast: true, page: f}).open()
	if err == nil {
		t.Cleanup(e.close)
	}
	return e, err
}

func TestThePageShowsADeviceAndCausesFaultsIfTheyAreAllowed(t *testing.T) {
	for _, allowed := range []bool{false, true} {
		e, err := openForPage(t, pageFlags{service: freePort, allowFaults: allowed})
		if err != nil {
			t.Fatal(err)
		}
		live, err := http.Get(e.Page + "events?device=gateway-1")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { live.Body.Close() })
		dir := strings.TrimSuffix(e.CAFile, "/ca.pem")
		if _, err := writeDevice(e.server, dir, "gateway-1"); err != nil {
			t.Fatal(err)
		}
		if reply, err := register(dir, "gateway-1"); err != nil || !strings.Contains(reply, "assigned") {
			t.Fatal(reply, err)
		}
		shown := false
		for in := bufio.NewScanner(live.Body); !shown && in.Scan(); {
			shown = strings.Contains(in.Text(), "Assigned hub")
		}
		if !shown {
			t.Error("the live view has ended without the device")
		}
		page, err := http.Get(e.Page + "?device=gateway-1")
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(page.Body)
		page.Body.Close()
		want := fmt.Sprintf("https://localhost:%d/%s/registrations/gateway-1/register", e.WebSocketPort, e.IDScope)
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%v: %s is missing in %s", err, want, text)
		}
		form := strings.NewReader(url.Values{"fault": {"connack-3"}, "times": {"1"}}.Encode())
		r, err := http.NewRequest(http.MethodPost, e.Page+"faults", form)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		r.Header.Set("Origin", strings.TrimSuffix(e.Page, "/"))
		answer, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		answer.Body.Close()
		if (answer.StatusCode == http.StatusOK) != allowed || (len(e.server.Faults()) == 1) != allowed {
			t.Errorf("allowed %t: %s, %d faults", allowed, answer.Status, len(e.server.Faults()))
		}
	}
}

func TestWithoutAServiceAddressThereIsNoPage(t *testing.T) {
	e, err := openForPage(t, pageFlags{})
	if err != nil || e.Page != "" {
		t.Errorf("%q, %v", e.Page, err)
	}
}

func TestADefaultPortThatIsInUseIsNotAFailure(t *testing.T) {
	used, err := simulator.ListenLoopback(0)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range used {
		t.Cleanup(func() { l.Close() })
	}
	address := fmt.Sprintf("localhost:%d", used[0].Addr().(*net.TCPAddr).Port)
	if e, err := openForPage(t, pageFlags{service: address, byDefault: true}); err != nil || e.Page != "" {
		t.Errorf("%q, %v", e.Page, err)
	}
	if _, err := openForPage(t, pageFlags{service: address}); err == nil {
		t.Error("a named port that is in use was no failure")
	}
}
