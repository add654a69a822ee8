package simulator_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// api is a device's end of an HTTPS connection.
type api struct {
	*client
	s    *simulator.Server
	auth string // the Authorization header; "" for none
}

// openAPI opens TLS to the listener of WebSocket and HTTPS, as a device with a key or, if
// there are certificates, with a certificate.
func openAPI(t *testing.T, s *simulator.Server, certificates ...tls.Certificate) *api {
	t.Helper()
	mine, theirs := net.Pipe()
	go s.ServeWebSocket(theirs)
	t.Cleanup(func() { mine.Close() })
	config := clientConfig(s)
	config.Certificates = certificates
	conn := tls.Client(mine, config)
	if err := conn.Handshake(); err != nil {
		t.Fatal(err)
	}
	a := &api{client: newClient(t, conn), s: s}
	if len(certificates) == 0 {
		a.auth = goodToken(s, device)
	}
	return a
}

// answer is a response with its body.
type answer struct {
	*http.Response
	text              string
	OperationID       string                     `json:"operationId"`
	Status            string                     `json:"status"`
	RegistrationState map[string]json.RawMessage `json:"registrationState"`
	ErrorCode         int                        `json:"errorCode"`
	TrackingID        string                     `json:"trackingId"`
	Message           string                     `json:"message"`
}

// ask sends a request that is written by hand, and reads the response.
func (a *api) ask(method, target, body string) answer {
	a.t.Helper()
	a.write(method, target, body)
	r, err := http.ReadResponse(a.in, nil)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, target, err)
	}
	text, err := io.ReadAll(r.Body)
	if err != nil {
		a.t.Fatalf("%s %s: %v", method, target, err)
	}
	out := answer{Response: r, text: string(text)}
	_ = json.Unmarshal(text, &out) // some bodies are not JSON
	return out
}

func (a *api) write(method, target, body string) {
	a.t.Helper()
	head := method + " " + target + " HTTP/1.1\r\nHost: dps.example\r\nContent-Type: application/json; charset=utf-8\r\n"
	if a.auth != "" {
		head += "authorization: " + a.auth + "\r\n"
	}
	if body != "" {
		head += "Content-Length: " + strconv.Itoa(len(body)) + "\r\n"
	}
	a.send([]byte(head + "\r\n" + body)...)
}

const apiVersion = "?api-version=2019-03-31"

func (a *api) path(rest string) string {
	return "/" + a.s.IDScope() + "/registrations/" + device + rest + apiVersion
}

func (a *api) register() answer {
	a.t.Helper()
	return a.ask("PUT", a.path("/register"), `{"registrationId":"`+device+`"}`)
}

func (a *api) poll(operationID string) answer {
	a.t.Helper()
	return a.ask("GET", a.path("/operations/"+operationID), "")
}

func TestHTTPS(t *testing.T) {
	bubble(t, "a device registers with several requests on one connection", func(t *testing.T) {
		s := start(t, simulator.Options{})
		a := openAPI(t, s)
		first := a.register()
		if first.StatusCode != http.StatusAccepted || first.Header.Get("Retry-After") != "3" || first.Status != "assigning" || first.RegistrationState != nil ||
			first.Header.Get("Content-Type") != "application/json; charset=utf-8" || first.Header.Get("x-ms-request-id") == "" {
			t.Fatal(first.Response.Status, first.Header, first.text)
		}
		if got := first.Header.Get("Location"); got != "https://dps.example"+a.path("/operations/"+first.OperationID) {
			t.Error("Location", got)
		}
		second := a.poll(first.OperationID)
		if second.StatusCode != http.StatusAccepted || second.Header.Get("Retry-After") != "3" || string(second.RegistrationState["status"]) != `"assigning"` {
			t.Error(second.Response.Status, second.Header, second.text)
		}
		last := a.poll(first.OperationID)
		if last.StatusCode != http.StatusOK || last.Header.Get("Retry-After") != "" || last.Header.Get("Location") != "" || last.Status != "assigned" ||
			string(last.RegistrationState["assignedHub"]) != `"dpsd-sim.azure-devices.net"` || string(last.RegistrationState["deviceId"]) != `"`+device+`"` {
			t.Error(last.Response.Status, last.Header, last.text)
		}
		a.conn.Close()
		synctest.Wait()
		log := s.Log()
		var connections, requests int
		for _, e := range log {
			if e.Packet == "OPEN" {
				connections++
			}
			if e.Packet == "REQUEST" || e.Packet == "RESPONSE" {
				requests++
				if e.Protocol != "https" || e.RegistrationID != device {
					t.Errorf("%+v", e)
				}
			}
			if strings.Contains(fmt.Sprintf("%+v", e), "sig=") {
				t.Errorf("a secret in the log: %+v", e)
			}
		}
		if connections != 1 || requests != 6 {
			t.Error(connections, "connections", requests, "entries")
		}
		if sum := simulator.Summarize(log); len(sum.Registers) != 1 || len(sum.Polls) != 2 || sum.Violations != nil {
			t.Errorf("%+v", sum)
		}
	})
	bubble(t, "a registration that began over HTTPS ends over MQTT, because it is the same service", func(t *testing.T) {
		s := start(t, simulator.Options{})
		first := openAPI(t, s).register()
		c := ready(t, s)
		for _, want := range []string{"/202/", "/200/"} {
			p := c.poll("7", first.OperationID)
			if !strings.Contains(p.topic, want) {
				t.Error(p.topic, p.payload)
			}
			c.puback(p.id)
		}
	})
	bubble(t, "a device with a certificate needs no Authorization, and has x509 in its state", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: new(0)}}})
		a := openAPI(t, s, deviceCertificate(t, s, device))
		if r := a.register(); r.StatusCode != http.StatusOK || string(r.RegistrationState["x509"]) != "{}" {
			t.Error(r.Response.Status, r.text)
		}
	})
	bubble(t, "an enrollment with a certificate accepts this certificate, and no other one of the same CA", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: new(0)}}})
		own, other := deviceCertificate(t, s, device), deviceCertificate(t, s, device)
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate[0]})
		if err := s.ChangeEnrollments(enroll.Change{Individual: &enroll.Individual{
			RegistrationID: device, Certificate: string(text), Attestation: enroll.Attestation{Type: "x509"},
		}}); err != nil {
			t.Fatal(err)
		}
		if r := openAPI(t, s, own).register(); r.StatusCode != http.StatusOK {
			t.Error(r.Response.Status, r.text)
		}
		if r := openAPI(t, s, other).register(); r.StatusCode != http.StatusUnauthorized || r.ErrorCode != 401002 {
			t.Error(r.Response.Status, r.text)
		}
	})
	bubble(t, "the reply delay passes before an answer", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{ReplyDelay: 300 * time.Millisecond}}})
		a := openAPI(t, s)
		begun := time.Now()
		a.register()
		if took := time.Since(begun); took != 300*time.Millisecond {
			t.Error(took)
		}
	})
	bubble(t, "a device that sends too many polls is answered 429 with Retry-After", func(t *testing.T) {
		s := start(t, simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: new(9)}}})
		a := openAPI(t, s)
		id := a.register().OperationID
		for range 5 {
			if r := a.poll(id); r.StatusCode != http.StatusAccepted {
				t.Fatal(r.Response.Status, r.text)
			}
		}
		if r := a.poll(id); r.StatusCode != http.StatusTooManyRequests || r.ErrorCode != 429001 || r.Header.Get("Retry-After") != "2" || r.Header.Get("x-ms-error-code") != "429001" {
			t.Error(r.Response.Status, r.Header, r.text)
		}
	})
	bubble(t, "an Expect: 100-continue is answered", func(t *testing.T) {
		s := start(t, simulator.Options{})
		a := openAPI(t, s)
		a.send([]byte("PUT " + a.path("/register") + " HTTP/1.1\r\nHost: x\r\nAuthorization: " + a.auth + "\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")...)
		if r, err := http.ReadResponse(a.in, nil); err != nil || r.StatusCode != http.StatusContinue {
			t.Fatal(r, err)
		}
		a.send('{', '}')
		if r, err := http.ReadResponse(a.in, nil); err != nil || r.StatusCode != http.StatusAccepted {
			t.Fatal(r, err)
		}
	})
	bubble(t, "a connection without a request ends after four minutes", func(t *testing.T) {
		s := start(t, simulator.Options{})
		a := openAPI(t, s)
		a.register()
		begun := time.Now()
		a.expectEnd("an idle connection")
		if idle := time.Since(begun); idle != 4*time.Minute {
			t.Error(idle)
		}
	})
}

func TestHTTPSLookup(t *testing.T) {
	bubble(t, "a lookup returns the state without registering, and never the issued certificates", func(t *testing.T) {
		s := start(t, simulator.Options{})
		a := openAPI(t, s)
		look := func() answer { return a.ask("POST", a.path(""), `{"registrationId":"`+device+`"}`) }
		if r := look(); r.StatusCode != http.StatusNotFound || r.ErrorCode != 404201 {
			t.Error(r.Response.Status, r.text)
		}
		id := a.register().OperationID
		if r := look(); r.StatusCode != http.StatusOK || r.Status != "assigning" {
			t.Error(r.Response.Status, r.text)
		}
		a.poll(id)
		a.poll(id)
		r := look()
		if r.StatusCode != http.StatusOK || r.Status != "assigned" || !strings.Contains(r.text, `"assignedHub":"dpsd-sim.azure-devices.net"`) || strings.Contains(r.text, "issuedCertificateChain") {
			t.Error(r.Response.Status, r.text)
		}
		if sum := simulator.Summarize(s.Log()); len(sum.Registers) != 1 || len(sum.Polls) != 2 {
			t.Errorf("%+v", sum)
		}
	})
	bubble(t, "a lookup with a wrong key is refused", func(t *testing.T) {
		s := start(t, simulator.Options{})
		a := openAPI(t, s)
		a.auth = token("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", resourceOf(s, device), time.Now().Add(time.Hour), "")
		if r := a.ask("POST", a.path(""), "{}"); r.StatusCode != http.StatusUnauthorized || r.ErrorCode != 401000 {
			t.Error(r.Response.Status, r.text)
		}
	})
}

func TestHTTPSRefusals(t *testing.T) {
	for _, c := range []struct {
		name         string
		change       func(t *testing.T, a *api)
		method, path string // "" for those of a register request
		body         string
		status, code int
	}{
		{"a wrong key", func(_ *testing.T, a *api) {
			a.auth = token("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", resourceOf(a.s, device), time.Now().Add(time.Hour), "")
		}, "", "", "", 401, 401000},
		{"an expired token", func(_ *testing.T, a *api) {
			a.auth = token(a.s.DeviceKey(device), resourceOf(a.s, device), time.Now(), "")
		}, "", "", "", 401, 401000},
		{"a token for another device", func(_ *testing.T, a *api) { a.auth = goodToken(a.s, "someone-else") }, "", "", "", 401, 401000},
		{"no credential", func(_ *testing.T, a *api) { a.auth = "" }, "", "", "", 401, 401000},
		{"a certificate of another device", func(t *testing.T, a *api) {
			*a = *openAPI(t, a.s, deviceCertificate(t, a.s, "someone-else"))
		}, "", "", "", 401, 401002},
		{"another ID scope", nil, "PUT", "/0neFFFFFFFF/registrations/" + device + "/register" + apiVersion, "", 404, 404000},
		{"no api-version", nil, "PUT", "/SCOPE/registrations/" + device + "/register", "", 400, 400000},
		{"an api-version that is not a date", nil, "PUT", "/SCOPE/registrations/" + device + "/register?api-version=latest", "", 400, 400000},
		{"an invalid registration ID", nil, "PUT", "/SCOPE/registrations/a%20b/register" + apiVersion, "", 400, 400004},
		{"a body that is not JSON", nil, "", "", "{", 400, 0},
		{"a body for another device", nil, "", "", `{"registrationId":"someone-else"}`, 400, 0},
		{"a body above 96 KB", nil, "", "", `{"payload":{"a":"` + strings.Repeat("x", 96<<10) + `"}}`, 413, 413000},
		{"an unknown path", nil, "GET", "/", "", 404, 404000},
		{"another method", nil, "POST", "/SCOPE/registrations/" + device + "/register" + apiVersion, "", 405, 405000},
		{"an unknown operation", nil, "GET", "/SCOPE/registrations/" + device + "/operations/5.0.0" + apiVersion, "", 404, 404203},
	} {
		bubble(t, c.name+" is refused", func(t *testing.T) {
			s := start(t, simulator.Options{})
			a := openAPI(t, s)
			if c.change != nil {
				c.change(t, a)
			}
			method, path := c.method, strings.ReplaceAll(c.path, "SCOPE", s.IDScope())
			if method == "" {
				method, path = "PUT", a.path("/register")
			}
			r := a.ask(method, path, c.body)
			if r.StatusCode != c.status || c.code != 0 && (r.ErrorCode != c.code || r.Message == "" || r.Header.Get("x-ms-error-code") != strconv.Itoa(c.code)) {
				t.Error(r.Response.Status, r.Header, r.text)
			}
			if strings.Contains(r.text, "operationId") {
				t.Error("an error contains an operation:", r.text)
			}
		})
	}
	bubble(t, "a device that is not enrolled is refused with 404201, and the log has the reason", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: &enroll.Enrollments{}})
		r := openAPI(t, s).register()
		log := s.Log()
		if r.StatusCode != http.StatusNotFound || r.ErrorCode != 404201 || !strings.Contains(log[len(log)-1].Detail, "no symmetric-key enrollment") {
			t.Errorf("%s %s %+v", r.Response.Status, r.text, log[len(log)-1])
		}
	})
	bubble(t, "a connection remains usable after a refusal", func(t *testing.T) {
		s := start(t, simulator.Options{})
		a := openAPI(t, s)
		if r := a.ask("GET", "/", ""); r.StatusCode != http.StatusNotFound {
			t.Error(r.Response.Status)
		}
		if r := a.register(); r.StatusCode != http.StatusAccepted {
			t.Error(r.Response.Status)
		}
	})
}

func TestHTTPSFaults(t *testing.T) {
	for _, c := range []struct {
		name string
		rule simulator.Rule
		want func(r answer) bool
	}{
		{"status and retry_after", simulator.Rule{Status: 429, ErrorCode: 429001, RetryAfter: "30"}, func(r answer) bool {
			return r.StatusCode == http.StatusTooManyRequests && r.ErrorCode == 429001 && r.Header.Get("Retry-After") == "30"
		}},
		{"retry_after none", simulator.Rule{RetryAfter: "none"}, func(r answer) bool { return r.StatusCode == http.StatusAccepted && r.Header["Retry-After"] == nil }},
		{"a state", simulator.Rule{State: "failed"}, func(r answer) bool { return r.StatusCode == http.StatusOK && r.Status == "failed" }},
		{"a body", simulator.Rule{Body: new("<html>")}, func(r answer) bool { return r.text == "<html>" }},
		{"an empty body", simulator.Rule{Body: new("")}, func(r answer) bool { return r.text == "" && r.ContentLength == 0 }},
		{"a body that is cut", simulator.Rule{Cut: 9}, func(r answer) bool { return len(r.text) == 9 }},
		{"a body that is padded", simulator.Rule{Pad: 5000}, func(r answer) bool { return len(r.text) == 5000 && r.Status == "assigning" }},
		{"a member that is omitted", simulator.Rule{Omit: []string{"operationId"}}, func(r answer) bool { return r.text == `{"status":"assigning"}` }},
		{"a status that HTTP does not have becomes 500", simulator.Rule{Status: 42}, func(r answer) bool { return r.StatusCode == http.StatusInternalServerError }},
		{"byte_by_byte", simulator.Rule{ByteByByte: true}, func(r answer) bool { return r.StatusCode == http.StatusAccepted }},
		{"the rules for MQTT only", simulator.Rule{RequestID: "9", Topic: "x", Replies: 3, Duplicate: true, BeforePuback: true, Frames: "text"}, func(r answer) bool { return r.StatusCode == http.StatusAccepted }},
	} {
		bubble(t, c.name+" applies to one answer over HTTPS", func(t *testing.T) {
			c.rule.On, c.rule.Times, c.rule.Protocol = simulator.OnRegister, 1, "https"
			a := openAPI(t, script(t, c.rule))
			if r := a.register(); !c.want(r) {
				t.Error(r.Response.Status, r.Header, r.text)
			}
			if r := a.register(); r.StatusCode != http.StatusAccepted || r.Status != "assigning" {
				t.Error("the next answer:", r.Response.Status, r.text)
			}
		})
	}
	bubble(t, "a rule at poll applies to a poll only", func(t *testing.T) {
		a := openAPI(t, script(t, simulator.Rule{On: simulator.OnPoll, Status: 500, RetryAfter: "3"}))
		id := a.register().OperationID
		if r := a.poll(id); r.StatusCode != http.StatusInternalServerError || r.Header.Get("Retry-After") != "3" {
			t.Error(r.Response.Status, r.text)
		}
	})
	bubble(t, "a rule for MQTT or WebSocket does not apply to HTTPS, nor one for HTTPS to MQTT", func(t *testing.T) {
		s := script(t, simulator.Rule{On: simulator.OnRegister, Protocol: "websocket", Status: 500},
			simulator.Rule{On: simulator.OnRegister, Protocol: "mqtt", Status: 501}, simulator.Rule{On: simulator.OnRegister, Protocol: "https", Status: 502})
		if r := openAPI(t, s).register(); r.StatusCode != http.StatusBadGateway {
			t.Error(r.Response.Status)
		}
		if p := ready(t, s).register("1"); !strings.Contains(p.topic, "/501/") {
			t.Error(p.topic)
		}
	})
	bubble(t, "delay passes before the answer, and pace between its bytes", func(t *testing.T) {
		a := openAPI(t, script(t, simulator.Rule{On: simulator.OnRegister, Delay: time.Minute, ByteByByte: true, Pace: time.Second}))
		begun := time.Now()
		a.register()
		if took := time.Since(begun); took < 3*time.Minute {
			t.Error(took)
		}
	})
	for _, c := range []struct {
		name, reason string
		rule         simulator.Rule
		answered     bool
	}{
		{"close", "scenario: close", simulator.Rule{Close: true}, false},
		{"reset", "scenario: reset", simulator.Rule{Reset: true}, false},
		{"then close", "scenario: close", simulator.Rule{Then: "close"}, true},
		{"then reset", "scenario: reset", simulator.Rule{Then: "reset"}, true},
	} {
		bubble(t, c.name+" ends the connection", func(t *testing.T) {
			c.rule.On = simulator.OnRegister
			s := script(t, c.rule)
			a := openAPI(t, s)
			if c.answered {
				if r := a.register(); r.StatusCode != http.StatusAccepted {
					t.Error(r.Response.Status)
				}
			} else {
				a.write("PUT", a.path("/register"), "{}")
			}
			a.expectEnd("the end")
			synctest.Wait()
			log := s.Log()
			if last := log[len(log)-1]; last.Packet != "CLOSE" || last.Detail != c.reason || last.BytesDown == 0 {
				t.Errorf("%+v", last)
			}
		})
	}
	bubble(t, "silent: an answer never comes, and the connection stays open", func(t *testing.T) {
		s := script(t, simulator.Rule{On: simulator.OnRegister, Silent: true})
		a := openAPI(t, s)
		a.write("PUT", a.path("/register"), "{}")
		_ = a.conn.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := http.ReadResponse(a.in, nil); err == nil || errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
	bubble(t, "garbage is sent instead of an answer", func(t *testing.T) {
		a := openAPI(t, script(t, simulator.Rule{On: simulator.OnRegister, Garbage: "SSH-2.0-x\r\n"}))
		a.write("PUT", a.path("/register"), "{}")
		if b, err := io.ReadAll(a.in); string(b) != "SSH-2.0-x\r\n" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
	t.Run("a rule for https at another stage is an error", func(t *testing.T) {
		_, err := simulator.New(simulator.Options{Scenario: &simulator.Scenario{Rules: []simulator.Rule{{On: simulator.OnConnect, Protocol: "https", Close: true}}}})
		if err == nil || !strings.Contains(err.Error(), "register poll") {
			t.Error(err)
		}
	})
	bubble(t, "Close ends an HTTPS connection in which an answer is pending", func(t *testing.T) {
		s := script(t, simulator.Rule{On: simulator.OnRegister, Delay: time.Hour})
		a := openAPI(t, s)
		a.write("PUT", a.path("/register"), "{}")
		synctest.Wait()
		begun := time.Now()
		s.Close()
		_, _ = io.Copy(io.Discard, bufio.NewReader(a.in))
		if took := time.Since(begun); took > 0 {
			t.Error(took)
		}
	})
}

func TestATokenInTheQueryIsNotLogged(t *testing.T) {
	bubble(t, "", func(t *testing.T) {
		s := start(t, simulator.Options{})
		a := openAPI(t, s)
		for _, host := range []string{"", "dpsd-sim.azure-devices.net"} {
			target := "/" + s.IDScope() + "/registrations/" + device + "/register" + apiVersion + "&sr=x&sig=c2VjcmV0&se=1"
			if host != "" {
				target = "https://" + host + "/devices/" + device + "/modules" + apiVersion + "&sig=c2VjcmV0"
			}
			a.ask("GET", target, "")
		}
		a.conn.Close()
		synctest.Wait()
		requests := 0
		for _, e := range s.Log() {
			if strings.Contains(fmt.Sprintf("%+v", e), "c2VjcmV0") {
				t.Errorf("a signature in the log: %+v", e)
			}
			if e.Packet == "REQUEST" {
				requests++
				if !strings.Contains(e.Topic, "api-version=2019-03-31&") || !strings.Contains(e.Topic, "sig=…") {
					t.Error(e.Topic)
				}
			}
		}
		if requests != 2 {
			t.Error(requests, "requests")
		}
	})
}
