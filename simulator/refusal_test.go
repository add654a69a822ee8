package simulator_test

import (
	"crypto/tls"
	"encoding/base64"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// refusals collects the refusals of a server.
type refusals struct {
	mu  sync.Mutex
	all []simulator.Refusal
}

func (r *refusals) add(one simulator.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.all = append(r.all, one)
}

// lines returns the refusals so far as text.
func (r *refusals) lines() string {
	synctest.Wait()
	r.mu.Lock()
	defer r.mu.Unlock()
	var lines []string
	for _, one := range r.all {
		lines = append(lines, one.String())
	}
	return strings.Join(lines, "\n")
}

// connected connects with a token up to the SUBACK.
func connected(t *testing.T, s *simulator.Server, token string) *client {
	t.Helper()
	c := dial(t, s)
	c.send(connectPacket(0xc2, 0, device, userNameOf(s, device), token)...)
	c.expect("CONNECT passes", 0x20, 2, 0, 0)
	return c.subscribe()
}

// Each refusal is reported once, with who was refused, how, and why.
func TestEachRefusalIsReportedOnceWithItsReason(t *testing.T) {
	fast := func(rules ...simulator.Rule) simulator.Options {
		return simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: new(0), RegisterLimit: 1, UnknownAPIVersion: "refuse"}, Rules: rules}}
	}
	good := func(s *simulator.Server) string { return goodToken(s, device) }
	send := func(b func(s *simulator.Server) []byte) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) {
			c := dial(t, s)
			c.send(b(s)...)
			_, _ = io.Copy(io.Discard, c.in)
		}
	}
	connect := func(clientID, user, password func(*simulator.Server) string) func(*testing.T, *simulator.Server) {
		return send(func(s *simulator.Server) []byte {
			return connectPacket(0xc2, 0, clientID(s), user(s), password(s))
		})
	}
	is := func(text string) func(*simulator.Server) string {
		return func(s *simulator.Server) string { return strings.ReplaceAll(text, "SCOPE", s.IDScope()) }
	}
	after := func(b ...byte) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) {
			c := connected(t, s, goodToken(s, device))
			c.send(b...)
			_, _ = io.Copy(io.Discard, c.in)
		}
	}
	ask := func(body string) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) { connected(t, s, goodToken(s, device)).ask(body) }
	}
	upgrade := func(path, header string) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) {
			_, r := webSocket(t, s, path, header)
			_, _ = io.Copy(io.Discard, r.Body)
		}
	}
	request := func(line string) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) {
			c := dialWebSocket(t, s)
			c.send([]byte(strings.ReplaceAll(line, "SCOPE", s.IDScope()) + " HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")...)
			_, _ = io.Copy(io.Discard, c.in)
		}
	}
	plain := func(serve func(*simulator.Server, net.Conn), bytes string) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) {
			mine, theirs := net.Pipe()
			go serve(s, theirs)
			go func() { _, _ = io.WriteString(mine, bytes) }()
			_, _ = io.Copy(io.Discard, mine)
			mine.Close()
		}
	}
	handshake := func(config func(*simulator.Server) *tls.Config) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) {
			conn := tls.Client(pipe(t, s), config(s))
			if conn.Handshake() == nil {
				t.Error("the handshake succeeded")
			}
			conn.Close()
		}
	}
	for _, c := range []struct {
		name    string
		options simulator.Options
		do      func(*testing.T, *simulator.Server)
		want    string // SCOPE is the ID scope
	}{
		{"a wrong ID scope", fast(), connect(is(device), is("0neFFFFFFFF/registrations/"+device+"/api-version=2019-03-31"), good), `refused "sample-device-01" from pipe over mqtt (CONNACK 3): the ID scope does not match: expected "SCOPE", got "0neFFFFFFFF". The file id-scope`},
		{"a user name for a hub", fast(), connect(is(device), is("SCOPE/registrations/"+device+"/?api-version=2019-03-31"), good), `(CONNACK 5): the user name's first parameter is not api-version: expected {idScope}/registrations/{registrationId}/api-version={version}, got "SCOPE/registrations/sample-device-01/?api-version=2019-03-31". Unlike the user name for a hub, the user name for DPS has no question mark`},
		{"another client identifier", fast(), connect(is("another"), is("SCOPE/registrations/"+device+"/api-version=2019-03-31"), good), `(CONNACK 5): the client identifier is not the registration ID: expected "sample-device-01", got "another".`},
		{"an unknown api-version", fast(), connect(is(device), is("SCOPE/registrations/"+device+"/api-version=2030-01-01"), good), `(CONNACK 5): the api-version is not supported: expected 2019-03-31, 2021-06-01, 2021-10-01, 2025-07-01-preview, 2026-11-01, 2026-11-02-preview, got "2030-01-01".`},
		{"no credential", fast(), connect(is(device), is("SCOPE/registrations/"+device+"/api-version=2019-03-31"), is("")), `(CONNACK 5): the client sent neither a token nor a certificate: expected a SAS token as the password, or a client certificate in TLS, got neither.`},
		{"a certificate for another device", fast(), func(t *testing.T, s *simulator.Server) {
			c := with(t, s, device, deviceCertificate(t, s, "another"))
			c.expect("CONNACK", 0x20, 2, 0, 5)
		}, `(CONNACK 5): the certificate's common name is not the registration ID: expected "sample-device-01", got "another"`},
		{"a wrong key", fast(), func(t *testing.T, s *simulator.Server) {
			connected(t, s, token(s.GroupKey(), resourceOf(s, device), time.Now().Add(time.Hour), "")).ask("")
		}, `refused "sample-device-01" from pipe over mqtt (401, error code 401000): the token is not signed with the device's key: expected the HMAC-SHA256 of "SCOPE%2Fregistrations%2Fsample-device-01\n`},
		{"a wrong key that is refused early", simulator.Options{Scenario: &simulator.Scenario{Settings: simulator.Settings{Refuse: "early"}}}, func(t *testing.T, s *simulator.Server) {
			connect(is(device), is("SCOPE/registrations/"+device+"/api-version=2019-03-31"), func(*simulator.Server) string {
				return token(s.GroupKey(), resourceOf(s, device), time.Now().Add(time.Hour), "")
			})(t, s)
		}, `(CONNACK 5): the token is not signed with the device's key`},
		{"an unknown authority", fast(), func(t *testing.T, s *simulator.Server) {
			var root *ca
			root = root.issue(t, "root", true, time.Hour)
			with(t, s, device, root.issue(t, device, false, time.Hour).tls()).refusedLate(401002)
		}, `(401, error code 401002): the certificate chain is not trusted (x509: certificate signed by unknown authority): expected a chain to "CN=dpsd-sim device root,O=dpsd-sim", got one certificate, issued by "CN=root"`},
		{"a disabled enrollment", simulator.Options{Enrollments: &enroll.Enrollments{Groups: []enroll.Group{{
			Name: "keys", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="}, Grant: enroll.Grant{Disabled: true},
		}}}}, func(t *testing.T, s *simulator.Server) {
			key := "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
			connected(t, s, token(derive(t, key, device), resourceOf(s, device), time.Now().Add(time.Hour), "")).ask("")
		}, `(200, status disabled): the enrollment of the device is disabled`},
		{"an unknown member", fast(), ask(`{"modelId":"x"}`), `(400, error code 400012): the body has an unknown member: expected only registrationId, tpm, payload, csr, got "modelId".`},
		{"a csr under an api-version without it", fast(), ask(`{"csr":"AA=="}`), `(400, error code 400000): the api-version does not support certificates for a csr`},
		{"too many registrations", fast(), func(t *testing.T, s *simulator.Server) {
			c := connected(t, s, goodToken(s, device))
			c.ask("")
			c.ask("")
		}, `(429, error code 429001): too many devices are registering: expected at most 1 registrations per minute`},
		{"an unknown operation", fast(), func(t *testing.T, s *simulator.Server) {
			connected(t, s, goodToken(s, device)).poll("1", "5.x")
		}, `(404, error code 404203): the operation is unknown: got "5.x". The device must register before it polls.`},
		{"a rule of the scenario", fast(simulator.Rule{On: "register", Status: 503}), ask(""), `(503, error code 503000): a scenario rule refuses this`},
		{"a CONNACK of the scenario", fast(simulator.Rule{On: "connect", Connack: new(3)}), send(func(s *simulator.Server) []byte { return goodConnect(s, device) }), `(CONNACK 3): a scenario rule refuses this`},

		{"a PUBLISH without a subscription, as of mosquitto_pub", fast(), send(func(s *simulator.Server) []byte {
			return append(goodConnect(s, device), publishPacket(0x30, registerTopic("1"), 0, "")...)
		}), `refused "sample-device-01" from pipe over mqtt (the connection was closed): PUBLISH: there is no subscription: the reply would be lost: expected a SUBSCRIBE to $dps/registrations/res/# before the first PUBLISH. The service sends its reply as a message, which a program that only publishes, such as mosquitto_pub, cannot receive.`},
		{"a topic without $dps", fast(), after(publishPacket(0x30, "/registrations/PUT/iotdps-register/?=1", 0, "")...), `PUBLISH: the topic is unknown to the service: expected $dps/registrations/PUT/iotdps-register/?$rid={n}`},
		{"a topic without $rid", fast(), after(publishPacket(0x30, "$dps/registrations/GET/iotdps-get-operationstatus/?operationId=1", 0, "")...), `the topic has no $rid: expected $rid={n}. In a shell`},
		{"another filter", fast(), after(packet(0x82, []byte{0, 9}, text("#"), []byte{1})...), "the filter is not $dps/registrations/res/#. In a shell"},
		{"MQTT 5", fast(), send(func(*simulator.Server) []byte {
			return packet(0x10, text("MQTT"), []byte{5, 2, 0, 0, 0}, text("x"))
		}), "refused a client from pipe over mqtt (the connection was closed): CONNECT: the protocol level is not 4: expected MQTT 3.1.1. The service does not speak MQTT 5"},
		{"a first packet that is not CONNECT", fast(), send(func(*simulator.Server) []byte { return []byte{0xc0, 0} }), "PINGREQ before CONNECT [MQTT-3.1.0-1]. The first packet must be CONNECT."},

		{"another WebSocket path", fast(), upgrade("/mqtt5", subprotocol), `refused a client from pipe over websocket (HTTP 400): the service does not have this path: expected /$iothub/websocket, /, /mqtt, got "/mqtt5"`},
		{"no subprotocol", fast(), upgrade("/", ""), `(HTTP 400): the subprotocol mqtt is not offered [MQTT-6.0.0-3]: expected the header Sec-WebSocket-Protocol: mqtt`},
		{"another subprotocol", fast(), upgrade("/", "Sec-WebSocket-Protocol: mqttv3.1\r\n"), `got "mqttv3.1"`},
		{"an upgrade that is not valid", fast(), func(t *testing.T, s *simulator.Server) {
			c := dialWebSocket(t, s)
			c.send([]byte("GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")...)
			_, _ = io.Copy(io.Discard, c.in)
		}, "(HTTP 400): "},
		{"bytes that are not HTTP", fast(), func(t *testing.T, s *simulator.Server) {
			c := dialWebSocket(t, s)
			c.send([]byte("x\r\n\r\n")...)
			_, _ = io.Copy(io.Discard, c.in)
		}, "(the connection was closed): the request is not HTTP"},
		{"an upgrade that the scenario refuses", fast(simulator.Rule{On: "upgrade", Status: 403}), upgrade("/", subprotocol), "(HTTP 403): a scenario rule refuses this"},

		{"a request over HTTPS without a credential", fast(), request("PUT /SCOPE/registrations/gw-1/register?api-version=2021-06-01"), `refused "gw-1" from pipe over https (401, error code 401000): the client sent neither a token nor a certificate`},
		{"a request over HTTPS to another path", fast(), request("GET /"), `refused a client from pipe over https (404, error code 404000): the service does not have this path: expected PUT /{idScope}/registrations/{id}/register`},
		{"a request over HTTPS with another ID scope", fast(), request("PUT /0neFFFFFFFF/registrations/gw-1/register?api-version=2021-06-01"), `(404, error code 404000): the ID scope does not match: expected "SCOPE", got "0neFFFFFFFF".`},
		{"a request over HTTPS with another method", fast(), request("POST /SCOPE/registrations/gw-1/register?api-version=2021-06-01"), "(405, error code 405000): the path does not support this method"},

		{"a device that the hub does not know", fast(), connect(is("gw-1"), is("h.azure-devices.net/gw-1/?api-version=2021-04-12"), good), `refused "gw-1" at the hub "h.azure-devices.net" from pipe over mqtt (CONNACK 5 for 404001): DPS has not assigned the device "gw-1" to the hub "h.azure-devices.net"`},
		{"a client identifier that is not the device ID at the hub", fast(), connect(is("other"), is("h.azure-devices.net/gw-1/?api-version=2021-04-12"), good), `(CONNACK 5): the client identifier is not the device ID: expected "gw-1", got "other"`},
		{"a wrong key at the hub", fast(), func(t *testing.T, s *simulator.Server) {
			c := ready(t, s)
			c.ask("")
			c.conn.Close()
			connect(is(device), is(enroll.DefaultHub+"/"+device+"/?api-version=2021-04-12"), func(s *simulator.Server) string {
				return token(s.GroupKey(), enroll.DefaultHub+"/devices/"+device, time.Now().Add(time.Hour), "")
			})(t, s)
		}, `(CONNACK 5 for 401003): the token is not signed with the device's key: expected the HMAC-SHA256 of "dpsd-sim.azure-devices.net/devices/sample-device-01\n`},
		{"a token that expires during a connection to the hub", fast(), func(t *testing.T, s *simulator.Server) {
			c := ready(t, s)
			c.ask("")
			c.conn.Close()
			connect(is(device), is(enroll.DefaultHub+"/"+device+"/?api-version=2021-04-12"), func(s *simulator.Server) string {
				return token(s.DeviceKey(device), enroll.DefaultHub+"/devices/"+device, time.Now().Add(time.Minute), "")
			})(t, s)
		}, "(the connection was closed for 401003): the token has expired"},

		{"MQTT without TLS", fast(), plain((*simulator.Server).ServeMQTT, "\x10\x10\x00\x04MQTT\x04\x02\x00\x00"), "refused a client from pipe over mqtt (no TLS): the TLS handshake failed (tls: first record does not look like a TLS handshake): expected TLS, got MQTT without TLS. The service accepts only TLS connections."},
		{"HTTP without TLS", fast(), plain((*simulator.Server).ServeWebSocket, "GET / HTTP/1.1\r\n\r\n"), "got HTTP without TLS."},
		{"a client that does not trust the certificate", fast(), handshake(func(*simulator.Server) *tls.Config { return &tls.Config{ServerName: "localhost"} }), "(no TLS): the client rejected the server's certificate (remote error: tls: "},
		{"a client with another name for the server", fast(), handshake(func(s *simulator.Server) *tls.Config {
			config := clientConfig(s)
			config.ServerName = "other.example"
			return config
		}), "connect to a host name that the server's certificate contains."},
		{"TLS 1.3 only", fast(), handshake(func(s *simulator.Server) *tls.Config {
			config := clientConfig(s)
			config.MinVersion = tls.VersionTLS13
			return config
		}), "expected TLS 1.2. The settings tls_min and tls_max change the supported versions."},
		{"a client that ends the handshake", fast(), func(t *testing.T, s *simulator.Server) {
			conn := pipe(t, s)
			_, _ = conn.Write([]byte{22, 3, 1, 0, 9})
			conn.Close()
		}, "(no TLS): the client ended the TLS handshake without giving a reason. Many clients do this"},
		{"a client that ends the connection after the handshake", fast(), func(t *testing.T, s *simulator.Server) { dial(t, s).conn.Close() }, "(nothing): the client closed the connection after the TLS handshake, before its first request. Programs that check"},
		{"a WebSocket client that ends the connection after the handshake", fast(), func(t *testing.T, s *simulator.Server) { dialWebSocket(t, s).conn.Close() }, "over websocket (nothing): the client closed the connection after the TLS handshake"},
	} {
		bubble(t, c.name, func(t *testing.T) {
			var got refusals
			c.options.OnRefusal = got.add
			s := start(t, c.options)
			c.do(t, s)
			lines := got.lines()
			if want := strings.ReplaceAll(c.want, "SCOPE", s.IDScope()); !strings.Contains(lines, want) {
				t.Errorf("%q does not contain %q", lines, want)
			}
			if len(got.all) != 1 || strings.Contains(lines, "\n") {
				t.Errorf("not one line: %s", lines)
			}
			for _, secret := range []string{s.GroupKey(), s.DeviceKey(device), "sig="} {
				if strings.Contains(lines, secret) {
					t.Errorf("%s contains %s", lines, secret)
				}
			}
			logged := 0
			for _, e := range s.Log() {
				if e.Packet == "REFUSAL" && strings.Contains(lines, e.Refusal.String()) {
					logged++
				}
			}
			if logged != 1 {
				t.Errorf("the log has the explanation %d times", logged)
			}
		})
	}
	for name, do := range map[string]func(*testing.T, *simulator.Server){
		"a device that is assigned": func(t *testing.T, s *simulator.Server) {
			c := ready(t, s)
			c.ask("")
			c.send(0xe0, 0)
		},
		"a client that connects and sends nothing": func(t *testing.T, s *simulator.Server) { pipe(t, s).Close() },
		"the end of the server":                    func(t *testing.T, s *simulator.Server) { dial(t, s); dialWebSocket(t, s); synctest.Wait(); s.Close() },
	} {
		bubble(t, name+" is not reported", func(t *testing.T) {
			var got refusals
			o := fast()
			o.OnRefusal = got.add
			do(t, start(t, o))
			if lines := got.lines(); lines != "" {
				t.Error(lines)
			}
		})
	}
}

// derive returns a device's key of a group, by the package under test: its own tests have the
// published values.
func derive(t *testing.T, groupKey, registrationID string) string {
	t.Helper()
	key, err := enroll.DecodeKey(groupKey)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(enroll.DeriveKey(key, registrationID))
}
