package simulator_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// Each example of an enrollments file works: the test reads it from a directory as dpsd-sim
// does, and a device registers with it.
func TestEnrollmentExamples(t *testing.T) {
	text, err := os.ReadFile("../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	var examples []string
	for _, e := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
		if strings.Contains(e[1], "[[individual]]") || strings.Contains(e[1], "[[group]]") {
			examples = append(examples, e[1])
		}
	}
	if len(examples) != 3 {
		t.Fatalf("%d examples", len(examples))
	}
	zero := 0
	fast := &simulator.Scenario{Settings: simulator.Settings{Polls: &zero}}
	serve := func(t *testing.T, example string) *simulator.Server {
		t.Helper()
		dir := t.TempDir()
		start(t, simulator.Options{Directory: dir}).Close()
		ca, err := os.ReadFile(filepath.Join(dir, "device-ca.pem"))
		if err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string]string{
			"enrollments.toml": example, "old-root.pem": string(ca), "press-7.secondary": strings.Repeat("QUFB", 8),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		return start(t, simulator.Options{Directory: dir, Scenario: fast})
	}
	t.Run("individuals and a disabled group", func(t *testing.T) {
		s := serve(t, examples[0])
		for _, key := range []string{"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", strings.Repeat("QUFB", 8)} {
			c := dial(t, s)
			c.send(connectPacket(0xc2, 0, "press-7", userNameOf(s, "press-7"), token(key, resourceOf(s, "press-7"), time.Now().Add(time.Hour), ""))...)
			c.expect("CONNECT passes", 0x20, 2, 0, 0)
			p := c.subscribe().ask("")
			if p.state(t, "deviceId") != `"Press-7"` || p.state(t, "assignedHub") != `"hub-a.azure-devices.net"` || p.state(t, "payload") != `{"site":"here"}` {
				t.Error(p.payload)
			}
		}
		with(t, s, "camera-1", deviceCertificate(t, s, "camera-1")).refusedLate(401002)
		c := with(t, s, "old-1", deviceCertificate(t, s, "old-1"))
		c.expect("CONNECT passes", 0x20, 2, 0, 0)
		if p := c.subscribe().ask(""); p.parse(t).Status != "disabled" {
			t.Error(p.payload)
		}
	})
	t.Run("linked hubs, latencies, a static group", func(t *testing.T) {
		s := serve(t, examples[1])
		for id, want := range map[string]string{"eu-1": "hub-eu", "us-1": "hub-us"} {
			if got := as(t, s, id, version).ask("").state(t, "assignedHub"); got != `"`+want+`.azure-devices.net"` {
				t.Errorf("%s: %s", id, got)
			}
		}
		if got := as(t, s, "us-1", "2026-11-02-preview").ask("").state(t, "connectionProfile"); got != `"mqttV5"` {
			t.Error(got)
		}
		c := with(t, s, "eu-2", deviceCertificate(t, s, "eu-2"))
		c.expect("CONNECT passes", 0x20, 2, 0, 0)
		if got := c.subscribe().ask("").state(t, "assignedHub"); got != `"hub-us.azure-devices.net"` {
			t.Error(got)
		}
	})
	t.Run("a custom allocation", func(t *testing.T) {
		s := serve(t, examples[2])
		for _, c := range []struct{ body, key, want string }{
			{`{"payload":{"model":"v1-a"}}`, "errorMessage", `"Custom allocation failed with status code: 403"`},
			{`{"payload":{"model":"v2-a","cores":4,"site":{"country":"de","city":"Ulm"}}}`, "payload", `{"greeting":"gw-1 is a v2-a","site":{"city":"Ulm","country":"de"}}`},
			{`{"payload":{"model":"v2-a","cores":4,"site":{"country":"de","city":"Ulm"}}}`, "assignedHub", `"hub-b.azure-devices.net"`},
			{``, "payload", `{"hub":"HUB","deviceId":"gw-1","got":null}`},
		} {
			p := as(t, s, "gw-1", version).ask(c.body)
			want := strings.Replace(c.want, "HUB", strings.Trim(p.state(t, "assignedHub"), `"`), 1)
			if got := p.state(t, c.key); got != want {
				t.Errorf("%s: %s is %s, want %s", c.body, c.key, got, want)
			}
		}
	})
	t.Run("the settings of limits and features", func(t *testing.T) {
		for _, e := range regexp.MustCompile("(?s)```toml\n(.*?)```").FindAllStringSubmatch(string(text), -1) {
			if !strings.Contains(e[1], "unknown_api_version") {
				continue
			}
			sc, err := scenario.Parse("example", strings.NewReader(e[1]))
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, simulator.Options{Scenario: sc})
			c := as(t, s, device, "2027-01-01")
			operation := c.ask("").parse(t).OperationID
			for i := range 6 {
				p := c.poll(fmt.Sprint(i), operation)
				c.puback(p.id)
				if i == 5 && p.topic != "$dps/registrations/res/429/?$rid=5&retry-after=30" {
					t.Error(p.topic)
				}
			}
			c = dial(t, s)
			c.send(connectPacket(0xc2, 0, device, s.IDScope()+"/registrations/"+device+"/api-version=2021-06-01", goodToken(s, device))...)
			c.expect("the table is replaced", 0x20, 2, 0, 5)
			return
		}
		t.Error("no example found")
	})
	t.Run("the table of built-in features", func(t *testing.T) {
		for version, features := range scenario.BuiltInFeatures() {
			row := regexp.MustCompile("(?m)^\\|.*`" + version + "`.*\\|$").FindString(string(text))
			for _, f := range []string{"csr", "connectionProfile"} {
				if strings.Contains(row, "`"+f+"`") != strings.Contains(fmt.Sprint(features), f) {
					t.Errorf("%s: %q", version, row)
				}
			}
		}
	})
}
