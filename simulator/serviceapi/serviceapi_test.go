package serviceapi_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dpsd-project/dpsd/simulator"
	"github.com/dpsd-project/dpsd/simulator/enroll"
	"github.com/dpsd-project/dpsd/simulator/hub"
	"github.com/dpsd-project/dpsd/simulator/serviceapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const host = "localhost:8080"

// at is the time of the service's clock.
var at = time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)

// api is a client of the service API of a simulator.
type api struct {
	t      *testing.T
	server *simulator.Server
	*serviceapi.Handler
	auth string
}

func open(t *testing.T, o simulator.Options) *api {
	t.Helper()
	o.Now = func() time.Time { return at }
	s, err := simulator.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	h, err := serviceapi.New(s, o.Now)
	if err != nil {
		t.Fatal(err)
	}
	return &api{t: t, server: s, Handler: h, auth: token(s.ServiceKey(), host, "provisioningserviceowner", at.Add(time.Hour).Unix())}
}

// token signs as Microsoft's SDK for Node does: sr is not escaped.
func token(key, sr, skn string, se int64) string {
	raw, _ := base64.StdEncoding.DecodeString(key)
	mac := hmac.New(sha256.New, raw)
	fmt.Fprintf(mac, "%s\n%d", sr, se)
	return fmt.Sprintf("SharedAccessSignature sr=%s&sig=%s&skn=%s&se=%d", sr, url.QueryEscape(base64.StdEncoding.EncodeToString(mac.Sum(nil))), skn, se)
}

// answer is a response with its decoded body.
type answer struct {
	*http.Response
	text string
	body map[string]any
	list []map[string]any
}

func (a *api) ask(method, path, body string, header ...string) answer {
	a.t.Helper()
	r := httptest.NewRequest(method, "https://"+host+path, strings.NewReader(body))
	r.Header.Set("Authorization", a.auth)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	a.ServeHTTP(w, r)
	out := answer{Response: w.Result(), text: w.Body.String()}
	if strings.HasPrefix(out.text, "[") {
		_ = json.Unmarshal(w.Body.Bytes(), &out.list)
	} else {
		_ = json.Unmarshal(w.Body.Bytes(), &out.body)
	}
	return out
}

// must fails the test unless the answer has the status.
func (a *api) must(status int, got answer) answer {
	a.t.Helper()
	if got.StatusCode != status {
		a.t.Fatalf("%s %s, want %d", got.Status, got.text, status)
	}
	return got
}

// fails checks an error in the form of the service.
func (a *api) fails(code int, got answer) {
	a.t.Helper()
	if got.StatusCode != code/1000 || got.body["errorCode"] != float64(code) || got.body["message"] == "" || got.body["trackingId"] == "" ||
		got.body["timestampUtc"] != "2026-11-29T10:00:00Z" || got.Header.Get("x-ms-error-code") != fmt.Sprint(code) {
		a.t.Errorf("%s %s, want %d", got.Status, got.text, code)
	}
}

const (
	version    = "?api-version=2021-10-01"
	one        = "/enrollments/press-7" + version
	key        = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
	other      = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="
	symmetric  = `"attestation":{"type":"symmetricKey","symmetricKey":{"primaryKey":"` + key + `","secondaryKey":"` + other + `"}}`
	individual = `{"registrationId":"press-7",` + symmetric + `}`
)

// look returns a member of an object by its dotted path, or nil.
func look(body map[string]any, path string) any {
	var v any = body
	for part := range strings.SplitSeq(path, ".") {
		m, _ := v.(map[string]any)
		v = m[part]
	}
	return v
}

func TestIndividualEnrollments(t *testing.T) {
	t.Run("an enrollment that was created is returned with its etag and times, but GET does not return the keys", func(t *testing.T) {
		a := open(t, simulator.Options{})
		created := a.must(200, a.ask("PUT", one, individual))
		if look(created.body, "attestation.symmetricKey.primaryKey") != key || created.Header.Get("Content-Type") != "application/json; charset=utf-8" {
			t.Error(created.text)
		}
		got := a.must(200, a.ask("GET", one, ""))
		for path, want := range map[string]any{
			"registrationId": "press-7", "attestation.type": "symmetricKey", "attestation.symmetricKey": nil, "provisioningStatus": "enabled",
			"allocationPolicy": "hashed", "reprovisionPolicy.updateHubAssignment": true, "reprovisionPolicy.migrateDeviceData": true,
			"createdDateTimeUtc": "2026-11-29T10:00:00Z", "lastUpdatedDateTimeUtc": "2026-11-29T10:00:00Z", "etag": created.body["etag"],
			"registrationState": nil,
		} {
			if v := look(got.body, path); v != want {
				t.Errorf("%s: %v, want %v", path, v, want)
			}
		}
		if raw, err := base64.StdEncoding.DecodeString(fmt.Sprint(got.body["etag"])); err != nil || len(raw) != 38 || raw[0] != '"' {
			t.Errorf("etag %q, %v", raw, err)
		}
	})
	t.Run("attestationmechanism returns the keys, with POST and regardless of the case of the path", func(t *testing.T) {
		a := open(t, simulator.Options{})
		a.must(200, a.ask("PUT", one, individual))
		got := a.must(200, a.ask("POST", "/Enrollments/press-7/attestationMechanism"+version, ""))
		if got.body["type"] != "symmetricKey" || look(got.body, "symmetricKey.primaryKey") != key || look(got.body, "symmetricKey.secondaryKey") != other {
			t.Error(got.text)
		}
	})
	t.Run("an enrollment without keys gets new ones, and keeps them when it is updated without keys", func(t *testing.T) {
		a := open(t, simulator.Options{})
		created := a.must(200, a.ask("PUT", one, `{"attestation":{"type":"symmetricKey"}}`))
		generated, _ := look(created.body, "attestation.symmetricKey.primaryKey").(string)
		if raw, err := base64.StdEncoding.DecodeString(generated); err != nil || len(raw) != 64 {
			t.Fatal(created.text)
		}
		changed := a.must(200, a.ask("PUT", one, `{"attestation":{"type":"symmetricKey"},"deviceId":"Press"}`, "If-Match", "*"))
		if look(changed.body, "attestation.symmetricKey.primaryKey") != generated || changed.body["deviceId"] != "Press" {
			t.Error(changed.text)
		}
	})
	t.Run("everything that is sent is returned", func(t *testing.T) {
		a := open(t, simulator.Options{})
		a.must(200, a.ask("PUT", one, `{"registrationId":"press-7","deviceId":"Press-7",`+symmetric+`,
			"initialTwin":{"tags":{"site":"here"},"properties":{"desired":{"rate":5}}},"capabilities":{"iotEdge":true},
			"optionalDeviceInformation":{"a":1},"provisioningStatus":"disabled","allocationPolicy":"static","iotHubs":["a.azure-devices.net"],
			"reprovisionPolicy":{"updateHubAssignment":true,"migrateDeviceData":false}}`))
		got := a.must(200, a.ask("GET", one, ""))
		for path, want := range map[string]any{
			"deviceId": "Press-7", "initialTwin.tags.site": "here", "initialTwin.properties.desired.rate": 5.0, "capabilities.iotEdge": true,
			"optionalDeviceInformation.a": 1.0, "provisioningStatus": "disabled", "allocationPolicy": "static",
			"reprovisionPolicy.updateHubAssignment": true, "reprovisionPolicy.migrateDeviceData": false,
		} {
			if v := look(got.body, path); v != want {
				t.Errorf("%s: %v, want %v", path, v, want)
			}
		}
		if hubs, _ := got.body["iotHubs"].([]any); len(hubs) != 1 || hubs[0] != "a.azure-devices.net" {
			t.Error(got.text)
		}
		e := a.server.Enrollments()
		i := e.Individuals[e.FindIndividual("press-7")]
		if !i.Disabled || i.Allocation != "static" || i.Reprovision != "reset" || i.DeviceID != "Press-7" {
			t.Errorf("%+v", i)
		}
	})
	t.Run("iotHubHostName becomes the only hub", func(t *testing.T) {
		a := open(t, simulator.Options{})
		a.must(200, a.ask("PUT", one, `{`+symmetric+`,"iotHubHostName":"b.azure-devices.net"}`))
		if got := a.ask("GET", one, ""); !strings.Contains(got.text, `"iotHubs":["b.azure-devices.net"]`) {
			t.Error(got.text)
		}
	})
	t.Run("a deleted enrollment is gone", func(t *testing.T) {
		a := open(t, simulator.Options{})
		a.must(200, a.ask("PUT", one, individual))
		if got := a.must(204, a.ask("DELETE", one, "")); got.text != "" {
			t.Error(got.text)
		}
		a.fails(404201, a.ask("GET", one, ""))
		a.fails(404201, a.ask("DELETE", one, ""))
		a.fails(404201, a.ask("POST", "/enrollments/press-7/attestationmechanism"+version, ""))
	})
}

func TestEtags(t *testing.T) {
	t.Run("an enrollment that exists is not replaced without If-Match", func(t *testing.T) {
		a := open(t, simulator.Options{})
		a.must(200, a.ask("PUT", one, individual))
		a.fails(409201, a.ask("PUT", one, individual))
	})
	t.Run("an enrollment that does not exist is not updated", func(t *testing.T) {
		a := open(t, simulator.Options{})
		a.fails(404201, a.ask("PUT", one, individual, "If-Match", "*"))
	})
	t.Run("an update with the etag in any of its forms succeeds, and changes the etag", func(t *testing.T) {
		a := open(t, simulator.Options{})
		etag := fmt.Sprint(a.must(200, a.ask("PUT", one, individual)).body["etag"])
		for n, form := range []func(string) string{
			func(e string) string { return e },
			func(e string) string { return `"` + e + `"` },
			func(e string) string { raw, _ := base64.StdEncoding.DecodeString(e); return string(raw) },
			func(string) string { return "*" },
		} {
			got := a.must(200, a.ask("PUT", one, fmt.Sprintf(`{"deviceId":"d%d",%s}`, n, symmetric), "If-Match", form(etag)))
			if got.body["etag"] == etag {
				t.Error("the etag did not change")
			}
			etag = fmt.Sprint(got.body["etag"])
		}
	})
	t.Run("an update or a removal with an old etag is refused with 412", func(t *testing.T) {
		a := open(t, simulator.Options{})
		etag := fmt.Sprint(a.must(200, a.ask("PUT", one, individual)).body["etag"])
		a.must(200, a.ask("PUT", one, `{"deviceId":"d",`+symmetric+`}`, "If-Match", etag))
		a.fails(412000, a.ask("PUT", one, individual, "If-Match", etag))
		a.fails(412000, a.ask("DELETE", one, "", "If-Match", etag))
		a.must(204, a.ask("DELETE", one, "", "If-Match", fmt.Sprint(a.ask("GET", one, "").body["etag"])))
	})
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct{ name, method, path, body, says string }{
		{"a body that is not JSON", "PUT", one, "{", "Deserialization"},
		{"two JSON values", "PUT", one, individual + "{}", "unexpected data"},
		{"an unknown member", "PUT", one, `{"provisioningStaus":"disabled",` + symmetric + `}`, "provisioningStaus"},
		{"another ID in the body", "PUT", one, `{"registrationId":"press-8",` + symmetric + `}`, "press-8"},
		{"an invalid ID", "PUT", "/enrollments/a%20b" + version, `{` + symmetric + `}`, "a b"},
		{"no attestation", "PUT", one, `{}`, "attestation"},
		{"an unknown attestation", "PUT", one, `{"attestation":{"type":"password"}}`, "password"},
		{"a TPM, which the simulator does not have", "PUT", one, `{"attestation":{"type":"tpm","tpm":{"endorsementKey":"AA=="}}}`, "TPM"},
		{"a key that is too short", "PUT", one, `{"attestation":{"type":"symmetricKey","symmetricKey":{"primaryKey":"AAAA"}}}`, "16 to 64"},
		{"x509 without a certificate", "PUT", one, `{"attestation":{"type":"x509"}}`, "certificate"},
		{"a certificate that is not one", "PUT", one, `{"attestation":{"type":"x509","x509":{"clientCertificates":{"primary":{"certificate":"AAAA"}}}}}`, "certificate"},
		{"a client certificate for a group", "PUT", "/enrollmentGroups/g" + version, `{"attestation":{"type":"x509","x509":{"clientCertificates":{"primary":{"certificate":"` + selfSigned(t, "x") + `"}}}}}`, "signingCertificates"},
		{"references to CA certificates", "PUT", one, `{"attestation":{"type":"x509","x509":{"caReferences":{"primary":"x"}}}}`, "caReferences"},
		{"an unknown provisioningStatus", "PUT", one, `{"provisioningStatus":"off",` + symmetric + `}`, "off"},
		{"an unknown allocationPolicy", "PUT", one, `{"allocationPolicy":"random",` + symmetric + `}`, "random"},
		{"a webhook, which the simulator does not call", "PUT", one, `{"allocationPolicy":"custom","customAllocationDefinition":{"webhookUrl":"https://x.example","apiVersion":"2019-03-31"},` + symmetric + `}`, "webhook"},
		{"static without a hub", "PUT", one, `{"allocationPolicy":"static","iotHubs":["a.example","b.example"],` + symmetric + `}`, "exactly one hub"},
		{"an api-version that is not a date", "GET", "/enrollments/press-7?api-version=latest", "", "latest"},
		{"no api-version", "GET", "/enrollments/press-7", "", "api-version"},
		{"a query that is not for all", "POST", "/enrollments/query" + version, `{"query":"SELECT * FROM enrollments WHERE 1"}`, "SELECT"},
		{"an invalid page size", "POST", "/enrollments/query" + version, `{"query":"SELECT * FROM enrollments"}`, "max-item"},
		{"an invalid continuation", "POST", "/enrollments/query" + version, `{"query":"SELECT * FROM enrollments"}`, "continuation"},
		{"an unknown mode", "POST", "/enrollments" + version, `{"mode":"upsert","enrollments":[` + individual + `]}`, "upsert"},
		{"an empty bulk operation", "POST", "/enrollments" + version, `{"mode":"create","enrollments":[]}`, "0 enrollments"},
		{"a bulk operation on eleven", "POST", "/enrollments" + version, `{"mode":"create","enrollments":[` + strings.Repeat(individual+",", 10) + individual + `]}`, "11 enrollments"},
	} {
		t.Run(c.name+" is refused with 400 and the reason", func(t *testing.T) {
			a := open(t, simulator.Options{})
			before := a.server.Enrollments()
			header := []string{}
			switch c.says {
			case "max-item":
				header = []string{"x-ms-max-item-count", "none"}
			case "continuation":
				header = []string{"x-ms-continuation", "?"}
			}
			got := a.ask(c.method, c.path, c.body, header...)
			if message, _ := got.body["message"].(string); got.StatusCode != http.StatusBadRequest || !strings.Contains(message, c.says) {
				t.Error(got.Status, got.text)
			}
			if a.server.Enrollments() != before {
				t.Error("the enrollments have changed")
			}
		})
	}
	for _, c := range []struct {
		name, method, path string
		code               int
	}{
		{"an unknown path", "GET", "/devices/x" + version, 404000},
		{"a path without an ID", "GET", "/enrollments" + version, 405000},
		{"an unknown method", "PATCH", one, 405000},
	} {
		t.Run(c.name+" is refused", func(t *testing.T) {
			a := open(t, simulator.Options{})
			a.fails(c.code, a.ask(c.method, c.path, ""))
		})
	}
}

func TestAuthentication(t *testing.T) {
	a := open(t, simulator.Options{})
	later := at.Add(time.Hour).Unix()
	own := a.server.ServiceKey()
	for name, auth := range map[string]string{
		"the host and the port":                token(own, host, "provisioningserviceowner", later),
		"the host alone":                       token(own, "localhost", "provisioningserviceowner", later),
		"the host in capitals":                 token(own, "LOCALHOST", "provisioningserviceowner", later),
		"an escaped host":                      token(own, "localhost%3a8080", "provisioningserviceowner", later),
		"an expiry in milliseconds, like Node": token(own, "localhost", "provisioningserviceowner", at.UnixMilli()),
	} {
		t.Run("a token for "+name+" is accepted", func(t *testing.T) {
			a.auth = auth
			a.fails(404201, a.ask("GET", "/enrollments/nobody"+version, ""))
		})
	}
	for _, c := range []struct{ name, auth, says string }{
		{"no token", "", "SharedAccessSignature"},
		{"another scheme", "Bearer x", "SharedAccessSignature"},
		{"another key", token(key, "localhost", "provisioningserviceowner", later), `string to sign is "localhost\n`},
		{"another key name", token(own, "localhost", "owner", later), `skn is "owner"`},
		{"another host", token(own, "x.example", "provisioningserviceowner", later), `"x.example"`},
		{"a token that has expired", token(own, "localhost", "provisioningserviceowner", at.Unix()), "expired"},
		{"no expiry", "SharedAccessSignature sr=localhost&sig=AA%3D%3D&skn=provisioningserviceowner", "no valid se"},
		{"an expiry that is not a number", "SharedAccessSignature sr=localhost&sig=AA%3D%3D&skn=provisioningserviceowner&se=soon", "not a number"},
		{"a signature that is not base64", fmt.Sprintf("SharedAccessSignature sr=localhost&sig=A&skn=provisioningserviceowner&se=%d", later), "not signed"},
	} {
		t.Run(c.name+" is refused with 401 and the reason, but without a key", func(t *testing.T) {
			a.auth = c.auth
			got := a.ask("GET", one, "")
			a.fails(401000, got)
			if message, _ := got.body["message"].(string); !strings.Contains(message, c.says) || strings.Contains(message, own) {
				t.Error(message)
			}
		})
	}
}

// selfSigned returns a certificate as PEM in a JSON string.
func selfSigned(t *testing.T, name string) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(0xabc), Subject: pkix.Name{CommonName: name}, NotBefore: at, NotAfter: at.Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	text, _ := json.Marshal(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	return strings.Trim(string(text), `"`)
}

func TestCertificates(t *testing.T) {
	text := selfSigned(t, "camera-1")
	block, _ := pem.Decode([]byte(strings.ReplaceAll(text, `\n`, "\n")))
	thumbprint := fmt.Sprintf("%X", sha256.Sum256(block.Bytes))
	for name, form := range map[string]string{
		"PEM":            text,
		"base64 of PEM":  base64.StdEncoding.EncodeToString(pem.EncodeToMemory(block)),
		"base64 of DER":  base64.StdEncoding.EncodeToString(block.Bytes),
		"several lines ": strings.ReplaceAll(base64.StdEncoding.EncodeToString(block.Bytes), "A", `\nA`),
	} {
		t.Run("a client certificate as "+name+" is stored, and described without the certificate", func(t *testing.T) {
			a := open(t, simulator.Options{})
			path := "/enrollments/camera-1" + version
			a.must(200, a.ask("PUT", path, `{"attestation":{"type":"x509","x509":{"clientCertificates":{"primary":{"certificate":"`+form+`"}}}}}`))
			got := a.must(200, a.ask("GET", path, ""))
			for member, want := range map[string]any{
				"subjectName": "CN=camera-1", "issuerName": "CN=camera-1", "sha256Thumbprint": thumbprint, "serialNumber": "ABC", "version": 3.0,
				"notBeforeUtc": "2026-11-29T10:00:00Z", "notAfterUtc": "2026-11-29T11:00:00Z",
			} {
				if v := look(got.body, "attestation.x509.clientCertificates.primary.info."+member); v != want {
					t.Errorf("%s: %v, want %v", member, v, want)
				}
			}
			changed := a.must(200, a.ask("PUT", path, `{"deviceId":"c","attestation":{"type":"x509","x509":{"clientCertificates":{"primary":{"info":{"sha256Thumbprint":"`+thumbprint+`"}}}}}}`, "If-Match", "*"))
			if look(changed.body, "attestation.x509.clientCertificates.primary.info.sha256Thumbprint") != thumbprint {
				t.Error("an update without the certificate has lost it:", changed.text)
			}
		})
	}
	t.Run("a group has signing certificates, primary and secondary", func(t *testing.T) {
		a := open(t, simulator.Options{})
		a.must(200, a.ask("PUT", "/enrollmentGroups/cameras"+version, `{"enrollmentGroupId":"cameras","attestation":{"type":"x509","x509":{"signingCertificates":{"primary":{"certificate":"`+text+`"},"secondary":{"certificate":"`+selfSigned(t, "second")+`"}}}}}`))
		got := a.must(200, a.ask("GET", "/enrollmentGroups/cameras"+version, ""))
		if look(got.body, "attestation.x509.signingCertificates.primary.info.subjectName") != "CN=camera-1" || look(got.body, "attestation.x509.signingCertificates.secondary.info.subjectName") != "CN=second" {
			t.Error(got.text)
		}
	})
	t.Run("a thumbprint that a person wrote is shown as what it is", func(t *testing.T) {
		a := open(t, simulator.Options{Enrollments: &enroll.Enrollments{Individuals: []enroll.Individual{
			{RegistrationID: "a", Thumbprint: strings.Repeat("ab:", 19) + "ab", Attestation: enroll.Attestation{Type: "x509"}},
			{RegistrationID: "b", Thumbprint: strings.Repeat("cd", 32), Attestation: enroll.Attestation{Type: "x509"}},
		}}})
		if v := look(a.ask("GET", "/enrollments/a"+version, "").body, "attestation.x509.clientCertificates.primary.info.sha1Thumbprint"); v != strings.Repeat("AB", 20) {
			t.Error(v)
		}
		if v := look(a.ask("GET", "/enrollments/b"+version, "").body, "attestation.x509.clientCertificates.primary.info.sha256Thumbprint"); v != strings.Repeat("CD", 32) {
			t.Error(v)
		}
	})
}

func TestQuery(t *testing.T) {
	const all = `{"query":"select * from Enrollments"}`
	a := open(t, simulator.Options{})
	for _, id := range []string{"d", "B", "a", "c", "E"} {
		a.must(200, a.ask("PUT", "/enrollments/"+id+version, `{`+symmetric+`}`))
	}
	ids := func(got answer, member string) (out []string) {
		for _, e := range got.list {
			out = append(out, fmt.Sprint(e[member]))
		}
		return out
	}
	t.Run("a query returns all enrollments in the order of their IDs, without keys", func(t *testing.T) {
		got := a.must(200, a.ask("POST", "/enrollments/query"+version, all))
		if want := []string{"a", "B", "c", "d", "E"}; !slices.Equal(ids(got, "registrationId"), want) || strings.Contains(got.text, key) ||
			got.Header.Get("x-ms-item-type") != "IndividualEnrollment" || got.Header.Get("x-ms-continuation") != "" {
			t.Error(got.Header, got.text)
		}
	})
	t.Run("pages lead to all enrollments once, even if one is removed meanwhile", func(t *testing.T) {
		var seen []string
		next := []string{"x-ms-max-item-count", "2"}
		for n := 0; ; n++ {
			got := a.must(200, a.ask("POST", "/enrollments/query"+version, all, next...))
			seen = append(seen, ids(got, "registrationId")...)
			token := got.Header.Get("x-ms-continuation")
			if token == "" {
				break
			}
			if n == 0 {
				a.must(204, a.ask("DELETE", "/enrollments/B"+version, ""))
			}
			next = []string{"x-ms-max-item-count", "2", "x-ms-continuation", token}
		}
		if want := []string{"a", "B", "c", "d", "E"}; !slices.Equal(seen, want) {
			t.Error(seen)
		}
	})
	t.Run("a query for groups returns groups", func(t *testing.T) {
		got := a.must(200, a.ask("POST", "/enrollmentGroups/query"+version, `{"query":"SELECT * FROM enrollmentGroups"}`))
		if want := []string{"certificates", "keys"}; !slices.Equal(ids(got, "enrollmentGroupId"), want) || got.Header.Get("x-ms-item-type") != "EnrollmentGroup" {
			t.Error(got.text)
		}
	})
	t.Run("a query without results is an empty list", func(t *testing.T) {
		empty := open(t, simulator.Options{})
		if got := empty.must(200, empty.ask("POST", "/enrollments/query"+version, all)); got.text != "[]" {
			t.Error(got.text)
		}
	})
}

func TestBulk(t *testing.T) {
	a := open(t, simulator.Options{})
	run := func(mode, enrollments string) answer {
		return a.must(200, a.ask("POST", "/enrollments"+version, `{"mode":"`+mode+`","enrollments":[`+enrollments+`]}`))
	}
	two := `{"registrationId":"a",` + symmetric + `},{"registrationId":"b",` + symmetric + `}`
	t.Run("create creates all", func(t *testing.T) {
		if got := run("create", two); got.text != `{"isSuccessful":true,"errors":[]}` {
			t.Error(got.text)
		}
	})
	t.Run("each enrollment has its own result", func(t *testing.T) {
		got := run("create", `{"registrationId":"c",`+symmetric+`},{"registrationId":"a",`+symmetric+`}`)
		if got.body["isSuccessful"] != false || !strings.Contains(got.text, `"errors":[{"registrationId":"a","errorCode":409201,`) {
			t.Error(got.text)
		}
		a.must(200, a.ask("GET", "/enrollments/c"+version, ""))
	})
	t.Run("update replaces only enrollments that exist", func(t *testing.T) {
		got := run("update", `{"registrationId":"a","deviceId":"A",`+symmetric+`},{"registrationId":"z",`+symmetric+`}`)
		if !strings.Contains(got.text, `"registrationId":"z","errorCode":404201`) || a.ask("GET", "/enrollments/a"+version, "").body["deviceId"] != "A" {
			t.Error(got.text)
		}
	})
	t.Run("updateIfMatchETag compares the etags", func(t *testing.T) {
		etag := fmt.Sprint(a.ask("GET", "/enrollments/a"+version, "").body["etag"])
		got := run("updateIfMatchETag", `{"registrationId":"a","etag":"`+etag+`",`+symmetric+`},{"registrationId":"b","etag":"x",`+symmetric+`}`)
		if !strings.Contains(got.text, `"registrationId":"b","errorCode":412000`) || strings.Contains(got.text, `"registrationId":"a"`) {
			t.Error(got.text)
		}
	})
	t.Run("delete removes", func(t *testing.T) {
		run("delete", `{"registrationId":"a"},{"registrationId":"b"},{"registrationId":"c"}`)
		if n := len(a.server.Enrollments().Individuals); n != 0 {
			t.Error(n)
		}
	})
	t.Run("groups, too", func(t *testing.T) {
		got := a.must(200, a.ask("POST", "/enrollmentGroups"+version, `{"mode":"create","enrollmentGroups":[{"enrollmentGroupId":"g",`+symmetric+`}]}`))
		if got.body["isSuccessful"] != true || a.server.Enrollments().FindGroup("g") < 0 {
			t.Error(got.text)
		}
	})
}

// register lets a device register over HTTPS, and returns the status of the answer. Without
// polls, the first answer is final.
func register(t *testing.T, s *simulator.Server, id, deviceKey string) int {
	t.Helper()
	return registerWith(t, s, id, deviceKey, "2021-10-01", "{}")
}

func registerWith(t *testing.T, s *simulator.Server, id, deviceKey, apiVersion, body string) int {
	t.Helper()
	mine, theirs := net.Pipe()
	go s.ServeWebSocket(theirs)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(s.CA())
	conn := tls.Client(mine, &tls.Config{RootCAs: roots, ServerName: "localhost", Time: func() time.Time { return at }, MinVersion: tls.VersionTLS12})
	client := &http.Client{Transport: &http.Transport{DialTLSContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }, DisableKeepAlives: true}}
	r, err := http.NewRequest(http.MethodPut, "https://localhost/"+s.IDScope()+"/registrations/"+id+"/register?api-version="+apiVersion, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Authorization", token(deviceKey, s.IDScope()+"%2Fregistrations%2F"+id, "registration", at.Add(time.Hour).Unix()))
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.Copy(io.Discard, answer.Body)
	answer.Body.Close()
	return answer.StatusCode
}

func TestEffects(t *testing.T) {
	immediately := &simulator.Scenario{Settings: simulator.Settings{Polls: new(0)}}
	t.Run("a device registers after its enrollment was created, and not after it was removed", func(t *testing.T) {
		a := open(t, simulator.Options{Scenario: immediately, Enrollments: &enroll.Enrollments{}})
		if got := register(t, a.server, "press-7", key); got != 404 {
			t.Error("before:", got)
		}
		a.must(200, a.ask("PUT", one, individual))
		if got := register(t, a.server, "press-7", key); got != 200 {
			t.Error("then:", got)
		}
		a.must(204, a.ask("DELETE", one, ""))
		if got := register(t, a.server, "press-7", key); got != 404 {
			t.Error("afterwards:", got)
		}
	})
	t.Run("the state of a registration is part of its enrollment, and can be read and removed", func(t *testing.T) {
		a := open(t, simulator.Options{Scenario: immediately})
		a.must(200, a.ask("PUT", one, individual))
		state := "/registrations/press-7" + version
		a.fails(404201, a.ask("GET", state, ""))
		a.fails(404201, a.ask("DELETE", state, ""))
		register(t, a.server, "press-7", key)
		got := a.must(200, a.ask("GET", state, ""))
		for member, want := range map[string]any{
			"registrationId": "press-7", "assignedHub": "dpsd-sim.azure-devices.net", "deviceId": "press-7", "status": "assigned",
			"substatus": "initialAssignment", "createdDateTimeUtc": "2026-11-29T10:00:00Z", "lastUpdatedDateTimeUtc": "2026-11-29T10:00:00Z",
		} {
			if got.body[member] != want {
				t.Errorf("%s: %v, want %v", member, got.body[member], want)
			}
		}
		if v := look(a.ask("GET", one, "").body, "registrationState.assignedHub"); v != "dpsd-sim.azure-devices.net" {
			t.Error(v)
		}
		a.fails(412000, a.ask("DELETE", state, "", "If-Match", "x"))
		a.must(204, a.ask("DELETE", state, "", "If-Match", fmt.Sprint(got.body["etag"])))
		a.fails(404201, a.ask("GET", state, ""))
	})
	t.Run("a revocation changes the identifier in the certificates of one device, or the authority that issues those of all", func(t *testing.T) {
		var issued []*x509.Certificate
		a := open(t, simulator.Options{Scenario: immediately, OnIssue: func(i simulator.Issued) { issued = append(issued, i.Certificate) }})
		const revoke = "/registrations/gw-1/revoke" + version
		a.fails(404201, a.ask("POST", revoke, ""))
		ask := func(id string) *x509.Certificate {
			key, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: id}}, key)
			if err != nil {
				t.Fatal(err)
			}
			if got := registerWith(t, a.server, id, a.server.DeviceKey(id), "2026-11-01", `{"csr":"`+base64.StdEncoding.EncodeToString(csr)+`"}`); got != 200 {
				t.Fatal(got)
			}
			return issued[len(issued)-1]
		}
		same := func(one, two *x509.Certificate) [2]bool {
			return [2]bool{*one.URIs[0] == *two.URIs[0], bytes.Equal(one.AuthorityKeyId, two.AuthorityKeyId)}
		}
		mine, others := ask("gw-1"), ask("gw-2")
		if got := same(mine, ask("gw-1")); got != [2]bool{true, true} {
			t.Error("without a revocation:", got)
		}
		a.must(204, a.ask("POST", revoke, ""))
		if one, two := same(mine, ask("gw-1")), same(others, ask("gw-2")); one != [2]bool{false, true} || two != [2]bool{true, true} {
			t.Error("after the revocation of gw-1:", one, two)
		}
		a.must(204, a.ask("POST", "/policy/revoke"+version, ""))
		if got := same(others, ask("gw-2")); got != [2]bool{true, false} {
			t.Error("after the revocation of the policy:", got)
		}
		if r := httptest.NewRequest(http.MethodPost, "/policy/revoke", nil); !serviceapi.Serves(r) {
			t.Error("the path is not one of the service API")
		}
	})
	t.Run("a device is disabled, enabled and deleted at its hub, and its modules are listed without their keys", func(t *testing.T) {
		a := open(t, simulator.Options{Scenario: immediately})
		const at = "/registrations/gw-1/hub"
		a.fails(404001, a.ask("POST", at+"/disable"+version, ""))
		a.fails(404001, a.ask("DELETE", at+version, ""))
		register(t, a.server, "gw-1", a.server.DeviceKey("gw-1"))
		a.must(204, a.ask("POST", at+"/disable"+version, ""))
		a.must(204, a.ask("POST", at+"/enable"+version, ""))
		if got := a.must(200, a.ask("GET", at+"/modules"+version, "")); len(got.list) != 0 || got.text != "[]" {
			t.Error(got.text)
		}
		a.must(204, a.ask("DELETE", at+version, ""))
		a.fails(404001, a.ask("POST", at+"/enable"+version, ""))
		if r := httptest.NewRequest(http.MethodDelete, at, nil); !serviceapi.Serves(r) {
			t.Error("the path is not one of the service API")
		}
	})
	t.Run("a message is sent to a device", func(t *testing.T) {
		a := open(t, simulator.Options{Scenario: immediately})
		const at = "/registrations/gw-1/hub/messages"
		a.fails(404001, a.ask("POST", at+version, "hello"))
		register(t, a.server, "gw-1", a.server.DeviceKey("gw-1"))
		for range hub.MaxQueued {
			a.must(204, a.ask("POST", at+version, "hello"))
		}
		a.fails(403004, a.ask("POST", at+version, "hello"))
		a.fails(413001, a.ask("POST", at+version, strings.Repeat("x", hub.MaxCloudMessage+1)))
		a.fails(405000, a.ask("GET", at+version, ""))
	})
	t.Run("a query for registrations returns those of the group", func(t *testing.T) {
		a := open(t, simulator.Options{Scenario: immediately})
		a.must(200, a.ask("PUT", one, individual))
		register(t, a.server, "press-7", key)
		for _, id := range []string{"gw-2", "gw-1"} {
			register(t, a.server, id, a.server.DeviceKey(id))
		}
		got := a.must(200, a.ask("POST", "/registrations/Keys/query"+version, ""))
		if len(got.list) != 2 || got.list[0]["registrationId"] != "gw-1" || got.list[1]["registrationId"] != "gw-2" {
			t.Error(got.text)
		}
		if got := a.must(200, a.ask("POST", "/registrations/certificates/query"+version, "")); got.text != "[]" {
			t.Error(got.text)
		}
		a.fails(404202, a.ask("POST", "/registrations/nowhere/query"+version, ""))
	})
}

func TestFile(t *testing.T) {
	t.Run("a change keeps the rest of the file, and survives a restart with the same etag", func(t *testing.T) {
		dir := t.TempDir()
		a := open(t, simulator.Options{Directory: dir})
		file := filepath.Join(dir, "enrollments.toml")
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		created := a.must(200, a.ask("PUT", one, individual))
		text, err := os.ReadFile(file)
		if err != nil || !bytes.HasPrefix(text, before) || !bytes.Contains(text, []byte(`registration_id = 'press-7'`)) {
			t.Fatalf("%v\n%s", err, text)
		}
		a.server.Close()
		again := open(t, simulator.Options{Directory: dir})
		if again.server.ServiceKey() != a.server.ServiceKey() {
			t.Error("the key of the service API has changed")
		}
		if got := again.must(200, again.ask("GET", one, "")); got.body["etag"] != created.body["etag"] {
			t.Error(got.text)
		}
		again.must(204, again.ask("DELETE", one, ""))
		if text, _ := os.ReadFile(file); !bytes.Equal(bytes.TrimSpace(text), bytes.TrimSpace(before)) {
			t.Errorf("%s", text)
		}
	})
	t.Run("the keys of a group in a file are returned, and the file name stays", func(t *testing.T) {
		dir := t.TempDir()
		a := open(t, simulator.Options{Directory: dir})
		path := "/enrollmentGroups/keys"
		if got := a.must(200, a.ask("POST", path+"/attestationmechanism"+version, "")); look(got.body, "symmetricKey.primaryKey") != a.server.GroupKey() {
			t.Error(got.text)
		}
		a.must(200, a.ask("PUT", path+version, `{"attestation":{"type":"symmetricKey"},"provisioningStatus":"disabled"}`, "If-Match", "*"))
		text, _ := os.ReadFile(filepath.Join(dir, "enrollments.toml"))
		if !bytes.Contains(text, []byte("primary_key_file = 'group-key'")) || !bytes.Contains(text, []byte("disabled = true")) || !bytes.Contains(text, []byte("# Who may register.")) {
			t.Errorf("%s", text)
		}
		a.fails(409203, a.ask("PUT", path+version, `{`+symmetric+`}`))
		a.must(204, a.ask("DELETE", path+version, ""))
		a.fails(404202, a.ask("GET", path+version, ""))
	})
	t.Run("a change in the file that was not loaded yet takes effect with the next one", func(t *testing.T) {
		dir := t.TempDir()
		a := open(t, simulator.Options{Directory: dir})
		file := filepath.Join(dir, "enrollments.toml")
		text, _ := os.ReadFile(file)
		if err := os.WriteFile(file, append(text, "\n[[group]]\nname = \"by-hand\"\ntype = \"symmetric-key\"\nprimary_key = \""+key+"\"\n"...), 0o600); err != nil {
			t.Fatal(err)
		}
		a.must(200, a.ask("PUT", one, individual))
		a.must(200, a.ask("GET", "/enrollmentGroups/by-hand"+version, ""))
		if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 && info.Mode().Perm() != 0o644 {
			t.Error(info.Mode(), err)
		}
	})
	t.Run("a file that a person has broken is neither changed nor loaded", func(t *testing.T) {
		dir := t.TempDir()
		a := open(t, simulator.Options{Directory: dir})
		file := filepath.Join(dir, "enrollments.toml")
		if err := os.WriteFile(file, []byte("[[group]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := a.ask("PUT", one, individual); got.StatusCode != http.StatusBadRequest || !strings.Contains(got.text, "enrollments.toml:1:") {
			t.Error(got.Status, got.text)
		}
		if text, _ := os.ReadFile(file); string(text) != "[[group]\n" {
			t.Errorf("%s", text)
		}
	})
	t.Run("the key file is for its owner only", func(t *testing.T) {
		dir := t.TempDir()
		open(t, simulator.Options{Directory: dir})
		if info, err := os.Stat(filepath.Join(dir, "service-key")); err != nil || info.Mode().Perm() != 0o600 {
			t.Error(info, err)
		}
	})
}

func TestListener(t *testing.T) {
	a := open(t, simulator.Options{})
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	own := a.server.Certificate()
	server := &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	ended := make(chan error, 1)
	go func() {
		ended <- server.Serve(serviceapi.Listener(inner, &tls.Config{Certificates: []tls.Certificate{*own}, MinVersion: tls.VersionTLS12}))
	}()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.server.CA())
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Time: func() time.Time { return at }, MinVersion: tls.VersionTLS12}}}
	for _, scheme := range []string{"http", "https"} {
		t.Run("the same port serves "+scheme, func(t *testing.T) {
			answer, err := client.Get(scheme + "://" + inner.Addr().String() + one)
			if err != nil {
				t.Fatal(err)
			}
			answer.Body.Close()
			if answer.StatusCode != http.StatusUnauthorized {
				t.Error(answer.Status)
			}
		})
	}
	client.CloseIdleConnections()
	t.Run("Close does not wait for a client that sends nothing", func(t *testing.T) {
		silent, err := net.Dial("tcp", inner.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		if err := server.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	})
}

func TestConnectionString(t *testing.T) {
	a := open(t, simulator.Options{})
	if got := serviceapi.ConnectionString(a.server, host); got != "HostName=localhost:8080;SharedAccessKeyName=provisioningserviceowner;SharedAccessKey="+a.server.ServiceKey() {
		t.Error(got)
	}
	for path, want := range map[string]bool{"/enrollments/a": true, "/EnrollmentGroups/query": true, "/registrations/a": true, "/": false, "/enrollmentsx": false, "/assets/enrollments": false} {
		if got := serviceapi.Serves(httptest.NewRequest(http.MethodGet, path, nil)); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
