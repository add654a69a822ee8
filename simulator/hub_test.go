package simulator_test

import (
	"bytes"
	"crypto/elliptic"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
	"github.com/dpsd-project/dpsd/simulator/scenario"
)

const hubName = "dpsd-sim.azure-devices.net"

// messages collects telemetry.
type messages struct {
	mu  sync.Mutex
	all []hub.Telemetry
}

func (m *messages) add(one hub.Telemetry) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.all = append(m.all, one)
}

// got returns the messages so far as "{protocol} {hub} {device} [{properties}] {payload}".
func (m *messages) got() []string {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for _, t := range m.all {
		all = append(all, fmt.Sprintf("%s %s %s [%s] %s", t.Protocol, t.Hub, t.Device, t.Properties, t.Payload))
	}
	return all
}

// hubUser is the user name of a device at a hub.
func hubUser(name, id string) string { return name + "/" + id + "/?api-version=2021-04-12" }

// hubToken creates the token of a device at a hub.
func hubToken(key, name, id string) string {
	return token(key, url.QueryEscape(name+"/devices/"+id), time.Now().Add(time.Hour), "")
}

// hubConnect is the CONNECT of a device that uses the default group's key.
func hubConnect(s *simulator.Server, name, id string) []byte {
	return connectPacket(0xc2, 0, id, hubUser(name, id), hubToken(s.DeviceKey(id), name, id))
}

// registered registers a device, disconnects it from DPS, and returns its hub.
func registered(t *testing.T, s *simulator.Server, id string) string {
	t.Helper()
	c := as(t, s, id, version)
	p := c.assign()
	c.send(0xe0, 0)
	return strings.Trim(p.state(t, "assignedHub"), `"`)
}

// withKey connects a device to DPS with a key, up to the SUBACK.
func withKey(t *testing.T, s *simulator.Server, id, key string) *client {
	t.Helper()
	c := dial(t, s)
	c.send(connectPacket(0xc2, 0, id, userNameOf(s, id), token(key, resourceOf(s, id), time.Now().Add(time.Hour), ""))...)
	c.expect("CONNACK", 0x20, 2, 0, 0)
	return c.subscribe()
}

// deriveText derives the key of a device from that of its group, both in base64.
func deriveText(groupKey, id string) string {
	raw, _ := base64.StdEncoding.DecodeString(groupKey)
	return base64.StdEncoding.EncodeToString(enroll.DeriveKey(raw, id))
}

// hubViolations returns the violations of all connections.
func hubViolations(s *simulator.Server) string {
	var all []string
	for _, e := range s.Log() {
		if e.Violation != "" {
			all = append(all, e.Violation)
		}
	}
	return strings.Join(all, "; ")
}

// call sends a CONNECT and expects a return code.
func call(t *testing.T, s *simulator.Server, packet []byte, code byte, certificates ...tls.Certificate) *client {
	t.Helper()
	c := dial(t, s, certificates...)
	c.send(packet...)
	c.expect("CONNACK", 0x20, 2, 0, code)
	return c
}

// online registers a device and connects it to its hub.
func online(t *testing.T, s *simulator.Server, id string) *client {
	t.Helper()
	return call(t, s, hubConnect(s, registered(t, s, id), id), 0)
}

// filters is a SUBSCRIBE to several filters with QoS 1.
func filters(id byte, names ...string) []byte {
	body := [][]byte{{0, id}}
	for _, name := range names {
		body = append(body, text(name), []byte{1})
	}
	return packet(0x82, body...)
}

func events(id string) string { return "devices/" + id + "/messages/events/" }

// lastDetail returns the detail of the last entry of a kind at a hub.
func lastDetail(s *simulator.Server, packet string) string {
	time.Sleep(2 * time.Second) // the server waits a second for the client to close its connection
	synctest.Wait()
	log := s.Log()
	for i := len(log) - 1; i >= 0; i-- {
		if log[i].Packet == packet && log[i].Service == "hub" {
			return log[i].Detail
		}
	}
	return ""
}

func TestHub(t *testing.T) {
	bubble(t, "an assigned device connects with its key, and its telemetry is acknowledged and shown", func(t *testing.T) {
		var m messages
		s := start(t, simulator.Options{OnTelemetry: m.add})
		c := online(t, s, device)
		c.send(publishPacket(0x32, events(device)+"$.ct=application%2Fjson", 7, `{"t":21}`)...)
		c.expect("PUBACK", 0x40, 2, 0, 7)
		c.send(publishPacket(0x30, strings.TrimSuffix(events(device), "/"), 0, "x")...)
		c.lives()
		want := []string{
			"mqtt " + hubName + " " + device + ` [$.ct=application%2Fjson] {"t":21}`,
			"mqtt " + hubName + " " + device + " [] x",
		}
		if d := cmp.Diff(want, m.got()); d != "" {
			t.Error(d)
		}
	})
	bubble(t, "DPS and the hub are told apart by the user name on the same listener, and in the packet log", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := online(t, s, device)
		c.lives()
		c.send(0xe0, 0)
		c.expectEnd("the end")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		services := map[string][]string{}
		for _, e := range s.Log() {
			services[e.Service] = append(services[e.Service], e.Packet)
			if e.Service == "hub" && e.Packet != "CLOSE" && (e.Hub != hubName || e.DeviceID != device || e.RegistrationID != device) {
				t.Errorf("%+v", e)
			}
			if strings.Contains(fmt.Sprintf("%+v", e), "sig=") {
				t.Errorf("a secret: %+v", e)
			}
		}
		if d := cmp.Diff([]string{"CONNECT", "CONNACK", "PINGREQ", "PINGRESP", "DISCONNECT", "CLOSE"}, services["hub"]); d != "" {
			t.Error(d)
		}
		if len(services["dps"]) == 0 || len(services[""]) != 4 {
			t.Error(services)
		}
		if sum := simulator.SummarizeDevices(s.Log()); len(sum) != 1 || sum[0].Connections != 1 || sum[0].Registers != 1 {
			t.Errorf("connections to a hub count: %+v", sum)
		}
	})
	bubble(t, "a second connection of a device replaces the first, and neither another device nor DPS does", func(t *testing.T) {
		s := start(t, simulator.Options{})
		first := online(t, s, device)
		other := online(t, s, "other")
		ready(t, s)
		first.lives()
		second := call(t, s, hubConnect(s, hubName, device), 0)
		first.expectEnd("taken over")
		if d := lastDetail(s, "CLOSE"); !strings.HasPrefix(d, "400027 ") {
			t.Error(d)
		}
		second.lives()
		other.lives()
		call(t, s, connectPacket(0xc2, 0, device, hubUser(hubName, device), hubToken(s.GroupKey(), hubName, device)), 5)
		second.lives()
	})
	bubble(t, "the connection ends with 401003 when the token expires", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := online(t, s, device)
		begin := time.Now()
		time.Sleep(time.Hour - time.Second)
		c.lives()
		c.expectEnd("expired")
		if d := time.Since(begin); d > time.Hour+2*time.Second {
			t.Error(d)
		}
		if d := lastDetail(s, "CLOSE"); !strings.HasPrefix(d, "401003 ") {
			t.Error(d)
		}
	})
	bubble(t, "a device that has moved is known only to its new hub", func(t *testing.T) {
		in := func(name string) *enroll.Enrollments { return keys(t, enroll.Grant{Hubs: []string{name}}) }
		s := start(t, simulator.Options{Enrollments: in("hub-a.azure-devices.net")})
		key := start(t, simulator.Options{}).DeviceKey(device)
		at := func(name string, code byte) {
			t.Helper()
			call(t, s, connectPacket(0xc2, 0, device, hubUser(name, device), hubToken(key, name, device)), code)
		}
		withKey(t, s, device, key).assign()
		at("hub-a.azure-devices.net", 0)
		at("hub-b.azure-devices.net", 5)
		if err := s.SetEnrollments(in("hub-b.azure-devices.net")); err != nil {
			t.Fatal(err)
		}
		withKey(t, s, device, key).assign()
		at("hub-a.azure-devices.net", 5)
		if d := lastDetail(s, "CONNACK"); !strings.HasPrefix(d, "404001 ") {
			t.Error(d)
		}
		at("hub-b.azure-devices.net", 0)
	})
	bubble(t, "the hub knows the devices again after a restart", func(t *testing.T) {
		dir := t.TempDir()
		s := start(t, simulator.Options{Directory: dir})
		registered(t, s, device)
		s.Close()
		s = start(t, simulator.Options{Directory: dir})
		call(t, s, hubConnect(s, hubName, device), 0)
	})
	bubble(t, "a will is shown unless the device disconnects", func(t *testing.T) {
		var m messages
		s := start(t, simulator.Options{OnTelemetry: m.add})
		registered(t, s, device)
		will := func(topic string) []byte {
			return connectPacket(0xc6, 0, device, topic, "gone", hubUser(hubName, device), hubToken(s.DeviceKey(device), hubName, device))
		}
		c := call(t, s, will(events(device)), 0)
		c.send(0xe0, 0)
		c.expectEnd("the end")
		if got := m.got(); got != nil {
			t.Error(got)
		}
		call(t, s, will(events(device)+"a=b"), 0).conn.Close()
		time.Sleep(time.Minute)
		if d := cmp.Diff([]string{"mqtt " + hubName + " " + device + " [a=b] gone"}, m.got()); d != "" {
			t.Error(d)
		}
		wrong := dial(t, s)
		wrong.send(will("devices/another/messages/events/")...)
		wrong.expectEnd("the topic is that of another device")
		if synctest.Wait(); !strings.Contains(hubViolations(s), "the topic of the will") {
			t.Error(hubViolations(s))
		}
	})
	bubble(t, "the certificate of the server has both names of every linked hub, also after a change of the enrollments", func(t *testing.T) {
		s := start(t, simulator.Options{})
		for _, name := range []string{"hub-x.azure-devices.net", "hub-y.device.azure-devices.net", "hub.example"} {
			if err := s.SetEnrollments(keys(t, enroll.Grant{Hubs: []string{name}})); err != nil {
				t.Fatal(err)
			}
			for _, n := range hub.Names(name) {
				config := clientConfig(s)
				config.ServerName = n
				if err := tls.Client(pipe(t, s), config).Handshake(); err != nil {
					t.Errorf("%s: %v", n, err)
				}
			}
		}
	})
	bubble(t, "telemetry works over WebSocket", func(t *testing.T) {
		var m messages
		s := start(t, simulator.Options{OnTelemetry: m.add})
		registered(t, s, device)
		c, _ := webSocket(t, s, "/$iothub/websocket", subprotocol)
		c.send(frame(0x82, hubConnect(s, hubName, device))...)
		c.expect("CONNACK", 0x82, 4, 0x20, 2, 0, 0)
		c.send(frame(0x82, publishPacket(0x32, events(device), 7, "x"))...)
		c.expect("PUBACK", 0x82, 4, 0x40, 2, 0, 7)
		if got := m.got(); len(got) != 1 || !strings.HasPrefix(got[0], "websocket ") {
			t.Error(got)
		}
	})
}

// Each is a CONNECT to a hub, with its return code and the reason in the packet log.
func TestHubIdentity(t *testing.T) {
	const shared, own, moduleUser = "c2hhcmVkLWtleS1zaGFyZWQta2V5", "b3duLWtleS1vd24ta2V5LW93bi1rZXk=", hubName + "/" + device + "/module/?api-version=2021-04-12"
	groups := &enroll.Enrollments{
		Individuals: []enroll.Individual{
			{RegistrationID: "press-7", DeviceID: "Press-7-at-hub", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: own, SecondaryKey: shared}},
		},
		Groups: []enroll.Group{{Name: "keys", Attestation: enroll.Attestation{Type: "symmetric-key", PrimaryKey: shared}}},
	}
	in := func(d time.Duration) time.Time { return time.Now().Add(d) }
	escaped := func(name, id string) string { return url.QueryEscape(name + "/devices/" + id) }
	for _, c := range []struct {
		name       string
		id         string // client identifier
		user       string
		token      func() string
		code       byte
		detail     string
		serverName string
	}{
		{name: "a derived key", id: device, user: hubUser(hubName, device), token: func() string { return hubToken(deriveText(shared, device), hubName, device) }},
		{name: "lower-case escapes in sr", id: device, user: hubUser(hubName, device), token: func() string {
			return token(deriveText(shared, device), strings.ReplaceAll(escaped(hubName, device), "%2F", "%2f"), in(time.Hour), "")
		}},
		{name: "an sr without escapes", id: device, user: hubUser(hubName, device), token: func() string {
			return token(deriveText(shared, device), hubName+"/devices/"+device, in(time.Hour), "")
		}},
		{name: "an sr for a part of the device", id: device, user: hubUser(hubName, device), token: func() string {
			return token(deriveText(shared, device), escaped(hubName, device)+"%2Fmessages", in(time.Hour), "")
		}},
		{name: "no api-version", id: device, user: hubName + "/" + device, token: func() string { return hubToken(deriveText(shared, device), hubName, device) }},
		{name: "an api-version without a question mark", id: device, user: hubName + "/" + device + "/api-version=2016-11-14", token: func() string { return hubToken(deriveText(shared, device), hubName, device) }},
		{name: "more parameters", id: device, user: hubUser(hubName, device) + "&DeviceClientType=py-azure-iot-device%2F2.14.0", token: func() string { return hubToken(deriveText(shared, device), hubName, device) }},
		{name: "the device name of the hub", id: device, user: hubUser("dpsd-sim.device.azure-devices.net", device), token: func() string {
			return hubToken(deriveText(shared, device), "dpsd-sim.device.azure-devices.net", device)
		}},
		{name: "the classic name in the user name and the device name in sr", id: device, user: hubUser(hubName, device), token: func() string {
			return hubToken(deriveText(shared, device), "dpsd-sim.device.azure-devices.net", device)
		}},
		{name: "the hub in capitals", id: device, user: hubUser(strings.ToUpper(hubName), device), token: func() string { return hubToken(deriveText(shared, device), hubName, device) }},
		{name: "the key of an individual enrollment and its device ID", id: "Press-7-at-hub", user: hubUser(hubName, "Press-7-at-hub"), token: func() string { return hubToken(own, hubName, "Press-7-at-hub") }},
		{name: "the secondary key of an individual enrollment", id: "Press-7-at-hub", user: hubUser(hubName, "Press-7-at-hub"), token: func() string { return hubToken(shared, hubName, "Press-7-at-hub") }},
		{name: "the server name of TLS is the device name of the hub", id: device, user: hubUser(hubName, device), serverName: "dpsd-sim.device.azure-devices.net", token: func() string { return hubToken(deriveText(shared, device), hubName, device) }},

		{name: "a device ID in other letters", id: "press-7-AT-HUB", user: hubUser(hubName, "press-7-AT-HUB"), token: func() string { return hubToken(own, hubName, "press-7-AT-HUB") }, code: 5, detail: "404001 DeviceNotFound: DPS has not assigned"},
		{name: "a device that is not registered", id: "stranger", user: hubUser(hubName, "stranger"), token: func() string { return hubToken(deriveText(shared, "stranger"), hubName, "stranger") }, code: 5, detail: "404001 DeviceNotFound: DPS has not assigned"},
		{name: "another hub", id: device, user: hubUser("hub-b.azure-devices.net", device), token: func() string { return hubToken(deriveText(shared, device), "hub-b.azure-devices.net", device) }, code: 5, detail: "404001 DeviceNotFound: DPS has not assigned"},
		{name: "a module that does not exist", id: device + "/module", user: moduleUser, token: func() string { return hubToken(deriveText(shared, device), hubName, device) }, code: 5, detail: "404010 ModuleNotFound: the device has no module"},
		{name: "the key of the group itself", id: device, user: hubUser(hubName, device), token: func() string { return hubToken(shared, hubName, device) }, code: 5, detail: "401003 IotHubUnauthorized: the token is not signed with the device's key"},
		{name: "the group's key for a device with an individual enrollment", id: "Press-7-at-hub", user: hubUser(hubName, "Press-7-at-hub"), token: func() string { return hubToken(deriveText(shared, "press-7"), hubName, "Press-7-at-hub") }, code: 5, detail: "401003 IotHubUnauthorized: the token is not signed with the device's key"},
		{name: "an expired token", id: device, user: hubUser(hubName, device), token: func() string {
			return token(deriveText(shared, device), escaped(hubName, device), in(-time.Second), "")
		}, code: 5, detail: "401003 IotHubUnauthorized: the token has expired"},
		{name: "a token for another device", id: device, user: hubUser(hubName, device), token: func() string { return hubToken(deriveText(shared, device), hubName, device+"2") }, code: 5, detail: "401003 IotHubUnauthorized: the token is for a different resource"},
		{name: "a token for DPS", id: device, user: hubUser(hubName, device), token: func() string {
			return token(deriveText(shared, device), url.QueryEscape("0ne/registrations/"+device), in(time.Hour), "&skn=registration")
		}, code: 5, detail: "401003 IotHubUnauthorized: the token's skn names a policy"},
		{name: "a password that is not a token", id: device, user: hubUser(hubName, device), token: func() string { return shared }, code: 5, detail: "401003 IotHubUnauthorized: the password does not begin with SharedAccessSignature"},
		{name: "no password", id: device, user: hubUser(hubName, device), token: func() string { return "" }, code: 5, detail: "401003 IotHubUnauthorized: the client sent neither a token nor a certificate"},
		{name: "a client identifier that is not the device ID", id: "another", user: hubUser(hubName, device), token: func() string { return hubToken(deriveText(shared, device), hubName, device) }, code: 5, detail: "the client identifier is not the device ID"},
		{name: "a user name without a device", id: device, user: hubName + "/?api-version=2021-04-12", token: func() string { return hubToken(deriveText(shared, device), hubName, device) }, code: 5, detail: "the user name does not have the form"},
		{name: "a user name of neither form, at the server name of a hub", id: device, user: device, serverName: hubName, token: func() string { return hubToken(deriveText(shared, device), hubName, device) }, code: 5, detail: "the user name does not have the form"},
		{name: "a user name that is not percent-encoded", id: device, user: hubUser(hubName, device) + "&a=%zz", token: func() string { return hubToken(deriveText(shared, device), hubName, device) }, code: 5, detail: "the user name is not percent-encoded"},
		{name: "the server name of another hub", id: device, user: hubUser("hub-b.azure-devices.net", device), serverName: hubName, token: func() string { return hubToken(deriveText(shared, device), "hub-b.azure-devices.net", device) }, code: 5, detail: "the TLS server name belongs to a different hub"},
	} {
		verb := "is accepted"
		if c.code != 0 {
			verb = "gets CONNACK 5"
		}
		bubble(t, c.name+" "+verb, func(t *testing.T) {
			s := start(t, simulator.Options{Enrollments: groups})
			withKey(t, s, device, deriveText(shared, device)).assign()
			withKey(t, s, "press-7", own).assign()
			config := clientConfig(s)
			if c.serverName != "" {
				config.ServerName = c.serverName
			}
			conn := tls.Client(pipe(t, s), config)
			if err := conn.Handshake(); err != nil {
				t.Fatal(err)
			}
			cl := newClient(t, conn)
			if password := c.token(); password == "" {
				cl.send(connectPacket(0x82, 0, c.id, c.user)...)
			} else {
				cl.send(connectPacket(0xc2, 0, c.id, c.user, password)...)
			}
			cl.expect("CONNACK", 0x20, 2, 0, c.code)
			if c.code == 0 {
				cl.lives()
				return
			}
			cl.expectEnd("closed [MQTT-3.2.2-5]")
			if d := lastDetail(s, "CONNACK"); !strings.HasPrefix(d, c.detail) || strings.Contains(d, "sig=") {
				t.Errorf("%q, want %q", d, c.detail)
			}
		})
	}
}

func TestHubCertificates(t *testing.T) {
	connect := connectPacket(0x82, 0, device, hubUser(hubName, device))
	bubble(t, "a device that registered with a certificate connects with one of its enrollment", func(t *testing.T) {
		s := start(t, simulator.Options{})
		certificate := deviceCertificate(t, s, device)
		with(t, s, device, certificate).accepted(device)
		call(t, s, connect, 0, certificate).lives()
		call(t, s, connect, 0, deviceCertificate(t, s, device)).lives()
		call(t, s, connect, 5, deviceCertificate(t, s, "another"))
		if d := lastDetail(s, "CONNACK"); !strings.HasPrefix(d, "401003 IotHubUnauthorized: the common name") {
			t.Error(d)
		}
		call(t, s, connect, 5, deviceCertificate(t, start(t, simulator.Options{}), device))
		if d := lastDetail(s, "CONNACK"); !strings.HasPrefix(d, "401003 ") {
			t.Error(d)
		}
		call(t, s, hubConnect(s, hubName, device), 5)
		if d := lastDetail(s, "CONNACK"); !strings.Contains(d, "registered with a certificate") {
			t.Error(d)
		}
	})
	bubble(t, "a device that registered with a key does not connect with a certificate of another group", func(t *testing.T) {
		s := start(t, simulator.Options{})
		registered(t, s, device)
		call(t, s, connect, 5, deviceCertificate(t, s, device))
		if d := lastDetail(s, "CONNACK"); !strings.Contains(d, "registered with a key") {
			t.Error(d)
		}
	})
	bubble(t, "a device connects with the certificate that it was issued, also without the issuing CA, until it expires", func(t *testing.T) {
		s := start(t, simulator.Options{Enrollments: keys(t, enroll.Grant{CertificateLife: 7 * 24 * time.Hour})})
		key := ecKey(t, elliptic.P384())
		csr := base64.StdEncoding.EncodeToString(request(t, key, named(device)))
		chain := as(t, s, device, preview).outcome(csrBody(t, csr)).chain(t)
		issued := tls.Certificate{PrivateKey: key}
		for _, c := range chain {
			issued.Certificate = append(issued.Certificate, c.Raw)
		}
		call(t, s, connect, 0, issued).lives()
		issued.Certificate = issued.Certificate[:1]
		call(t, s, connect, 0, issued).lives()
		time.Sleep(7 * 24 * time.Hour)
		call(t, s, connect, 5, issued)
	})
}

func TestHubPackets(t *testing.T) {
	const get, patch = "$iothub/twin/GET/?$rid=", "$iothub/twin/PATCH/properties/reported/?$rid="
	bubble(t, "the twin is read, changed by a merge patch, and read again", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := online(t, s, device)
		c.send(filters(1, "$iothub/twin/res/#")...)
		c.expect("SUBACK", 0x90, 3, 0, 1, 1)
		ask := func(topic, body, wantTopic, want string) {
			t.Helper()
			c.send(publishPacket(0x30, topic, 0, body)...)
			p := c.expectPublish("an answer")
			c.puback(p.id)
			if p.topic != wantTopic || p.payload != want || p.flags != 2 {
				t.Errorf("%+v", p)
			}
		}
		ask(get+"a", "", "$iothub/twin/res/200/?$rid=a", `{"desired":{"$version":1},"reported":{"$version":1}}`)
		ask(patch+"b", `{"a":{"b":1.0,"c":null},"d":[1]}`, "$iothub/twin/res/204/?$rid=b&$version=2", "")
		ask(patch+"c", `{"a":{"e":"<&>"},"d":null}`, "$iothub/twin/res/204/?$rid=c&$version=3", "")
		ask(get+"d", "", "$iothub/twin/res/200/?$rid=d", `{"desired":{"$version":1},"reported":{"$version":3,"a":{"b":1.0,"e":"<&>"}}}`)
		ask(patch+"e", `[1]`, "$iothub/twin/res/400/?$rid=e", `{"message":"the reported properties are not a JSON object"}`)
		ask(patch+"f", `{} {}`, "$iothub/twin/res/400/?$rid=f", `{"message":"the reported properties are not a JSON object"}`)
		ask(patch+"f2", `{}]`, "$iothub/twin/res/400/?$rid=f2", `{"message":"the reported properties are not a JSON object"}`)
		ask(patch+"g", `{"$version":9}`, "$iothub/twin/res/400/?$rid=g", `{"message":"the name of a reported property begins with $"}`)
		again := call(t, s, hubConnect(s, hubName, device), 0)
		again.send(filters(1, "$iothub/twin/res/#")...)
		again.expect("SUBACK", 0x90, 3, 0, 1, 1)
		again.send(publishPacket(0x30, get+"1", 0, "")...)
		if p := again.expectPublish("the same twin"); !strings.Contains(p.payload, `"$version":3`) {
			t.Error(p)
		}
	})
	bubble(t, "a device that has not subscribed to the answers, or no longer, receives none", func(t *testing.T) {
		s := start(t, simulator.Options{})
		c := online(t, s, device)
		c.send(publishPacket(0x32, get+"1", 7, "")...)
		c.expect("PUBACK", 0x40, 2, 0, 7)
		c.lives()
		c.send(slices.Concat(filters(1, "$iothub/twin/res/#"), packet(0xa2, []byte{0, 2}, text("$iothub/twin/res/#")), publishPacket(0x30, get+"1", 0, ""))...)
		c.expect("SUBACK and UNSUBACK", 0x90, 3, 0, 1, 1, 0xb0, 2, 0, 2)
		c.lives()
	})
	bubble(t, "every filter of a hub is granted", func(t *testing.T) {
		c := online(t, start(t, simulator.Options{}), device)
		all := []string{"$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#", "devices/" + device + "/messages/devicebound/#"}
		c.send(filters(1, all...)...)
		c.expect("SUBACK", 0x90, 6, 0, 1, 1, 1, 1, 1)
		c.lives()
	})
	for _, c := range []struct {
		name   string
		packet []byte
		says   string
	}{
		{"a filter of another device", filters(1, "devices/another/messages/devicebound/#"), "a hub is not an MQTT broker"},
		{"the filter of DPS", filters(1, "$dps/registrations/res/#"), "a hub is not an MQTT broker"},
		{"a topic of its own", publishPacket(0x30, "sensors/1", 0, ""), "a hub is not an MQTT broker"},
		{"the telemetry of another device", publishPacket(0x30, events("another"), 0, ""), "a hub is not an MQTT broker"},
		{"a longer name after events", publishPacket(0x30, "devices/"+device+"/messages/events2", 0, ""), "a hub is not an MQTT broker"},
		{"properties that are not percent-encoded", publishPacket(0x30, events(device)+"a=%", 0, ""), "not percent-encoded"},
		{"a twin request without $rid", publishPacket(0x30, "$iothub/twin/GET/?rid=1", 0, ""), "no $rid"},
		{"QoS 2", publishPacket(0x34, events(device), 1, ""), "QoS 2"},
		{"a message of more than 256 KB", publishPacket(0x30, events(device), 0, strings.Repeat("x", 256<<10+1)), "256 KB"},
	} {
		bubble(t, c.name+" ends the connection", func(t *testing.T) {
			s := start(t, simulator.Options{})
			cl := online(t, s, device)
			cl.send(c.packet...)
			cl.expectEnd("closed")
			if synctest.Wait(); !strings.Contains(hubViolations(s), c.says) {
				t.Errorf("%q, want %q", hubViolations(s), c.says)
			}
		})
	}
	bubble(t, "a message of 256 KB passes", func(t *testing.T) {
		c := online(t, start(t, simulator.Options{}), device)
		c.send(publishPacket(0x32, events(device), 1, strings.Repeat("x", 256<<10))...)
		c.expect("PUBACK", 0x40, 2, 0, 1)
	})
}

// visitHub connects a device to its hub, sends telemetry, and reads the twin. It returns the
// first thing that goes wrong, or "connected".
func visitHub(t *testing.T, s *simulator.Server, name string) string {
	c := dial(t, s)
	defer c.conn.Close()
	read := func() (byte, []byte, string) {
		_ = c.conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.in.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, nil, "no answer"
		}
		first, body, err := c.readPacket()
		if err != nil {
			return 0, nil, "closed"
		}
		return first, body, ""
	}
	c.send(hubConnect(s, name, "gateway-1")...)
	_, body, wrong := read()
	switch {
	case wrong != "":
		return wrong + " at CONNECT"
	case body[1] != 0:
		return fmt.Sprintf("CONNACK %d", body[1])
	}
	c.send(filters(1, "$iothub/twin/res/#")...)
	if _, body, wrong = read(); wrong != "" {
		return wrong + " at SUBSCRIBE"
	} else if body[2] != 1 {
		return fmt.Sprintf("SUBACK %d", body[2])
	}
	c.send(publishPacket(0x32, events("gateway-1"), 2, "{}")...)
	if first, _, wrong := read(); wrong != "" {
		return wrong + " at telemetry"
	} else if first != 0x40 {
		t.Errorf("%#x is not a PUBACK", first)
	}
	c.send(publishPacket(0x30, "$iothub/twin/GET/?$rid=1", 0, "")...)
	first, body, wrong := read()
	if wrong != "" {
		return wrong + " at the twin"
	} else if first>>4 != 3 {
		t.Errorf("%#x is not a PUBLISH", first)
	}
	status := regexp.MustCompile(`\$iothub/twin/res/(\d+)/`).FindSubmatch(body)
	if string(status[1]) != "200" {
		return "twin " + string(status[1])
	}
	c.send(0xc0, 0)
	for { // the answer may not have been acknowledged
		if first, _, wrong = read(); wrong != "" {
			return wrong + " at PINGREQ"
		} else if first == 0xd0 {
			return "connected"
		}
	}
}

// Each example of a fault at a hub does what its line "# hub:" says: what a device experiences
// in its visits, without repetitions.
func TestEveryHubExampleOfTheDocumentation(t *testing.T) {
	text, err := os.ReadFile("../docs/simulator.md")
	if err != nil {
		t.Fatal(err)
	}
	examples := regexp.MustCompile("(?s)```toml\n(# dpsd: assigned\n# hub: ([^\n]+)\n.*?)```").FindAllSubmatch(text, -1)
	if len(examples) < 8 {
		t.Errorf("%d examples", len(examples))
	}
	for _, e := range examples {
		bubble(t, string(e[2]), func(t *testing.T) {
			sc, err := scenario.Parse("example", bytes.NewReader(e[1]))
			if err != nil {
				t.Fatal(err)
			}
			s := start(t, simulator.Options{Scenario: sc})
			name := registered(t, s, "gateway-1")
			var got []string
			for range 6 {
				got = append(got, visitHub(t, s, name))
				time.Sleep(30 * time.Second)
			}
			if d := cmp.Diff(strings.Split(string(e[2]), ", "), slices.Compact(got)); d != "" {
				t.Error(d)
			}
		})
	}
}

// askHub sends an HTTPS request to a hub, and returns the status, the headers and the body of the
// response, or "closed" as the body.
func (c *client) askHub(method, target, host, authorization, body string) (int, http.Header, string) {
	c.t.Helper()
	head := method + " " + target + " HTTP/1.1\r\nHost: " + host + "\r\n"
	if authorization != "" {
		head += "Authorization: " + authorization + "\r\n"
	}
	c.send([]byte(head + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body))...)
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return 0, nil, "closed"
	}
	text, err := io.ReadAll(r.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	return r.StatusCode, r.Header, string(text)
}

func TestHubOverHTTPS(t *testing.T) {
	const modules = "/devices/" + device + "/modules?api-version=2017-11-08-preview"
	bubble(t, "the modules, a waiting message and telemetry are answered, and the MQTT connection stays", func(t *testing.T) {
		var m messages
		s := start(t, simulator.Options{OnTelemetry: m.add})
		mqtt := online(t, s, device)
		good := hubToken(s.DeviceKey(device), hubName, device)
		c := dialWebSocket(t, s)
		for _, a := range []struct {
			method, target, host, authorization, body string
			status                                    int
			want                                      string
		}{
			{"GET", modules, hubName, good, "", 200, "[]"},
			{"GET", modules, hubName + ":443", good, "", 200, "[]"},
			{"GET", modules, "dpsd-sim.device.azure-devices.net", good, "", 200, "[]"},
			{"GET", "/devices/" + device + "/messages/deviceBound?api-version=2020-03-13", hubName, good, "", 204, ""},
			{"POST", "/devices/" + device + "/messages/events?api-version=2020-03-13", hubName, good, "hello", 204, ""},
			{"GET", modules, hubName, "", "", 401, `{"errorCode":401003,"Message":"ErrorCode:IotHubUnauthorized;IotHubUnauthorized"}`},
			{"GET", modules, hubName, hubToken(s.GroupKey(), hubName, device), "", 401, `{"errorCode":401003,"Message":"ErrorCode:IotHubUnauthorized;IotHubUnauthorized"}`},
			{"GET", "/devices/stranger/modules", hubName, good, "", 404, `{"errorCode":404001,"Message":"ErrorCode:DeviceNotFound;DeviceNotFound"}`},
			{"GET", modules, "hub-b.azure-devices.net", good, "", 404, `{"errorCode":404001,"Message":"ErrorCode:DeviceNotFound;DeviceNotFound"}`},
			{"PUT", modules, hubName, good, "", 404, `{"errorCode":404000,"Message":"ErrorCode:NotFound;NotFound"}`},
			{"POST", "/devices/" + device + "/messages/events", hubName, good, strings.Repeat("x", 256<<10), 204, ""},
		} {
			if status, _, body := c.askHub(a.method, a.target, a.host, a.authorization, a.body); status != a.status || body != a.want {
				t.Errorf("%s %s at %s: %d %s, want %d %s", a.method, a.target, a.host, status, body, a.status, a.want)
			}
		}
		if status, _, body := c.askHub("POST", "/devices/"+device+"/messages/events", hubName, good, strings.Repeat("x", 256<<10+1)); status != 413 {
			t.Errorf("%d %s", status, body)
		}
		if got := m.got(); len(got) != 2 || got[0] != "https "+hubName+" "+device+" [] hello" {
			t.Errorf("%.100q", got)
		}
		mqtt.lives()
		var requests, responses int
		for _, e := range s.Log() {
			if e.Packet != "REQUEST" && e.Packet != "RESPONSE" {
				continue
			}
			if e.Service != "hub" || e.Protocol != "https" || e.DeviceID == "" || strings.Contains(fmt.Sprintf("%+v", e), "sig=") {
				t.Errorf("%+v", e)
			}
			if e.Packet == "REQUEST" {
				requests++
			} else if responses++; *e.ReturnCode >= 400 && e.Detail == "" {
				t.Errorf("%+v", e)
			}
		}
		if requests != 12 || responses != 12 {
			t.Error(requests, responses)
		}
	})
	bubble(t, "a certificate authenticates a request", func(t *testing.T) {
		s := start(t, simulator.Options{})
		certificate := deviceCertificate(t, s, device)
		with(t, s, device, certificate).accepted(device)
		c := openAPI(t, s, certificate)
		if status, _, body := c.askHub("GET", modules, hubName, "", ""); status != 200 || body != "[]" {
			t.Error(status, body)
		}
	})
	for _, f := range []struct {
		name   string
		rule   simulator.Rule
		status int
		body   string
		after  string
	}{
		{"a disabled device", simulator.Rule{ErrorCode: 403012, ErrorMessage: "DeviceDisabled"}, 403, `{"errorCode":403012,"Message":"ErrorCode:DeviceDisabled;DeviceDisabled"}`, ""},
		{"a throttled request", simulator.Rule{Status: 429, ErrorCode: 429001, ErrorMessage: "ThrottlingException", RetryAfter: "30"}, 429, `{"errorCode":429001,"Message":"ErrorCode:ThrottlingException;ThrottlingException"}`, "30"},
		{"a status alone", simulator.Rule{Status: 503}, 503, `{"errorCode":503000,"Message":"ErrorCode:Service Unavailable;Service Unavailable"}`, ""},
		{"a body", simulator.Rule{Body: new("<html>")}, 200, "<html>", ""},
		{"a status and a body", simulator.Rule{Status: 502, Body: new("Bad Gateway")}, 502, "Bad Gateway", ""},
		{"close", simulator.Rule{Close: true}, 0, "closed", ""},
		{"reset", simulator.Rule{Reset: true}, 0, "closed", ""},
		{"a delay", simulator.Rule{Delay: time.Minute}, 200, "[]", ""},
		{"another device", simulator.Rule{Device: "x", Close: true}, 200, "[]", ""},
		{"another protocol", simulator.Rule{Protocol: "mqtt", Close: true}, 200, "[]", ""},
	} {
		bubble(t, "at hub-request: "+f.name, func(t *testing.T) {
			f.rule.On = simulator.OnHubRequest
			s := script(t, f.rule)
			registered(t, s, device)
			begin := time.Now()
			c := dialWebSocket(t, s)
			_ = c.conn.SetReadDeadline(time.Time{})
			status, header, body := c.askHub("GET", modules, hubName, hubToken(s.DeviceKey(device), hubName, device), "")
			if status != f.status || body != f.body || header.Get("Retry-After") != f.after {
				t.Error(status, header, body)
			}
			if d := time.Since(begin); d != f.rule.Delay {
				t.Error(d)
			}
		})
	}
}

func TestEachRefusalOfARequestToAHubIsReportedOnce(t *testing.T) {
	overHTTPS := func(method, target string) func(*testing.T, *simulator.Server) {
		return func(t *testing.T, s *simulator.Server) {
			dialWebSocket(t, s).askHub(method, target, hubName, hubToken(s.DeviceKey(device), hubName, device), "")
		}
	}
	twin := func(t *testing.T, s *simulator.Server) {
		c := call(t, s, hubConnect(s, hubName, device), 0)
		c.send(filters(1, "$iothub/twin/res/#")...)
		c.expect("SUBACK", 0x90, 3, 0, 1, 1)
		c.send(publishPacket(0x30, "$iothub/twin/PATCH/properties/reported/?$rid=1", 0, "[]")...)
		c.expectPublish("an answer")
	}
	who := `refused "` + device + `" at the hub "` + hubName + `" from pipe over `
	for _, c := range []struct {
		name string
		rule simulator.Rule
		do   func(*testing.T, *simulator.Server)
		want string
	}{
		{"a device that the hub does not know", simulator.Rule{On: "ping"}, overHTTPS("GET", "/devices/stranger/modules"), `over https (404, error code 404001): DPS has not assigned the device "stranger"`},
		{"a request that the hub does not have", simulator.Rule{On: "ping"}, overHTTPS("GET", "/devices/"+device+"/files"), who + `https (404, error code 404000): the hub does not support GET "/devices/` + device + `/files"`},
		{"a rule for a request", simulator.Rule{On: "hub-request", Status: 429, ErrorCode: 429001}, overHTTPS("GET", "/devices/"+device+"/modules"), who + "https (429, error code 429001): a scenario rule refuses this"},
		{"reported properties that are not an object", simulator.Rule{On: "ping"}, twin, who + "mqtt (twin 400): the reported properties are not a JSON object"},
		{"a rule for the twin", simulator.Rule{On: "hub-twin", Status: 429}, twin, who + "mqtt (twin 429): a scenario rule refuses this"},
		{"a rule with an error code for CONNECT", simulator.Rule{On: "hub-connect", ErrorCode: 403012}, func(t *testing.T, s *simulator.Server) { call(t, s, hubConnect(s, hubName, device), 5) }, who + "mqtt (CONNACK 5 for 403012): a scenario rule refuses this"},
	} {
		bubble(t, c.name, func(t *testing.T) {
			var got refusals
			s := start(t, simulator.Options{OnRefusal: got.add, Scenario: &simulator.Scenario{Rules: []simulator.Rule{c.rule}}})
			registered(t, s, device)
			c.do(t, s)
			if lines := got.lines(); len(got.all) != 1 || !strings.Contains(lines, c.want) {
				t.Errorf("%s, want %s", lines, c.want)
			}
		})
	}
}

func TestHubFaults(t *testing.T) {
	bubble(t, "a rule for another hub or another device does not act, and each device counts separately", func(t *testing.T) {
		s := script(t,
			simulator.Rule{On: "hub-connect", Hub: "hub-b.*", Connack: new(3)},
			simulator.Rule{On: "hub-connect", Device: "gw-2*", Connack: new(2)},
			simulator.Rule{On: "hub-connect", Hub: "dpsd-sim.device.*", Times: 1, Connack: new(4)},
			simulator.Rule{On: "connect", Times: 1, Skip: 9, Connack: new(1)})
		for _, id := range []string{"gw-1", "gw-3"} {
			registered(t, s, id)
			call(t, s, hubConnect(s, hubName, id), 4)
			call(t, s, hubConnect(s, hubName, id), 0)
		}
		registered(t, s, "gw-21")
		call(t, s, hubConnect(s, hubName, "gw-21"), 2)
	})
	bubble(t, "connack 0 accepts a client without checking it", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "hub-connect", Connack: new(0)})
		call(t, s, hubConnect(s, hubName, "stranger"), 0).lives()
	})
	bubble(t, "the code of a refusal is in the packet log", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "hub-connect", ErrorCode: 403012, ErrorMessage: "DeviceDisabled"})
		registered(t, s, device)
		call(t, s, hubConnect(s, hubName, device), 5)
		if d := lastDetail(s, "CONNACK"); d != "403012 DeviceDisabled: scenario" {
			t.Error(d)
		}
	})
	bubble(t, "telemetry that a rule drops is not shown, and telemetry without a PUBACK is", func(t *testing.T) {
		var m messages
		s := start(t, simulator.Options{OnTelemetry: m.add, Scenario: &simulator.Scenario{Rules: []simulator.Rule{
			{On: "hub-publish", Times: 1, Silent: true}, {On: "hub-publish", NoPuback: true},
		}}})
		c := online(t, s, device)
		c.send(publishPacket(0x32, events(device), 1, "lost")...)
		c.send(publishPacket(0x32, events(device), 2, "kept")...)
		c.lives()
		if d := cmp.Diff([]string{"mqtt " + hubName + " " + device + " [] kept"}, m.got()); d != "" {
			t.Error(d)
		}
	})
	bubble(t, "a rule gives the body of an answer for the twin", func(t *testing.T) {
		s := script(t, simulator.Rule{On: "hub-twin", Body: new("{")})
		c := online(t, s, device)
		c.send(filters(1, "$iothub/twin/res/#")...)
		c.expect("SUBACK", 0x90, 3, 0, 1, 1)
		c.send(publishPacket(0x30, "$iothub/twin/GET/?$rid=1", 0, "")...)
		if p := c.expectPublish("an answer"); p.payload != "{" || !strings.Contains(p.topic, "/200/") {
			t.Error(p)
		}
	})
	for on, packet := range map[simulator.Stage][]byte{
		"hub-ping": {0xc0, 0}, "hub-subscribe": filters(1, "$iothub/twin/res/#"),
		"hub-publish": publishPacket(0x30, events(device), 0, ""), "hub-twin": publishPacket(0x30, "$iothub/twin/GET/?$rid=1", 0, ""),
	} {
		bubble(t, "a rule at "+string(on)+" closes the connection", func(t *testing.T) {
			s := script(t, simulator.Rule{On: on, Close: true})
			c := online(t, s, device)
			c.send(packet...)
			c.expectEnd("closed")
			if d := lastDetail(s, "CLOSE"); d != "scenario: close" {
				t.Error(d)
			}
		})
	}
}

func TestADeviceThatIsAddedConnectsToItsHubWithoutARegistration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, simulator.Options{})
		s.AddDevice(device)
		call(t, s, hubConnect(s, hubName, device), 0)
		call(t, s, connectPacket(0x82, 0, device, hubUser(hubName, device)), 0, deviceCertificate(t, s, device))
		call(t, s, hubConnect(s, hubName, "other"), 5)
		if got := as(t, s, device, version).assign().state(t, "substatus"); got != `"initialAssignment"` {
			t.Errorf("DPS knows the device: %s", got)
		}
	})
}

// An assignment that an older simulator has stored does not name the attestation. The device
// may then use either kind of credential.
func TestAHubAcceptsADeviceOfAnOlderDirectory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := start(t, simulator.Options{Directory: dir})
		registered(t, s, device)
		s.Close()
		file := dir + "/assignments.json"
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var records []map[string]any
		if err := json.Unmarshal(text, &records); err != nil || records[0]["attestation"] != "symmetric-key" {
			t.Fatalf("%v %s", err, text)
		}
		delete(records[0], "attestation")
		if text, err = json.Marshal(records); err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		s = start(t, simulator.Options{Directory: dir})
		call(t, s, hubConnect(s, hubName, device), 0)
		call(t, s, connectPacket(0x82, 0, device, hubUser(hubName, device)), 0, deviceCertificate(t, s, device))
	})
}
