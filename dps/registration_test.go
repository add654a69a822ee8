package dps_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/dps"
)

const (
	registerTopic = "$dps/registrations/PUT/iotdps-register/?$rid="
	pollTopic     = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid="
)

var start = time.Date(2026, 11, 23, 8, 0, 0, 0, time.UTC)

// begin calls Begin and expects a request.
func begin(t *testing.T, r *dps.Registration, now time.Time) dps.Message {
	t.Helper()
	if r.Identity.RegistrationID == "" {
		r.Identity = dps.Identity{IDScope: "0ne00000000", RegistrationID: "gw-1"}
	}
	step, err := r.Begin(now)
	if err != nil {
		t.Fatal(err)
	}
	return sent(t, step)
}

func sent(t *testing.T, step dps.Step) dps.Message {
	t.Helper()
	if step.Send == nil || step.Assignment != nil {
		t.Fatalf("the step is %+v, want a request", step)
	}
	return *step.Send
}

// advance calls Advance at the deadline and expects a request then, and none before.
func advance(t *testing.T, r *dps.Registration) dps.Message {
	t.Helper()
	due := r.Deadline()
	if step, err := r.Advance(due.Add(-1)); step != (dps.Step{}) || err != nil {
		t.Fatalf("before the deadline: %+v, %v", step, err)
	}
	step, err := r.Advance(due)
	if err != nil {
		t.Fatal(err)
	}
	return sent(t, step)
}

func reply(status int, rid uint64, retryAfter string, body string) dps.Message {
	topic := fmt.Sprintf("$dps/registrations/res/%d/?$rid=%s", status, strconv.FormatUint(rid, 36))
	if retryAfter != "" {
		topic += "&retry-after=" + retryAfter
	}
	return dps.Message{Topic: topic, Payload: []byte(body)}
}

func assigning(operation string) string {
	return `{"operationId":"` + operation + `","status":"assigning"}`
}

// TestTranscripts replays the exchanges observed with the live service: every message must
// be sent byte for byte at its time.
func TestTranscripts(t *testing.T) {
	for _, test := range []struct {
		name   string
		r      dps.Registration
		bodies []int // lengths observed on the wire
		device string
	}{
		{"symmetric-key-2019-03-31", dps.Registration{
			Identity: dps.Identity{IDScope: "0ne0026656D", RegistrationID: "sample-device-01", ClientVersion: "1.6.0"},
			Payload:  json.RawMessage("{\n  \"modelId\": \"dtmi:com:example:TemperatureController;2\"\n}\n"),
		}, []int{102, 94, 0, 173, 0, 478}, "sample-device-01"},
		{"x509-2017-11-15", dps.Registration{
			Identity: dps.Identity{IDScope: "0ne000A0B1C", RegistrationID: "gateway-0123456789abcdef-0123456789", APIVersion: "2017-11-15", ClientVersion: "1.2.1"},
		}, []int{56, 94, 0, 495}, "gateway-0123456789abcdef-0123456789"},
	} {
		t.Run(test.name, func(t *testing.T) {
			text, err := os.ReadFile(filepath.Join("testdata", test.name+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			r := &test.r
			begun := false
			var out *dps.Message
			var outAt time.Time
			var got *dps.Assignment
			var lengths []int
			for line := range strings.Lines(string(text)) {
				line = strings.TrimSuffix(line, "\n")
				if strings.HasPrefix(line, "#") {
					continue
				}
				if user, ok := strings.CutPrefix(line, "user "); ok {
					if r.Identity.UserName() != user {
						t.Errorf("the user name is\n%s\nwant\n%s", r.Identity.UserName(), user)
					}
					continue
				}
				fields := append(strings.SplitN(line, " ", 4), "")
				offset, err := time.ParseDuration(fields[0])
				if err != nil {
					t.Fatal(err)
				}
				now := start.Add(offset)
				topic, body := fields[2], fields[3]
				lengths = append(lengths, len(body))
				switch fields[1] {
				case ">":
					if !begun {
						step, err := r.Begin(now)
						if err != nil {
							t.Fatal(err)
						}
						begun, out, outAt = true, step.Send, now
					}
					if out == nil || !outAt.Equal(now) || out.Topic != topic || string(out.Payload) != body {
						t.Fatalf("at %v, %+v was sent; want at %v\n%s %s", outAt, out, now, topic, body)
					}
					out = nil
				case "<":
					step, err := r.Handle(now, dps.Message{Topic: topic, Payload: []byte(body)})
					if err != nil || got != nil {
						t.Fatal(err)
					}
					if got = step.Assignment; got == nil {
						outAt = r.Deadline()
						m := advance(t, r)
						out = &m
					}
				}
			}
			if out != nil || got == nil || got.DeviceID != test.device || got.AssignedHub != "iotc-60a6e9f8-0d63-4d1c-a3b0-6f4b8a3c2d1e.azure-devices.net" {
				t.Errorf("the exchange ended with %+v; still to send: %+v", got, out)
			}
			if fmt.Sprint(lengths) != fmt.Sprint(test.bodies) {
				t.Errorf("the bodies have %v bytes, but %v were observed", lengths, test.bodies)
			}
			if !r.Deadline().IsZero() || r.OperationID() != "" {
				t.Errorf("state is left: deadline %v, operation %q", r.Deadline(), r.OperationID())
			}
		})
	}
}

func TestRequests(t *testing.T) {
	t.Run("without a payload the register body is the registration ID alone", func(t *testing.T) {
		var r dps.Registration
		if m := begin(t, &r, start); m.Topic != registerTopic+"1" || string(m.Payload) != `{"registrationId":"gw-1"}` {
			t.Errorf("got %s %s", m.Topic, m.Payload)
		}
	})
	t.Run("a payload is sent in compact form, with its numbers and order unchanged", func(t *testing.T) {
		r := dps.Registration{Payload: json.RawMessage(" { \"z\" : 1.0 ,\n \"a\" : [ 12345678901234567890 , \"<&>\" ] } ")}
		if m := begin(t, &r, start); string(m.Payload) != `{"registrationId":"gw-1","payload":{"z":1.0,"a":[12345678901234567890,"<&>"]}}` {
			t.Errorf("got %s", m.Payload)
		}
	})
	for name, payload := range map[string]string{
		"nothing": "", "a list": "[]", "null": "null", "cut": `{"a":`, "two": "{}{}", "a name twice": `{"a":1,"a":2}`,
		"not UTF-8": "{\"a\":\"\xff\"}", "more than the service accepts": `{"a":"` + strings.Repeat("x", 96<<10) + `"}`,
	} {
		t.Run("a payload that cannot be sent is an error and no request: "+name, func(t *testing.T) {
			r := dps.Registration{Payload: json.RawMessage(payload)}
			step, err := r.Begin(start)
			if step != (dps.Step{}) || !errors.Is(err, dps.ErrPayload) || !r.Deadline().IsZero() {
				t.Errorf("got %+v, %v", step, err)
			}
			r.Payload = nil
			if m := begin(t, &r, start); m.Topic != registerTopic+"1" {
				t.Errorf("the request that follows is %s", m.Topic)
			}
			if err := dps.CheckPayload([]byte(payload)); !errors.Is(err, dps.ErrPayload) {
				t.Errorf("CheckPayload says %v", err)
			}
		})
	}
	t.Run("the largest payload leaves 1 KiB for the rest of the body and may contain 1 KiB of white space", func(t *testing.T) {
		largest := `{"a":"` + strings.Repeat("x", 95<<10-8) + `"}`
		for payload, taken := range map[string]bool{
			largest:                                true,
			largest + strings.Repeat(" ", 1<<10):   true,
			largest + strings.Repeat(" ", 1<<10+1): false,
			strings.Replace(largest, "x", "xx", 1): false,
		} {
			r := dps.Registration{Payload: json.RawMessage(payload)}
			r.Identity.RegistrationID = "gw-1"
			step, err := r.Begin(start)
			if taken && (err != nil || string(step.Send.Payload) != `{"registrationId":"gw-1","payload":`+largest+`}`) || !taken && !errors.Is(err, dps.ErrPayload) {
				t.Errorf("%d bytes: %v", len(payload), err)
			}
		}
	})
	t.Run("a CSR is sent in base64, after the payload", func(t *testing.T) {
		r := dps.Registration{CSR: []byte{0x30, 0xff, 0xfe, 0xfb}, Payload: json.RawMessage(`{"a":1}`)}
		if m := begin(t, &r, start); string(m.Payload) != `{"registrationId":"gw-1","payload":{"a":1},"csr":"MP/++w=="}` {
			t.Errorf("got %s", m.Payload)
		}
		r = dps.Registration{CSR: []byte{0x30, 0xff, 0xfe, 0xfb}}
		if m := begin(t, &r, start); string(m.Payload) != `{"registrationId":"gw-1","csr":"MP/++w=="}` {
			t.Errorf("got %s", m.Payload)
		}
	})
	t.Run("each register request carries the CSR, and no poll does", func(t *testing.T) {
		r := dps.Registration{CSR: []byte("csr")}
		first := begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3", assigning("a")))
		if m := advance(t, &r); len(m.Payload) != 0 {
			t.Errorf("the poll carries %s", m.Payload)
		}
		if _, err := r.Handle(start.Add(4*time.Second), reply(401, 2, "", `{"errorCode":401000}`)); err == nil {
			t.Fatal("the refusal is no error")
		}
		if again := begin(t, &r, start.Add(time.Hour)); string(again.Payload) != string(first.Payload) {
			t.Errorf("the second request is %s", again.Payload)
		}
	})
	t.Run("a request has at most 96 KiB, with the CSR", func(t *testing.T) {
		for size, taken := range map[int]bool{96 << 10: true, 96<<10 + 1: false} {
			csr := make([]byte, 3000) // 4000 characters
			rest := `{"registrationId":"gw-1","payload":{"a":""},"csr":"` + strings.Repeat("A", 4000) + `"}`
			r := dps.Registration{CSR: csr, Payload: json.RawMessage(`{"a":"` + strings.Repeat("x", size-len(rest)) + `"}`)}
			r.Identity.RegistrationID = "gw-1"
			step, err := r.Begin(start)
			if taken && (err != nil || len(step.Send.Payload) != size) || !taken && (!errors.Is(err, dps.ErrPayload) || step != dps.Step{} || !r.Deadline().IsZero()) {
				t.Errorf("%d bytes: %v", size, err)
			}
			if !taken && err != nil && err.Error() != "dps: unusable payload: the request has 98305 bytes with it; DPS accepts at most 98304" {
				t.Errorf("the error is %v", err)
			}
		}
	})
	t.Run("a poll carries the operation ID and no body", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3", assigning("5.1f-a.b")))
		if m := advance(t, &r); m.Topic != pollTopic+"2&operationId=5.1f-a.b" || len(m.Payload) != 0 {
			t.Errorf("got %s %q", m.Topic, m.Payload)
		}
	})
	t.Run("an operation ID cannot add a parameter or a wildcard to the topic", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3", assigning("a&$rid=9/#+ü%")))
		if m := advance(t, &r); m.Topic != pollTopic+"2&operationId=a%26%24rid%3D9%2F%23%2B%C3%BC%25" {
			t.Errorf("got %s", m.Topic)
		}
	})
	t.Run("a changed operation ID is used in the next poll", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3", assigning("a")))
		advance(t, &r)
		r.Handle(start.Add(4*time.Second), reply(202, 2, "3", assigning("b")))
		if m := advance(t, &r); !strings.HasSuffix(m.Topic, "&operationId=b") {
			t.Errorf("got %s", m.Topic)
		}
	})
	t.Run("a reply to a poll without an operation ID refers to the polled operation", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3", assigning("a")))
		advance(t, &r)
		if _, err := r.Handle(start.Add(4*time.Second), reply(202, 2, "3", `{"status":"assigning"}`)); err != nil {
			t.Fatal(err)
		}
		if m := advance(t, &r); !strings.HasSuffix(m.Topic, "&operationId=a") {
			t.Errorf("got %s", m.Topic)
		}
	})
}

func TestRepliesThatAreIgnored(t *testing.T) {
	for _, test := range []struct {
		expect string
		m      dps.Message
	}{
		{"another request's $rid", reply(200, 7, "", assignedBody)},
		{"another request's $rid with a refusal", reply(401, 7, "", "")},
		{"another request's $rid with a truncated body", reply(200, 7, "", "{")},
		{"another topic", dps.Message{Topic: "$dps/other", Payload: []byte(assignedBody)}},
		{"the device's request, echoed", dps.Message{Topic: registerTopic + "1", Payload: []byte(assignedBody)}},
	} {
		t.Run(test.expect+" changes nothing", func(t *testing.T) {
			var r dps.Registration
			begin(t, &r, start)
			before := r
			step, err := r.Handle(start.Add(time.Second), test.m)
			if step != (dps.Step{}) || err != nil || !reflect.DeepEqual(r, before) {
				t.Fatalf("got %+v, %v, and %+v, which was %+v", step, err, r, before)
			}
			if step, err := r.Handle(start.Add(time.Second), reply(200, 1, "", assignedBody)); err != nil || step.Assignment == nil {
				t.Errorf("the matching reply gave %+v, %v", step, err)
			}
		})
	}
	t.Run("the second of two replies changes nothing", func(t *testing.T) {
		for _, second := range []dps.Message{reply(202, 1, "90", assigning("b")), reply(401, 1, "", ""), reply(200, 1, "", assignedBody), reply(200, 1, "", "{")} {
			var r dps.Registration
			begin(t, &r, start)
			r.Handle(start, reply(202, 1, "3", assigning("a")))
			before := r
			step, err := r.Handle(start.Add(time.Second), second)
			if step != (dps.Step{}) || err != nil || !reflect.DeepEqual(r, before) || r.OperationID() != "a" || r.Deadline() != start.Add(3*time.Second) {
				t.Errorf("%s gave %+v, %v", second.Topic, step, err)
			}
		}
	})
	t.Run("a reply before the first request is ignored", func(t *testing.T) {
		var r dps.Registration
		if step, err := r.Handle(start, reply(200, 1, "", assignedBody)); step != (dps.Step{}) || err != nil || !reflect.DeepEqual(r, dps.Registration{}) {
			t.Errorf("got %+v, %v", step, err)
		}
	})
	t.Run("a reply to the first request of another process is ignored if the ranges of $rid differ", func(t *testing.T) {
		r := dps.Registration{RequestIDs: 1000}
		begin(t, &r, start)
		before := r
		if step, err := r.Handle(start, reply(200, 1, "", assignedBody)); step != (dps.Step{}) || err != nil || !reflect.DeepEqual(r, before) {
			t.Errorf("the other process's reply gave %+v, %v", step, err)
		}
		if step, err := r.Handle(start, reply(200, 1001, "", assignedBody)); err != nil || step.Assignment == nil {
			t.Errorf("the matching reply gave %+v, %v", step, err)
		}
	})
	t.Run("a reply after its time-out is ignored", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		if _, err := r.Advance(r.Deadline()); !errors.Is(err, dps.ErrNoReply) {
			t.Fatal(err)
		}
		if step, err := r.Handle(start, reply(200, 1, "", assignedBody)); step != (dps.Step{}) || err != nil {
			t.Errorf("got %+v, %v", step, err)
		}
	})
}

func TestResponseTimeout(t *testing.T) {
	for _, test := range []struct {
		expect  string
		timeout time.Duration
		want    time.Duration
	}{
		{"the response time-out is a minute by default", 0, time.Minute},
		{"the response time-out can be configured", 7 * time.Second, 7 * time.Second},
	} {
		t.Run(test.expect, func(t *testing.T) {
			r := dps.Registration{ResponseTimeout: test.timeout}
			begin(t, &r, start)
			if got := r.Deadline().Sub(start); got != test.want {
				t.Fatalf("the deadline is after %v", got)
			}
			if step, err := r.Advance(start.Add(test.want - 1)); step != (dps.Step{}) || err != nil {
				t.Fatalf("before it: %+v, %v", step, err)
			}
			_, err := r.Advance(start.Add(test.want))
			if want := fmt.Sprintf("dps: no reply to the register request within %v", test.want); !errors.Is(err, dps.ErrNoReply) || err.Error() != want {
				t.Errorf("got %v", err)
			}
			if !r.Deadline().IsZero() || r.Waiting() {
				t.Error("the deadline is still set")
			}
		})
	}
	t.Run("a poll without a reply keeps its operation, and the next one has another $rid", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3", assigning("a")))
		advance(t, &r)
		if _, err := r.Advance(r.Deadline()); !errors.Is(err, dps.ErrNoReply) {
			t.Fatal(err)
		}
		if m := begin(t, &r, start.Add(time.Hour)); m.Topic != pollTopic+"3&operationId=a" {
			t.Errorf("got %s", m.Topic)
		}
	})
}

// TestRequestAfterAnError checks which request follows which error, and when.
func TestRequestAfterAnError(t *testing.T) {
	const register, poll = registerTopic + "3", pollTopic + "3&operationId=a"
	for _, test := range []struct {
		expect string
		m      dps.Message
		next   string
		floor  time.Duration
		kind   string
	}{
		{"a throttled poll is repeated, but not before its time", reply(429, 2, "600", ""), poll, 600 * time.Second, "temporary throttled"},
		{"a poll that failed temporarily is repeated", reply(500, 2, "", ""), poll, 0, "temporary"},
		{"a poll with a service error is repeated, whatever its errorCode", reply(500, 2, "", `{"errorCode":404203}`), poll, 0, "temporary"},
		{"an unknown operation with status 499 starts over", reply(499, 2, "", `{"errorCode":404203}`), register, 0, "lost"},
		{"a poll that failed temporarily is repeated after its Retry-After", reply(503, 2, "30", ""), poll, 30 * time.Second, "temporary"},
		{"a poll with a truncated reply is repeated", reply(200, 2, "", assignedBody[:20]), poll, 0, "malformed"},
		{"the Retry-After of a malformed reply counts too", reply(202, 2, "120", "{"), poll, 120 * time.Second, "malformed"},
		{"a poll of an unknown operation starts over", reply(404, 2, "", ""), register, 0, "lost"},
		{"an unknown operation with another status starts over", reply(401, 2, "", `{"errorCode":404203,"message":"Operation not found."}`), register, 0, "lost"},
		{"a refused credential starts over", reply(401, 2, "", `{"errorCode":401000}`), register, 0, "unauthorized"},
		{"a bad request starts over", reply(400, 2, "", ""), register, 0, ""},
		{"a failed operation starts over", reply(200, 2, "3", `{"operationId":"a","status":"failed"}`), register, 3 * time.Second, "failed"},
		{"a disabled enrollment starts over", reply(200, 2, "", `{"operationId":"","status":"disabled"}`), register, 0, "disabled"},
		{"an assignment without a hub ends the operation", reply(200, 2, "", `{"operationId":"a","status":"assigned","registrationState":{"deviceId":"d"}}`), register, 0, "malformed"},
		{"an assignment for another device ends the operation", reply(200, 2, "", strings.Replace(assignedBody, "gw-1", "gw-2", 1)), register, 0, "malformed"},
	} {
		t.Run(test.expect, func(t *testing.T) {
			var r dps.Registration
			begin(t, &r, start)
			r.Handle(start, reply(202, 1, "3", assigning("a")))
			advance(t, &r)
			now := start.Add(4 * time.Second)
			step, err := r.Handle(now, test.m)
			if step != (dps.Step{}) || err == nil {
				t.Fatalf("got %+v, %v", step, err)
			}
			kind := "malformed"
			if refused := (*dps.ServiceError)(nil); errors.As(err, &refused) {
				if kind = predicates(refused); refused.Request != "poll" {
					t.Errorf("the request is %q", refused.Request)
				}
			} else if malformed := (*dps.MalformedError)(nil); !errors.As(err, &malformed) || malformed.Request != "poll" {
				t.Errorf("the error is %v", err)
			}
			if kind != test.kind {
				t.Errorf("the error is %q, want %q: %v", kind, test.kind, err)
			}
			if !r.Deadline().IsZero() || r.Waiting() {
				t.Error("the deadline is set after an error")
			}
			if test.floor == 0 {
				if !r.NotBefore().IsZero() {
					t.Errorf("there is a wait of %v that the service did not ask for", r.NotBefore().Sub(now))
				}
			} else {
				due := now.Add(test.floor)
				if step, err := r.Begin(due.Add(-1)); step != (dps.Step{}) || err != nil || !r.Waiting() || r.Deadline() != due || r.NotBefore() != due {
					t.Fatalf("before its time: %+v, %v, deadline %v", step, err, r.Deadline())
				}
				now = due
			}
			if m := begin(t, &r, now); m.Topic != test.next {
				t.Errorf("the next request is %s, want %s", m.Topic, test.next)
			}
		})
	}
	t.Run("a 404 reply to a register request is not a lost operation", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		_, err := r.Handle(start, reply(404, 1, "", `{"errorCode":404201}`))
		if refused := (*dps.ServiceError)(nil); !errors.As(err, &refused) || predicates(refused) != "not-found" {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a throttled register request is repeated, but not before its time", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		if _, err := r.Handle(start, reply(429, 1, "600", "")); err == nil {
			t.Fatal("no error")
		}
		if step, err := r.Begin(start.Add(time.Second)); step != (dps.Step{}) || err != nil {
			t.Fatalf("got %+v, %v", step, err)
		}
		if m := advance(t, &r); m.Topic != registerTopic+"2" {
			t.Errorf("got %s", m.Topic)
		}
	})
	t.Run("a reply to a register request without an operation ID is malformed", func(t *testing.T) {
		for _, body := range []string{`{"status":"assigning"}`, `{"status":"assigning","operationId":""}`, `{"status":"assigning","operationId":null}`} {
			var r dps.Registration
			begin(t, &r, start)
			_, err := r.Handle(start, reply(202, 1, "9", body))
			if malformed := (*dps.MalformedError)(nil); !errors.As(err, &malformed) || malformed.Reason != "assigning without an operationId" || malformed.RetryAfter != 9*time.Second {
				t.Errorf("got %v", err)
			}
		}
	})
	t.Run("a reply without a $rid is malformed and not ignored until the time-out", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		_, err := r.Handle(start, dps.Message{Topic: "$dps/registrations/res/200/", Payload: []byte(assignedBody)})
		if malformed := (*dps.MalformedError)(nil); !errors.As(err, &malformed) {
			t.Errorf("got %v", err)
		}
	})
}

func TestReconnecting(t *testing.T) {
	t.Run("after a long wait without a connection, the same operation is polled when due", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3600", assigning("a")))
		due := start.Add(time.Hour)
		if !r.Waiting() || r.Deadline() != due {
			t.Fatalf("waiting %v, deadline %v", r.Waiting(), r.Deadline())
		}
		if m := begin(t, &r, due); m.Topic != pollTopic+"2&operationId=a" {
			t.Errorf("got %s", m.Topic)
		}
	})
	t.Run("a connection lost while waiting does not hasten the poll", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "30", assigning("a")))
		step, err := r.Begin(start.Add(10 * time.Second))
		if step != (dps.Step{}) || err != nil || !r.Waiting() || r.Deadline() != start.Add(30*time.Second) {
			t.Fatalf("got %+v, %v, deadline %v", step, err, r.Deadline())
		}
		if m := advance(t, &r); m.Topic != pollTopic+"2&operationId=a" {
			t.Errorf("got %s", m.Topic)
		}
	})
	t.Run("after a connection is lost while a request is outstanding, the request is sent again with another $rid", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		if m := begin(t, &r, start.Add(time.Second)); m.Topic != registerTopic+"2" {
			t.Fatalf("got %s", m.Topic)
		}
		if step, err := r.Handle(start, reply(200, 1, "", assignedBody)); step != (dps.Step{}) || err != nil {
			t.Fatalf("the old reply gave %+v, %v", step, err)
		}
		r.Handle(start, reply(202, 2, "3", assigning("a")))
		advance(t, &r)
		if m := begin(t, &r, start.Add(time.Minute)); m.Topic != pollTopic+"4&operationId=a" {
			t.Errorf("got %s", m.Topic)
		}
	})
	t.Run("after 24 hours of assigning, the next request is a register request", func(t *testing.T) {
		var r dps.Registration
		begin(t, &r, start)
		r.Handle(start, reply(202, 1, "3600", assigning("a")))
		for i := uint64(2); ; i++ {
			now := r.Deadline()
			m := advance(t, &r)
			if age := now.Sub(start); age < 24*time.Hour {
				if !strings.HasPrefix(m.Topic, pollTopic) {
					t.Fatalf("after %v: %s", age, m.Topic)
				}
			} else {
				if age != 24*time.Hour || !strings.HasPrefix(m.Topic, registerTopic) || r.OperationID() != "" {
					t.Fatalf("after %v: %s", age, m.Topic)
				}
				return
			}
			if _, err := r.Handle(now, reply(202, i, "3600", assigning("a"))); err != nil {
				t.Fatal(err)
			}
		}
	})
	t.Run("the registration ID of an assignment has the service's spelling, or the device's if the reply has none", func(t *testing.T) {
		for body, want := range map[string]string{
			strings.Replace(assignedBody, "gw-1", "GW-1", 1):                 "GW-1",
			strings.Replace(assignedBody, `"registrationId":"gw-1",`, ``, 1): "gw-1",
		} {
			var r dps.Registration
			begin(t, &r, start)
			step, err := r.Handle(start, reply(200, 1, "", body))
			if err != nil || step.Assignment.RegistrationID != want {
				t.Errorf("got %+v, %v", step.Assignment, err)
			}
		}
	})
	t.Run("Advance does nothing in the idle phase", func(t *testing.T) {
		var r dps.Registration
		if step, err := r.Advance(start); step != (dps.Step{}) || err != nil {
			t.Errorf("got %+v, %v", step, err)
		}
	})
}

// TestProperties drives the state machine with random services and random callers, and
// checks the invariants.
func TestProperties(t *testing.T) {
	var registers, polls, reconnects, noReplies, assignments, refusals, early int
	for seed := range uint64(2000) {
		random := rand.New(rand.NewPCG(seed, 1))
		r := dps.Registration{
			Identity:        dps.Identity{IDScope: "0ne00000000", RegistrationID: "gw-1"},
			ResponseTimeout: time.Duration(1+random.IntN(100)) * time.Second,
		}
		now := start
		var outstanding, last uint64 // $rid not yet answered; highest seen
		var earliest time.Time       // end of the service's Retry-After
		fail := func(format string, args ...any) {
			t.Helper()
			t.Fatalf("seed %d, %v: %s", seed, now.Sub(start), fmt.Sprintf(format, args...))
		}
		request := func(m *dps.Message) {
			if m == nil {
				return
			}
			var id, operation string
			switch {
			case strings.HasPrefix(m.Topic, registerTopic):
				registers++
				id = m.Topic[len(registerTopic):]
			case strings.HasPrefix(m.Topic, pollTopic):
				polls++
				id, operation, _ = strings.Cut(m.Topic[len(pollTopic):], "&operationId=")
				if operation != r.OperationID() || operation == "" {
					fail("polls %q, the operation is %q", operation, r.OperationID())
				}
			default:
				fail("sends %s", m.Topic)
			}
			rid, err := strconv.ParseUint(id, 36, 64)
			if err != nil {
				fail("%v", err)
			}
			if outstanding != 0 {
				fail("request %d while %d is outstanding", rid, outstanding)
			}
			if rid != last+1 {
				fail("$rid %d after %d", rid, last)
			}
			if now.Before(earliest) {
				fail("a request %v before it was asked for", earliest.Sub(now))
			}
			outstanding, last = rid, rid
		}
		check := func() {
			switch {
			case outstanding != 0 && (r.Deadline().IsZero() || r.Waiting()):
				fail("a reply is awaited without a deadline")
			case r.Waiting() && r.Deadline().IsZero():
				fail("it waits without a deadline")
			case r.Waiting() && r.Deadline().Before(earliest):
				fail("it means to poll %v too early", earliest.Sub(r.Deadline()))
			case outstanding == 0 && !r.Waiting() && !r.Deadline().IsZero():
				fail("nothing is awaited until %v", r.Deadline())
			}
		}
		for range 60 {
			switch action := random.IntN(10); {
			case action < 5 && outstanding != 0: // a reply
				now = now.Add(time.Duration(random.Int64N(int64(time.Second))))
				retry, asked := "", 0
				if random.IntN(3) > 0 {
					asked = random.IntN(200)
					retry = fmt.Sprint(asked)
				}
				bodies := []string{assigning("op-" + fmt.Sprint(random.IntN(3))), assigning("op"), assignedBody, "", "{",
					`{"operationId":"x","status":"failed"}`, `{"status":"assigning"}`, `{"errorCode":404203}`}
				status := []int{200, 202, 202, 202, 202, 400, 401, 404, 429, 500, 503}[random.IntN(11)]
				m := reply(status, outstanding, retry, bodies[random.IntN(len(bodies))])
				waited := time.Duration(asked) * time.Second
				outstanding = 0
				step, err := r.Handle(now, m)
				earliest = time.Time{}
				if waited > 0 {
					earliest = now.Add(waited)
				}
				switch {
				case err != nil:
					refusals++
				case step.Assignment != nil:
					assignments++
					earliest = time.Time{}
				default:
					if earliest.Before(now.Add(2 * time.Second)) {
						earliest = now.Add(2 * time.Second)
					}
					if r.Deadline() != earliest {
						fail("the poll is set for %v, asked was %v", r.Deadline(), earliest)
					}
				}
				if step.Send != nil {
					fail("a reply was followed by an immediate request: %s", step.Send.Topic)
				}
			case action < 6: // a reply to another client
				before := r
				if step, err := r.Handle(now, reply(200, last+1+random.Uint64N(3), "5", assignedBody)); step != (dps.Step{}) || err != nil {
					fail("a stranger was believed: %+v, %v", step, err)
				}
				if !reflect.DeepEqual(r, before) {
					fail("a stranger changed something")
				}
			case action < 7: // a new connection: the outstanding request is lost
				outstanding = 0
				reconnects++
				now = now.Add(time.Duration(random.Int64N(int64(20 * time.Second))))
				step, err := r.Begin(now)
				if err != nil {
					fail("%v", err)
				}
				if step.Send == nil {
					early++
					if !r.Waiting() || !now.Before(r.Deadline()) {
						fail("nothing to send, and nothing to wait for")
					}
				}
				request(step.Send)
			case !r.Deadline().IsZero(): // time passes: to the deadline, or not quite
				now = r.Deadline().Add(time.Duration(random.Int64N(int64(4*time.Second))) - 2*time.Second)
				awaited := outstanding != 0
				due := !now.Before(r.Deadline())
				if awaited && due {
					outstanding = 0
				}
				step, err := r.Advance(now)
				switch {
				case !due && (step != (dps.Step{}) || err != nil):
					fail("something happened before the deadline: %+v, %v", step, err)
				case due && awaited && !errors.Is(err, dps.ErrNoReply):
					fail("no answer came, and the error is %v", err)
				case due && awaited:
					noReplies++
					earliest = time.Time{}
				case due && (err != nil || step.Send == nil):
					fail("the next request was due: %+v, %v", step, err)
				}
				request(step.Send)
			}
			check()
		}
	}
	for what, n := range map[string]int{"registers": registers, "polls": polls, "reconnects": reconnects, "silences": noReplies,
		"assignments": assignments, "refusals": refusals, "early reconnects": early} {
		if n < 100 {
			t.Errorf("only %d %s: the random walk does not reach enough states", n, what)
		}
	}
}
