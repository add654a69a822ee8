package dps_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/dps"
)

const assignedBody = `{"operationId":"5.1.a","status":"assigned","registrationState":{"registrationId":"gw-1",` +
	`"assignedHub":"hub.azure-devices.net","deviceId":"dev-1","status":"assigned"}}`

// assigned returns a reply whose registrationState is state.
func assigned(state string) dps.Message {
	return dps.Message{
		Topic:   "$dps/registrations/res/200/?$rid=1",
		Payload: []byte(`{"operationId":"5.1.a","status":"assigned","registrationState":` + state + `}`),
	}
}

func TestRetryAfter(t *testing.T) {
	const assigning = `{"operationId":"5.1.a","status":"assigning"}`
	for _, test := range []struct {
		expect, query string
		asked, waited time.Duration // the reply's retry-after; the delay before the next poll
	}{
		{"seconds", "$rid=1&retry-after=3", 3 * time.Second, 3 * time.Second},
		{"before $rid", "retry-after=3&$rid=1", 3 * time.Second, 3 * time.Second},
		{"among unknown parameters", "a=b&$rid=1&c&retry-after=7&=d", 7 * time.Second, 7 * time.Second},
		{"in mixed case", "$rid=1&Retry-After=5", 5 * time.Second, 5 * time.Second},
		{"in capitals", "$rid=1&RETRY-AFTER=5", 5 * time.Second, 5 * time.Second},
		{"absent: two seconds", "$rid=1", 0, 2 * time.Second},
		{"zero: two seconds", "$rid=1&retry-after=0", 0, 2 * time.Second},
		{"one: raised to two seconds", "$rid=1&retry-after=1", time.Second, 2 * time.Second},
		{"two", "$rid=1&retry-after=2", 2 * time.Second, 2 * time.Second},
		{"negative: unreadable", "$rid=1&retry-after=-3", 0, 2 * time.Second},
		{"with a sign: unreadable", "$rid=1&retry-after=+3", 0, 2 * time.Second},
		{"a fraction: unreadable", "$rid=1&retry-after=3.5", 0, 2 * time.Second},
		{"a date: unreadable", "$rid=1&retry-after=Fri, 31 Dec 1999 23:59:59 GMT", 0, 2 * time.Second},
		{"empty: unreadable", "$rid=1&retry-after=", 0, 2 * time.Second},
		{"without a value: unreadable", "$rid=1&retry-after", 0, 2 * time.Second},
		{"with a space: unreadable", "$rid=1&retry-after= 3", 0, 2 * time.Second},
		{"non-ASCII digits: unreadable", "$rid=1&retry-after=٣", 0, 2 * time.Second},
		{"leading zeros", "$rid=1&retry-after=0000000120", 2 * time.Minute, 2 * time.Minute},
		{"a day", "$rid=1&retry-after=86400", 24 * time.Hour, 24 * time.Hour},
		{"more than a day counts as a day", "$rid=1&retry-after=86401", 24 * time.Hour, 24 * time.Hour},
		{"more than fits an integer counts as a day", "$rid=1&retry-after=99999999999999999999999999", 24 * time.Hour, 24 * time.Hour},
		{"twice: the largest counts", "$rid=1&retry-after=3&retry-after=9&Retry-After=4", 9 * time.Second, 9 * time.Second},
		{"twice, one unreadable", "$rid=1&retry-after=x&retry-after=4", 4 * time.Second, 4 * time.Second},
	} {
		t.Run(test.expect, func(t *testing.T) {
			reply, err := dps.ParseReply(dps.Message{Topic: "$dps/registrations/res/202/?" + test.query, Payload: []byte(assigning)})
			if err != nil {
				t.Fatal(err)
			}
			if reply.RetryAfter != test.asked {
				t.Errorf("the reply asks for %v, want %v", reply.RetryAfter, test.asked)
			}

			var r dps.Registration
			start := time.Unix(1_000_000, 0)
			begin(t, &r, start)
			if _, err := r.Handle(start, dps.Message{Topic: "$dps/registrations/res/202/?" + test.query, Payload: []byte(assigning)}); err != nil {
				t.Fatal(err)
			}
			if got := r.Deadline().Sub(start); got != test.waited || !r.Waiting() {
				t.Errorf("the poll is sent after %v, want %v", got, test.waited)
			}

			// The same holds for an error reply.
			begin(t, &r, r.Deadline())
			throttled := "$dps/registrations/res/429/?" + strings.Replace(test.query, "$rid=1", "$rid=2", 1)
			_, err = r.Handle(start, dps.Message{Topic: throttled})
			var refused *dps.ServiceError
			if !errors.As(err, &refused) || refused.RetryAfter != test.asked {
				t.Errorf("the error is %v, want one with RetryAfter %v", err, test.asked)
			}
		})
	}
}

func TestParseReplyReadsTheTopic(t *testing.T) {
	for _, test := range []struct{ expect, topic, rid string }{
		{"$rid is echoed verbatim", "$dps/registrations/res/200/?$rid=b7f5-X", "b7f5-X"},
		{"a value may contain an equals sign", "$dps/registrations/res/200/?$rid=a=b", "a=b"},
		{"the slash before the question mark may be missing", "$dps/registrations/res/200?$rid=1", "1"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			reply, err := dps.ParseReply(dps.Message{Topic: test.topic, Payload: []byte(assignedBody)})
			if err != nil || reply.RequestID != test.rid || reply.Status != 200 {
				t.Errorf("got %+v, %v", reply, err)
			}
		})
	}
	for _, topic := range []string{
		"", "$dps/registrations/PUT/iotdps-register/?$rid=1", "$iothub/twin/res/200/?$rid=1", "$DPS/registrations/res/200/?$rid=1",
		"$dps/registrations/res",
	} {
		t.Run("not a reply: "+strconv.Quote(topic), func(t *testing.T) {
			if _, err := dps.ParseReply(dps.Message{Topic: topic, Payload: []byte(assignedBody)}); !errors.Is(err, dps.ErrNotReply) {
				t.Errorf("got %v", err)
			}
		})
	}
	for _, test := range []struct{ expect, topic string }{
		{"no status", "$dps/registrations/res/?$rid=1"},
		{"a status of words", "$dps/registrations/res/abc/?$rid=1"},
		{"a status of two digits", "$dps/registrations/res/20/?$rid=1"},
		{"a status of four digits", "$dps/registrations/res/2000/?$rid=1"},
		{"a status beyond 599", "$dps/registrations/res/600/?$rid=1"},
		{"a status below 100", "$dps/registrations/res/099/?$rid=1"},
		{"a status with a sign", "$dps/registrations/res/+20/?$rid=1"},
		{"a further level", "$dps/registrations/res/200/x/?$rid=1"},
		{"no $rid", "$dps/registrations/res/200/"},
		{"an empty $rid", "$dps/registrations/res/200/?$rid="},
		{"$rid twice", "$dps/registrations/res/200/?$rid=1&$rid=2"},
	} {
		t.Run("a malformed topic: "+test.expect, func(t *testing.T) {
			var malformed *dps.MalformedError
			_, err := dps.ParseReply(dps.Message{Topic: test.topic, Payload: []byte(assignedBody)})
			if !errors.As(err, &malformed) || malformed.Topic != test.topic {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestParseReplyRefusesMalformedBodies(t *testing.T) {
	const hub = `"assignedHub":"hub.azure-devices.net"`
	const dev = `"deviceId":"dev-1"`
	whole := func(body string) dps.Message {
		return dps.Message{Topic: "$dps/registrations/res/200/?$rid=1&retry-after=30", Payload: []byte(body)}
	}
	for _, test := range []struct {
		expect string
		m      dps.Message
		reason string
	}{
		{"an empty body", whole(""), "the body is empty"},
		{"white space", whole(" \r\n\t"), "the body is empty"},
		{"truncated JSON", whole(assignedBody[:len(assignedBody)-1]), "the body is not JSON"},
		{"JSON followed by other data", whole(assignedBody + "x"), "the body is not JSON"},
		{"two documents", whole(assignedBody + assignedBody), "the body is not JSON"},
		{"HTML", whole("<html>"), "the body is not JSON"},
		{"an array", whole(`[` + assignedBody + `]`), "the body is not a JSON object"},
		{"null", whole("null"), "the body is not a JSON object"},
		{"unterminated nesting", whole(strings.Repeat("[", 200_000)), "the body is not JSON"},
		{"text that is not UTF-8", whole("{\"status\":\"assigning\",\"operationId\":\"a\xff\"}"), "the body is not UTF-8"},
		{"a name twice", whole(`{"status":"assigned","status":"assigning","operationId":"a"}`), `the member "status" occurs twice`},
		{"a name twice, once escaped", whole(`{"status":"assigning","\u0073tatus":"failed","operationId":"a"}`), `the member "status" occurs twice`},
		{"a name twice inside", whole(`{"operationId":"a","status":"assigning","registrationState":{"a":[1,{"b":1,"b":2}]}}`), `the member "b" occurs twice`},
		{"no status", whole(`{"operationId":"a"}`), "the body has no status"},
		{"the status null", whole(`{"operationId":"a","status":null}`), "the body has no status"},
		{"the status a number", whole(`{"operationId":"a","status":200}`), "status is not a string"},
		{"the status in another case", whole(`{"operationId":"a","status":"Assigning"}`), `unknown status "Assigning"`},
		{"the status's name in another case", whole(`{"operationId":"a","Status":"assigning"}`), "the body has no status"},
		{"an operation ID that is a number", whole(`{"operationId":7,"status":"assigning"}`), "operationId is not a string"},
		{"an operation ID with a line end", whole(`{"operationId":"a\nb","status":"assigning"}`), "operationId has a control character"},
		{"an operation ID of extreme length", whole(`{"operationId":"` + strings.Repeat("a", 513) + `","status":"assigning"}`), "operationId has 513 bytes"},
		{"assigned without a registrationState", whole(`{"operationId":"a","status":"assigned"}`), "assigned without a registrationState"},
		{"a registrationState that is a list", assigned(`[]`), "registrationState is not a JSON object"},
		{"no hub", assigned(`{` + dev + `}`), "assigned without an assignedHub"},
		{"the hub null", assigned(`{"assignedHub":null,` + dev + `}`), "assigned without an assignedHub"},
		{"the hub empty", assigned(`{"assignedHub":"",` + dev + `}`), "assigned without an assignedHub"},
		{"the hub an object", assigned(`{"assignedHub":{},` + dev + `}`), "assignedHub is not a string"},
		{"the hub a URL", assigned(`{"assignedHub":"https://hub.azure-devices.net",` + dev + `}`), "is not a host name"},
		{"the hub with a port", assigned(`{"assignedHub":"hub.azure-devices.net:8883",` + dev + `}`), "is not a host name"},
		{"the hub an address", assigned(`{"assignedHub":"192.0.2.1",` + dev + `}`), "is not a host name"},
		{"the hub with a trailing dot", assigned(`{"assignedHub":"hub.azure-devices.net.",` + dev + `}`), "is not a host name"},
		{"the hub with an empty label", assigned(`{"assignedHub":"hub..net",` + dev + `}`), "is not a host name"},
		{"the hub with a label of 64", assigned(`{"assignedHub":"` + strings.Repeat("a", 64) + `.net",` + dev + `}`), "is not a host name"},
		{"the hub with a hyphen at an edge", assigned(`{"assignedHub":"hub-.azure-devices.net",` + dev + `}`), "is not a host name"},
		{"the hub with a shell command", assigned(`{"assignedHub":"hub$(id).net",` + dev + `}`), "is not a host name"},
		{"the hub of 254 characters", assigned(`{"assignedHub":"` + strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 62) + `",` + dev + `}`), "is not a host name"},
		{"the hub longer than a host name", assigned(`{"assignedHub":"` + strings.Repeat("a.", 127) + `net",` + dev + `}`), "is not a host name"},
		{"no device ID", assigned(`{` + hub + `}`), "assigned without a deviceId"},
		{"the device ID empty", assigned(`{` + hub + `,"deviceId":""}`), "assigned without a deviceId"},
		{"the device ID of 129", assigned(`{` + hub + `,"deviceId":"` + strings.Repeat("d", 129) + `"}`), "deviceId has 129 bytes, more than 128"},
		{"the device ID with a line end", assigned(`{` + hub + `,"deviceId":"a\nb"}`), "deviceId has a control character"},
		{"the device ID with an override of the direction", assigned(`{` + hub + `,"deviceId":"a\u202Eb"}`), "deviceId has the invisible character U+202E"},
		{"the device ID with an isolate", assigned(`{` + hub + `,"deviceId":"a\u2066b"}`), "deviceId has the invisible character U+2066"},
		{"the device ID with a line separator", assigned(`{` + hub + `,"deviceId":"a\u2028b"}`), "deviceId has the invisible character U+2028"},
		{"the device ID with a paragraph separator", assigned(`{` + hub + `,"deviceId":"a\u2029b"}`), "deviceId has the invisible character U+2029"},
		{"the device ID with a byte-order mark", assigned(`{` + hub + `,"deviceId":"\uFEFFa"}`), "deviceId has the invisible character U+FEFF"},
		{"the device ID with a leading blank", assigned(`{` + hub + `,"deviceId":" a"}`), "deviceId begins or ends with a blank"},
		{"the device ID with a trailing no-break space", assigned(`{` + hub + `,"deviceId":"a\u00A0"}`), "deviceId begins or ends with a blank"},
		{"more members than allowed", assigned(`{` + hub + `,` + dev + `,"more":[` + strings.Repeat(`{"a":0},`, 1<<15-5) + `0]}`), "the body has more than 32768 members"},
		{"a payload of 101 levels after a text that ends with a backslash", assigned(`{` + hub + `,` + dev + `,"payload":["\\",` + strings.Repeat("[", 100) + strings.Repeat("]", 101) + `}`), "payload is nested deeper than 100 levels"},
		{"a payload of 101 levels", assigned(`{` + hub + `,` + dev + `,"payload":` + strings.Repeat("[", 101) + strings.Repeat("]", 101) + `}`), "payload is nested deeper than 100 levels"},
		{"another member of 101 levels", assigned(`{` + hub + `,` + dev + `,"more":` + strings.Repeat("[", 101) + strings.Repeat("]", 101) + `}`), "registrationState is nested deeper than 101 levels"},
		{"a payload of 128 KiB and a byte", assigned(`{` + hub + `,` + dev + `,"payload":"` + strings.Repeat("p", 128<<10-1) + `"}`), "payload has 131073 bytes, more than 131072"},
		{"the device ID with DEL", assigned(`{` + hub + `,"deviceId":"a\u007f"}`), "deviceId has a control character"},
		{"the device ID with a C1 control", assigned(`{` + hub + `,"deviceId":"a\u0085"}`), "deviceId has a control character"},
		{"the device ID with half a surrogate pair", assigned(`{` + hub + `,"deviceId":"a\ud800"}`), "deviceId has a damaged character"},
		{"the device ID with a noncharacter", assigned(`{` + hub + `,"deviceId":"a\uFDD0"}`), "deviceId has a Unicode noncharacter"},
		{"the device ID with a noncharacter of a high plane", assigned(`{` + hub + `,"deviceId":"a\uD83F\uDFFE"}`), "deviceId has a Unicode noncharacter"},
		{"the connection profile with NUL", assigned(`{` + hub + `,` + dev + `,"connectionProfile":"mqtt\u0000"}`), "connectionProfile has a control character"},
		{"the registration ID with a control", assigned(`{` + hub + `,` + dev + `,"registrationId":"a\u0001"}`), "registrationId has a control character"},
		{"a substatus that is a number", assigned(`{` + hub + `,` + dev + `,"substatus":1}`), "substatus is not a string"},
		{"states that contradict each other", assigned(`{` + hub + `,` + dev + `,"status":"failed"}`), `assigned, but registrationState says "failed"`},
	} {
		t.Run(test.expect, func(t *testing.T) {
			reply, err := dps.ParseReply(test.m)
			var malformed *dps.MalformedError
			if !errors.As(err, &malformed) {
				t.Fatalf("got %+v, %v", reply, err)
			}
			if !strings.Contains(malformed.Reason, test.reason) {
				t.Errorf("the reason is %q, want %q", malformed.Reason, test.reason)
			}
			if reply.RequestID != "1" {
				t.Error("the $rid was lost: the reply could not be distinguished from another client's")
			}
			if malformed.RetryAfter != reply.RetryAfter {
				t.Error("the error does not carry the Retry-After")
			}
		})
	}
}

func TestParseReplyReadsAnAssignment(t *testing.T) {
	reply, err := dps.ParseReply(assigned(`{
		"x509": {}, "registrationId": "gw-1", "createdDateTimeUtc": "2022-08-31T22:02:50.5163352Z",
		"assignedHub": "Hub-1.azure-devices.net", "deviceId": "Grüße $\"1", "status": "assigned",
		"substatus": "initialAssignment", "lastUpdatedDateTimeUtc": "2022-08-31T22:02:50.6Z", "etag": "IjY5Ig==",
		"connectionProfile": "mqttV5", "payload": {"a": [1.0, 1e400, null], "<b>": 12345678901234567890},
		"issuedCertificateChain": ["TGVhZg==", "Um9vdA=="],
		"tpm": {"authenticationKey": "SECRET-1", "extra": 1}, "TPM": {"AuthenticationKey": "SECRET-2"},
		"symmetricKey": {"primaryKey": "SECRET-3", "secondaryKey": "SECRET-4", "enrollmentGroupId": "g"},
		"errorCode": null, "<i>": "&", "future": {"k": [true, {"authenticationKey": "not that one"}]}
	}`))
	if err != nil {
		t.Fatal(err)
	}
	want := &dps.Assignment{
		AssignedHub: "Hub-1.azure-devices.net", DeviceID: `Grüße $"1`, RegistrationID: "gw-1",
		Substatus: "initialAssignment", CreatedDateTimeUtc: "2022-08-31T22:02:50.5163352Z",
		LastUpdatedDateTimeUtc: "2022-08-31T22:02:50.6Z", ETag: "IjY5Ig==", ConnectionProfile: "mqttV5",
		Payload:                json.RawMessage(`{"a":[1.0,1e400,null],"<b>":12345678901234567890}`),
		IssuedCertificateChain: json.RawMessage(`["TGVhZg==","Um9vdA=="]`),
		State: json.RawMessage(`{"x509":{},"registrationId":"gw-1","createdDateTimeUtc":"2022-08-31T22:02:50.5163352Z",` +
			`"assignedHub":"Hub-1.azure-devices.net","deviceId":"Grüße $\"1","status":"assigned",` +
			`"substatus":"initialAssignment","lastUpdatedDateTimeUtc":"2022-08-31T22:02:50.6Z","etag":"IjY5Ig==",` +
			`"connectionProfile":"mqttV5","payload":{"a":[1.0,1e400,null],"<b>":12345678901234567890},` +
			`"issuedCertificateChain":["TGVhZg==","Um9vdA=="],` +
			`"tpm":{"extra":1},"TPM":{},"symmetricKey":{},` +
			`"errorCode":null,"<i>":"&","future":{"k":[true,{"authenticationKey":"not that one"}]}}`),
	}
	if diff := cmp.Diff(want, reply.Assignment); diff != "" {
		t.Errorf("the assignment differs (-want +got):\n%s", diff)
	}

	t.Run("an assignment does not depend on its chain, which is returned whatever it is", func(t *testing.T) {
		for chain, want := range map[string]string{
			`"MII"`: `"MII"`, `["MII", 1]`: `["MII",1]`, `[null]`: `[null]`, `{"a": []}`: `{"a":[]}`, `[]`: `[]`, `""`: `""`, `false`: `false`,
			`["` + strings.Repeat("A", 1<<20) + `"]`: `["` + strings.Repeat("A", 1<<20) + `"]`, `null`: "",
		} {
			reply, err := dps.ParseReply(assigned(`{"assignedHub":"h.net","deviceId":"d","issuedCertificateChain":` + chain + `}`))
			if err != nil || string(reply.Assignment.IssuedCertificateChain) != want || reply.Assignment.DeviceID != "d" {
				t.Errorf("%.20s: %v", chain, err)
			}
		}
		reply, err := dps.ParseReply(assigned(`{"assignedHub":"h.net","deviceId":"d","IssuedCertificateChain":["MII"]}`))
		if err != nil || reply.Assignment.IssuedCertificateChain != nil {
			t.Errorf("the name in another case: %s, %v", reply.Assignment.IssuedCertificateChain, err)
		}
	})
	t.Run("a chain that is dropped is not in the state, and everything else is", func(t *testing.T) {
		reply, err := dps.ParseReply(assigned(`{"assignedHub":"h.net","issuedCertificateChain":[1],"deviceId":"d","more":{"issuedCertificateChain":[2]}}`))
		if err != nil {
			t.Fatal(err)
		}
		reply.Assignment.DropIssuedCertificateChain()
		if a := reply.Assignment; a.IssuedCertificateChain != nil || string(a.State) != `{"assignedHub":"h.net","deviceId":"d","more":{"issuedCertificateChain":[2]}}` {
			t.Errorf("got %s, %s", a.IssuedCertificateChain, a.State)
		}
	})
	t.Run("members for secrets are removed if their form is unknown", func(t *testing.T) {
		reply, err := dps.ParseReply(assigned(`{"assignedHub":"h.net","deviceId":"d","tpm":"SECRET","symmetricKey":["SECRET"]}`))
		if err != nil {
			t.Fatal(err)
		}
		if got := string(reply.Assignment.State); got != `{"assignedHub":"h.net","deviceId":"d"}` {
			t.Errorf("got %s", got)
		}
	})
	t.Run("an assignment is accepted with any status below 300: the body decides", func(t *testing.T) {
		reply, err := dps.ParseReply(dps.Message{Topic: "$dps/registrations/res/202/?$rid=1", Payload: []byte(assignedBody)})
		if err != nil || reply.Assignment == nil {
			t.Errorf("got %+v, %v", reply, err)
		}
	})
	for expect, payload := range map[string]string{
		"a payload of 100 levels is accepted":       strings.Repeat("[", 100) + strings.Repeat("]", 100),
		"a payload of 128 KiB is accepted":          `"` + strings.Repeat("p", 128<<10-2) + `"` + strings.Repeat(" ", 9),
		"adjacent lists are not nested":             `[` + strings.Repeat(`[],{},`, 100) + `0]`,
		"brackets in a text are not nested":         `"` + strings.Repeat("[{", 100) + `"`,
		"brackets after a quote in a text are text": `"\"` + strings.Repeat("[{", 100) + `"`,
	} {
		t.Run(expect, func(t *testing.T) {
			reply, err := dps.ParseReply(assigned(`{"assignedHub":"hub.net","deviceId":"a b","payload":` + payload + `}`))
			if err != nil {
				t.Fatal(err)
			}
			if string(reply.Assignment.Payload) != strings.TrimRight(payload, " ") {
				t.Error("the payload was changed")
			}
		})
	}
	t.Run("a reply of 1 MiB is parsed in bounded memory, whatever its padding", func(t *testing.T) {
		for name, body := range map[string]func(room int) string{
			"white space":     func(room int) string { return strings.Repeat(" ", room) },
			"an unknown text": func(room int) string { return `,"padding":"` + strings.Repeat("x", room-13) + `"` },
			"many names": func(room int) string {
				var b strings.Builder
				for n := range 1<<15 - 10 {
					fmt.Fprintf(&b, `,"%d":0`, n)
				}
				return b.String() + strings.Repeat(" ", room-b.Len())
			},
			"many small texts": func(room int) string { return `,"padding":[` + strings.Repeat(`"",`, (room-20)/3) + `""]` },
		} {
			m := assigned(`{"assignedHub":"hub.net","deviceId":"d"}`)
			end := len(m.Payload) - 2
			m.Payload = []byte(string(m.Payload[:end]) + body(1<<20-len(m.Payload)) + string(m.Payload[end:]))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			reply, err := dps.ParseReply(m)
			runtime.ReadMemStats(&after)
			if err != nil || reply.Assignment.DeviceID != "d" {
				t.Errorf("%s: %v", name, err)
			}
			// The sum of all allocations, including those that the collector frees, is less
			// than the memory limit of the unit.
			if took := (after.TotalAlloc - before.TotalAlloc) >> 20; took > 63 {
				t.Errorf("%s: it took %d MiB", name, took)
			} else {
				t.Logf("%s: %d MiB", name, took)
			}
		}
	})
	t.Run("a device ID of 128 bytes and a hub of one label are accepted", func(t *testing.T) {
		if _, err := dps.ParseReply(assigned(`{"assignedHub":"hub","deviceId":"` + strings.Repeat("d", 128) + `"}`)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a reply of 32768 members is accepted", func(t *testing.T) {
		if _, err := dps.ParseReply(assigned(`{"assignedHub":"hub","deviceId":"d","more":[` + strings.Repeat(`{"a":0},`, 1<<15-6) + `0]}`)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a hub of 253 characters in labels of 63 is accepted", func(t *testing.T) {
		hub := strings.Repeat(strings.Repeat("a", 63)+".", 3) + strings.Repeat("b", 61)
		if reply, err := dps.ParseReply(assigned(`{"assignedHub":"` + hub + `","deviceId":"d"}`)); err != nil || reply.Assignment.AssignedHub != hub || len(hub) != 253 {
			t.Errorf("got %+v, %v", reply.Assignment, err)
		}
	})
	t.Run("an operation ID of 512 characters is accepted", func(t *testing.T) {
		operation := strings.Repeat("a", 512)
		reply, err := dps.ParseReply(dps.Message{Topic: "$dps/registrations/res/202/?$rid=1", Payload: []byte(assigning(operation))})
		if err != nil || reply.OperationID != operation {
			t.Errorf("got %+v, %v", reply, err)
		}
	})
	t.Run("the body decides for a status below 300, and the status decides from 300 to 599", func(t *testing.T) {
		for status, want := range map[int]bool{100: true, 299: true, 300: false, 599: false} {
			reply, err := dps.ParseReply(dps.Message{Topic: fmt.Sprintf("$dps/registrations/res/%d/?$rid=1", status), Payload: []byte(assignedBody)})
			if err != nil || reply.Status != status || (reply.Assignment != nil) != want || (reply.Error != nil) == want {
				t.Errorf("%d: got %+v, %v", status, reply, err)
			}
		}
	})
}

func TestParseReplyReadsRefusals(t *testing.T) {
	nested := `{"errorCode":401002,"trackingId":"ab12-G2:-TimeStamp:2022","message":"Unauthorized","timestampUtc":"2022-09-01T00:00:00.123456789+00:00","info":null}`
	for _, test := range []struct {
		expect, topic, body string
		want                dps.ServiceError
		predicates          string
	}{
		{"an error reply", "401/?$rid=1",
			`{"errorCode":401002,"trackingId":"6b7cbe13-0000","message":"Invalid certificate.","timestampUtc":"2019-11-05T18:40:07.0876497Z","info":{"a":"b","n":1}}`,
			dps.ServiceError{Status: 401, Code: 401002, TrackingID: "6b7cbe13-0000", Message: "Invalid certificate."}, "unauthorized"},
		{"a refused token", "401/?$rid=1", `{"errorCode":401000,"message":"Unauthorized","info":null}`,
			dps.ServiceError{Status: 401, Code: 401000, Message: "Unauthorized"}, "unauthorized"},
		{"an error without a body", "404/?$rid=1", "", dps.ServiceError{Status: 404}, "not-found"},
		{"an error whose body is HTML", "503/?$rid=1&retry-after=30", "<html>", dps.ServiceError{Status: 503, RetryAfter: 30 * time.Second}, "temporary"},
		{"an error with a truncated body", "500/?$rid=1", `{"errorCode":500001`, dps.ServiceError{Status: 500}, "temporary"},
		{"an error whose members have other types", "429/?$rid=1&retry-after=30", `{"errorCode":"x","trackingId":1,"message":[],"info":"no"}`,
			dps.ServiceError{Status: 429, RetryAfter: 30 * time.Second}, "temporary throttled"},
		{"text with control characters is made printable", "400/?$rid=1", `{"message":"a\nb\u001b[31m\u0085\u2028\u2029."}`,
			dps.ServiceError{Status: 400, Message: "a b [31m   ."}, ""},
		{"a redirection is a refusal", "302/?$rid=1", "", dps.ServiceError{Status: 302}, ""},
		{"an error status takes precedence over a body with status assigned", "500/?$rid=1", assignedBody, dps.ServiceError{Status: 500}, "temporary"},
		{"a failed operation on 200", "200/?$rid=1",
			`{"operationId":"a","status":"failed","registrationState":{"registrationId":"gw-1","status":"failed","errorCode":400207,"errorMessage":"Custom allocation failed with status code: 400"}}`,
			dps.ServiceError{Status: 200, Code: 400207, Message: "Custom allocation failed with status code: 400", RegistrationStatus: "failed"}, "failed"},
		{"a failed operation on 500: the body decides", "500/?$rid=1&retry-after=3",
			`{"operationId":"a","status":"failed","registrationState":{"errorCode":400207}}`,
			dps.ServiceError{Status: 500, Code: 400207, RegistrationStatus: "failed", RetryAfter: 3 * time.Second}, "failed"},
		{"a failure whose message is a hub's refusal as JSON text is not a refusal of the credential", "200/?$rid=1",
			`{"operationId":"a","status":"failed","registrationState":{"errorCode":401002,"errorMessage":` + strconv.Quote(nested) + `}}`,
			dps.ServiceError{Status: 200, Code: 401002, Message: nested, TrackingID: "ab12-G2:-TimeStamp:2022", RegistrationStatus: "failed"}, "failed"},
		{"a disabled enrollment", "200/?$rid=1", `{"operationId":"","status":"disabled","registrationState":{"registrationId":"gw-1","status":"disabled"}}`,
			dps.ServiceError{Status: 200, RegistrationStatus: "disabled"}, "disabled"},
		{"the former name of disabled", "200/?$rid=1", `{"operationId":"a","status":"blacklisted"}`,
			dps.ServiceError{Status: 200, RegistrationStatus: "disabled"}, "disabled"},
		{"unassigned is a failure", "200/?$rid=1", `{"operationId":"a","status":"unassigned"}`,
			dps.ServiceError{Status: 200, RegistrationStatus: "unassigned"}, "failed"},
		{"a failure without any reason", "202/?$rid=1", `{"status":"failed","registrationState":7}`,
			dps.ServiceError{Status: 202, RegistrationStatus: "failed"}, "failed"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			var r dps.Registration
			now := time.Unix(1_000_000, 0)
			begin(t, &r, now)
			_, err := r.Handle(now, dps.Message{Topic: "$dps/registrations/res/" + test.topic, Payload: []byte(test.body)})
			var got *dps.ServiceError
			if !errors.As(err, &got) {
				t.Fatalf("got %v", err)
			}
			test.want.Request = "register"
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("the error differs (-want +got):\n%s", diff)
			}
			if p := predicates(got); p != test.predicates {
				t.Errorf("it is %q, want %q", p, test.predicates)
			}
		})
	}
	t.Run("a message of 1024 bytes is kept, and a longer one is truncated before the first character that does not fit", func(t *testing.T) {
		for message, want := range map[string]string{
			strings.Repeat("é", 512):       strings.Repeat("é", 512),
			"a" + strings.Repeat("é", 512): "a" + strings.Repeat("é", 511) + "…",
			strings.Repeat("a", 1025):      strings.Repeat("a", 1024) + "…",
		} {
			reply, err := dps.ParseReply(dps.Message{Topic: "$dps/registrations/res/400/?$rid=1", Payload: []byte(`{"message":"` + message + `"}`)})
			if err != nil || reply.Error.Message != want {
				t.Errorf("%d bytes became %d, %v", len(message), len(reply.Error.Message), err)
			}
		}
	})
	t.Run("external text is truncated", func(t *testing.T) {
		long := strings.Repeat("é", 20_000)
		reply, err := dps.ParseReply(dps.Message{Topic: "$dps/registrations/res/400/?$rid=1",
			Payload: []byte(`{"message":"` + long + `","trackingId":"` + long + `"}`)})
		if err != nil {
			t.Fatal(err)
		}
		e := reply.Error
		if len(e.Message) > 1040 || len(e.TrackingID) > 270 || len(e.Error()) > 1000 {
			t.Errorf("too long: message %d, tracking ID %d, text %d", len(e.Message), len(e.TrackingID), len(e.Error()))
		}
	})
}

func predicates(e *dps.ServiceError) string {
	var all []string
	for _, p := range []struct {
		name string
		is   bool
	}{
		{"temporary", e.Temporary()}, {"throttled", e.Throttled()}, {"unauthorized", e.Unauthorized()},
		{"not-found", e.NotFound()}, {"lost", e.OperationLost()}, {"disabled", e.Disabled()}, {"failed", e.AllocationFailed()},
	} {
		if p.is {
			all = append(all, p.name)
		}
	}
	return strings.Join(all, " ")
}

func TestErrorTexts(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{&dps.ServiceError{Request: "register", Status: 401, Code: 401002, Message: "Invalid certificate.", TrackingID: "6b7c"},
			"DPS answered the register request with 401, error 401002: Invalid certificate. (tracking ID 6b7c)"},
		{&dps.ServiceError{Request: "poll", Status: 200, RegistrationStatus: "disabled"}, "DPS answered the poll request with 200 disabled"},
		{&dps.MalformedError{Request: "poll", Reason: "the body is empty", Topic: "$dps/registrations/res/200/?$rid=1\n"},
			`dps: malformed reply to the poll request: the body is empty (topic "$dps/registrations/res/200/?$rid=1 ")`},
	} {
		if got := test.err.Error(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

func FuzzParseReply(f *testing.F) {
	f.Add("$dps/registrations/res/202/?$rid=1&retry-after=3", `{"operationId":"5.1.a","status":"assigning"}`)
	f.Add("$dps/registrations/res/200/?$rid=1", assignedBody)
	f.Add("$dps/registrations/res/200/?$rid=1", `{"status":"assigned","registrationState":{"assignedHub":"h.net","deviceId":"d","tpm":{"authenticationKey":"k"},"symmetricKey":{"primaryKey":"k"},"payload":{"a":[1,"\ud800"]},"issuedCertificateChain":["MII"]}}`)
	f.Add("$dps/registrations/res/200/?$rid=1", `{"status":"disabled","operationId":"","registrationState":{"status":"disabled"}}`)
	f.Add("$dps/registrations/res/401/?$rid=1", `{"errorCode":401002,"trackingId":"t","message":"m","timestampUtc":"x","info":{"a":"b"}}`)
	f.Add("$dps/registrations/res/500/?retry-after=9&$rid=1&Retry-After=99999999", `{"status":"failed","registrationState":{"errorCode":1,"errorMessage":"{\"trackingId\":\"t\"}"}}`)
	transcripts, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(transcripts) == 0 {
		f.Fatal("no transcripts", err)
	}
	for _, name := range transcripts {
		text, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if fields := strings.SplitN(strings.TrimSuffix(line, "\n"), " ", 4); len(fields) == 4 {
				f.Add(fields[2], fields[3])
			}
		}
	}
	f.Fuzz(func(t *testing.T, topic, body string) {
		m := dps.Message{Topic: topic, Payload: []byte(body)}
		reply, err := dps.ParseReply(m)
		if string(m.Payload) != body {
			t.Fatal("the payload was written to")
		}
		if reply.RetryAfter < 0 || reply.RetryAfter > 24*time.Hour || reply.RetryAfter%time.Second != 0 {
			t.Fatalf("RetryAfter is %v", reply.RetryAfter)
		}
		if err != nil {
			var malformed *dps.MalformedError
			if !errors.Is(err, dps.ErrNotReply) && (!errors.As(err, &malformed) || malformed.Reason == "" || malformed.RetryAfter != reply.RetryAfter) {
				t.Fatalf("the error is %#v", err)
			}
			if len(err.Error()) > 4000 {
				t.Fatalf("the error has %d bytes", len(err.Error()))
			}
			return
		}
		if reply.RequestID == "" || reply.Status < 100 || reply.Status > 599 {
			t.Fatalf("the topic was accepted: %+v", reply)
		}
		switch {
		case reply.Error != nil:
			if reply.Assignment != nil || reply.Error.Status != reply.Status || reply.Error.RetryAfter != reply.RetryAfter {
				t.Fatalf("not exactly one result: %+v", reply)
			}
			if strings.ContainsAny(reply.Error.Error(), "\n\r\x1b\x00") {
				t.Fatalf("the text has control characters: %q", reply.Error.Error())
			}
		case reply.Assignment != nil:
			a := reply.Assignment
			if reply.RegistrationStatus != "assigned" || a.AssignedHub == "" || a.DeviceID == "" || len(a.DeviceID) > 128 {
				t.Fatalf("the assignment was accepted: %+v", a)
			}
			for _, s := range []string{a.AssignedHub, a.DeviceID, a.RegistrationID, a.ConnectionProfile} {
				if strings.ContainsAny(s, "\n\r\x00\x7f\uFFFD\uFFFE") {
					t.Fatalf("a published value is %q", s)
				}
			}
			var state struct {
				AssignedHub  string
				TPM          map[string]json.RawMessage
				SymmetricKey map[string]json.RawMessage
			}
			if err := json.Unmarshal(a.State, &state); err != nil {
				t.Fatalf("the state is not JSON: %v: %s", err, a.State)
			}
			for name := range state.TPM {
				if strings.EqualFold(name, "authenticationKey") {
					t.Fatalf("a secret was not removed: %s", a.State)
				}
			}
			if len(state.SymmetricKey) != 0 {
				t.Fatalf("a secret was not removed: %s", a.State)
			}
			if a.Payload != nil && !json.Valid(a.Payload) || a.IssuedCertificateChain != nil && !json.Valid(a.IssuedCertificateChain) {
				t.Fatalf("the payload or the chain is not JSON: %s, %s", a.Payload, a.IssuedCertificateChain)
			}
			// The published state parses to the same assignment.
			again, err := dps.ParseReply(assigned(string(a.State)))
			if err != nil || !cmp.Equal(again.Assignment, a) {
				t.Fatalf("the state parses to another assignment: %v\n%s", err, cmp.Diff(a, again.Assignment))
			}
		case reply.RegistrationStatus != "assigning":
			t.Fatalf("no result: %+v", reply)
		}
	})
}
