package page

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/simulator"
)

// Packets by hand:

func text(s string) string { return string(binary.BigEndian.AppendUint16(nil, uint16(len(s)))) + s }

func packetOf(first byte, body string) []byte {
	return append(binary.AppendUvarint([]byte{first}, uint64(len(body))), body...)
}

func connect(id, password string) []byte {
	flags, fields := byte(0x82), text(id)+text("0ne00000001/registrations/"+id+"/api-version=2021-06-01&ClientVersion=a%2F1")
	if password != "" {
		flags |= 0x40
		fields += text(password)
	}
	return packetOf(0x10, text("MQTT")+string([]byte{4, flags, 0, 60})+fields)
}

func publish(topic, body string) []byte { return packetOf(0x30, text(topic)+body) }

func fieldsOf(d decoded) string {
	var all []string
	for _, f := range d.Fields {
		all = append(all, f.Name+"="+f.Value)
	}
	return strings.Join(all, "\n")
}

func TestACONNECTIsDecodedWithoutTheSignatureOfItsToken(t *testing.T) {
	raw := connect("gw-1", "SharedAccessSignature sr=0ne%2Fregistrations%2Fgw-1&sig=c2VjcmV0&se=1796040000&skn=registration")
	got := fieldsOf(decode("CONNECT", withoutSecrets("CONNECT", raw)))
	for _, want := range []string{
		"Protocol=MQTT level 4", "Client ID=gw-1", "Keep alive=60 s", "ID scope=0ne00000001", "Registration ID=gw-1",
		"API version=2021-06-01", "Client version=a/1", "Token: sr=0ne%2Fregistrations%2Fgw-1", "Token: sig=not shown",
		"Token: se=1796040000 (2026-11-30T12:00:00Z)", "Token: skn=registration",
	} {
		if !strings.Contains("\n"+got+"\n", "\n"+want+"\n") {
			t.Errorf("%q is missing in:\n%s", want, got)
		}
	}
}

func TestNoSecretOfAPacketIsKept(t *testing.T) {
	const secret = "AAAAsecretAAAA"
	for name, raw := range map[string][]byte{
		"a token":                               connect("gw-1", "SharedAccessSignature sr=a&sig="+secret+"&se=1"),
		"a token with the signature at its end": connect("gw-1", "SharedAccessSignature sr=a&se=1&sig="+secret),
		"a key instead of a token":              connect("gw-1", secret),
		"a key in place of the parameters":      connect("gw-1", "SharedAccessSignature "+secret),
		"a key as a parameter":                  connect("gw-1", "SharedAccessSignature sr=a&key="+secret+"&se=1"),
		"a truncated packet":                    connect("gw-1", secret)[:90],
		"a truncated packet without a name":     []byte("\x10\x90AAAAAsecret"),
		"a wrong length":                        append([]byte{0x10, 5}, secret...),
		"a key in the body of a request":        []byte("PUT /devices/d/modules/m HTTP/1.1\r\nX: &se=1\r\n\r\n{\"primaryKey\" : \"" + secret + "\",\"secondaryKey\":\"" + secret),
		"a key in an HTTP header":               []byte("PUT / HTTP/1.1\r\nHost: a\r\nauthorization:  " + secret + "\r\n\r\n&se=1\r\n\r\n"),
		"a key in a wrong HTTP header":          []byte("PUT / HTTP/1.1\r\nAuthorization: Bearer " + secret + "\n\r\n&se=1\r\n\r\n"),
		"a token in an HTTP header":             []byte("PUT / HTTP/1.1\r\nAuthorization: SharedAccessSignature sr=a&sig=" + secret + "&se=1\r\n\r\n"),
	} {
		packet := "CONNECT"
		if strings.HasSuffix(name, "HTTP header") || strings.HasSuffix(name, "of a request") {
			packet = "REQUEST"
		}
		before := bytes.Clone(raw)
		got := withoutSecrets(packet, raw)
		if bytes.Contains(got, []byte("secret")) {
			t.Errorf("%s: %q", name, got)
		}
		if !bytes.Equal(raw, before) {
			t.Errorf("%s: the packet itself was changed", name)
		}
		if packet == "REQUEST" && !bytes.Contains(got, []byte("&se=1\r\n\r\n")) {
			t.Errorf("%s: what follows the signature is missing: %q", name, got)
		}
	}
}

func TestPacketsAreDecodedByField(t *testing.T) {
	for want, raw := range map[string][]byte{
		"Return code=5 (not authorized)\nSession present=false":         {0x20, 2, 0, 5},
		"Packet ID=1\nFilter=$dps/registrations/res/#\nRequested QoS=1": packetOf(0x82, "\x00\x01"+text("$dps/registrations/res/#")+"\x01"),
		"Packet ID=1\nResult=granted QoS 1":                             {0x90, 3, 0, 1, 1},
		"Packet ID=1\nResult=refused (128)":                             {0x90, 3, 0, 1, 0x80},
		"Packet ID=2":                                                   {0x40, 2, 0, 2},
		"Topic=devices/a/messages/events/\nQoS=0":                       publish("devices/a/messages/events/", "{}"),
		"Topic=$dps/registrations/res/202/?$rid=1&retry-after=3\nStatus=202\nRequest ID=1\nRetry after=3 s\nQoS=0": publish("$dps/registrations/res/202/?$rid=1&retry-after=3", ""),
		"": {0x30},
	} {
		if got := fieldsOf(decode("", raw)); got != want {
			t.Errorf("% x:\n%s\nwant\n%s", raw, got, want)
		}
	}
}

func TestABodyIsIndentedIfItIsJSONAndHasNoControlCharacters(t *testing.T) {
	for body, want := range map[string]string{
		`{"a":1}`:       "{\n  \"a\": 1\n}",
		"a\x1b[2Jb\n":   "a�[2Jb\n",
		"\xff\xfe":      "",
		`{"a":"\u0007"`: `{"a":"\u0007"`,
	} {
		if got := readable([]byte(body)); got != want {
			t.Errorf("%q: %q, want %q", body, got, want)
		}
	}
}

func TestADumpShowsEightBytesInALine(t *testing.T) {
	want := "0000  32 b5 01 00 22 24 64 70  2...\"$dp\n0008  7e 7f ff                 ~..\n"
	if got := dump([]byte("2\xb5\x01\x00\"$dp~\x7f\xff")); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestARequestOverHTTPSIsDecodedWithoutTheSignatureOfItsToken(t *testing.T) {
	raw := []byte("PUT /0ne/registrations/gw-1/register?api-version=2021-06-01 HTTP/1.1\r\nHost: localhost\r\nauthorization: SharedAccessSignature sr=a&sig=c2VjcmV0&se=1796040000\r\n\r\n{\"a\":1}")
	d := decode("REQUEST", withoutSecrets("REQUEST", raw))
	want := "Request=PUT /0ne/registrations/gw-1/register?api-version=2021-06-01\nHost=localhost\nAuthorization=a SAS token\nToken: sr=a\nToken: sig=not shown\nToken: se=1796040000 (2026-11-30T12:00:00Z)"
	if got := fieldsOf(d); got != want || d.Body != "{\n  \"a\": 1\n}" {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := fieldsOf(decode("RESPONSE", []byte("HTTP/1.1 202 Accepted\r\nRetry-After: 3\r\n\r\n"))); got != "Status=202 Accepted\nRetry-After=3" {
		t.Error(got)
	}
}

func TestTheOutcomeOfADeviceOverHTTPSIsThatOfItsRegistration(t *testing.T) {
	f := &Feed{}
	steps := []struct {
		target string
		status int
		body   string
		want   Outcome
	}{
		{"PUT /0ne/registrations/gw-1/register?api-version=1", 202, `{"status":"assigning"}`, Waiting},
		{"GET /0ne/registrations/gw-1/operations/5.1?api-version=1", 200, `{"status":"assigned","registrationState":{"assignedHub":"hub.example"}}`, Assigned},
		{"POST /0ne/registrations/gw-1?api-version=1", 200, `{"status":"failed"}`, Assigned},
		{"PUT /0ne/registrations/gw-1/register?api-version=1", 429, `{"errorCode":429001,"message":"Too many requests."}`, Throttled},
		{"PUT /0ne/registrations/gw-1/register?api-version=1", 503, `<html>`, Failed},
		{"PUT /0ne/registrations/gw-1/register?api-version=1", 401, `{"errorCode":401000,"message":"Unauthorized"}`, Refused},
	}
	for _, step := range steps {
		f.Add(simulator.Entry{Connection: 1, Time: noon, Protocol: "https", Packet: "REQUEST", Direction: "up", RegistrationID: "gw-1", Topic: step.target})
		f.Add(simulator.Entry{
			Connection: 1, Time: noon, Protocol: "https", Packet: "RESPONSE", Direction: "down", RegistrationID: "gw-1", ReturnCode: &step.status,
			Raw: []byte("HTTP/1.1 200 OK\r\n\r\n" + step.body),
		})
		if got := f.devices["gw-1"].outcome; got != step.want {
			t.Errorf("%s, %d: %q, want %q", step.target, step.status, got, step.want)
		}
	}
	d := f.devices["gw-1"]
	if d.hub != "hub.example" || d.registers != 4 || d.polls != 1 || d.explanation.Reason != "The service answered with 401 (401000 Unauthorized)." {
		t.Errorf("%+v", d)
	}
}
