package consumer_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/refusal"
	"github.com/dpsd-project/dpsd/sas"
)

// noon is the time of the servers' clocks in these tests.
var noon = time.Date(2026, 11, 30, 12, 0, 0, 500, time.UTC)

// key is the key of every identity in these tests.
var key = []byte("0123456789abcdef")

// assigned is the state of a device with a symmetric key.
func assigned() consumer.State {
	return consumer.State{Hub: hub.Identity{Host: "hub.azure-devices.net", DeviceID: "gw-1"}, Generation: 7, Tokens: true}
}

// fixture is a server on a real Unix socket.
type fixture struct {
	t      testing.TB
	path   string
	server *consumer.Server
	board  *consumer.Board
	stop   context.CancelFunc
	ended  chan error
}

// start serves a consumer. The rate limit applies only if change replaces Now.
func start(t testing.TB, c consumer.Consumer, change func(*consumer.Server)) *fixture {
	t.Helper()
	f := &fixture{t: t, path: filepath.Join(t.TempDir(), "s"), board: &consumer.Board{}, ended: make(chan error, 1)}
	f.server = &consumer.Server{
		Consumer: c, Board: f.board, Now: (&hasty{}).now, Usage: &consumer.Usage{},
		MAC: func(_ context.Context, _ hub.Identity, statement []byte) ([]byte, error) {
			return sas.MAC(key, statement), nil
		},
		Refused: func(context.Context, string, refusal.Code) (refusal.Answer, error) {
			return refusal.Answer{Action: refusal.Counting, Because: "1 of 3 reports."}, nil
		},
	}
	if change != nil {
		change(f.server)
	}
	f.board.Post(assigned())
	l, err := net.Listen("unix", f.path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	f.stop = cancel
	go func() { f.ended <- f.server.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-f.ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return f
}

// hasty is a clock with which the rate limit never applies: it advances by 3 s, the interval between
// requests, with each reading.
type hasty struct{ readings atomic.Int64 }

func (h *hasty) now() time.Time {
	return noon.Add(time.Duration(h.readings.Add(1)) * 3 * time.Second)
}

// latest returns the time of the last reading in Unix seconds.
func (h *hasty) latest() int64 { return noon.Unix() + 3*h.readings.Load() }

// still returns a clock that does not move.
func still(s *consumer.Server) { s.Now = func() time.Time { return noon } }

// client returns a client that uses a new connection for each request.
func (f *fixture) client() *http.Client {
	return &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", f.path)
		},
	}}
}

// request sends a request and returns the answer with its body.
func (f *fixture) request(method, path, body string) (*http.Response, string) {
	f.t.Helper()
	r, err := http.NewRequestWithContext(f.t.Context(), method, "http://dpsd"+path, strings.NewReader(body))
	if err != nil {
		f.t.Fatal(err)
	}
	response, err := f.client().Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		f.t.Fatal(err)
	}
	return response, string(text)
}

// get decodes the answer to a request that succeeds.
func (f *fixture) get(method, path, body string, into any) {
	f.t.Helper()
	response, text := f.request(method, path, body)
	if response.StatusCode != http.StatusOK {
		f.t.Fatalf("%s %s: %s: %s", method, path, response.Status, text)
	}
	if err := json.Unmarshal([]byte(text), into); err != nil {
		f.t.Fatalf("%v: %s", err, text)
	}
}

// wants fails unless the response is the problem with the code.
func (f *fixture) wants(method, path, body string, status int, code consumer.Code) consumer.Problem {
	f.t.Helper()
	response, text := f.request(method, path, body)
	var p consumer.Problem
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		f.t.Fatalf("%v: %s", err, text)
	}
	if response.StatusCode != status || p.Code != code {
		f.t.Errorf("%s %s %s: got %d %s, want %d %s (%s)", method, path, body, response.StatusCode, p.Code, status, code, p.Error)
	}
	if again := response.Header.Get("Retry-After") != ""; again != (p.In > 0) || again != (status == http.StatusServiceUnavailable || status == http.StatusTooManyRequests) {
		f.t.Errorf("%s %s: %d with Retry-After %q and retryIn %v", method, path, status, response.Header.Get("Retry-After"), p.In)
	}
	if p.Error == "" {
		f.t.Errorf("%s has no text", p.Code)
	}
	return p
}

func TestAConsumerLearnsHowToConnectToTheHub(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a"}, nil)
	s := assigned()
	s.RootsFile = "/etc/dpsd/roots.pem"
	f.board.Post(s)
	var got consumer.Hub
	f.get(http.MethodGet, "/v1/hub", "", &got)
	want := consumer.Hub{
		Host: "hub.azure-devices.net", DeviceID: "gw-1", Generation: 7, Profile: "classic",
		Ports: hub.Ports{MQTT: 8883, WebSocket: 443, AMQP: 5671, HTTPS: 443}, WebSocketPath: "/$iothub/websocket",
		ClientID: "gw-1", UserName: "hub.azure-devices.net/gw-1/?api-version=2021-04-12", APIVersion: "2021-04-12",
		RootsFile: "/etc/dpsd/roots.pem", Scope: "device", Tokens: true,
	}
	if got != want {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestATokenIsForTheScopeOfTheConsumerAndNeverContainsSkn(t *testing.T) {
	for text, resource := range map[string]string{
		"device":                 "hub.azure-devices.net/devices/gw-1",
		"device/messages/events": "hub.azure-devices.net/devices/gw-1/messages/events",
		"module:updater":         "hub.azure-devices.net/devices/gw-1/modules/updater",
	} {
		t.Run(text, func(t *testing.T) {
			scope, ok := consumer.ParseScope(text)
			if !ok || scope.String() != text {
				t.Fatalf("the scope is %q", scope)
			}
			f := start(t, consumer.Consumer{Name: "a", Scope: scope}, still)
			s := assigned()
			s.Modules = map[string]consumer.Module{"updater": {Ready: true}}
			f.board.Post(s)
			var got consumer.Token
			f.get(http.MethodPost, "/v1/token", "", &got)
			expiry := noon.Truncate(time.Second).Add(15 * time.Minute)
			want := consumer.Token{
				Token: sas.Token(resource, sas.MAC(key, sas.Statement(resource, expiry)), expiry, ""), Expiry: expiry, ExpiresIn: 900, Generation: 7,
			}
			if got != want {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

func TestTheLifetimeOfATokenIsThatOfTheRequestOrOfTheConfiguration(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a", Lifetime: 10 * time.Minute}, still)
	for body, want := range map[string]int{
		"": 600, " ": 600, "{}": 600, `{"lifetime": 60}`: 60, `{"lifetime":3600}`: 3600, " {\"lifetime\"\n:\t900 } \n": 900,
	} {
		var got consumer.Token
		f.get(http.MethodPost, "/v1/token", body, &got)
		if got.ExpiresIn != want {
			t.Errorf("%q: got a token for %d s, want %d", body, got.ExpiresIn, want)
		}
	}
}

func TestABodyIsStrictJSON(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a"}, nil)
	for _, body := range []string{
		`{"lifetime":60,"lifetime":60}`, `{"lifetime":60}{}`, `{"lifetime":60} x`, `{"resource":"hub/devices/other"}`, `{"Lifetime":60}`,
		`{"lifetime":60,"sr":"x"}`, `[]`, `60`, `null`, `"x"`, `{`, `{"lifetime":60,}`, `lifetime=60`, "{\"life\xfftime\":60}", `{"lifetime\u0000":60}`,
	} {
		f.wants(http.MethodPost, "/v1/token", body, http.StatusBadRequest, consumer.BadRequest)
	}
	for _, value := range []string{"59", "3601", "0", "-60", "1e3", "60.0", `"60"`, "null", "true", "[60]", `{"a":1}`, "99999999999999999999"} {
		f.wants(http.MethodPost, "/v1/token", `{"lifetime":`+value+`}`, http.StatusBadRequest, consumer.LifetimeOutOfRange)
	}
	f.wants(http.MethodPost, "/v1/token", strings.Repeat(" ", 1025), http.StatusRequestEntityTooLarge, consumer.BodyTooLarge)
	f.wants(http.MethodGet, "/v1/hub", `{"resource":"x"}`, http.StatusBadRequest, consumer.BadRequest)
	if p := f.wants(http.MethodPost, "/v1/token", `{"sr\u001b[31m`+strings.Repeat("x", 200)+`":1}`, http.StatusBadRequest, consumer.BadRequest); len(p.Error) > 150 || strings.ContainsRune(p.Error, 0x1b) {
		t.Errorf("the error is %q", p.Error)
	}
}

func TestARequestCannotNameAResource(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a"}, nil)
	f.wants(http.MethodPost, "/v1/token?sr=hub%2Fdevices%2Fother", "", http.StatusBadRequest, consumer.BadRequest)
	f.wants(http.MethodGet, "/v1/hub?", "", http.StatusBadRequest, consumer.BadRequest)
	for _, path := range []string{"/", "/v1", "/v1/token/", "//v1/token", "/v1/../v1/token", "/v1/%74oken", "/v1/token/other", "/V1/token", "/metrics", "/v1/status", "/identities/identity"} {
		f.wants(http.MethodPost, path, "", http.StatusNotFound, consumer.UnknownPath)
	}
	for path, allow := range map[string]string{"/v1/hub": "GET", "/v1/token": "POST", "/v1/certificate": "GET", "/v1/refused": "POST", "/v1/events": "GET"} {
		for _, method := range []string{"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"} {
			if method == allow {
				continue
			}
			f.wants(method, path, "", http.StatusMethodNotAllowed, consumer.WrongMethod)
			if response, _ := f.request(method, path, ""); response.Header.Get("Allow") != allow {
				t.Errorf("%s %s: Allow is %q", method, path, response.Header.Get("Allow"))
			}
		}
	}
}

func TestNoCredentialIsIssuedWhileItIsWithheld(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a", Certificate: true}, nil)
	files := &consumer.Files{Certificate: "/c", PrivateKey: "/k", NotAfter: noon.Add(time.Hour)}
	for _, c := range []struct {
		reason consumer.Reason
		hub    int // the status of GET /v1/hub
	}{
		{consumer.NotAssigned, 503}, {consumer.OtherConfiguration, 503}, {consumer.ClockImplausible, 200}, {"later", 200},
	} {
		s := assigned()
		s.Withheld, s.Certificate = c.reason, files
		f.board.Post(s)
		f.wants(http.MethodPost, "/v1/token", "", http.StatusServiceUnavailable, consumer.Code(c.reason))
		f.wants(http.MethodGet, "/v1/certificate", "", http.StatusServiceUnavailable, consumer.Code(c.reason))
		if c.hub == http.StatusServiceUnavailable {
			f.wants(http.MethodGet, "/v1/hub", "", c.hub, consumer.Code(c.reason))
			f.wants(http.MethodPost, "/v1/refused", `{"code":5}`, c.hub, consumer.Code(c.reason))
			continue
		}
		var got consumer.Hub
		f.get(http.MethodGet, "/v1/hub", "", &got)
		if got.Withheld != consumer.Code(c.reason) || !got.Tokens || !got.Certificate {
			t.Errorf("%s: got %+v", c.reason, got)
		}
		var answer refusal.Answer
		f.get(http.MethodPost, "/v1/refused", `{"code":5}`, &answer)
	}
	f.board.Post(consumer.State{})
	for _, path := range []string{"/v1/hub", "/v1/certificate"} {
		f.wants(http.MethodGet, path, "", http.StatusServiceUnavailable, consumer.Code(consumer.NotAssigned))
	}
	f.wants(http.MethodPost, "/v1/token", "", http.StatusServiceUnavailable, consumer.Code(consumer.NotAssigned))
	if n := f.server.Usage.Counts().Tokens; n != 0 {
		t.Errorf("%d tokens were counted", n)
	}
}

func TestWhatAGatewayCannotDoIsAConflict(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a", Certificate: true}, nil)
	s := assigned()
	s.Tokens = false
	f.board.Post(s)
	f.wants(http.MethodPost, "/v1/token", "", http.StatusConflict, consumer.NoSymmetricKey)
	f.wants(http.MethodGet, "/v1/certificate", "", http.StatusConflict, consumer.NoCertificate)
	for _, c := range []struct {
		profile string
		want    consumer.Hub
	}{
		{"mqttV5", consumer.Hub{Ports: hub.Ports{MQTT: 8883, WebSocket: 443}, ClientID: "gw-1", WebSocketPath: "/$iothub/websocket"}},
		{"mqttV9", consumer.Hub{}},
	} {
		s = assigned()
		s.Profile = c.profile
		f.board.Post(s)
		f.wants(http.MethodPost, "/v1/token", "", http.StatusConflict, consumer.ProfileWithoutTokens)
		var got consumer.Hub
		f.get(http.MethodGet, "/v1/hub", "", &got)
		c.want.Host, c.want.DeviceID, c.want.Generation, c.want.Scope, c.want.Profile = "hub.azure-devices.net", "gw-1", 7, "device", hub.Profile(c.profile)
		if got != c.want {
			t.Errorf("got  %+v\nwant %+v", got, c.want)
		}
	}
}

func TestTheAdviceWithoutTokensIsSomethingThatTheConsumerMayDo(t *testing.T) {
	for _, test := range []struct {
		consumer consumer.Consumer
		advice   string
	}{
		{consumer.Consumer{Certificate: true}, "connect with the certificate: GET /v1/certificate"},
		{consumer.Consumer{}, "set certificate = true in"},
		{consumer.Consumer{Scope: consumer.Scope{Events: true}}, `set scope = "device" and certificate = true in`},
	} {
		f := start(t, test.consumer, nil)
		s := assigned()
		s.Tokens = false
		f.board.Post(s)
		if p := f.wants(http.MethodPost, "/v1/token", "", http.StatusConflict, consumer.NoSymmetricKey); !strings.HasPrefix(p.Advice, test.advice) {
			t.Errorf("%+v: the advice is %q", test.consumer, p.Advice)
		}
	}
}

func TestTheCertificateIsOnlyForConsumersThatMayUseIt(t *testing.T) {
	state := assigned()
	state.Tokens, state.Certificate = false, &consumer.Files{Certificate: "/c", PrivateKey: "/k", NotAfter: noon}
	for _, allowed := range []bool{true, false} {
		f := start(t, consumer.Consumer{Name: "a", Certificate: allowed}, nil)
		f.board.Post(state)
		var answer consumer.Hub
		f.get(http.MethodGet, "/v1/hub", "", &answer)
		if answer.Certificate != allowed || answer.Tokens {
			t.Errorf("allowed %t: got %+v", allowed, answer)
		}
		if !allowed {
			f.wants(http.MethodGet, "/v1/certificate", "", http.StatusForbidden, consumer.CertificateNotAllowed)
			continue
		}
		var got consumer.Certificate
		f.get(http.MethodGet, "/v1/certificate", "", &got)
		if want := (consumer.Certificate{Certificate: "/c", PrivateKey: "/k", NotAfter: noon, Generation: 7}); got != want {
			t.Errorf("got %+v", got)
		}
	}
}

func TestAnUnknownExpiryOfTheCertificateIsOmitted(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a", Certificate: true}, nil)
	state := assigned()
	state.Certificate = &consumer.Files{Certificate: "/c.pem", PrivateKey: "/k.pem"}
	f.board.Post(state)
	var got map[string]any
	f.get(http.MethodGet, "/v1/certificate", "", &got)
	if _, found := got["notAfter"]; found || got["certificate"] != "/c.pem" {
		t.Errorf("got %v", got)
	}
}

func TestAModuleGetsATokenWhenItExists(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a", Scope: consumer.Scope{Module: "updater"}}, nil)
	s := assigned()
	s.Tokens = false // the key of a module is derived on the gateway
	s.Modules = map[string]consumer.Module{"other": {Ready: true}}
	f.board.Post(s)
	p := f.wants(http.MethodPost, "/v1/token", "", http.StatusServiceUnavailable, consumer.ModuleNotReady)
	if !strings.Contains(p.Advice, "dpsd status") {
		t.Errorf("the advice is %q", p.Advice)
	}
	s.Modules = map[string]consumer.Module{"updater": {Fault: "module-refused"}}
	f.board.Post(s)
	p = f.wants(http.MethodPost, "/v1/token", "", http.StatusServiceUnavailable, consumer.ModuleNotReady)
	if p.Advice != "for the cause, module-refused, and what to do, run: dpsd status" {
		t.Errorf("the advice is %q", p.Advice)
	}
	s.Modules = map[string]consumer.Module{"updater": {Ready: true}}
	f.board.Post(s)
	var token consumer.Token
	f.get(http.MethodPost, "/v1/token", "", &token)
	var got consumer.Hub
	f.get(http.MethodGet, "/v1/hub", "", &got)
	if got.ClientID != "gw-1/updater" || got.ModuleID != "updater" || got.UserName != "hub.azure-devices.net/gw-1/updater/?api-version=2021-04-12" || !got.Tokens {
		t.Errorf("got %+v", got)
	}
}

func TestAReportReachesTheDaemonWithTheNameOfTheConsumer(t *testing.T) {
	var reports []string
	var failure error
	f := start(t, consumer.Consumer{Name: "telemetry"}, func(s *consumer.Server) {
		s.Refused = func(_ context.Context, name string, code refusal.Code) (refusal.Answer, error) {
			reports = append(reports, name+" "+code.String())
			return refusal.Answer{Action: refusal.Reprovisioning, Because: "Because.", At: noon, In: 3}, failure
		}
	})
	for _, code := range []string{"5", "401", "401003", `"401003"`, `"unreachable"`} {
		var got refusal.Answer
		f.get(http.MethodPost, "/v1/refused", `{"code":`+code+`}`, &got)
		if want := (refusal.Answer{Action: refusal.Reprovisioning, Because: "Because.", At: noon, In: 3}); got != want {
			t.Errorf("got %+v", got)
		}
	}
	if want := []string{"telemetry CONNACK 5", "telemetry 401", "telemetry 401003", "telemetry 401003", "telemetry unreachable"}; !reflect.DeepEqual(reports, want) {
		t.Errorf("got %q", reports)
	}
	for _, code := range []string{"0", "6", "200", "null", "true", "{}", `"offline"`, "5.0", "-1"} {
		f.wants(http.MethodPost, "/v1/refused", `{"code":`+code+`}`, http.StatusBadRequest, consumer.CodeUnknown)
	}
	f.wants(http.MethodPost, "/v1/refused", "", http.StatusBadRequest, consumer.BadRequest)
	if p := f.wants(http.MethodPost, "/v1/refused", `{"code":5,"name":"other"}`, http.StatusBadRequest, consumer.BadRequest); strings.Contains(p.Advice, "no body") {
		t.Errorf("the advice is %q", p.Advice)
	}
	failure = errors.New("S3CRET")
	p := f.wants(http.MethodPost, "/v1/refused", `{"code":5}`, http.StatusServiceUnavailable, consumer.ReportsUnavailable)
	if strings.Contains(p.Error+p.Advice, "S3CRET") || f.server.Usage.Counts().Refused != 5 {
		t.Errorf("got %+v, and %d reports", p, f.server.Usage.Counts().Refused)
	}
	f = start(t, consumer.Consumer{Name: "a"}, func(s *consumer.Server) { s.Refused = nil })
	f.wants(http.MethodPost, "/v1/refused", `{"code":5}`, http.StatusServiceUnavailable, consumer.ReportsUnavailable)
}

func TestTheErrorOfAKeyStaysInTheDaemon(t *testing.T) {
	for _, err := range []error{errors.New("file:/etc/dpsd/S3CRET"), nil} {
		f := start(t, consumer.Consumer{Name: "a"}, func(s *consumer.Server) {
			s.MAC = func(context.Context, hub.Identity, []byte) ([]byte, error) { return nil, err }
		})
		p := f.wants(http.MethodPost, "/v1/token", "", http.StatusServiceUnavailable, consumer.KeyUnavailable)
		if strings.Contains(p.Error+p.Advice, "S3CRET") {
			t.Errorf("got %+v", p)
		}
	}
}

func TestTheUsageOfAConsumerIsCounted(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a"}, still)
	for range 3 {
		var token consumer.Token
		f.get(http.MethodPost, "/v1/token", `{"lifetime":60}`, &token)
	}
	f.wants(http.MethodGet, "/nothing", "", http.StatusNotFound, consumer.UnknownPath)
	want := consumer.Counts{Requests: 4, Tokens: 3, Issued: noon, Expiry: noon.Truncate(time.Second).Add(time.Minute)}
	if got := f.server.Usage.Counts(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// stream opens GET /v1/events and returns a function that reads the next event.
func (f *fixture) stream() (next func() (consumer.Event, error), end func()) {
	f.t.Helper()
	ctx, cancel := context.WithCancel(f.t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://dpsd/v1/events", http.NoBody)
	if err != nil {
		f.t.Fatal(err)
	}
	response, err := f.client().Do(r)
	if err != nil {
		f.t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("Content-Type") != "application/x-ndjson" {
		f.t.Fatalf("got %s, %s", response.Status, response.Header.Get("Content-Type"))
	}
	lines := bufio.NewReader(response.Body)
	return func() (e consumer.Event, err error) {
		line, err := lines.ReadBytes('\n')
		if err == nil {
			err = json.Unmarshal(line, &e)
		}
		return e, err
	}, cancel
}

func TestAStoppedServerLeavesTheSocketToSystemd(t *testing.T) {
	f := start(t, consumer.Consumer{Name: "a"}, nil)
	next, _ := f.stream()
	if _, err := next(); err != nil {
		t.Fatal(err)
	}
	f.stop()
	if _, err := next(); !errors.Is(err, io.EOF) {
		t.Errorf("the stream ends with %v", err)
	}
	f.ended <- <-f.ended // wait
	if _, err := os.Stat(f.path); err != nil {
		t.Error(err)
	}
}
