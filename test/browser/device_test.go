package browser

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	mqtt "github.com/eclipse/paho.mqtt.golang"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/page"
)

// patience is how long a test waits for a device or for the browser. It is generous, because
// nothing depends on it except a failing test.
const patience = 60 * time.Second

// service is a simulator with its page.
type service struct {
	*simulator.Local
	feed *page.Feed
	page *page.Page
	url  string
}

// serve starts a simulator with a page on which faults are allowed. Its registrations take one
// poll, without delay.
func serve(t *testing.T) *service {
	t.Helper()
	s := &service{feed: &page.Feed{}}
	polls := 1
	s.Local = simulator.Start(t, simulator.Options{
		Seed: 15, DiscardLog: true, Observe: s.feed.Add,
		Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: &polls, RetryAfter: "0"}},
	})
	s.page = &page.Page{Feed: s.feed, Faults: s.Server, Endpoint: page.Endpoint{
		Host: s.Host, MQTTPort: s.MQTTPort, WebSocketPort: s.WebSocketPort, IDScope: s.IDScope(), Directory: "sim",
	}}
	web := httptest.NewServer(s.page.Handler())
	t.Cleanup(web.Close)
	t.Cleanup(web.CloseClientConnections) // an event stream never ends
	s.url = strings.Replace(web.URL, "127.0.0.1", "localhost", 1)
	return s
}

// device is a client of the simulator, made with Eclipse Paho.
type device struct {
	id        string
	key       string // base64; "" for the derived key of the default group
	webSocket bool
	distrust  bool // does not know the simulator's root certificate
}

// register registers a device, and returns the status of the last reply, or an error for a
// refused connection.
func (d device) register(s *service) (string, error) {
	resource := url.QueryEscape(s.IDScope() + "/registrations/" + d.id)
	expiry := time.Now().Add(time.Hour).Unix()
	if d.key == "" {
		d.key = s.DeviceKey(d.id)
	}
	key, err := base64.StdEncoding.DecodeString(d.key)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\n%d", resource, expiry)
	roots := x509.NewCertPool()
	if !d.distrust {
		roots.AppendCertsFromPEM(s.CA())
	}
	address := fmt.Sprintf("ssl://%s:%d", s.Host, s.MQTTPort)
	if d.webSocket {
		address = fmt.Sprintf("wss://%s:%d/$iothub/websocket", s.Host, s.WebSocketPort)
	}
	replies := make(chan mqtt.Message, 16)
	client := mqtt.NewClient(mqtt.NewClientOptions().AddBroker(address).SetClientID(d.id).
		SetUsername(s.IDScope() + "/registrations/" + d.id + "/api-version=2021-06-01&ClientVersion=paho.mqtt.golang").
		SetPassword(fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&se=%d&skn=registration", resource,
			url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), expiry)).
		SetTLSConfig(&tls.Config{RootCAs: roots, ServerName: s.Host, MinVersion: tls.VersionTLS12}).
		SetProtocolVersion(4).SetConnectRetry(false).SetAutoReconnect(false).
		SetDefaultPublishHandler(func(_ mqtt.Client, m mqtt.Message) { replies <- m }))
	wait := func(token mqtt.Token) error {
		if !token.WaitTimeout(patience) {
			return fmt.Errorf("%s: no answer within %v", d.id, patience)
		}
		return token.Error()
	}
	if err := wait(client.Connect()); err != nil {
		return "", err
	}
	defer client.Disconnect(100)
	if err := wait(client.Subscribe("$dps/registrations/res/#", 1, nil)); err != nil {
		return "", err
	}
	topic := "$dps/registrations/PUT/iotdps-register/?$rid=1"
	for {
		if err := wait(client.Publish(topic, 1, false, `{"registrationId":"`+d.id+`","payload":{"model":"gateway","version":7}}`)); err != nil {
			return "", err
		}
		var m mqtt.Message
		select {
		case m = <-replies:
		case <-time.After(patience):
			return "", fmt.Errorf("%s: no reply within %v", d.id, patience)
		}
		status := strings.Split(m.Topic(), "/")[3]
		if status != "202" {
			return status, nil
		}
		var body struct{ OperationID string }
		if err := json.Unmarshal(m.Payload(), &body); err != nil {
			return "", err
		}
		topic = "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=" + body.OperationID
	}
}

// mustRegister registers a device, which must get a reply with this status.
func (d device) mustRegister(t *testing.T, s *service, want string) {
	t.Helper()
	if got, err := d.register(s); err != nil || got != want {
		t.Fatalf("%s: status %q (%v), want %q", d.id, got, err, want)
	}
}

// wrongKey is a key that no enrollment has.
const wrongKey = "bm90IHRoZSBrZXkgb2YgYW55IGRldmljZSBhdCBhbGw="

// populate lets devices register, with most of the outcomes that the page can show.
func populate(t *testing.T, s *service) {
	t.Helper()
	for i := range 14 {
		device{id: fmt.Sprintf("gateway-%02d", i+1), webSocket: i%3 == 2}.mustRegister(t, s, "200")
	}
	device{id: "press-3", key: wrongKey}.mustRegister(t, s, "401")
	fault := func(r simulator.Rule) {
		t.Helper()
		if _, err := s.AddFault(r); err != nil {
			t.Fatal(err)
		}
	}
	fault(simulator.Rule{On: simulator.OnRegister, RegistrationID: "camera-*", Times: 1, Status: 429, ErrorCode: 429001, ErrorMessage: "Too many requests.", RetryAfter: "30"})
	device{id: "camera-1"}.mustRegister(t, s, "429")
	device{id: "camera-2"}.mustRegister(t, s, "429")
	fault(simulator.Rule{On: simulator.OnPoll, RegistrationID: "pump-1", State: "failed", ErrorCode: 400207, ErrorMessage: "Custom allocation failed with status code: 400"})
	device{id: "pump-1"}.mustRegister(t, s, "200")
	fault(simulator.Rule{On: simulator.OnRegister, RegistrationID: "retired-*", State: "disabled"})
	device{id: "retired-9"}.mustRegister(t, s, "200")
	fault(simulator.Rule{On: simulator.OnConnect, RegistrationID: "mixer-5", Connack: new(5)})
	if status, err := (device{id: "mixer-5"}).register(s); err == nil {
		t.Fatalf("mixer-5: status %q, want a refused connection", status)
	}
	if status, err := (device{id: "gateway-15", distrust: true}).register(s); err == nil {
		t.Fatalf("gateway-15: status %q, want a failed handshake", status)
	}
	for _, f := range s.Faults()[:3] {
		s.RemoveFault(f.Number)
	}
	device{id: "gateway-16", webSocket: true}.mustRegister(t, s, "200")
	device{id: "gateway-17"}.mustRegister(t, s, "200")
}
