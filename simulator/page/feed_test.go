package page

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

var noon = time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)

// entries returns what a connection of a device that ends without a CONNACK adds to the log.
func entries(number int, id string) []simulator.Entry {
	at := noon.Add(time.Duration(number) * time.Second)
	return []simulator.Entry{
		{Connection: number, Time: at, Protocol: "mqtt", Packet: "OPEN"},
		{Connection: number, Time: at, Protocol: "mqtt", Packet: "TLS", Detail: "TLS 1.2 for localhost"},
		{Connection: number, Time: at, Protocol: "mqtt", Packet: "CONNECT", Direction: "up", RegistrationID: id, Raw: connect(id, "")},
		{Connection: number, Time: at, Protocol: "mqtt", Packet: "CLOSE"},
	}
}

func (f *Feed) add(all ...simulator.Entry) {
	for _, e := range all {
		f.Add(e)
	}
}

func (f *Feed) names(q query) (names []string) {
	for _, r := range f.view(q).Rows {
		names = append(names, r.Name)
	}
	return names
}

func TestDevicesBeyondTheLimitAreDiscardedInTheOrderOfTheirActivity(t *testing.T) {
	f := &Feed{Devices: 3}
	for i, id := range []string{"a", "b", "c", "a", "d"} {
		f.add(entries(i, id)...)
	}
	if got := fmt.Sprint(f.names(query{Page: 1})); got != "[d a c]" {
		t.Error(got)
	}
	if v := f.view(query{Page: 1, Device: "b", Selected: true}); v.Detail.Explanation.Reason != "No packets from this device have been seen." {
		t.Errorf("%+v", v.Detail)
	}
}

func TestADeviceThatWasDiscardedReturnsWithItsNextPacket(t *testing.T) {
	f := &Feed{Devices: 1}
	f.add(entries(1, "a")[:3]...)
	f.add(entries(2, "b")...)
	f.add(simulator.Entry{Connection: 1, Time: noon, Protocol: "mqtt", Packet: "PINGREQ", Direction: "up", RegistrationID: "a"})
	if got := fmt.Sprint(f.names(query{Page: 1})); got != "[a]" {
		t.Error(got)
	}
}

func TestTheOldestEntriesAreDiscardedFirstAndTheDeviceRemains(t *testing.T) {
	f := &Feed{Entries: 6}
	f.add(entries(1, "a")...)
	f.add(entries(2, "b")...)
	kept := 0
	for e := range f.Log() {
		if kept == 0 && (e.Connection != 1 || e.Packet != "CONNECT") {
			t.Errorf("the first entry is %s of connection %d", e.Packet, e.Connection)
		}
		kept++
	}
	if kept != 6 {
		t.Errorf("%d entries are kept, want 6", kept)
	}
	v := f.view(query{Page: 1, Device: "a", Selected: true})
	if len(v.Rows) != 2 || len(v.Detail.Packets) != 2 {
		t.Errorf("%d devices, %d packets of the older one", len(v.Rows), len(v.Detail.Packets))
	}
}

func TestTheBytesOfPacketsAreBoundedAndTheirDescriptionRemains(t *testing.T) {
	f := &Feed{Bytes: 150}
	one := len(connect("a", ""))
	for i := range 10 {
		f.add(entries(i, "a")...)
	}
	if f.raw > 150 || f.raw < 150-one {
		t.Errorf("%d bytes are kept", f.raw)
	}
	sum := 0
	for _, r := range f.records {
		sum += len(r.entry.Raw)
	}
	if sum != f.raw {
		t.Errorf("%d bytes are counted, %d are kept", f.raw, sum)
	}
	v := f.view(query{Page: 1, Device: "a", Selected: true, Connection: 1})
	if len(v.Detail.Packets) != 4 || v.Detail.Packets[2].Dump != "" {
		t.Errorf("%+v", v.Detail.Packets)
	}
}

func TestAHugePacketIsShownInPartAndInterpretedAsAWhole(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "a")[:3]...)
	body := `{"status":"assigned","registrationState":{"assignedHub":"hub.example"}` + strings.Repeat(" ", 100_000) + "}"
	raw := publish("$dps/registrations/res/200/?$rid=1", body)
	f.add(simulator.Entry{Connection: 1, Time: noon, Packet: "PUBLISH", Direction: "down", RegistrationID: "a", Topic: "$dps/registrations/res/200/?$rid=1", Size: len(raw), Raw: raw})
	v := f.view(query{Page: 1, Device: "a", Selected: true})
	if v.Rows[0].Outcome.Outcome != Assigned || v.Rows[0].Note != "hub.example" {
		t.Errorf("%+v", v.Rows[0])
	}
	if last := v.Detail.Packets[3]; last.Kept != maxRaw || last.Size != len(raw) {
		t.Errorf("%d of %d bytes", last.Kept, last.Size)
	}
}

func TestADeviceKeepsItsLastEntriesOnly(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "a")[:3]...)
	for i := range 3 * maxDeviceEntries {
		f.add(simulator.Entry{Connection: 1, Time: noon, Packet: "PINGREQ", Direction: "up", RegistrationID: "a", PacketID: i})
	}
	all := f.devices["a"].records
	if len(all) != maxDeviceEntries || all[len(all)-1].entry.PacketID != 3*maxDeviceEntries-1 {
		t.Errorf("%d entries, the last one is %+v", len(all), all[len(all)-1].entry)
	}
}

func TestAConnectionWithoutARegistrationIDKeepsItsLastEntriesOnly(t *testing.T) {
	f := &Feed{Entries: 10}
	for i := range 3 * maxDeviceEntries {
		f.add(simulator.Entry{Connection: 1, Time: noon, Packet: "REQUEST", Direction: "up", Topic: "GET /", PacketID: i})
	}
	if n := len(f.sessions[1].pending); n != maxDeviceEntries {
		t.Errorf("%d entries wait", n)
	}
	f.add(simulator.Entry{Connection: 1, Time: noon, Packet: "REQUEST", Direction: "up", RegistrationID: "a", PacketID: 3 * maxDeviceEntries})
	all := f.devices["a"].records
	if len(all) != maxDeviceEntries || all[len(all)-1].entry.PacketID != 3*maxDeviceEntries {
		t.Errorf("%d entries, the last one is %+v", len(all), all[len(all)-1].entry)
	}
}

func TestADeviceDoesNotWaitForViewsThatWait(t *testing.T) {
	f := &Feed{}
	f.viewing.Lock() // one view
	var views sync.WaitGroup
	for range 200 {
		views.Go(func() { f.view(query{Page: 1}) })
	}
	f.add(entries(1, "a")...) // would not return if a view that waits had the lock
	f.viewing.Unlock()
	views.Wait()
	if got := f.names(query{Page: 1}); len(got) != 1 {
		t.Error(got)
	}
}

func TestTheCaseOfARegistrationIDDoesNotMatter(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "Gateway-1")...)
	f.add(entries(2, "gateway-1")...)
	v := f.view(query{Page: 1, Text: "GATE"})
	if len(v.Rows) != 1 || v.Rows[0].Name != "Gateway-1" {
		t.Errorf("%+v", v.Rows)
	}
}

func TestConnectionsWithoutACONNECTAreOneRow(t *testing.T) {
	f := &Feed{}
	for i := range 3 {
		f.add(simulator.Entry{Connection: i, Time: noon, Packet: "OPEN"},
			simulator.Entry{Connection: i, Time: noon, Packet: "REFUSAL", Detail: "no TLS", Refusal: &enroll.Explanation{Reason: "the device does not trust the certificate", Advice: "Trust ca.pem."}},
			simulator.Entry{Connection: i, Time: noon, Packet: "CLOSE", Detail: "TLS: remote error: tls: unknown certificate authority"})
	}
	v := f.view(query{Page: 1, Selected: true})
	if len(v.Rows) != 1 || v.Rows[0].Name != unnamed || v.Rows[0].Outcome.Outcome != Ended {
		t.Fatalf("%+v", v.Rows)
	}
	want := enroll.Explanation{Reason: "The TLS handshake failed: the device does not trust the certificate.", Advice: "Trust ca.pem."}
	if v.Detail.Explanation != want || len(v.Detail.Connections) != 3 {
		t.Errorf("%+v", v.Detail)
	}
}

func TestClearDiscardsEverythingAndOpenConnectionsContinue(t *testing.T) {
	f := &Feed{}
	f.add(entries(1, "a")[:3]...)
	f.add(entries(2, "b")...)
	f.Clear()
	if v := f.view(query{Page: 1}); v.Total != 0 || f.raw != 0 {
		t.Errorf("%d devices, %d bytes", v.Total, f.raw)
	}
	for range f.Log() {
		t.Error("an entry was kept")
	}
	f.add(simulator.Entry{Connection: 1, Time: noon, Packet: "CLOSE"})
	if got := fmt.Sprint(f.names(query{Page: 1})); got != "[a]" {
		t.Error(got)
	}
	f.add(entries(3, "c")...)
	if f.raw != len(connect("c", "")) {
		t.Errorf("%d bytes", f.raw)
	}
}

func TestTheListIsPagedAndFiltered(t *testing.T) {
	f := &Feed{}
	for i := range 120 {
		f.add(entries(i, fmt.Sprintf("gateway-%03d", i))...)
	}
	v := f.view(query{Page: 3})
	if len(v.Rows) != 20 || v.From != 101 || v.To != 120 || v.Matching != 120 || v.Next != "" || v.Previous != "/?page=2" {
		t.Errorf("%+v", v)
	}
	v = f.view(query{Page: 1})
	if len(v.Rows) != pageSize || v.Next != "/?page=2" || v.Previous != "" || v.Rows[0].Name != "gateway-119" {
		t.Errorf("%+v", v)
	}
	v = f.view(query{Page: 1, Text: " -01"})
	if v.Matching != 10 || v.Total != 120 || v.Rows[0].Link != "/?device=gateway-019&q=+-01" {
		t.Errorf("%+v", v)
	}
	if v = f.view(query{Page: 1, Outcome: Assigned}); v.Matching != 0 {
		t.Errorf("%d devices are assigned", v.Matching)
	}
	if v = f.view(query{Page: 9}); v.Previous != "/?page=3" || len(v.Rows) != 0 {
		t.Errorf("beyond the end: %+v", v)
	}
}

// step is an entry of one connection, and the outcome that the device then has.
type step struct {
	simulator.Entry
	want Outcome
}

func (f *Feed) run(t *testing.T, id string, steps ...step) {
	t.Helper()
	for _, s := range steps {
		s.Time, s.Protocol = noon, "mqtt"
		f.Add(s.Entry)
		d := f.devices[id]
		if d == nil || nameOf(d.outcome).Outcome != s.want {
			t.Errorf("after %s %s: %+v, want %q", s.Packet, s.Topic, d, s.want)
		}
	}
}

func up(connection int, id, packet, topic string) simulator.Entry {
	return simulator.Entry{Connection: connection, Packet: packet, Direction: "up", RegistrationID: id, Topic: topic, Service: "dps"}
}

func reply(connection int, id string, status int, body string) simulator.Entry {
	topic := fmt.Sprintf("$dps/registrations/res/%d/?$rid=1", status)
	return simulator.Entry{Connection: connection, Packet: "PUBLISH", Direction: "down", RegistrationID: id, Topic: topic, Service: "dps", Raw: publish(topic, body)}
}

const (
	registerRequest = registerTopic + "?$rid=1"
	assigned        = `{"status":"assigned","registrationState":{"assignedHub":"hub.example","deviceId":"Device-1"}}`
)

func TestTheOutcomeOfADeviceFollowsItsExchange(t *testing.T) {
	connack := func(connection, code int) simulator.Entry {
		return simulator.Entry{Connection: connection, Packet: "CONNACK", Direction: "down", RegistrationID: "a", ReturnCode: &code}
	}
	f := &Feed{}
	f.run(t, "a",
		step{up(1, "a", "CONNECT", ""), Waiting},
		step{connack(1, 0), Waiting},
		step{up(1, "a", "PUBLISH", registerRequest), Waiting},
		step{reply(1, "a", 202, `{"status":"assigning"}`), Waiting},
		step{up(1, "a", "PUBLISH", pollTopic+"?$rid=2&operationId=1"), Waiting},
		step{reply(1, "a", 200, assigned), Assigned},
		step{simulator.Entry{Connection: 1, Packet: "VIOLATION", Violation: "late", RegistrationID: "a"}, Assigned},
		step{simulator.Entry{Connection: 1, Packet: "CLOSE"}, Assigned},
		step{up(2, "a", "CONNECT", ""), Waiting},
		step{simulator.Entry{Connection: 2, Packet: "REFUSAL", RegistrationID: "a", Refusal: &enroll.Explanation{Reason: "the scope is wrong", Expected: "x", Given: "y", Advice: "Use x."}}, Waiting},
		step{connack(2, 3), Refused},
		step{simulator.Entry{Connection: 2, Packet: "CLOSE", Detail: "CONNACK 3"}, Refused},
	)
	want := enroll.Explanation{Reason: "The service refused the connection with CONNACK 3 (server unavailable): the scope is wrong.", Expected: "x", Given: "y", Advice: "Use x."}
	if got := f.devices["a"].explanation; got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for reason, s := range map[string]step{
		"The service answered with 401 (401000 Unauthorized).":        {reply(9, "b", 401, `{"errorCode":401000,"message":"Unauthorized"}`), Refused},
		"The service answered with 429 (429001 Too many requests).":   {reply(9, "b", 429, `{"errorCode":429001,"message":"Too many requests."}`), Throttled},
		"The service answered with 500.":                              {reply(9, "b", 500, `<html>`), Failed},
		"The registration failed (400207): the function has failed.":  {reply(9, "b", 200, `{"status":"failed","registrationState":{"errorCode":400207,"errorMessage":"the function has failed"}}`), Failed},
		"The enrollment is disabled.":                                 {reply(9, "b", 200, `{"status":"disabled"}`), Disabled},
		"The device violated the protocol: a second CONNECT.":         {simulator.Entry{Connection: 9, Packet: "VIOLATION", Violation: "a second CONNECT", RegistrationID: "b"}, Violation},
		"The connection ended without a result: the client has gone.": {simulator.Entry{Connection: 9, Packet: "CLOSE", Detail: "the client has gone"}, Ended},
	} {
		f.run(t, "b", step{up(9, "b", "CONNECT", ""), Waiting}, s)
		if got := f.devices["b"].explanation.Reason; got != reason {
			t.Errorf("%q, want %q", got, reason)
		}
	}
}

func TestADeviceAtItsHubIsTheDeviceThatRegistered(t *testing.T) {
	f := &Feed{}
	atHub := func(connection int, packet, direction string, code *int) simulator.Entry {
		return simulator.Entry{Connection: connection, Packet: packet, Direction: direction, Service: "hub", Hub: "hub.example", DeviceID: "Device-1", ReturnCode: code}
	}
	f.run(t, "a",
		step{up(1, "a", "PUBLISH", registerRequest), Waiting},
		step{reply(1, "a", 200, assigned), Assigned},
		step{simulator.Entry{Connection: 1, Packet: "CLOSE"}, Assigned},
		step{atHub(2, "CONNECT", "up", nil), Assigned},
		step{atHub(2, "CONNACK", "down", new(0)), Connected},
		step{atHub(3, "CONNECT", "up", nil), Connected}, // it takes over
		step{atHub(3, "CONNACK", "down", new(0)), Connected},
		step{simulator.Entry{Connection: 2, Packet: "CLOSE"}, Connected},
		step{simulator.Entry{Connection: 3, Packet: "CLOSE"}, Assigned},
		step{atHub(4, "CONNECT", "up", nil), Assigned},
		step{atHub(4, "CONNACK", "down", new(5)), Refused},
		step{simulator.Entry{Connection: 4, Packet: "CLOSE"}, Refused},
		step{atHub(6, "CONNECT", "up", nil), Refused},
		step{atHub(6, "CONNACK", "down", new(0)), Connected},
		step{atHub(7, "CONNECT", "up", nil), Connected},
		step{atHub(7, "CONNACK", "down", new(5)), Refused},
		step{simulator.Entry{Connection: 7, Packet: "CLOSE"}, Refused},
		step{simulator.Entry{Connection: 6, Packet: "CLOSE"}, Refused},
	)
	if len(f.devices) != 1 {
		t.Errorf("%d devices", len(f.devices))
	}
	other := atHub(5, "CONNECT", "up", nil)
	other.DeviceID = "unknown"
	f.run(t, "unknown", step{other, Waiting})
	accepted := atHub(5, "CONNACK", "down", new(0))
	accepted.DeviceID = "unknown"
	f.run(t, "unknown", step{accepted, Connected})
	f.Clear()
	ping := atHub(5, "PINGREQ", "up", nil)
	ping.DeviceID = "unknown"
	f.run(t, "unknown", step{ping, Connected}, step{simulator.Entry{Connection: 5, Packet: "CLOSE"}, Ended})
}
