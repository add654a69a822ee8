package simulator_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

// as connects a device of the default group with another ID or api-version, up to the SUBACK.
func as(t *testing.T, s *simulator.Server, id, apiVersion string) *client {
	t.Helper()
	c := dial(t, s)
	c.send(connectPacket(0xc2, 0, id, s.IDScope()+"/registrations/"+id+"/api-version="+apiVersion, goodToken(s, id))...)
	c.expect("a good CONNECT is accepted", 0x20, 2, 0, 0)
	return c.subscribe()
}

// ask sends a register request with a body and reads the reply.
func (c *client) ask(body string) publish {
	c.t.Helper()
	c.send(publishPacket(0x30, registerTopic("1"), 0, body)...)
	p := c.expectPublish("a register request is answered")
	c.puback(p.id)
	return p
}

// outcome sends a register request, polls until the end, and disconnects.
func (c *client) outcome(body string) publish {
	c.t.Helper()
	p := c.ask(body)
	operation := p.parse(c.t).OperationID
	for i := 2; strings.Contains(p.topic, "/202/"); i++ {
		time.Sleep(3 * time.Second)
		p = c.poll(fmt.Sprint(i), operation)
		c.puback(p.id)
	}
	c.conn.Close()
	return p
}

// state returns one member of registrationState as JSON.
func (p publish) state(t *testing.T, key string) string {
	t.Helper()
	return string(p.parse(t).RegistrationState[key])
}

// keys returns enrollments with the symmetric-key group of a server with seed 0.
func keys(t *testing.T, g enroll.Grant) *enroll.Enrollments {
	t.Helper()
	probe := start(t, simulator.Options{})
	return &enroll.Enrollments{Groups: []enroll.Group{{
		Name: "keys", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: probe.GroupKey()}, Grant: g,
	}}}
}

const version = "2019-03-31"

func TestAllocation(t *testing.T) {
	hubs := []enroll.Hub{{Name: "a.example", Weight: 3}, {Name: "b.example"}}
	bubble(t, "hashed distributes devices by weight, regardless of the case of the ID", func(t *testing.T) {
		zero := 0
		e := keys(t, enroll.Grant{})
		e.Hubs = hubs
		s := start(t, simulator.Options{Enrollments: e, Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &zero}}})
		count := map[string]int{}
		for i := range 200 {
			id := fmt.Sprintf("Gw-%d", i)
			got := as(t, s, id, version).outcome("").state(t, "assignedHub")
			count[got]++
			if i%20 == 0 {
				again := start(t, simulator.Options{Enrollments: e, Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &zero}}})
				if other := as(t, again, strings.ToUpper(id), version).outcome("").state(t, "assignedHub"); other != got {
					t.Errorf("%s: %s, in capitals %s", id, got, other)
				}
			}
		}
		if a, b := count[`"a.example"`], count[`"b.example"`]; a+b != 200 || a < 130 || a > 170 {
			t.Errorf("of 200 with weights 3 and 1: %v", count)
		}
	})
	bubble(t, "static assigns the one hub of the enrollment, even if more are linked", func(t *testing.T) {
		e := keys(t, enroll.Grant{Hubs: []string{"b.example"}, Allocation: "static"})
		e.Hubs = hubs
		s := start(t, simulator.Options{Enrollments: e})
		for i := range 8 {
			if got := as(t, s, fmt.Sprint("gw-", i), version).outcome("").state(t, "assignedHub"); got != `"b.example"` {
				t.Error(got)
			}
		}
	})
	bubble(t, "lowest-latency uses the first row that matches, and the hub of the enrollment with the fewest milliseconds in it", func(t *testing.T) {
		e := keys(t, enroll.Grant{Hubs: []string{"a.example", "b.example"}, Allocation: "lowest-latency"})
		e.Latencies = []enroll.Latency{
			{RegistrationID: "eu-*", Milliseconds: map[string]int{"a.example": 20, "b.example": 110, "c.example": 1}},
			{RegistrationID: "us-*", Milliseconds: map[string]int{"a.example": 110, "b.example": 0}},
			{RegistrationID: "eu-9", Milliseconds: map[string]int{"b.example": 1}},
			{RegistrationID: "one-*", Milliseconds: map[string]int{"B.example": 500}},
		}
		s := start(t, simulator.Options{Enrollments: e})
		for id, want := range map[string]string{"eu-9": "a.example", "EU-1": "a.example", "us-1": "b.example", "one-1": "b.example"} {
			if got := as(t, s, id, version).outcome("").state(t, "assignedHub"); got != `"`+want+`"` {
				t.Errorf("%s: %s", id, got)
			}
		}
		if got := as(t, s, "elsewhere", version).outcome("").state(t, "assignedHub"); got != `"a.example"` && got != `"b.example"` {
			t.Errorf("a device that no row matches is hashed: %s", got)
		}
	})
	custom := enroll.Grant{
		Hubs: []string{"a.example", "b.example"}, Allocation: "custom", Payload: `{"otherwise":true}`,
		Custom: []enroll.Custom{
			{When: map[string]any{"model": "v1-*"}, Status: 403},
			{When: map[string]any{"model": "v2-*", "site": map[string]any{"country": "de"}, "cores": 4, "new": true}, Hub: "b.example",
				Payload: `{"z":"${registrationId} is a ${payload.model} of ${payload.cores}","a":["${payload.site}","${payload.none}"],"hub":"${hub}","d":"${deviceId}","n":1.0,"all":"${payload}","empty":"<${payload.none}>","twice":"${hub}${hub}"}`},
			{When: map[string]any{"plain": true}, Hub: "a.example"},
			{When: map[string]any{"x": 1.5}, Hub: "a.example", Payload: `{}`},
		},
	}
	for _, c := range []struct{ name, body, topic, key, want string }{
		{"the first matching row applies, and its payload is filled in with its members in order",
			`{"payload":{"model":"v2-1","site":{"country":"de","n":[1,2.50]},"cores":4.0,"new":true,"more":null}}`, "200", "payload",
			`{"z":"sample-device-01 is a v2-1 of 4.0","a":[{"country":"de","n":[1,2.50]},null],"hub":"b.example","d":"sample-device-01","n":1.0,"all":{"cores":4.0,"model":"v2-1","more":null,"new":true,"site":{"country":"de","n":[1,2.50]}},"empty":"<>","twice":"b.exampleb.example"}`},
		{"its hub is assigned", `{"payload":{"model":"v2-1","site":{"country":"de"},"cores":4,"new":true}}`, "200", "assignedHub", `"b.example"`},
		{"a row without a payload uses the enrollment's payload", `{"payload":{"plain":true}}`, "200", "payload", `{"otherwise":true}`},
		{"a fraction is compared as a number", `{"payload":{"x":15e-1}}`, "200", "payload", `{}`},
		{"a function that fails is reported with its status", `{"payload":{"model":"v1-0"}}`, "200", "errorMessage", `"Custom allocation failed with status code: 403"`},
		{"its error code is 400207", `{"payload":{"model":"v1-0"}}`, "200", "errorCode", `400207`},
		{"a payload that matches no row is a failure with 404", `{"payload":{"model":"v2-1"}}`, "200", "errorMessage", `"Custom allocation failed with status code: 404"`},
		{"so is another country", `{"payload":{"model":"v2-1","site":{"country":"fr"},"cores":4,"new":true}}`, "200", "status", `"failed"`},
		{"so is another number", `{"payload":{"model":"v2-1","site":{"country":"de"},"cores":5,"new":true}}`, "200", "status", `"failed"`},
		{"so is a number in quotes", `{"payload":{"model":"v2-1","site":{"country":"de"},"cores":"4","new":true}}`, "200", "status", `"failed"`},
		{"so is false instead of true", `{"payload":{"plain":false}}`, "200", "status", `"failed"`},
		{"so is a text instead of a table", `{"payload":{"model":"v2-1","site":"de","cores":4,"new":true}}`, "200", "status", `"failed"`},
		{"so is no payload", ``, "200", "status", `"failed"`},
		{"so is null, which the Python SDK sends", `{"payload": null, "registrationId": "sample-device-01"}`, "200", "status", `"failed"`},
	} {
		bubble(t, "custom: "+c.name, func(t *testing.T) {
			s := start(t, simulator.Options{Enrollments: keys(t, custom)})
			p := as(t, s, device, version).outcome(c.body)
			if got := p.state(t, c.key); got != c.want || !strings.Contains(p.topic, "/res/"+c.topic+"/") {
				t.Errorf("%s\n%s is\n%s, want\n%s", p.topic, c.key, got, c.want)
			}
		})
	}
	bubble(t, "custom: a row without when matches a device that sends no payload, and without a hub the hub is hashed", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{Allocation: "custom", Custom: []enroll.Custom{{Payload: `{"got":"${payload}","x":"${payload.a}!"}`}}})})
		p := as(t, s, device, version).outcome("")
		if p.state(t, "payload") != `{"got":null,"x":"!"}` || p.state(t, "assignedHub") != `"dpsd-sim.azure-devices.net"` {
			t.Error(p.payload)
		}
	})
	bubble(t, "a failed operation is not stored", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, custom)})
		as(t, s, device, version).outcome("")
		p := as(t, s, device, version).outcome(`{"payload":{"plain":true}}`)
		if p.state(t, "substatus") != `"initialAssignment"` {
			t.Error(p.payload)
		}
	})
	bubble(t, "connectionProfile is that of the hub, and is sent only to an api-version with that feature", func(t *testing.T) {
		e := keys(t, enroll.Grant{})
		e.Hubs = []enroll.Hub{{Name: "a.example", ConnectionProfile: "mqttV5"}}
		s := start(t, simulator.Options{Enrollments: e})
		for version, want := range map[string]string{"2026-11-02-preview": `"mqttV5"`, "2025-07-01-preview": "", "2019-03-31": "", "2021-10-01": ""} {
			if got := as(t, s, device, version).outcome("").state(t, "connectionProfile"); got != want {
				t.Errorf("%s: %s", version, got)
			}
		}
	})
}

func TestReprovisioning(t *testing.T) {
	// registered returns a server that has assigned the device to hub a, and whose enrollments now name hub b.
	registered := func(t *testing.T, reprovision string) (*simulator.Server, publish) {
		t.Helper()
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{Hubs: []string{"a.example"}, Reprovision: reprovision})})
		first := as(t, s, device, version).outcome("")
		if first.state(t, "substatus") != `"initialAssignment"` || first.state(t, "assignedHub") != `"a.example"` {
			t.Fatal(first.payload)
		}
		if err := s.SetEnrollments(keys(t, enroll.Grant{Hubs: []string{"b.example"}, Reprovision: reprovision, Payload: `{"n":2}`})); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		return s, first
	}
	for policy, want := range map[string]string{"": "deviceDataMigrated", "migrate": "deviceDataMigrated", "reset": "deviceDataReset"} {
		bubble(t, fmt.Sprintf("policy %q: another hub is %s, and the same hub after that as before", policy, want), func(t *testing.T) {
			s, first := registered(t, policy)
			for range 2 {
				p := as(t, s, "Sample-Device-01", version).outcome("")
				if p.state(t, "assignedHub") != `"b.example"` || p.state(t, "substatus") != `"`+want+`"` || p.state(t, "payload") != `{"n":2}` {
					t.Error(p.payload)
				}
				if p.state(t, "createdDateTimeUtc") != first.state(t, "createdDateTimeUtc") ||
					p.state(t, "lastUpdatedDateTimeUtc") == first.state(t, "lastUpdatedDateTimeUtc") || p.state(t, "etag") == first.state(t, "etag") {
					t.Errorf("created stays, updated and etag are new:\n%s\n%s", first.payload, p.payload)
				}
			}
		})
		bubble(t, fmt.Sprintf("policy %q: the same hub again is initialAssignment", policy), func(t *testing.T) {
			s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{Reprovision: policy})})
			for range 2 {
				if p := as(t, s, device, version).outcome(""); p.state(t, "substatus") != `"initialAssignment"` {
					t.Error(p.payload)
				}
			}
		})
	}
	bubble(t, "a registration is created at the request and updated at the assignment", func(t *testing.T) {
		p := as(t, start(t, simulator.Options{}), device, version).outcome("")
		if p.state(t, "createdDateTimeUtc") != `"2000-01-01T00:00:00Z"` || p.state(t, "lastUpdatedDateTimeUtc") != `"2000-01-01T00:00:06Z"` {
			t.Error(p.payload)
		}
	})
	bubble(t, "policy never: nothing changes", func(t *testing.T) {
		s, first := registered(t, "never")
		p := as(t, s, device, version).outcome("")
		if got, want := fmt.Sprint(p.parse(t).RegistrationState), fmt.Sprint(first.parse(t).RegistrationState); got != want {
			t.Errorf("%s, want %s", got, want)
		}
	})
	bubble(t, "a device of api-version 2018-04-01 keeps its hub, one of 2018-11-01 does not", func(t *testing.T) {
		s, _ := registered(t, "migrate")
		if got := as(t, s, device, "2018-04-01").outcome("").state(t, "assignedHub"); got != `"a.example"` {
			t.Error(got)
		}
		if got := as(t, s, device, "2018-11-01").outcome("").state(t, "assignedHub"); got != `"b.example"` {
			t.Error(got)
		}
	})
	bubble(t, "an unfinished operation is not an assignment", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{Hubs: []string{"a.example"}})})
		as(t, s, device, version).ask("")
		if err := s.SetEnrollments(keys(t, enroll.Grant{Hubs: []string{"b.example"}})); err != nil {
			t.Fatal(err)
		}
		if p := as(t, s, device, version).outcome(""); p.state(t, "substatus") != `"initialAssignment"` {
			t.Error(p.payload)
		}
	})
	bubble(t, "enrollments with a mistake change nothing", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{Hubs: []string{"a.example"}})})
		if err := s.SetEnrollments(keys(t, enroll.Grant{Hubs: []string{"b.example"}, Reprovision: "perhaps"})); err == nil || !strings.Contains(err.Error(), "group[0].reprovision") {
			t.Error(err)
		}
		if got := as(t, s, device, version).outcome("").state(t, "assignedHub"); got != `"a.example"` {
			t.Error(got)
		}
	})
	bubble(t, "a device that was disabled gets the status disabled when it connects again", func(t *testing.T) {
		s, _ := registered(t, "migrate")
		if err := s.SetEnrollments(keys(t, enroll.Grant{Disabled: true})); err != nil {
			t.Fatal(err)
		}
		if p := as(t, s, device, version).outcome(""); p.parse(t).Status != "disabled" {
			t.Error(p.payload)
		}
	})
}

func TestAssignmentsAreKept(t *testing.T) {
	dir := t.TempDir()
	group := enroll.Attestation{Type: "symmetric-key", PrimaryKeyFile: filepath.Join(dir, "group-key")}
	grant := func(hub, reprovision string) *enroll.Enrollments {
		return &enroll.Enrollments{Groups: []enroll.Group{{Name: "g", Attestation: group, Grant: enroll.Grant{Hubs: []string{hub}, Reprovision: reprovision, Payload: `{"b": 1, "a": 2}`}}}}
	}
	if s := start(t, simulator.Options{Directory: dir}); s.IDScope() == "" { // makes the key
		t.Fatal("no scope")
	}
	zero := 0
	run := func(t *testing.T, e *enroll.Enrollments) publish {
		t.Helper()
		s := start(t, simulator.Options{Directory: dir, Enrollments: e, Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &zero}}, OnError: func(err error) { t.Error(err) }})
		defer s.Close()
		return as(t, s, device, version).ask("")
	}
	first := run(t, grant("a.example", "never"))
	t.Run("after a restart the policy never returns the same values, including the payload", func(t *testing.T) {
		p := run(t, grant("b.example", "never"))
		if got, want := fmt.Sprint(p.parse(t).RegistrationState), fmt.Sprint(first.parse(t).RegistrationState); got != want || p.state(t, "payload") != `{"b":1,"a":2}` {
			t.Errorf("%s, want %s", got, want)
		}
	})
	t.Run("after a restart another hub is a migration, with the time of the first assignment", func(t *testing.T) {
		p := run(t, grant("b.example", "migrate"))
		if p.state(t, "substatus") != `"deviceDataMigrated"` || p.state(t, "createdDateTimeUtc") != first.state(t, "createdDateTimeUtc") {
			t.Errorf("%s\n%s", first.payload, p.payload)
		}
	})
	t.Run("the file is complete and valid JSON, and no temporary file is left", func(t *testing.T) {
		text, err := os.ReadFile(filepath.Join(dir, "assignments.json"))
		var list []struct{ RegistrationID, AssignedHub, Substatus string }
		if err != nil || json.Unmarshal(text, &list) != nil || len(list) != 1 || list[0].RegistrationID != device || list[0].AssignedHub != "b.example" {
			t.Errorf("%v %s", err, text)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
			t.Error(left)
		}
	})
	t.Run("it is written while the server runs", func(t *testing.T) {
		if err := os.Remove(filepath.Join(dir, "assignments.json")); err != nil {
			t.Fatal(err)
		}
		s := start(t, simulator.Options{Directory: dir, Enrollments: grant("a.example", ""), Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &zero}}})
		if p := as(t, s, device, version).ask(""); p.state(t, "substatus") != `"initialAssignment"` {
			t.Error("without the file the device is new: " + p.payload)
		}
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if _, err := os.Stat(filepath.Join(dir, "assignments.json")); err == nil {
				break
			}
			if time.Now().After(end) {
				t.Fatal("the file is not written")
			}
		}
	})
	t.Run("the last assignment is written at the end", func(t *testing.T) {
		own := t.TempDir()
		s := start(t, simulator.Options{Directory: own, Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &zero}}})
		as(t, s, "one", version).ask("")
		for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if _, err := os.Stat(filepath.Join(own, "assignments.json")); err == nil {
				break
			}
		}
		as(t, s, "two", version).ask("") // within a second of the write
		s.Close()
		if text, err := os.ReadFile(filepath.Join(own, "assignments.json")); err != nil || !strings.Contains(string(text), `"two"`) {
			t.Errorf("%v %s", err, text)
		}
	})
	t.Run("an unwritable directory is reported to OnError, and devices are served", func(t *testing.T) {
		own := t.TempDir()
		var reported error
		s := start(t, simulator.Options{Directory: own, OnError: func(err error) { reported = err }, Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &zero}}})
		if err := os.Mkdir(filepath.Join(own, "assignments.json"), 0o700); err != nil {
			t.Fatal(err)
		}
		if p := as(t, s, device, version).ask(""); p.parse(t).Status != "assigned" {
			t.Error(p.payload)
		}
		s.Close()
		if reported == nil || !strings.Contains(reported.Error(), "cannot save assignments.json") {
			t.Error(reported)
		}
	})
	for name, text := range map[string]string{"cut": `[{"registrationId":`, "without a hub": `[{"registrationId":"x"}]`} {
		t.Run("a file that is "+name+" is refused by name", func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, "assignments.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := simulator.New(simulator.Options{Directory: dir}); err == nil || !strings.Contains(err.Error(), "assignments.json") {
				t.Error(err)
			}
		})
	}
}

func TestAPIVersions(t *testing.T) {
	with := func(t *testing.T, set simulator.Settings, version string) *client {
		t.Helper()
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: set}})
		c := dial(t, s)
		c.send(connectPacket(0xc2, 0, device, s.IDScope()+"/registrations/"+device+"/api-version="+version, goodToken(s, device))...)
		return c
	}
	bubble(t, "an unknown api-version is served by default", func(t *testing.T) {
		with(t, simulator.Settings{}, "2030-01-01").expect("it is", 0x20, 2, 0, 0)
	})
	bubble(t, "an unknown api-version gets CONNACK 5 if configured, and those of the table are served", func(t *testing.T) {
		set := simulator.Settings{UnknownAPIVersion: "refuse"}
		c := with(t, set, "2030-01-01")
		c.expect("CONNACK 5", 0x20, 2, 0, 5)
		c.expectEnd("the connection is closed")
		for known := range scenario.BuiltInFeatures() {
			with(t, set, known).expect(known, 0x20, 2, 0, 0)
		}
		with(t, set, "2021-10-01-preview").expect("a preview is another version", 0x20, 2, 0, 5)
	})
	bubble(t, "a custom table replaces the built-in one", func(t *testing.T) {
		set := simulator.Settings{UnknownAPIVersion: "refuse", Features: map[string][]string{"2030-01-01": {"csr"}}}
		with(t, set, "2030-01-01").expect("its own", 0x20, 2, 0, 0)
		with(t, set, "2019-03-31").expect("no longer there", 0x20, 2, 0, 5)
	})
	t.Run("the built-in table has the features of each version", func(t *testing.T) {
		want := "map[2019-03-31:[] 2021-06-01:[] 2021-10-01:[] 2025-07-01-preview:[csr] 2026-11-01:[csr] 2026-11-02-preview:[csr connectionProfile]]"
		if got := fmt.Sprint(scenario.BuiltInFeatures()); got != want {
			t.Error(got)
		}
	})
	for _, c := range []struct{ text, want string }{
		{"unknown_api_version = \"no\"", "s.toml:2:1: settings.unknown_api_version: \"no\" is not one of serve, refuse"},
		{"features = { \"2019\" = [] }", "s.toml:2:1: settings.features: \"2019\" is not of the form"},
		{"features = { \"2019-03-31\" = [\"magic\"] }", "s.toml:2:1: settings.features: \"magic\" is neither csr nor connectionProfile"},
		{"poll_limit = -1", "s.toml:2:1: settings.poll_limit: -1 is negative"},
		{"register_limit = -1", "s.toml:2:1: settings.register_limit: -1 is negative"},
	} {
		t.Run(c.text+" is refused with its place", func(t *testing.T) {
			if _, err := scenario.Parse("s.toml", strings.NewReader("[settings]\n"+c.text+"\n")); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Error(err)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	// running returns a client with an operation that stays at "assigning".
	running := func(t *testing.T, set simulator.Settings) (*client, string) {
		t.Helper()
		if set.Polls == nil {
			many := 1000
			set.Polls = &many
		}
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: set}})
		c := ready(t, s)
		return c, c.ask("").parse(t).OperationID
	}
	polls := func(c *client, operation string, n int, gap time.Duration) (refused []int) {
		c.t.Helper()
		for i := range n {
			p := c.poll(fmt.Sprint(i), operation)
			c.puback(p.id)
			if strings.Contains(p.topic, "/429/") {
				refused = append(refused, i+1)
			}
			time.Sleep(gap)
		}
		return refused
	}
	bubble(t, "the sixth poll in a burst is answered 429 with 429001 and the time to wait", func(t *testing.T) {
		c, operation := running(t, simulator.Settings{})
		if refused := polls(c, operation, 5, 0); refused != nil {
			t.Errorf("refused: %v", refused)
		}
		p := c.poll("x", operation)
		c.puback(p.id)
		if b := p.parse(t); p.topic != "$dps/registrations/res/429/?$rid=x&retry-after=2" || b.ErrorCode != 429001 || b.Message != "Too many requests." || b.TrackingID == "" {
			t.Error(p)
		}
		time.Sleep(2*time.Second - time.Millisecond)
		if p = c.poll("y", operation); p.topic != "$dps/registrations/res/429/?$rid=y&retry-after=1" {
			t.Error("a moment too early: " + p.topic)
		}
		c.puback(p.id)
		time.Sleep(time.Millisecond)
		if p = c.poll("z", operation); !strings.Contains(p.topic, "/202/") {
			t.Error("the operation is kept, and a refused poll does not count: " + p.topic)
		}
		c.puback(p.id)
		time.Sleep(10 * time.Second)
		if refused := polls(c, operation, 6, 0); fmt.Sprint(refused) != "[6]" {
			t.Errorf("after 10 s five are free again: %v", refused)
		}
	})
	bubble(t, "a device that polls every 2 s, or occasionally a little earlier, is never refused", func(t *testing.T) {
		c, operation := running(t, simulator.Settings{})
		if refused := polls(c, operation, 200, 1990*time.Millisecond); refused != nil {
			t.Errorf("refused: %v", refused)
		}
	})
	bubble(t, "a device that polls every second is soon refused", func(t *testing.T) {
		c, operation := running(t, simulator.Settings{})
		if refused := polls(c, operation, 12, time.Second); len(refused) == 0 || refused[0] != 10 {
			t.Errorf("refused: %v", refused)
		}
	})
	bubble(t, "the limit applies to each device separately", func(t *testing.T) {
		s := start(t, simulator.Options{})
		one, two := ready(t, s), as(t, s, "another", version)
		first, second := one.ask("").parse(t).OperationID, two.ask("").parse(t).OperationID
		if refused := append(polls(one, first, 5, 0), polls(two, second, 5, 0)...); refused != nil {
			t.Errorf("refused: %v", refused)
		}
	})
	bubble(t, "a new connection does not reset the limit", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		operation := c.ask("").parse(t).OperationID
		polls(c, operation, 5, 0)
		if refused := polls(ready(t, s), operation, 1, 0); refused == nil {
			t.Error("it does")
		}
	})
	none, two := 0, 2
	for name, set := range map[string]simulator.Settings{
		"poll_limit 0":    {PollLimit: &none},
		"retry_after 0":   {RetryAfter: "0"},
		"retry_after 1":   {RetryAfter: "1"},
		"retry_after 0.0": {RetryAfter: "0.0", PollLimit: &none},
	} {
		bubble(t, "with "+name+" there is no limit", func(t *testing.T) {
			c, operation := running(t, set)
			if refused := polls(c, operation, 50, 0); refused != nil {
				t.Errorf("refused: %v", refused)
			}
		})
	}
	bubble(t, "a configured poll_limit applies regardless of retry_after, and throttle_retry_after is sent verbatim", func(t *testing.T) {
		c, operation := running(t, simulator.Settings{PollLimit: &two, RetryAfter: "0", ThrottleRetryAfter: "soon"})
		polls(c, operation, 2, 0)
		if p := c.poll("3", operation); p.topic != "$dps/registrations/res/429/?$rid=3&retry-after=soon" {
			t.Error(p.topic)
		}
	})
	bubble(t, "throttle_retry_after none omits it", func(t *testing.T) {
		c, operation := running(t, simulator.Settings{PollLimit: &two, ThrottleRetryAfter: "none"})
		polls(c, operation, 2, 0)
		if p := c.poll("3", operation); p.topic != "$dps/registrations/res/429/?$rid=3" {
			t.Error(p.topic)
		}
	})
	bubble(t, "register_limit applies to all devices together, a refused request begins no operation, and polls continue", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{RegisterLimit: 2}}})
		a, b, c := ready(t, s), as(t, s, "b", version), as(t, s, "c", version)
		operation := a.ask("").parse(t).OperationID
		b.ask("")
		p := c.ask("")
		if p.topic != "$dps/registrations/res/429/?$rid=1&retry-after=30" || p.parse(t).ErrorCode != 429001 {
			t.Error(p)
		}
		if p := a.poll("2", operation); !strings.Contains(p.topic, "/202/") {
			t.Error(p)
		}
		time.Sleep(30 * time.Second)
		if p := c.ask(""); !strings.Contains(p.topic, "/202/") {
			t.Error(p)
		}
	})
	bubble(t, "without register_limit a fleet registers without delay", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := ready(t, s)
		for range 1500 {
			if p := c.ask(""); !strings.Contains(p.topic, "/202/") {
				t.Fatal(p)
			}
		}
	})
}

func TestParseAllocation(t *testing.T) {
	key := base64.StdEncoding.EncodeToString(make([]byte, 32))
	group := "[[group]]\nname = \"g\"\ntype = \"symmetric-key\"\nprimary_key = \"" + key + "\"\n"
	t.Run("a file is parsed as written", func(t *testing.T) {
		e, err := enroll.Parse("e.toml", strings.NewReader(`
[[hub]]
name = "a.example"
weight = 7
connection_profile = "mqttV5"
[[latency]]
registration_id = "x-*"
milliseconds = { "a.example" = 5 }
[[individual]]
registration_id = "one"
certificate_life = "10m"
no_certificates = true
type = "symmetric-key"
primary_key = "`+key+`"
`+group+`allocation = "custom"
reprovision = "never"
certificate_life = "90s"
[[group.custom]]
when = { model = "x", site = { n = 4 } }
hub = "a.example"
`))
		if err != nil {
			t.Fatal(err)
		}
		g := e.Groups[0]
		if e.Hubs[0] != (enroll.Hub{Name: "a.example", Weight: 7, ConnectionProfile: "mqttV5"}) || e.Latencies[0].Milliseconds["a.example"] != 5 ||
			e.Individuals[0].CertificateLife != 10*time.Minute || !e.Individuals[0].NoCertificates || len(e.Individuals) != 1 || len(e.Groups) != 1 ||
			g.CertificateLife != 90*time.Second || g.Reprovision != "never" || g.Custom[0].Hub != "a.example" || fmt.Sprint(g.Custom[0].When) != "map[model:x site:map[n:4]]" {
			t.Errorf("%+v", e)
		}
	})
	for _, c := range []struct{ name, text, want string }{
		{"an unknown allocation", group + "allocation = \"random\"\n", "e.toml:5:1: group.allocation: \"random\" is not one of"},
		{"an unknown policy", group + "reprovision = \"always\"\n", "e.toml:5:1: group.reprovision: \"always\" is not one of"},
		{"a life that is not a duration", group + "certificate_life = \"a week\"\n", "e.toml:5:20:"},
		{"a negative life", group + "certificate_life = \"-1s\"\n", "e.toml:5:1: group.certificate_life: -1s is negative"},
		{"static with two hubs", group + "hubs = [\"a.example\", \"b.example\"]\nallocation = \"static\"\n", "e.toml:6:1: group.allocation: static requires exactly one hub, not 2"},
		{"lowest-latency without a table", group + "allocation = \"lowest-latency\"\n", "e.toml:5:1: group.allocation: lowest-latency requires"},
		{"custom without a table", group + "allocation = \"custom\"\n", "e.toml:5:1: group.allocation: custom requires"},
		{"a custom table for another allocation", group + "[[group.custom]]\nhub = \"a.example\"\nwhen = {}\n", "group.custom: is allowed only with the allocation custom"},
		{"a hub that is not linked", "[[hub]]\nname = \"a.example\"\n" + group + "hubs = [\"b.example\"]\n", "e.toml:7:1: group.hubs: \"b.example\" is not a linked hub"},
		{"a hub that is a URL", group + "hubs = [\"https://b.example\"]\n", "e.toml:5:1: group.hubs: \"https://b.example\" is not a host name"},
		{"a linked hub without a name", "[[hub]]\nweight = 1\n", "e.toml:1:3: hub.name: \"\" is not a host name"},
		{"a hub linked twice", "[[hub]]\nname = \"a.example\"\n[[hub]]\nname = \"A.example\"\n", "e.toml:4:1: hub.name: \"A.example\" is linked twice"},
		{"a weight below zero", "[[hub]]\nname = \"a.example\"\nweight = -1\n", "e.toml:3:1: hub.weight: -1 is not between 1 and 1000"},
		{"latencies without hubs", "[[latency]]\nregistration_id = \"x\"\n", "e.toml:1:3: latency.milliseconds: is missing"},
		{"a latency to a hub that is not linked", "[[hub]]\nname = \"a.example\"\n[[latency]]\nmilliseconds = { \"b.example\" = 1 }\n", "e.toml:4:1: latency.milliseconds: \"b.example\" is not a linked hub"},
		{"a pattern that is none", "[[latency]]\nregistration_id = \"[\"\nmilliseconds = { \"b.example\" = 1 }\n", "e.toml:2:1: latency.registration_id: \"[\" is not a pattern"},
		{"a custom hub that is not the enrollment's", group + "allocation = \"custom\"\n[[group.custom]]\nhub = \"z.example\"\n", "e.toml:7:1: group.custom.hub: \"z.example\" is not one of the enrollment's hubs"},
		{"a when that could never fit", group + "allocation = \"custom\"\n[[group.custom]]\nwhen = { a = { b = [1] } }\n", "e.toml:7:1: group.custom.when: a.b: not a string"},
		{"a custom pattern that is none", group + "allocation = \"custom\"\n[[group.custom]]\nwhen = { a = \"[\" }\n", "e.toml:7:1: group.custom.when: a: \"[\" is not a pattern"},
		{"a payload with an unknown name", group + "allocation = \"custom\"\n[[group.custom]]\npayload = '{\"a\":\"${device}\"}'\n", "e.toml:7:1: group.custom.payload: ${device}: not one of ${payload}"},
		{"a payload with a name that does not end", group + "allocation = \"custom\"\n[[group.custom]]\npayload = '{\"a\":\"${hub\"}'\n", "e.toml:7:1: group.custom.payload: ${hub: not one of"},
		{"a custom payload that is not an object", group + "allocation = \"custom\"\n[[group.custom]]\npayload = '[]'\n", "e.toml:7:1: group.custom.payload: is not a JSON object"},
		{"a function's status that is a success", group + "allocation = \"custom\"\n[[group.custom]]\nstatus = 200\n", "e.toml:7:1: group.custom.status: 200 is not between 400 and 599"},
		{"a function that fails and gives a hub", group + "allocation = \"custom\"\nhubs = [\"a.example\"]\n[[group.custom]]\nstatus = 500\nhub = \"a.example\"\n", "e.toml:8:1: group.custom.status: a function that fails returns"},
		{"a mistake in the second group's table", group + "allocation = \"custom\"\n[[group.custom]]\n" + strings.Replace(group, "\"g\"", "\"h\"", 1) + "allocation = \"custom\"\n[[group.custom]]\nstatus = 1\n", "e.toml:13:1: group.custom.status: 1 is not"},
	} {
		t.Run(c.name+" is refused with its place", func(t *testing.T) {
			if _, err := enroll.Parse("e.toml", strings.NewReader(c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}
