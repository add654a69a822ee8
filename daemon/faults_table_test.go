package daemon

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"text/tabwriter"
	"time"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/transport"
)

// faultRow is one row of the table: a failure that happens to a gateway that has been assigned
// before, and the expected result.
type faultRow struct {
	name    string
	rules   []simulator.Rule
	on      string         // "mqtt", "websocket", "both" (one after the other in an attempt) or "": a row for each of the first two
	with    string         // "key", "certificate" or "": key
	set     func(*gateway) // further changes before the start
	correct func(*gateway) // done after 90 s
	calm    bool           // no fault is to be reported at all
	code    fault.Code     // the first fault
	codes   []fault.Code   // all that may follow it; empty: code alone
	lasts   bool           // it lasts until it is corrected
	moves   bool           // the gateway is given another hub, which is to be published
	quiet   bool           // nothing of it reaches the network: attempts are not counted
	says    string         // is in the cause of each fault
	advises string         // is in the advice of each fault
	costs   int            // how many faults there are; 0: not counted

	// tickets is the highest TLS version for which the service permits resumption, and for
	// which the gateway has a session; "" means that no session is resumed.
	tickets string
}

// rowResult is the result for the gateway.
type rowResult struct {
	faultRow
	result      string
	connections int
	requests    int
	delays      []time.Duration
	faults      []string
}

// everyStage combines each stage of the simulator with each failure that can happen there,
// once and always. The code is the fault that dpsd reports; "" means none.
func everyStage() (rows []faultRow) {
	type codes struct{ close, reset, silent, garbage, late fault.Code }
	const lost, slow, mute = fault.ConnectionLost, fault.ConnectTimeout, fault.NoReply
	for _, stage := range []struct {
		on              simulator.Stage
		mqtt, websocket codes
	}{
		{simulator.OnAccept, codes{lost, lost, slow, fault.NotTLS, slow}, codes{lost, lost, slow, fault.NotTLS, slow}},
		{simulator.OnTLS, codes{lost, lost, mute, "", mute}, codes{lost, lost, slow, "", slow}},
		{simulator.OnUpgrade, codes{}, codes{lost, lost, slow, fault.WebSocketRefused, slow}},
		{simulator.OnConnect, codes{lost, lost, mute, fault.NotMQTT, mute}, codes{lost, lost, mute, fault.NotMQTT, mute}},
		{simulator.OnSubscribe, codes{lost, lost, mute, fault.ProtocolViolation, mute}, codes{lost, lost, mute, fault.ProtocolViolation, mute}},
		{simulator.OnRegister, codes{lost, lost, mute, fault.ProtocolViolation, mute}, codes{lost, lost, mute, fault.ProtocolViolation, mute}},
		{simulator.OnPoll, codes{lost, lost, mute, fault.ProtocolViolation, mute}, codes{lost, lost, mute, fault.ProtocolViolation, mute}},
		// The poll that is due in the meantime is answered, so dpsd need not wait for the PINGRESP.
		{simulator.OnPing, codes{lost, lost, "", fault.ProtocolViolation, ""}, codes{lost, lost, "", fault.ProtocolViolation, ""}},
		{simulator.OnDisconnect, codes{}, codes{}},
	} {
		for _, p := range []struct {
			on    string
			codes codes
		}{{"mqtt", stage.mqtt}, {"websocket", stage.websocket}} {
			if stage.on == simulator.OnUpgrade && p.on == "mqtt" {
				continue
			}
			for _, what := range []struct {
				name string
				rule simulator.Rule
				code fault.Code
			}{
				{"closes", simulator.Rule{Close: true}, p.codes.close},
				{"resets", simulator.Rule{Reset: true}, p.codes.reset},
				{"is silent", simulator.Rule{Silent: true}, p.codes.silent},
				{"sends garbage", simulator.Rule{Garbage: "\xff\x00SSH-2.0-nobody\r\n"}, p.codes.garbage},
				{"takes 10 s", simulator.Rule{Delay: 10 * time.Second}, ""},
				{"takes 100 s", simulator.Rule{Delay: 100 * time.Second}, p.codes.late},
			} {
				if stage.on == simulator.OnTLS && what.rule.Garbage != "" {
					continue
				}
				for _, times := range []int{1, 0} {
					rule := what.rule
					rule.On, rule.Times = stage.on, times
					row := faultRow{name: string(stage.on) + " " + what.name, on: p.on, rules: []simulator.Rule{rule}, code: what.code, calm: what.code == ""}
					row.name += map[int]string{0: ", always", 1: ", once"}[times]
					row.lasts = times == 0 && !row.calm && stage.on != simulator.OnPing
					if stage.on == simulator.OnPing {
						row.set = func(g *gateway) { g.Settings.KeepAlive = 30 * time.Second }
						row.rules = append(row.rules, simulator.Rule{On: simulator.OnRegister, RetryAfter: "55"})
					}
					rows = append(rows, row)
				}
			}
		}
	}
	return rows
}

// onceAndAlways returns two rows for a rule: one that acts once and one that acts always.
func onceAndAlways(name string, code fault.Code, rule simulator.Rule) []faultRow {
	once, always := rule, rule
	once.Times = 1
	return []faultRow{
		{name: name + ", once", code: code, rules: []simulator.Rule{once}},
		{name: name + ", always", code: code, rules: []simulator.Rule{always}, lasts: true},
	}
}

// calmly returns a row in which dpsd reports nothing.
func calmly(name string, rules ...simulator.Rule) []faultRow {
	return []faultRow{{name: name, calm: true, rules: rules}}
}

func text(s string) *string { return &s }

// faultTable returns the whole table.
func faultTable() []faultRow {
	rows := everyStage()
	add := func(more ...[]faultRow) { rows = append(rows, slices.Concat(more...)...) }

	// CONNECT and SUBSCRIBE.
	for n, c := range map[int]fault.Code{
		1: fault.ConnackRejected, 2: fault.ConnackRejected, 3: fault.ConnackUnavailable,
		4: fault.ConnackRefused, 5: fault.ConnackRefused, 99: fault.ProtocolViolation,
	} {
		add(onceAndAlways(fmt.Sprintf("CONNACK %d", n), c, simulator.Rule{On: simulator.OnConnect, Connack: code(n)}))
	}
	add(
		onceAndAlways("SUBACK 128", fault.NotDPS, simulator.Rule{On: simulator.OnSubscribe, Suback: code(128)}),
		onceAndAlways("CONNACK, then the end", fault.ConnectionLost, simulator.Rule{On: simulator.OnConnect, Then: "close"}),
		onceAndAlways("CONNACK, then a reset", fault.ConnectionLost, simulator.Rule{On: simulator.OnConnect, Then: "reset"}),
		onceAndAlways("CONNACK, then silence", fault.NoReply, simulator.Rule{On: simulator.OnConnect, Then: "silent"}),
		onceAndAlways("SUBACK, then the end", fault.ConnectionLost, simulator.Rule{On: simulator.OnSubscribe, Then: "close"}),
		onceAndAlways("SUBACK, then silence", fault.NoReply, simulator.Rule{On: simulator.OnSubscribe, Then: "silent"}),
		calmly("CONNACK byte by byte", simulator.Rule{On: simulator.OnConnect, ByteByByte: true, Pace: time.Second}),
		calmly("a reply before the SUBACK", simulator.Rule{On: simulator.OnSubscribe, BeforeSuback: true, Status: 200, RequestID: "1", State: "assigned"}),
	)

	// Requests.
	for _, stage := range []simulator.Stage{simulator.OnRegister, simulator.OnPoll} {
		on := string(stage) + ": "
		gone := fault.EnrollmentNotFound
		if stage == simulator.OnPoll {
			gone = fault.OperationLost
		}
		for _, answer := range []struct {
			status int
			code   fault.Code
		}{
			{400, fault.RequestRefused}, {401, fault.Unauthorized}, {404, gone}, {409, fault.RequestRefused},
			{429, fault.Throttled}, {500, fault.ServiceError}, {503, fault.ServiceError},
		} {
			add(onceAndAlways(on+fmt.Sprint(answer.status), answer.code, simulator.Rule{On: stage, Status: answer.status, RetryAfter: "none"}))
		}
		add(
			onceAndAlways(on+"429 with Retry-After 20", fault.Throttled, simulator.Rule{On: stage, Status: 429, RetryAfter: "20"}),
			onceAndAlways(on+"500 with Retry-After 20", fault.ServiceError, simulator.Rule{On: stage, Status: 500, RetryAfter: "20"}),
			onceAndAlways(on+"503 with Retry-After soon", fault.ServiceError, simulator.Rule{On: stage, Status: 503, RetryAfter: "soon"}),
			onceAndAlways(on+"disabled", fault.EnrollmentDisabled, simulator.Rule{On: stage, State: "disabled", Status: 200}),
			onceAndAlways(on+"failed", fault.AllocationFailed, simulator.Rule{On: stage, State: "failed", Status: 200, ErrorCode: 400207}),
			onceAndAlways(on+"JSON that is cut", fault.MalformedReply, simulator.Rule{On: stage, Cut: 20}),
			onceAndAlways(on+"no JSON", fault.MalformedReply, simulator.Rule{On: stage, Body: text("<html>")}),
			onceAndAlways(on+"an array", fault.MalformedReply, simulator.Rule{On: stage, Body: text("[]")}),
			onceAndAlways(on+"200 of nothing", fault.MalformedReply, simulator.Rule{On: stage, Status: 200, Body: text("{}")}),
			onceAndAlways(on+"a hub that is no host name", fault.MalformedReply, simulator.Rule{On: stage, Status: 200, State: "assigned", AssignedHub: "a hub;rm -rf"}),
			onceAndAlways(on+"a device ID with an override of the direction", fault.MalformedReply, simulator.Rule{On: stage, Status: 200, State: "assigned", DeviceID: "gw\u202e1"}),
			onceAndAlways(on+"a device ID with a blank behind", fault.MalformedReply, simulator.Rule{On: stage, Status: 200, State: "assigned", DeviceID: "gw-1 "}),
			onceAndAlways(on+"a payload of 101 levels", fault.MalformedReply, simulator.Rule{On: stage, Status: 200, Body: assignedWith(`,"deviceId":"gw-1","payload":` + strings.Repeat("[", 101) + strings.Repeat("]", 101))}),
			onceAndAlways(on+"a payload of more than 128 KiB", fault.MalformedReply, simulator.Rule{On: stage, Status: 200, Body: assignedWith(`,"deviceId":"gw-1","payload":"` + strings.Repeat("p", 128<<10) + `"`)}),
			onceAndAlways(on+"a device ID with a line feed", fault.MalformedReply, simulator.Rule{On: stage, Status: 200, State: "assigned", DeviceID: "gw\n1"}),
			onceAndAlways(on+"a foreign $rid", fault.NoReply, simulator.Rule{On: stage, RequestID: "77777"}),
			onceAndAlways(on+"another topic", fault.NoReply, simulator.Rule{On: stage, Topic: "$iothub/twin/res/200/?$rid={rid}"}),
			calmly(on+"a packet of 1 MiB", simulator.Rule{On: stage, Pad: 1<<20 - 2<<10}),
			onceAndAlways(on+"a packet of 1.5 MiB", fault.ProtocolViolation, simulator.Rule{On: stage, Pad: 3 << 19}),
			onceAndAlways(on+"PUBACK, then the end", fault.ConnectionLost, simulator.Rule{On: stage, AfterPuback: true, Close: true}),
			onceAndAlways(on+"PUBACK, then a reset", fault.ConnectionLost, simulator.Rule{On: stage, AfterPuback: true, Reset: true}),
			onceAndAlways(on+"PUBACK, then silence", fault.NoReply, simulator.Rule{On: stage, AfterPuback: true, Silent: true}),
			calmly(on+"the reply before the PUBACK", simulator.Rule{On: stage, BeforePuback: true}),
			calmly(on+"the reply without the PUBACK", simulator.Rule{On: stage, NoPuback: true}),
			calmly(on+"the reply twice", simulator.Rule{On: stage, Replies: 2}),
			calmly(on+"the reply a second time with DUP", simulator.Rule{On: stage, Duplicate: true}),
			calmly(on+"the reply byte by byte", simulator.Rule{On: stage, ByteByByte: true, Pace: 10 * time.Millisecond}),
		)
	}
	for _, retryAfter := range []string{"none", "0", "1", "-3", "abc", "3;q=1", "٣"} {
		add(calmly("202 with Retry-After "+retryAfter, simulator.Rule{On: simulator.OnRegister, RetryAfter: retryAfter}))
	}
	add(
		calmly("202 with Retry-After 75: dpsd leaves and comes back", simulator.Rule{On: simulator.OnRegister, RetryAfter: "75"}),
		[]faultRow{{name: "the reply, then the end, always", rules: []simulator.Rule{{On: simulator.OnRegister, Then: "close"}}, code: fault.ConnectionLost}},
		[]faultRow{{name: "the reply, then a reset, once", rules: []simulator.Rule{{On: simulator.OnPoll, Then: "reset", Times: 1}}, code: fault.ConnectionLost}},
		[]faultRow{{name: "another hub", rules: []simulator.Rule{{On: simulator.OnPoll, Status: 200, State: "assigned", AssignedHub: "other.azure-devices.net"}}, calm: true, moves: true}},
		[]faultRow{{name: "another hub after three faults", code: fault.ConnackUnavailable, codes: []fault.Code{fault.ServiceError, fault.ConnectionLost}, moves: true, rules: []simulator.Rule{
			{On: simulator.OnConnect, Connack: code(3), Times: 1}, {On: simulator.OnRegister, Status: 500, Times: 1},
			{On: simulator.OnPoll, Reset: true, Times: 1}, {On: simulator.OnPoll, Status: 200, State: "assigned", AssignedHub: "other.azure-devices.net"},
		}}},
		[]faultRow{{name: "one of everything", code: fault.ConnectionLost, codes: []fault.Code{fault.ConnectionLost, fault.ConnackUnavailable, fault.ServiceError, fault.Throttled, fault.NoReply, fault.MalformedReply}, rules: []simulator.Rule{
			{On: simulator.OnAccept, Reset: true, Times: 1}, {On: simulator.OnConnect, Connack: code(3), Times: 1},
			{On: simulator.OnSubscribe, Close: true, Times: 1}, {On: simulator.OnRegister, Status: 500, Times: 1},
			{On: simulator.OnRegister, Status: 429, RetryAfter: "7", Times: 1}, {On: simulator.OnRegister, Silent: true, Times: 1},
			{On: simulator.OnPoll, Cut: 5, Times: 1}, {On: simulator.OnPoll, Reset: true, Times: 1},
		}}},
	)

	// TLS.
	for certificate, c := range map[string]fault.Code{
		"expired": fault.TLSExpired, "not-yet-valid": fault.ClockImplausible, "wrong-host": fault.TLSWrongHost, "other-ca": fault.TLSUntrusted,
	} {
		add(onceAndAlways("a server certificate that is "+certificate, c, simulator.Rule{On: simulator.OnTLS, ServerCertificate: certificate}))
	}
	add(
		onceAndAlways("TLS 1.1", fault.TLSVersion, simulator.Rule{On: simulator.OnTLS, TLSMin: "1.0", TLSMax: "1.1"}),
		onceAndAlways("the alert handshake_failure", fault.TLSFailed, simulator.Rule{On: simulator.OnTLS, Alert: "handshake_failure"}),
		onceAndAlways("the alert internal_error", fault.TLSFailed, simulator.Rule{On: simulator.OnTLS, Alert: "internal_error"}),
		calmly("TLS 1.3", simulator.Rule{On: simulator.OnTLS, TLSMax: "1.3"}),
		calmly("a stream byte by byte", simulator.Rule{On: simulator.OnAccept, ByteByByte: true, Pace: time.Millisecond}),
		calmly("a link with 600 ms each way", simulator.Rule{On: simulator.OnAccept, DelayUp: 600 * time.Millisecond, DelayDown: 600 * time.Millisecond}),
		onceAndAlways("a web page without TLS", fault.CaptivePortal, simulator.Rule{On: simulator.OnAccept, Garbage: "HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n"}),
	)
	add(
		onceAndAlways("garbage within the TLS stream", fault.ConnectionLost, simulator.Rule{On: simulator.OnAccept, AfterUp: 700, Garbage: "GARBAGE GARBAGE"}),
	)
	for _, after := range []int{1, 500, 1200, 1700} {
		for _, way := range []string{"close", "reset"} {
			rule := simulator.Rule{On: simulator.OnAccept, AfterDown: after, Close: way == "close", Reset: way == "reset"}
			if after >= 1200 {
				rule.AfterUp, rule.AfterDown = after/2, 0
			}
			add(onceAndAlways(fmt.Sprintf("%s after %d bytes down or %d up", way, rule.AfterDown, rule.AfterUp), fault.ConnectionLost, rule))
		}
	}
	add([]faultRow{
		{name: "a listener closed for 20 s", rules: []simulator.Rule{{On: simulator.OnAccept, Refuse: 20 * time.Second, Times: 1}}, code: fault.ConnectionLost, codes: []fault.Code{fault.TCPRefused}},
		{name: "a listener closed permanently", rules: []simulator.Rule{{On: simulator.OnAccept, Refuse: time.Hour}}, code: fault.ConnectionLost, codes: []fault.Code{fault.TCPRefused}, lasts: true},
		{name: "8883 is reset, 443 is open", on: "both", calm: true, rules: []simulator.Rule{{On: simulator.OnAccept, Protocol: "mqtt", Reset: true}}},
		{name: "8883 is silent, 443 is open", on: "both", calm: true, rules: []simulator.Rule{{On: simulator.OnAccept, Protocol: "mqtt", Silent: true}}},
		{name: "8883 is a portal, 443 is open", on: "both", calm: true, rules: []simulator.Rule{{On: simulator.OnAccept, Protocol: "mqtt", Garbage: "HTTP/1.1 200 OK\r\n\r\n"}}},
		{name: "8883 and 443 are silent", on: "both", code: fault.ConnectTimeout, lasts: true, rules: []simulator.Rule{{On: simulator.OnAccept, Silent: true}}},
	})

	// WebSocket.
	var web []faultRow
	for status, c := range map[int]fault.Code{
		200: fault.WebSocketRefused, 302: fault.CaptivePortal, 400: fault.WebSocketRefused, 403: fault.WebSocketRefused, 404: fault.WebSocketRefused,
		502: fault.WebSocketRefused, 503: fault.WebSocketRefused, 511: fault.CaptivePortal,
	} {
		web = append(web, onceAndAlways(fmt.Sprintf("the upgrade is answered %d", status), c, simulator.Rule{On: simulator.OnUpgrade, Status: status})...)
	}
	web = append(web, onceAndAlways("no subprotocol", fault.WebSocketRefused, simulator.Rule{On: simulator.OnUpgrade, Subprotocol: "none"})...)
	web = append(web, onceAndAlways("an extension that was not offered", fault.WebSocketRefused, simulator.Rule{On: simulator.OnUpgrade, Extension: "permessage-deflate"})...)
	for _, frames := range []string{"split", "fragments", "ping"} {
		web = append(web, calmly("frames: "+frames, simulator.Rule{On: simulator.OnRegister, Frames: frames})...)
	}
	for _, frames := range []string{
		"text", "masked", "rsv1", "rsv2", "rsv3", "reserved", "reserved-control", "orphan", "interrupted", "negative", "long-control", "fragmented-control", "bad-close",
	} {
		web = append(web, onceAndAlways("frames: "+frames, fault.ProtocolViolation, simulator.Rule{On: simulator.OnRegister, Frames: frames})...)
	}
	for _, status := range []int{1001, 1002, 1008, 1011, 1013} {
		web = append(web, onceAndAlways(fmt.Sprintf("the close frame %d", status), fault.ConnectionLost, simulator.Rule{On: simulator.OnRegister, Close: true, CloseCode: status})...)
	}
	for i := range web {
		web[i].on = "websocket"
	}
	add(web)

	// Credentials and the gateway's own files.
	wrong := "d3JvbmcgbWF0ZXJpYWwgd3JvbmcgbWF0ZXJpYWw="
	certified := slices.Concat(
		onceAndAlways("register: 401", fault.Unauthorized, simulator.Rule{On: simulator.OnRegister, Status: 401, RetryAfter: "none"}),
		onceAndAlways("CONNACK 5", fault.ConnackRefused, simulator.Rule{On: simulator.OnConnect, Connack: code(5)}),
		onceAndAlways("register: 500", fault.ServiceError, simulator.Rule{On: simulator.OnRegister, Status: 500, RetryAfter: "none"}),
		onceAndAlways("poll resets", fault.ConnectionLost, simulator.Rule{On: simulator.OnPoll, Reset: true}),
	)
	for i := range certified {
		certified[i].with = "certificate"
	}
	add(certified, alertsAboutCertificates(), chains(), resumptions(), proxies())
	add(onceAndAlways("register: 400, the API version is not supported", fault.RequestRefused,
		simulator.Rule{On: simulator.OnRegister, Status: 400, ErrorCode: 400004, ErrorMessage: "Unsupported API version 2021-06-01.", RetryAfter: "none"}))
	for _, host := range []string{"global.azure-devices-provisioning.us", "global.azure-devices-provisioning.cn"} {
		add([]faultRow{{name: "the root of " + host + " is not trusted", on: "mqtt", code: fault.TLSUntrusted, lasts: true, set: func(g *gateway) { issuedByDigiCert(g, host) }}})
	}
	for _, address := range []string{"0.0.0.0", "127.0.0.1", "127.0.0.53", "::", "::1"} {
		add([]faultRow{{name: "a blocklist leads the name to " + address, on: "mqtt", code: fault.DNSBlocked, lasts: true, set: func(g *gateway) {
			g.Settings.Dialer.Host = global
			leading(address)(g)
		}}})
	}
	add([]faultRow{
		{name: "the wrong key", code: fault.Unauthorized, lasts: true, set: func(g *gateway) { g.write("device.key", wrong) }},
		{name: "the wrong key, corrected", code: fault.Unauthorized, set: func(g *gateway) { g.write("device.key", wrong) },
			correct: func(g *gateway) { g.write("device.key", g.sim.DeviceKey(device)) }},
		{name: "the wrong key, then the right one", code: fault.Unauthorized, set: func(g *gateway) {
			g.Settings.Credentials = []attest.Credential{g.key("old.key", wrong), g.Settings.Credentials[0]}
		}},
		{name: "two wrong keys", code: fault.Unauthorized, lasts: true, set: func(g *gateway) {
			g.Settings.Credentials = []attest.Credential{g.key("old.key", wrong), g.key("older.key", wrong)}
		}},
		{name: "no key", on: "mqtt", code: fault.CredentialUnreadable, lasts: true, quiet: true, set: func(g *gateway) { _ = os.Remove(g.dir + "/device.key") }},
		{name: "an invalid key", on: "mqtt", code: fault.CredentialInvalid, lasts: true, quiet: true, set: func(g *gateway) { g.write("device.key", "{}") }},
		{name: "a key that is a directory", on: "mqtt", code: fault.CredentialInvalid, lasts: true, quiet: true, set: func(g *gateway) {
			_ = os.Remove(g.dir + "/device.key")
			_ = os.Mkdir(g.dir+"/device.key", 0o755)
		}},
		{name: "no payload file", on: "mqtt", code: fault.InputUnreadable, lasts: true, quiet: true, set: func(g *gateway) { g.Settings.PayloadFile = g.dir + "/missing" }},
		{name: "a serial file whose first line is blank", on: "mqtt", code: fault.InputInvalid, lasts: true, quiet: true, set: func(g *gateway) {
			g.write("serial", "\n"+device+"\n")
			g.Settings.RegistrationID = attest.RegistrationID{File: g.dir + "/serial"}
		}},
		{name: "a key in UTF-16", on: "mqtt", code: fault.CredentialInvalid, lasts: true, quiet: true, set: func(g *gateway) { g.write("device.key", "\xff\xfec\x002\x00") }},
		{name: "a key in quotes", on: "mqtt", code: fault.CredentialInvalid, lasts: true, quiet: true, set: func(g *gateway) { g.write("device.key", `"c2VjcmV0LWtleS1vZi1nYXRld2F5LTE="`) }},
		{name: "a key in hexadecimal digits", on: "mqtt", code: fault.Unauthorized, lasts: true, set: func(g *gateway) { g.write("device.key", strings.Repeat("0123456789abcdef", 4)) }},
		{name: "a payload file in UTF-16", on: "mqtt", code: fault.InputInvalid, lasts: true, quiet: true, set: func(g *gateway) { g.write("p", "\xff\xfe{\x00}\x00"); g.Settings.PayloadFile = g.dir + "/p" }},
		{name: "a ca_file that is cut off", on: "mqtt", code: fault.CAUnreadable, lasts: true, quiet: true, set: func(g *gateway) {
			g.write("ca.pem", "-----BEGIN CERTIFICATE-----\nMIIB\n")
			g.Settings.Dialer.CAFile = g.dir + "/ca.pem"
		}},
		{name: "a payload file that is not an object", on: "mqtt", code: fault.InputInvalid, lasts: true, quiet: true, set: func(g *gateway) { g.write("p", "[1]"); g.Settings.PayloadFile = g.dir + "/p" }},
		{name: "no ca_file", on: "mqtt", code: fault.CAUnreadable, lasts: true, quiet: true, set: func(g *gateway) { g.Settings.Dialer.CAFile = g.dir + "/missing" }},
		{name: "no route for 90 s", on: "mqtt", code: fault.NetworkUnreachable, quiet: true, set: func(g *gateway) {
			dial, start := g.Settings.Dialer.DialContext, time.Now()
			g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
				if time.Since(start) < 90*time.Second {
					return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ENETUNREACH)}
				}
				return dial(ctx, network, address)
			}
		}},
		{name: "the ID scope of another instance", code: fault.ConnackUnavailable, lasts: true, set: func(g *gateway) { g.Settings.IDScope = "0ne99999999" }},
		{name: "no enrollment", code: fault.EnrollmentNotFound, lasts: true, set: func(g *gateway) {
			if err := g.sim.SetEnrollments(&enroll.Enrollments{}); err != nil {
				g.t.Fatal(err)
			}
		}},
	})
	return rows
}

// playRow runs one row in a bubble.
func playRow(t *testing.T, row faultRow) (o rowResult) {
	synctest.Test(t, func(t *testing.T) {
		g := newGateway(t)
		g.Watchdog = 30 * time.Second
		switch row.on {
		case "mqtt":
		case "websocket":
			g.Settings.Dialer.Protocols = []transport.Protocol{transport.WebSocket}
		default:
			g.Settings.Dialer.Protocols = []transport.Protocol{transport.MQTT, transport.WebSocket}
		}
		if row.with == "certificate" {
			g.Settings.Credentials = []attest.Credential{g.certificate(device)}
		}
		g.refusing()
		service := simulator.Settings{SessionTickets: row.tickets != "", TLSMax: row.tickets}
		if row.tickets != "" {
			g.Settings.Dialer.Sessions = tls.NewLRUClientSessionCache(4)
			if err := g.sim.SetScenario(&simulator.Scenario{Settings: service}); err != nil {
				t.Fatal(err)
			}
		}
		g.publish()
		before := snapshot(t, g.Store.Directory)
		if err := g.sim.SetScenario(&simulator.Scenario{Settings: service, Rules: row.rules}); err != nil {
			t.Fatal(err)
		}
		if row.set != nil {
			row.set(g)
		}

		g.run()
		time.Sleep(90 * time.Second)
		synctest.Wait()
		o = g.outcome(row)
		if row.lasts {
			if o.result != "retries" {
				t.Errorf("after 90 s: %s", o.result)
			}
			if attempts := len(o.faults); attempts > 10 && !row.quiet || o.connections > 10*len(g.Settings.Dialer.Protocols) {
				t.Errorf("%d attempts, %d connections in 90 s", attempts, o.connections)
			}
		} else {
			if row.correct != nil {
				row.correct(g)
			}
			for limit := time.Now().Add(3 * time.Hour); g.log.FilterMessage("assigned").Len() == 0 && time.Now().Before(limit); {
				time.Sleep(time.Second)
				synctest.Wait()
			}
			if o = g.outcome(row); o.result != "assigned" {
				t.Errorf("it was not corrected: %v", o.faults)
			}
		}

		g.wantBeats(15 * time.Second)
		asked := time.Now()
		if err := g.end(); err != nil {
			t.Errorf("the end of dpsd: %v", err)
		}
		if took := time.Since(asked); took > 2*time.Second {
			t.Errorf("SIGTERM took %s", took)
		}
		if g.log.FilterMessage("hung").Len() > 0 {
			t.Error("the watchdog was needed")
		}
		for _, e := range g.log.FilterMessage("fault").All() {
			if cause := fmt.Sprint(e.ContextMap()["cause"]); !strings.Contains(cause, row.says) {
				t.Errorf("the cause is %q, without %q", cause, row.says)
			}
		}
		for _, e := range g.log.FilterMessage("fault").All() {
			if advice := fmt.Sprint(e.ContextMap()["advice"]); !strings.Contains(advice, row.advises) {
				t.Errorf("the advice is %q, without %q", advice, row.advises)
			}
		}
		if row.costs > 0 && len(o.faults) != row.costs {
			t.Errorf("%d faults, want %d", len(o.faults), row.costs)
		}
		strange := slices.ContainsFunc(o.faults, func(f string) bool {
			return f != string(row.code) && !slices.Contains(row.codes, fault.Code(f))
		})
		if strange || row.calm != (len(o.faults) == 0) || len(o.faults) > 0 && o.faults[0] != string(row.code) {
			t.Errorf("faults %v, want %q, then %q", o.faults, row.code, row.codes)
			for _, e := range g.log.FilterMessage("fault").All() {
				t.Logf("%s %s: %v", e.ContextMap()["fault"], e.ContextMap()["stage"], e.ContextMap()["cause"])
			}
		}
		after := snapshot(t, g.Store.Directory)
		if row.moves {
			if rec, err := g.record(); err != nil || rec.AssignedHub != "other.azure-devices.net" || rec.Generation != 2 {
				t.Errorf("the record is %+v, %v", rec, err)
			}
		} else if after = withoutTransport(after); after != withoutTransport(before) {
			t.Errorf("the published record changed:\n%s\n%s", before, after)
		}
		if v := simulator.Summarize(g.sim.Log()).Violations; len(v) > 0 {
			t.Errorf("dpsd violates a rule: %q", v)
		}
	})
	return o
}

// withoutTransport removes the record of which protocol worked, which is not part of the
// assignment.
func withoutTransport(snapshot string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(snapshot, "\n"), func(line string) bool {
		return line == "" || strings.HasPrefix(line, "transport ")
	}), "\n")
}

// publish lets the gateway be assigned in an earlier run, and starts counting.
func (g *gateway) publish() {
	g.t.Helper()
	g.run()
	g.until("assigned", 1)
	g.stop()
	if err := <-g.done; err != nil {
		g.t.Fatal(err)
	}
	time.Sleep(time.Hour)
	g.log.TakeAll()
	g.notes, g.dials, g.start = nil, 0, time.Now()
}

// refusing does what a kernel does while a listener is closed.
func (g *gateway) refusing() {
	dial := g.Settings.Dialer.DialContext
	g.Settings.Dialer.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		protocol := "mqtt"
		if strings.HasSuffix(address, ":443") {
			protocol = "websocket"
		}
		if g.sim.Refuses(protocol) {
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		return dial(ctx, network, address)
	}
}

func (g *gateway) outcome(row faultRow) rowResult {
	o := rowResult{faultRow: row, result: "retries", connections: g.dials, faults: g.faults()}
	if g.log.FilterMessage("assigned").Len() > 0 {
		o.result = "assigned"
	}
	sum := simulator.Summarize(g.sim.Log())
	for _, at := range slices.Concat(sum.Registers, sum.Polls) {
		if !at.Before(g.start) {
			o.requests++
		}
	}
	for _, e := range g.log.FilterMessage("fault").All() {
		o.delays = append(o.delays, e.ContextMap()["retryIn"].(time.Duration))
	}
	return o
}

// For every failure: the gateway is assigned when the failure ends. While it lasts, it has the
// right code and causes little traffic, and the record that was published before remains.
// With -v the test prints the table.
func TestEachFaultIsReportedAndRecoveredFrom(t *testing.T) {
	long(t)
	var rows []faultRow
	for _, row := range faultTable() {
		if row.on != "" {
			rows = append(rows, row)
			continue
		}
		for _, on := range []string{"mqtt", "websocket"} {
			row.on = on
			rows = append(rows, row)
		}
	}
	var mu sync.Mutex
	var all []rowResult
	t.Run("rows", func(t *testing.T) {
		for _, row := range rows {
			row.with = cmp.Or(row.with, "key")
			t.Run(fmt.Sprintf("%s, %s: %s", row.on, row.with, row.name), func(t *testing.T) {
				t.Parallel()
				o := playRow(t, row)
				mu.Lock()
				defer mu.Unlock()
				all = append(all, o)
			})
		}
	})
	if len(rows) < 90 {
		t.Errorf("%d rows", len(rows))
	}
	slices.SortFunc(all, func(a, b rowResult) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.with, b.with), cmp.Compare(a.on, b.on))
	})
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "what happens\tover\twith\toutcome\tconnections\trequests\tfirst delay\tlast delay\tcodes")
	for _, o := range all {
		first, last := "-", "-"
		if n := len(o.delays); n > 0 {
			first, last = o.delays[0].String(), o.delays[n-1].String()
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", o.name, o.on, o.with, o.result, o.connections, o.requests, first, last,
			cmp.Or(strings.Join(slices.Compact(slices.Clone(o.faults)), " "), "-"))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d rows\n%s", len(all), b.String())
}
