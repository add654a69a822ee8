package control_test

import (
	"encoding/json"
	"net/http"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/dpsd-project/dpsd/control"
)

const openAPI = "../docs/control.openapi.json"

// whole returns a status with every member.
func whole() control.Status {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	return control.Status{
		Version: "1.0", PID: 7, StartedAt: at, Health: control.OK, Ready: true, Text: "Assigned",
		ServiceManager: &control.ServiceManager{Notification: true, Watchdog: 30, Credentials: "/run/credentials/dpsd.service", Log: "journal"},
		Configuration:  &control.Configuration{File: "/etc/dpsd/dpsd.toml", Fingerprint: "sha256:0", Refused: "r"},
		Identity: &control.Identity{AssignedHub: "hub", DeviceID: "gw", RegistrationID: "gw", IDScope: "0ne", Endpoint: "e",
			ConnectionProfile: "classic", Generation: 1, ProvisionedAt: at, Durable: true},
		Confirmed: &at, Confirmations: 1, Phase: control.Phase{Name: "waiting", Since: at},
		Next: control.Due(time.Now().Add(time.Hour), "interval", "transient"),
		Faults: []control.Fault{{Code: "no-reply", Class: "transient", Stage: "poll", Summary: "s", Cause: "c", Advice: "a", Credential: "file:/k",
			ServiceCode: 500001, TrackingID: "t", First: at, Last: at, Count: 1, Unresolved: true}},
		Certificate: &control.Certificate{NotAfter: at},
		Connection:  &control.Connection{Protocol: "mqtt", Address: "e:8883", Proxy: "p:3128", At: at},
		IssuedCertificate: &control.IssuedCertificate{State: "valid", Request: "required", NotBefore: &at, NotAfter: &at, RenewAt: &at, Serial: "1f",
			SHA256: "00", Issuer: "CN=x", Due: "renewal", NotBeforeNextRequest: &at, Issued: 1, Failed: 1},
		Attempts: control.AttemptsCount{Started: 1, Assigned: 1},
		Consumers: []control.Consumer{{Name: "telemetry", Scope: "module:telemetry", Listening: true, Module: control.ModulePending,
			ConsumerUse: control.ConsumerUse{Requests: 1, Tokens: 1, LastToken: &at, TokenExpiry: &at, Limited: 1, Refusals: 1},
			Report:      &control.ConsumerReport{Code: "CONNACK 5", At: at, Counted: 1, Action: "counting", Because: "x.", Due: &at}}},
	}
}

// schemas returns the schemas of the document by name.
func schemas(t *testing.T) (compile func(name string) *jsonschema.Schema, plain map[string]map[string]any) {
	t.Helper()
	text, err := os.ReadFile(openAPI)
	if err != nil {
		t.Fatal(err)
	}
	var document struct {
		Components struct{ Schemas map[string]map[string]any }
	}
	if err := json.Unmarshal(text, &document); err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.DefaultDraft(jsonschema.Draft2020)
	compiler.AssertFormat()
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err == nil {
		err = compiler.AddResource("openapi.json", value)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func(name string) *jsonschema.Schema {
		s, err := compiler.Compile("openapi.json#/components/schemas/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}, document.Components.Schemas
}

// undescribed lists the members of a value that are missing in a schema.
func undescribed(value any, schema map[string]any, at string) (names []string) {
	switch v := value.(type) {
	case map[string]any:
		properties, _ := schema["properties"].(map[string]any)
		for name, member := range v {
			described, found := properties[name].(map[string]any)
			if !found {
				names = append(names, at+"/"+name)
				continue
			}
			names = append(names, undescribed(member, described, at+"/"+name)...)
		}
		for name := range properties {
			if _, found := v[name]; !found {
				names = append(names, at+"/"+name+" (which is not there)")
			}
		}
	case []any:
		items, _ := schema["items"].(map[string]any)
		for _, item := range v {
			names = append(names, undescribed(item, items, at)...)
		}
	}
	return names
}

func TestTheDescriptionMatchesTheInterface(t *testing.T) {
	compile, plain := schemas(t)
	d := open(t, 0)
	check := func(t *testing.T, name, body string) {
		t.Helper()
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(body))
		if err != nil {
			t.Fatalf("%v: %s", err, body)
		}
		if err := compile(name).Validate(value); err != nil {
			t.Errorf("%v\n%s", err, body)
		}
	}
	t.Run("a status with every member matches the schema exactly", func(t *testing.T) {
		d.board.Post(whole())
		_, body := d.request(http.MethodGet, "/v1/status")
		check(t, "Status", body)
		var value any
		if err := json.Unmarshal([]byte(body), &value); err != nil {
			t.Fatal(err)
		}
		if names := undescribed(value, plain["Status"], ""); len(names) > 0 {
			t.Errorf("%q", names)
		}
	})
	t.Run("an empty status matches the schema", func(t *testing.T) {
		d.board.Post(control.Status{Health: control.Unprovisioned})
		_, body := d.request(http.MethodGet, "/v1/status")
		check(t, "Status", body)
	})
	t.Run("every response has a code and a body of the description", func(t *testing.T) {
		text, err := os.ReadFile(openAPI)
		if err != nil {
			t.Fatal(err)
		}
		var document struct {
			Paths map[string]map[string]struct {
				Responses map[string]struct {
					Content map[string]struct {
						Schema struct {
							Ref string `json:"$ref"`
						}
					}
				}
			}
		}
		if err := json.Unmarshal(text, &document); err != nil {
			t.Fatal(err)
		}
		for path, methods := range document.Paths {
			for method, operation := range methods {
				if path == "/v1/events" {
					continue // does not end; TestEvents reads it
				}
				wrong := http.MethodPost
				if method == "post" {
					wrong = http.MethodGet
				}
				for _, use := range []string{strings.ToUpper(method), wrong} {
					response, body := d.request(use, path)
					described, found := operation.Responses[strconv.Itoa(response.StatusCode)]
					if !found {
						t.Errorf("%s %s: %d is not described", use, path, response.StatusCode)
						continue
					}
					kind, _, _ := strings.Cut(response.Header.Get("Content-Type"), ";")
					content, found := described.Content[kind]
					if !found {
						t.Errorf("%s %s: %s is not described", use, path, kind)
					}
					if name, found := strings.CutPrefix(content.Schema.Ref, "#/components/schemas/"); found {
						check(t, name, body)
					}
				}
			}
		}
	})
	t.Run("dpsd status --json has the same members and three more", func(t *testing.T) {
		text, err := os.ReadFile("../docs/status.schema.json")
		if err != nil {
			t.Fatal(err)
		}
		var described struct{ Properties map[string]any }
		if err := json.Unmarshal(text, &described); err != nil {
			t.Fatal(err)
		}
		delete(described.Properties, "running")
		delete(described.Properties, "stopped")
		delete(described.Properties, "history")
		if !reflect.DeepEqual(described.Properties, plain["Status"]["properties"]) {
			t.Error("docs/status.schema.json and docs/control.openapi.json describe a status differently")
		}
	})
}
