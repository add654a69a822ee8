package simulator_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator"
)

const moduleVersion = "?api-version=2021-04-12"

// modulePath is the path of a module identity of the device.
func modulePath(module string) string {
	return "/devices/" + device + "/modules/" + url.PathEscape(module) + moduleVersion
}

// moduleKey is a key that a gateway has derived.
var moduleKey, moduleSecondKey = base64.StdEncoding.EncodeToString([]byte(strings.Repeat("k", 32))), base64.StdEncoding.EncodeToString([]byte(strings.Repeat("l", 32)))

// moduleBody is the body of a PUT with both keys.
func moduleBody(module string) string {
	return fmt.Sprintf(`{"moduleId":%q,"deviceId":%q,"managedBy":"dpsd","authentication":{"type":"sas","symmetricKey":{"primaryKey":%q,"secondaryKey":%q}}}`,
		module, device, moduleKey, moduleSecondKey)
}

// moduleJSON is a module identity as a device receives it.
type moduleJSON struct {
	ModuleID, DeviceID, GenerationID, ETag, ConnectionState string
	ManagedBy                                               *string
	Authentication                                          struct {
		Type         string
		SymmetricKey struct{ PrimaryKey, SecondaryKey *string }
	}
}

// manage sends a request for module identities with the device's token.
func manage(t *testing.T, s *simulator.Server, method, target, ifMatch, body string) (int, http.Header, string) {
	t.Helper()
	authorization := hubToken(s.DeviceKey(device), hubName, device)
	if ifMatch != "" {
		authorization += "\r\nIf-Match: " + ifMatch
	}
	c := dialWebSocket(t, s)
	defer func() { _ = c.conn.Close() }()
	return c.askHub(method, target, hubName, authorization, body)
}

// created creates a module identity.
func created(t *testing.T, s *simulator.Server, module string) moduleJSON {
	t.Helper()
	var m moduleJSON
	status, _, body := manage(t, s, "PUT", modulePath(module), "", moduleBody(module))
	if err := json.Unmarshal([]byte(body), &m); status != 200 || err != nil {
		t.Fatal(status, body, err)
	}
	return m
}

// moduleConnect is the CONNECT of a module with a key and a resource.
func moduleConnect(module, key, resource string) []byte {
	return connectPacket(0xc2, 0, device+"/"+module, hubName+"/"+device+"/"+module+"/"+moduleVersion,
		token(key, url.QueryEscape(resource), time.Now().Add(time.Hour), ""))
}

func moduleResource(module string) string {
	return hubName + "/devices/" + device + "/modules/" + module
}

func TestADeviceManagesItsModuleIdentities(t *testing.T) {
	bubble(t, "create, read, list, change and delete", func(t *testing.T) {
		s := start(t, simulator.Options{})
		registered(t, s, device)
		m := created(t, s, "broker")
		if m.ModuleID != "broker" || m.DeviceID != device || *m.ManagedBy != "dpsd" || m.GenerationID == "" || m.ETag == "" || m.ConnectionState != "Disconnected" ||
			m.Authentication.Type != "sas" || *m.Authentication.SymmetricKey.PrimaryKey != moduleKey || *m.Authentication.SymmetricKey.SecondaryKey != moduleSecondKey {
			t.Errorf("%+v", m)
		}
		status, header, body := manage(t, s, "GET", modulePath("broker"), "", "")
		if status != 200 || header.Get("ETag") != `"`+m.ETag+`"` {
			t.Error(status, header, body)
		}
		if status, _, list := manage(t, s, "GET", "/devices/"+device+"/modules"+moduleVersion, "", ""); status != 200 || list != "["+body+"]" {
			t.Error(status, list)
		}
		status, _, body = manage(t, s, "PUT", modulePath("broker"), `"`+m.ETag+`"`, `{"moduleId":"broker","deviceId":"`+device+`"}`)
		var changed moduleJSON
		if err := json.Unmarshal([]byte(body), &changed); err != nil || status != 200 || changed.GenerationID != m.GenerationID || changed.ETag == m.ETag ||
			changed.ManagedBy != nil || *changed.Authentication.SymmetricKey.PrimaryKey != moduleKey {
			t.Error(status, body)
		}
		if status, _, body := manage(t, s, "DELETE", modulePath("broker"), "*", ""); status != 204 || body != "" {
			t.Error(status, body)
		}
		if again := created(t, s, "broker"); again.GenerationID == m.GenerationID {
			t.Error("the new module has the generation of the deleted one")
		}
	})
}

func TestTheRegistryRefusesInvalidRequestsAboutModules(t *testing.T) {
	const list = "/devices/" + device + "/modules" + moduleVersion
	body := func(authentication string) string {
		return `{"moduleId":"m","deviceId":"` + device + `","authentication":` + authentication + `}`
	}
	identity := func(s *simulator.Server) string { return hubToken(s.DeviceKey(device), hubName, device) }
	as := func(key, resource string) func(*simulator.Server) string {
		return func(s *simulator.Server) string {
			if key == "" {
				key = s.DeviceKey(device)
			}
			return token(key, url.QueryEscape(resource), time.Now().Add(time.Hour), "")
		}
	}
	for _, c := range []struct {
		name, method, target, ifMatch, body string
		authorization                       func(*simulator.Server) string // nil for that of the device
		status                              int
		want                                string // part of the body
	}{
		{name: "no api-version", method: "GET", target: "/devices/" + device + "/modules", status: 400, want: "ErrorCode:InvalidProtocolVersion"},
		{name: "an api-version that is not a date", method: "GET", target: "/devices/" + device + "/modules?api-version=1", status: 400, want: "400001"},
		{name: "a wrong method for the list", method: "PUT", target: list, body: moduleBody("m"), status: 404, want: "404000"},
		{name: "a wrong method for a module", method: "POST", target: modulePath("m"), body: moduleBody("m"), status: 404, want: "404000"},
		{name: "a path below a module", method: "GET", target: "/devices/" + device + "/modules/old/twin" + moduleVersion, status: 404, want: "404000"},
		{name: "telemetry of a module", method: "POST", target: "/devices/" + device + "/modules/old/messages/events" + moduleVersion, status: 404, want: "404000"},
		{name: "reading an unknown module", method: "GET", target: modulePath("m"), status: 404, want: "ErrorCode:ModuleNotFound"},
		{name: "a module ID with a different case", method: "GET", target: modulePath("OLD"), status: 404, want: "404010"},
		{name: "deleting an unknown module", method: "DELETE", target: modulePath("m"), ifMatch: "*", status: 404, want: "404010"},
		{name: "changing an unknown module", method: "PUT", target: modulePath("m"), ifMatch: "*", body: moduleBody("m"), status: 404, want: "404010"},
		{name: "deleting without If-Match", method: "DELETE", target: modulePath("old"), status: 412, want: "ErrorCode:PreconditionFailed"},
		{name: "deleting with another etag", method: "DELETE", target: modulePath("old"), ifMatch: `"AAAA"`, status: 412, want: "412001"},
		{name: "changing with another etag", method: "PUT", target: modulePath("old"), ifMatch: `"AAAA"`, body: moduleBody("old"), status: 412, want: "412001"},
		{name: "creating a module that exists", method: "PUT", target: modulePath("old"), body: moduleBody("old"), status: 409,
			want: `{"errorCode":409301,"message":"Device ` + device + ` in IotHub ` + hubName + ` already contains Module old."}`},
		{name: "no body", method: "PUT", target: modulePath("m"), status: 400, want: "400006"},
		{name: "a body that is not an object", method: "PUT", target: modulePath("m"), body: "[]", status: 400, want: "400006"},
		{name: "an unknown member", method: "PUT", target: modulePath("m"), body: strings.Replace(moduleBody("m"), "{", `{"key":"x",`, 1), status: 400, want: "400006"},
		{name: "two values in the body", method: "PUT", target: modulePath("m"), body: moduleBody("m") + "{}", status: 400, want: "400006"},
		{name: "a bracket after the body", method: "PUT", target: modulePath("m"), body: moduleBody("m") + "]", status: 400, want: "400006"},
		{name: "the name of another module in the body", method: "PUT", target: modulePath("m"), body: moduleBody("n"), status: 400, want: "ErrorCode:ArgumentInvalid"},
		{name: "no name in the body", method: "PUT", target: modulePath("m"), body: "{}", status: 400, want: "400004"},
		{name: "the name of another device in the body", method: "PUT", target: modulePath("m"), body: `{"moduleId":"m","deviceId":"x"}`, status: 400, want: "400004"},
		{name: "a name that only the service creates", method: "PUT", target: modulePath("$edgeAgent"), body: moduleBody("$edgeAgent"), status: 400, want: "400004"},
		{name: "a name with a slash", method: "PUT", target: modulePath("a/b"), body: moduleBody("a/b"), status: 400, want: "400004"},
		{name: "a name of 129 characters", method: "PUT", target: modulePath(strings.Repeat("m", 129)), body: moduleBody(strings.Repeat("m", 129)), status: 400, want: "400004"},
		{name: "an unknown type of authentication", method: "PUT", target: modulePath("m"), body: body(`{"type":"tpm"}`), status: 400, want: "400004"},
		{name: "only one key", method: "PUT", target: modulePath("m"), body: body(`{"type":"sas","symmetricKey":{"primaryKey":"` + moduleKey + `"}}`), status: 400, want: "400004"},
		{name: "a key that is not base64", method: "PUT", target: modulePath("m"), body: body(`{"type":"sas","symmetricKey":{"primaryKey":"-","secondaryKey":"-"}}`), status: 400, want: "400004"},
		{name: "a key of 15 bytes", method: "PUT", target: modulePath("m"), body: body(`{"type":"sas","symmetricKey":{"primaryKey":"MTIzNDU2Nzg5MDEyMzQ1","secondaryKey":"MTIzNDU2Nzg5MDEyMzQ1"}}`), status: 400, want: "400004"},
		{name: "keys of a module with a certificate", method: "PUT", target: modulePath("m"), body: body(`{"type":"selfSigned","symmetricKey":{"primaryKey":"` + moduleKey + `","secondaryKey":"` + moduleKey + `"}}`), status: 400, want: "400004"},
		{name: "a certificate without a thumbprint", method: "PUT", target: modulePath("m"), body: body(`{"type":"selfSigned"}`), status: 400, want: "400004"},
		{name: "an invalid thumbprint", method: "PUT", target: modulePath("m"), body: body(`{"type":"selfSigned","x509Thumbprint":{"primaryThumbprint":"xyz"}}`), status: 400, want: "400004"},
		{name: "a thumbprint of a module with keys", method: "PUT", target: modulePath("m"), body: body(`{"type":"sas","x509Thumbprint":{"primaryThumbprint":"` + strings.Repeat("a", 40) + `"}}`), status: 400, want: "400004"},

		{name: "a module's token for the list", method: "GET", target: list, authorization: as(moduleKey, moduleResource("old")), status: 401, want: "401003"},
		{name: "a module's key with the device's resource", method: "GET", target: list, authorization: as(moduleKey, hubName+"/devices/"+device), status: 401, want: "401003"},
		{name: "a module's token for the module itself", method: "GET", target: modulePath("old"), authorization: as(moduleKey, moduleResource("old")), status: 401, want: "401003"},
		{name: "a module's token that deletes the module itself", method: "DELETE", target: modulePath("old"), ifMatch: "*", authorization: as(moduleKey, moduleResource("old")), status: 401, want: "401003"},
		{name: "a token for messages", method: "GET", target: list, authorization: as("", hubName+"/devices/"+device+"/messages/events"), status: 401, want: "401003"},
		{name: "a token for another module", method: "GET", target: modulePath("old"), authorization: as("", moduleResource("other")), status: 401, want: "401003"},
		{name: "a token for one module that lists all", method: "GET", target: list, authorization: as("", moduleResource("old")), status: 401, want: "401003"},
		{name: "a token for a resource that has the same beginning", method: "GET", target: list, authorization: as("", hubName+"/devices/"+device+"2"), status: 401, want: "401003"},
		{name: "no credential", method: "PUT", target: modulePath("m"), body: moduleBody("m"), authorization: func(*simulator.Server) string { return "" }, status: 401, want: "401003"},
		{name: "the modules of another device", method: "GET", target: "/devices/other/modules" + moduleVersion, status: 401, want: "401003"},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := start(t, simulator.Options{})
			registered(t, s, device)
			registered(t, s, "other")
			before := created(t, s, "old")
			authorization := identity
			if c.authorization != nil {
				authorization = c.authorization
			}
			header := authorization(s)
			if c.ifMatch != "" {
				header += "\r\nIf-Match: " + c.ifMatch
			}
			status, _, got := dialWebSocket(t, s).askHub(c.method, c.target, hubName, header, c.body)
			if status != c.status || !strings.Contains(got, c.want) {
				t.Errorf("%d %s, want %d %s", status, got, c.status, c.want)
			}
			if all := s.Modules(device); len(all) != 1 || all[0].ETag != before.ETag {
				t.Errorf("the request has changed something: %+v", all)
			}
		})
	}
	bubble(t, "a device has at most 50 modules", func(t *testing.T) {
		s := start(t, simulator.Options{})
		registered(t, s, device)
		for i := range 50 {
			created(t, s, fmt.Sprint("m", i))
		}
		if status, _, body := manage(t, s, "PUT", modulePath("another"), "", moduleBody("another")); status != 413 || !strings.Contains(body, "ErrorCode:TooManyModulesOnDevice") {
			t.Error(status, body)
		}
		if status, _, _ := manage(t, s, "DELETE", modulePath("m7"), "*", ""); status != 204 {
			t.Error(status)
		}
		created(t, s, "another")
	})
}

func TestTheHubGeneratesTheKeysOfAModuleWithoutKeys(t *testing.T) {
	bubble(t, "keys", func(t *testing.T) {
		s := start(t, simulator.Options{})
		registered(t, s, device)
		status, _, body := manage(t, s, "PUT", modulePath("m"), "", `{"moduleId":"m","deviceId":"`+device+`"}`)
		var m moduleJSON
		if err := json.Unmarshal([]byte(body), &m); err != nil || status != 200 {
			t.Fatal(status, body)
		}
		keys := m.Authentication.SymmetricKey
		if *keys.PrimaryKey == *keys.SecondaryKey {
			t.Error("the keys are equal")
		}
		call(t, s, moduleConnect("m", *keys.PrimaryKey, moduleResource("m")), 0).lives()
		call(t, s, moduleConnect("m", *keys.SecondaryKey, moduleResource("m")), 0).lives()
	})
}

func TestADeviceWithACertificateManagesModulesAndAModuleHasACertificate(t *testing.T) {
	bubble(t, "certificates", func(t *testing.T) {
		s := start(t, simulator.Options{})
		certificate := deviceCertificate(t, s, device)
		with(t, s, device, certificate).accepted(device)
		own := deviceCertificate(t, s, "any-name")
		thumbprint := sha256.Sum256(own.Certificate[0])
		body := fmt.Sprintf(`{"moduleId":"m","deviceId":%q,"authentication":{"type":"selfSigned","x509Thumbprint":{"primaryThumbprint":"%X"}}}`, device, thumbprint)
		if status, _, got := openAPI(t, s, certificate).askHub("PUT", modulePath("m"), hubName, "", body); status != 200 {
			t.Fatal(status, got)
		}
		user := hubName + "/" + device + "/m/" + moduleVersion
		call(t, s, connectPacket(0x82, 0, device+"/m", user), 0, own).lives()
		call(t, s, connectPacket(0x82, 0, device+"/m", user), 5, certificate)
		call(t, s, connectPacket(0x82, 0, device+"/m", user), 5)
		call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 5)
		if status, _, got := openAPI(t, s, own).askHub("GET", modulePath("m"), hubName, "", ""); status != 401 {
			t.Error(status, got)
		}
	})
}

func TestHowAModuleConnects(t *testing.T) {
	connect := func(id, user, key, resource, rest string) []byte {
		return connectPacket(0xc2, 0, id, user, token(key, url.QueryEscape(resource), time.Now().Add(time.Hour), rest))
	}
	const id, user = device + "/m", hubName + "/" + device + "/m/" + moduleVersion
	resource := moduleResource("m")
	for _, c := range []struct {
		name   string
		packet func(s *simulator.Server) []byte
		code   byte
	}{
		{"the primary key", func(*simulator.Server) []byte { return connect(id, user, moduleKey, resource, "") }, 0},
		{"the secondary key", func(*simulator.Server) []byte { return connect(id, user, moduleSecondKey, resource, "") }, 0},
		{"an empty skn, as the SDK for C sends it", func(*simulator.Server) []byte { return connect(id, user, moduleKey, resource, "&skn=") }, 0},
		{"a token for messages", func(*simulator.Server) []byte { return connect(id, user, moduleKey, resource+"/messages/events", "") }, 0},
		{"the device name of the hub", func(*simulator.Server) []byte {
			return connect(id, "dpsd-sim.device.azure-devices.net/"+device+"/m/"+moduleVersion, moduleKey, "dpsd-sim.device.azure-devices.net/devices/"+device+"/modules/m", "")
		}, 0},
		{"the key of the device", func(s *simulator.Server) []byte { return connect(id, user, s.DeviceKey(device), resource, "") }, 5},
		{"the resource of the device", func(*simulator.Server) []byte { return connect(id, user, moduleKey, hubName+"/devices/"+device, "") }, 5},
		{"the key and the resource of the device", func(s *simulator.Server) []byte {
			return connect(id, user, s.DeviceKey(device), hubName+"/devices/"+device, "")
		}, 5},
		{"the resource of another module", func(*simulator.Server) []byte { return connect(id, user, moduleKey, moduleResource("n"), "") }, 5},
		{"a resource with the same beginning", func(*simulator.Server) []byte { return connect(id, user, moduleKey, resource+"2", "") }, 5},
		{"a resource that MQTT does not offer", func(*simulator.Server) []byte { return connect(id, user, moduleKey, resource+"/files", "") }, 5},
		{"the key of another module", func(*simulator.Server) []byte {
			return connect(id, user, base64.StdEncoding.EncodeToString([]byte(strings.Repeat("n", 32))), resource, "")
		}, 5},
		{"an skn", func(*simulator.Server) []byte { return connect(id, user, moduleKey, resource, "&skn=device") }, 5},
		{"the client identifier of the device", func(*simulator.Server) []byte { return connect(device, user, moduleKey, resource, "") }, 5},
		{"the client identifier of another module", func(*simulator.Server) []byte { return connect(device+"/n", user, moduleKey, resource, "") }, 5},
		{"a module ID with a different case", func(*simulator.Server) []byte {
			return connect(device+"/M", hubName+"/"+device+"/M/"+moduleVersion, moduleKey, moduleResource("M"), "")
		}, 5},
		{"the module of another device", func(*simulator.Server) []byte {
			return connect("other/m", hubName+"/other/m/"+moduleVersion, moduleKey, hubName+"/devices/other/modules/m", "")
		}, 5},
		{"the device with the token of its module", func(*simulator.Server) []byte {
			return connect(device, hubUser(hubName, device), moduleKey, resource, "")
		}, 5},
		{"the device with its own key and the resource of its module", func(s *simulator.Server) []byte {
			return connect(device, hubUser(hubName, device), s.DeviceKey(device), resource, "")
		}, 5},
	} {
		verb := "is accepted"
		if c.code != 0 {
			verb = "is refused"
		}
		bubble(t, c.name+" "+verb, func(t *testing.T) {
			s := start(t, simulator.Options{})
			registered(t, s, device)
			registered(t, s, "other")
			created(t, s, "m")
			got := call(t, s, c.packet(s), c.code)
			if c.code == 0 {
				got.lives()
			} else if d := lastDetail(s, "CONNACK"); d == "" || strings.Contains(d, "sig=") {
				t.Errorf("%q", d)
			}
		})
	}
}

func TestWhatAModuleSendsAndReceives(t *testing.T) {
	bubble(t, "telemetry, twin and inputs", func(t *testing.T) {
		var m messages
		s := start(t, simulator.Options{OnTelemetry: m.add})
		mqtt := online(t, s, device)
		created(t, s, "m")
		c := call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 0)
		c.send(filters(1, "$iothub/twin/res/#", "devices/"+device+"/modules/m/inputs/#", "$iothub/methods/POST/#")...)
		c.expect("SUBACK", 0x90, 5, 0, 1, 1, 1, 1)
		c.send(publishPacket(0x32, "devices/"+device+"/modules/m/messages/events/a=b", 2, "hello")...)
		c.expect("PUBACK", 0x40, 2, 0, 2)
		c.send(publishPacket(0x30, "$iothub/twin/PATCH/properties/reported/?$rid=1", 0, `{"of":"module"}`)...)
		if p := c.expectPublish("twin"); !strings.HasPrefix(p.topic, "$iothub/twin/res/204/") {
			t.Error(p)
		}
		mqtt.send(filters(1, "$iothub/twin/res/#")...)
		mqtt.expect("SUBACK", 0x90, 3, 0, 1, 1)
		mqtt.send(publishPacket(0x30, "$iothub/twin/GET/?$rid=1", 0, "")...)
		if p := mqtt.expectPublish("twin"); strings.Contains(p.payload, "module") {
			t.Errorf("the device has the twin of its module: %s", p.payload)
		}
		m.got()
		if len(m.all) != 1 || m.all[0].Device != device || m.all[0].Module != "m" || m.all[0].Properties != "a=b" {
			t.Errorf("%+v", m.all)
		}
		var logged bool
		for _, e := range s.Log() {
			logged = logged || e.Packet == "PUBLISH" && e.Direction == "up" && e.ModuleID == "m" && e.DeviceID == device && e.RegistrationID == device
			if text := fmt.Sprintf("%+v", e); strings.Contains(text, moduleKey) || strings.Contains(text, moduleSecondKey) {
				t.Errorf("the log contains a key: %s", text)
			}
		}
		if !logged {
			t.Error("the log does not name the module")
		}
	})
	for name, sent := range map[string][]byte{
		"the events of its device":   publishPacket(0x32, events(device), 2, "x"),
		"the events of another":      publishPacket(0x32, "devices/"+device+"/modules/n/messages/events/", 2, "x"),
		"the messages of its device": filters(1, "devices/"+device+"/messages/devicebound/#"),
		"the inputs of another":      filters(1, "devices/"+device+"/modules/n/inputs/#"),
	} {
		bubble(t, "a module is disconnected after a packet for "+name, func(t *testing.T) {
			s := start(t, simulator.Options{})
			registered(t, s, device)
			created(t, s, "m")
			created(t, s, "n")
			c := call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 0)
			c.send(sent...)
			c.expectEnd("a topic of another")
		})
	}
}

func TestATokenForEventsDoesNothingElse(t *testing.T) {
	bubble(t, "over MQTT and HTTPS", func(t *testing.T) {
		var m messages
		s := start(t, simulator.Options{OnTelemetry: m.add})
		registered(t, s, device)
		password := token(s.DeviceKey(device), url.QueryEscape(hubName+"/devices/"+device+"/messages/events"), time.Now().Add(time.Hour), "")
		packet := connectPacket(0xc2, 0, device, hubUser(hubName, device), password)
		c := call(t, s, packet, 0)
		c.send(publishPacket(0x32, events(device), 2, "over MQTT")...)
		c.expect("PUBACK", 0x40, 2, 0, 2)
		for i, filter := range []string{"$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#", "devices/" + device + "/messages/devicebound/#"} {
			c.send(filters(byte(i+3), filter)...)
			c.expect("SUBACK for "+filter, 0x90, 3, 0, byte(i+3), 0x80)
		}
		c.lives()
		c.send(publishPacket(0x30, "$iothub/twin/PATCH/properties/reported/?$rid=1", 0, `{"a":1}`)...)
		c.expectEnd("a request for the twin")
		if d := lastDetail(s, "CLOSE"); !strings.HasPrefix(d, "401003 ") {
			t.Error(d)
		}
		for _, r := range []struct {
			method, target string
			status         int
		}{
			{"POST", "/devices/" + device + "/messages/events" + moduleVersion, 204},
			{"GET", "/devices/" + device + "/messages/deviceBound" + moduleVersion, 401},
			{"GET", "/devices/" + device + "/modules" + moduleVersion, 401},
		} {
			if status, _, body := dialWebSocket(t, s).askHub(r.method, r.target, hubName, password, "over HTTPS"); status != r.status {
				t.Errorf("%s %s: %d %s", r.method, r.target, status, body)
			}
		}
		if got := m.got(); len(got) != 2 {
			t.Error(got)
		}
	})
	bubble(t, "a token for messages receives them", func(t *testing.T) {
		s := start(t, simulator.Options{})
		registered(t, s, device)
		password := token(s.DeviceKey(device), url.QueryEscape(hubName+"/devices/"+device+"/messages/deviceBound"), time.Now().Add(time.Hour), "")
		c := call(t, s, connectPacket(0xc2, 0, device, hubUser(hubName, device), password), 0)
		c.send(filters(1, "devices/"+device+"/messages/devicebound/#")...)
		c.expect("SUBACK", 0x90, 3, 0, 1, 1)
		c.send(publishPacket(0x32, events(device), 2, "x")...)
		c.expectEnd("telemetry with a token that is not for it")
	})
}

func TestModulesAndTheDeviceDoNotEndEachOthersConnections(t *testing.T) {
	bubble(t, "each client identifier has one connection", func(t *testing.T) {
		s := start(t, simulator.Options{})
		mqtt := online(t, s, device)
		created(t, s, "a")
		created(t, s, "b")
		a := call(t, s, moduleConnect("a", moduleKey, moduleResource("a")), 0)
		b := call(t, s, moduleConnect("b", moduleSecondKey, moduleResource("b")), 0)
		for _, c := range []*client{mqtt, a, b} {
			c.lives()
		}
		again := call(t, s, moduleConnect("a", moduleSecondKey, moduleResource("a")), 0)
		a.expectEnd("replaced")
		if d := lastDetail(s, "CLOSE"); !strings.HasPrefix(d, "400027 ") {
			t.Error(d)
		}
		newer := call(t, s, hubConnect(s, hubName, device), 0)
		mqtt.expectEnd("replaced")
		for _, c := range []*client{newer, again, b} {
			c.lives()
		}
	})
}

func TestTheConnectionOfAModuleEndsWithItsIdentityAndItsToken(t *testing.T) {
	bubble(t, "its identity", func(t *testing.T) {
		s := start(t, simulator.Options{})
		mqtt := online(t, s, device)
		created(t, s, "m")
		c := call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 0)
		if _, _, body := manage(t, s, "GET", modulePath("m"), "", ""); !strings.Contains(body, `"connectionState":"Connected"`) {
			t.Error(body)
		}
		if status, _, body := manage(t, s, "DELETE", modulePath("m"), "*", ""); status != 204 {
			t.Error(status, body)
		}
		c.expectEnd("deleted")
		if d := lastDetail(s, "CLOSE"); !strings.HasPrefix(d, "404010 ") {
			t.Error(d)
		}
		call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 5)
		mqtt.lives()
	})
	bubble(t, "its token", func(t *testing.T) {
		s := start(t, simulator.Options{})
		registered(t, s, device)
		created(t, s, "m")
		c := call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 0)
		time.Sleep(time.Hour + time.Second)
		c.expectEnd("the token has expired")
	})
}

func TestModuleIdentitiesSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	open := func() *simulator.Server {
		return start(t, simulator.Options{Directory: dir, DefaultHub: hubName, Scenario: &simulator.Scenario{Settings: simulator.Settings{Polls: new(0)}}, OnError: func(err error) { t.Error(err) }})
	}
	s := open()
	as(t, s, device, version).ask("")
	m := created(t, s, "m")
	s.Close()
	if i, err := os.Stat(filepath.Join(dir, "modules.json")); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", i, err)
	}
	s = open()
	if all := s.Modules(device); len(all) != 1 || all[0].GenerationID != m.GenerationID || all[0].ETag != m.ETag {
		t.Errorf("%+v", all)
	}
	call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 0).lives()
	if !s.DeleteDevice(device) {
		t.Error("the device is unknown")
	}
	s.Close()
	s = open()
	if all := s.Modules(device); len(all) != 0 {
		t.Errorf("%+v", all)
	}
	call(t, s, hubConnect(s, hubName, device), 5)
	s.Close()
	for name, text := range map[string]string{"cut": "[", "without a hub": `[{"moduleId":"m","deviceId":"d"}]`} {
		if err := os.WriteFile(filepath.Join(dir, "modules.json"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := simulator.New(simulator.Options{Directory: dir}); err == nil || !strings.Contains(err.Error(), "modules.json") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestModuleIdentitiesEndWithTheAssignment(t *testing.T) {
	bubble(t, "another hub, or no record", func(t *testing.T) {
		s := start(t, simulator.Options{})
		again := func() string {
			time.Sleep(time.Minute) // the service limits the rate of polls
			return registered(t, s, device)
		}
		registered(t, s, device)
		created(t, s, "m")
		again()
		if len(s.Modules(device)) != 1 {
			t.Error("a registration that changes nothing has removed the modules")
		}
		e := *s.Enrollments()
		e.DefaultHub = "other.azure-devices.net"
		if err := s.SetEnrollments(&e); err != nil {
			t.Fatal(err)
		}
		if name := again(); name != "other.azure-devices.net" {
			t.Fatal(name)
		}
		e.DefaultHub = hubName
		if err := s.SetEnrollments(&e); err != nil {
			t.Fatal(err)
		}
		again()
		if all := s.Modules(device); len(all) != 0 {
			t.Errorf("%+v", all)
		}
		created(t, s, "m")
		s.RemoveRegistration(device)
		again()
		if all := s.Modules(device); len(all) != 0 {
			t.Errorf("%+v", all)
		}
	})
}

// The server reads its clock several times for a CONNECT, for example to check the token.
func TestADeviceThatIsDisabledWhileItConnectsDoesNotStayConnected(t *testing.T) {
	for reading := int32(1); reading <= 6; reading++ {
		var left atomic.Int32
		disabled := make(chan struct{})
		var s *simulator.Server
		s = start(t, simulator.Options{Now: func() time.Time {
			if left.Add(-1) == 0 {
				go func() {
					s.DisableDevice(device, true)
					close(disabled)
				}()
				time.Sleep(50 * time.Millisecond) // DisableDevice returns in this time unless it waits for the CONNECT
			}
			return time.Now()
		}})
		name := registered(t, s, device)
		c := dial(t, s)
		left.Store(reading)
		c.send(hubConnect(s, name, device)...)
		connack := make([]byte, 4)
		if _, err := io.ReadFull(c.in, connack); err != nil {
			t.Fatal(err)
		}
		if left.Swap(0) > 0 { // the server read its clock fewer times
			continue
		}
		<-disabled
		_ = c.conn.SetReadDeadline(time.Now().Add(20 * time.Second))
		c.expectEnd(fmt.Sprintf("disabled at reading %d, with CONNACK %x", reading, connack))
	}
}

func TestADeviceThatIsDisabledOrDeletedAtItsHubIsRefusedWithItsModules(t *testing.T) {
	for _, c := range []struct {
		name   string
		act    func(s *simulator.Server) bool
		status int
		code   string
		back   func(t *testing.T, s *simulator.Server)
	}{
		{"disabled", func(s *simulator.Server) bool { return s.DisableDevice(device, true) }, 403, "403012", func(t *testing.T, s *simulator.Server) {
			registered(t, s, device) // DPS does not enable the device
			call(t, s, hubConnect(s, hubName, device), 5)
			if !s.DisableDevice(device, false) {
				t.Error("the device is unknown")
			}
			call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 0).lives()
		}},
		{"deleted", func(s *simulator.Server) bool { return s.DeleteDevice(device) }, 404, "404001", func(t *testing.T, s *simulator.Server) {
			if s.DisableDevice(device, false) || s.DeleteDevice(device) {
				t.Error("the device still exists")
			}
			registered(t, s, device)
			call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 5)
		}},
	} {
		bubble(t, c.name, func(t *testing.T) {
			s := start(t, simulator.Options{})
			if c.act(s) {
				t.Error("a device without an assignment is known")
			}
			mqtt := online(t, s, device)
			created(t, s, "m")
			module := call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 0)
			other := online(t, s, "other")
			if !c.act(s) {
				t.Error("the device is unknown")
			}
			mqtt.expectEnd(c.name)
			module.expectEnd(c.name)
			if d := lastDetail(s, "CLOSE"); !strings.HasPrefix(d, c.code) {
				t.Error(d)
			}
			call(t, s, hubConnect(s, hubName, device), 5)
			if d := lastDetail(s, "CONNACK"); !strings.HasPrefix(d, c.code) {
				t.Error(d)
			}
			call(t, s, moduleConnect("m", moduleKey, moduleResource("m")), 5)
			if status, _, body := manage(t, s, "GET", "/devices/"+device+"/modules"+moduleVersion, "", ""); status != c.status || !strings.Contains(body, c.code) {
				t.Error(status, body)
			}
			other.lives()
			c.back(t, s)
			call(t, s, hubConnect(s, hubName, device), 0).lives()
		})
	}
}

func TestARuleActsOnADeviceAndItsModulesOrOnOneModule(t *testing.T) {
	for pattern, want := range map[string][3]byte{device: {5, 5, 5}, device + "/a": {0, 5, 0}, device + "/*": {0, 5, 5}, "": {5, 5, 5}, "x": {0, 0, 0}} {
		bubble(t, fmt.Sprintf("pattern %q", pattern), func(t *testing.T) {
			s := script(t, simulator.Rule{On: simulator.OnHubConnect, Device: pattern, Times: 1, Connack: new(5)})
			registered(t, s, device)
			created(t, s, "a")
			created(t, s, "b")
			packets := [3][]byte{hubConnect(s, hubName, device), moduleConnect("a", moduleKey, moduleResource("a")), moduleConnect("b", moduleKey, moduleResource("b"))}
			for i, p := range packets {
				call(t, s, p, want[i])
				call(t, s, p, 0).lives()
			}
		})
	}
}
