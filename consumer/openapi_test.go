package consumer_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/santhosh-tekuri/jsonschema/v6"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/refusal"
)

// description is docs/hub.openapi.json. Its schemas are strict: they allow no member that they
// do not describe.
type description struct {
	t     *testing.T
	Paths map[string]map[string]struct {
		Responses map[string]struct {
			Content map[string]struct {
				Schema struct {
					Ref string `json:"$ref"`
				}
			}
		}
	}
	Components struct {
		Schemas map[string]struct{ Enum []string }
	}
	compiler *jsonschema.Compiler
}

func described(t *testing.T) *description {
	t.Helper()
	text, err := os.ReadFile("../docs/hub.openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	d := &description{t: t, compiler: jsonschema.NewCompiler()}
	if err := json.Unmarshal(text, d); err != nil {
		t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	strict(value)
	d.compiler.DefaultDraft(jsonschema.Draft2020)
	d.compiler.AssertFormat()
	if err := d.compiler.AddResource("openapi.json", value); err != nil {
		t.Fatal(err)
	}
	return d
}

// strict forbids members that are not described, in all schemas of objects in a value.
func strict(value any) {
	switch v := value.(type) {
	case map[string]any:
		if v["type"] == "object" {
			v["additionalProperties"] = false
		}
		for _, member := range v {
			strict(member)
		}
	case []any:
		for _, item := range v {
			strict(item)
		}
	}
}

// check fails if a text does not match the schema with a name.
func (d *description) check(name, text string) {
	d.t.Helper()
	schema, err := d.compiler.Compile("openapi.json#/components/schemas/" + name)
	if err != nil {
		d.t.Fatal(err)
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
	if err != nil {
		d.t.Fatalf("%v: %s", err, text)
	}
	if err := schema.Validate(value); err != nil {
		d.t.Errorf("%v\n%s", err, text)
	}
}

// answer fails if the response to a request is not described.
func (d *description) answer(method, path string, status int, kind, body string) {
	d.t.Helper()
	operation := d.Paths[path][strings.ToLower(method)]
	if operation.Responses == nil { // a wrong method: use the description of the right one
		for _, right := range d.Paths[path] {
			operation = right
		}
	}
	content, found := operation.Responses[strconv.Itoa(status)].Content[kind]
	if !found {
		d.t.Errorf("%s %s: %d with %s is not described", method, path, status, kind)
		return
	}
	d.check(strings.TrimPrefix(content.Schema.Ref, "#/components/schemas/"), body)
}

func TestEveryAnswerMatchesTheDescription(t *testing.T) {
	d := described(t)
	files := &consumer.Files{Certificate: "/c", PrivateKey: "/k", NotAfter: noon}
	states := []consumer.State{{}, assigned(), assigned(), assigned(), assigned(), assigned(), assigned(), assigned()}
	states[2].Withheld = consumer.ClockImplausible
	states[3].Withheld = consumer.OtherConfiguration
	states[4].Profile, states[4].Tokens, states[4].Certificate, states[4].RootsFile = "mqttV5", false, files, "/r"
	states[5].Tokens = false
	states[6].Modules = map[string]consumer.Module{"updater": {Ready: true}}
	states[7].Profile = "later"
	consumers := []consumer.Consumer{
		{Name: "a"}, {Name: "b", Certificate: true}, {Name: "c", Scope: consumer.Scope{Module: "updater"}}, {Name: "d", Scope: consumer.Scope{Events: true}},
	}
	seen := map[string]bool{} // path and status, and codes
	for _, c := range consumers {
		failing := false
		f := start(t, c, func(s *consumer.Server) {
			sign, report := s.MAC, s.Refused
			s.MAC = func(ctx context.Context, of hub.Identity, statement []byte) ([]byte, error) {
				if failing {
					return nil, errors.New("no key")
				}
				return sign(ctx, of, statement)
			}
			s.Refused = func(ctx context.Context, name string, code refusal.Code) (refusal.Answer, error) {
				if failing {
					return refusal.Answer{}, errors.New("no loop")
				}
				if code == refusal.Unreachable {
					return refusal.Answer{Action: refusal.Reprovisioning, Because: "Because.", At: noon, In: 1.5}, nil
				}
				return report(ctx, name, code)
			}
		})
		for n, state := range states {
			f.board.Post(state)
			for path, methods := range d.Paths {
				for _, method := range []string{"GET", "POST"} {
					if path == "/v1/events" && method == "GET" {
						continue // TestEveryEventMatchesTheDescription
					}
					_, right := methods[strings.ToLower(method)]
					for _, body := range []string{"", `{"lifetime":60}`, `{"lifetime":1}`, `{"code":5}`, `{"code":"unreachable"}`, `{"code":6}`, "too long", "failing"} {
						if failing = body == "failing"; failing {
							body = map[string]string{"/v1/refused": `{"code":5}`}[path]
						}
						if body == "too long" {
							// The server keeps the connection for half a second, so these requests are few.
							body = strings.Repeat(" ", len(body)+2000*max(0, 1-n))
						}
						response, text := f.request(method, path, body)
						d.answer(method, path, response.StatusCode, response.Header.Get("Content-Type"), text)
						var p consumer.Problem
						if json.Unmarshal([]byte(text), &p) == nil {
							seen[string(p.Code)] = true
						}
						if right {
							seen[fmt.Sprint(path, " ", response.StatusCode)] = true
						}
					}
				}
			}
		}
		response, text := f.request(http.MethodGet, "/nothing", "")
		if response.StatusCode != http.StatusNotFound {
			t.Errorf("got %s", response.Status)
		}
		d.check("Problem", text)
		seen[string(consumer.UnknownPath)] = true
	}
	unconfigured := start(t, consumer.Consumer{Name: "e"}, func(s *consumer.Server) { s.Unconfigured = true })
	for path, methods := range d.Paths {
		for method := range methods {
			method = strings.ToUpper(method)
			response, text := unconfigured.request(method, path, "")
			d.answer(method, path, response.StatusCode, response.Header.Get("Content-Type"), text)
			unconfigured.wants(method, path, "", http.StatusForbidden, consumer.NotConfigured)
			seen[path+" 403"], seen[string(consumer.NotConfigured)] = true, true
		}
	}
	// Everything that is described occurs.
	for path, methods := range d.Paths {
		for _, operation := range methods {
			for status := range operation.Responses {
				if !seen[path+" "+status] && status != "405" && status != "429" && path != "/v1/events" {
					t.Errorf("%s never answers %s", path, status)
				}
			}
		}
	}
	for _, code := range d.Components.Schemas["Code"].Enum {
		if !seen[code] && !strings.HasPrefix(code, "too-many-") {
			t.Errorf("the code %s never occurs", code)
		}
	}
}

func TestEveryEventAndLimitMatchesTheDescription(t *testing.T) {
	d := described(t)
	inVirtualTime(t, consumer.Consumer{Name: "a", Certificate: true}, func(v *virtual) {
		v.board.Post(consumer.State{})
		o := v.observe()
		defer o.Close()
		synctest.Wait()
		s := assigned()
		s.Certificate = &consumer.Files{Certificate: "/c", PrivateKey: "/k", NotAfter: time.Now()}
		v.board.Post(s)
		synctest.Wait()
		s.Withheld = consumer.ClockImplausible
		v.board.Post(s)
		synctest.Wait()
		s.Withheld = ""
		v.board.Post(s)
		v.token(60)
		time.Sleep(50 * time.Second)
		synctest.Wait()
		var seen []string
		for len(o.events) > 0 {
			e := <-o.events
			text, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			d.check("Event", string(text))
			seen = append(seen, string(e.Event))
		}
		slices.Sort(seen)
		want := slices.Sorted(slices.Values([]string{"present", "generation", "available", "certificate", "withheld", "available", "token-expires-soon"}))
		if !slices.Equal(seen, want) {
			t.Errorf("got %q", seen)
		}
		for range 12 {
			status, _, text := v.request(http.MethodGet, "/v1/hub", "")
			d.answer(http.MethodGet, "/v1/hub", status, "application/json", text)
		}
		for range 32 {
			c := v.pipes.dial()
			defer c.Close()
		}
		status, _, text := v.request(http.MethodGet, "/v1/hub", "")
		d.answer(http.MethodGet, "/v1/hub", status, "application/json", text)
	})
}

func TestTheDescriptionListsEveryCodeAndEvent(t *testing.T) {
	d := described(t)
	var event struct {
		Components struct {
			Schemas struct {
				Event struct {
					Properties struct {
						Event struct{ Enum []string }
					}
				}
			}
		}
	}
	text, err := os.ReadFile("../docs/hub.openapi.json")
	if err == nil {
		err = json.Unmarshal(text, &event)
	}
	if err != nil {
		t.Fatal(err)
	}
	codes := slices.Sorted(slices.Values(slices.Concat(constants(t, "problem.go", "Code"), constants(t, "consumer.go", "Reason"))))
	if !slices.Equal(codes, d.Components.Schemas["Code"].Enum) {
		t.Errorf("the codes are %q", codes)
	}
	if events := constants(t, "events.go", "EventKind"); !slices.Equal(events, event.Components.Schemas.Event.Properties.Event.Enum) {
		t.Errorf("the events are %q", events)
	}
}

// constants returns the values of the constants of a type in a source file.
func constants(t *testing.T, file, name string) (values []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, is := n.(*ast.ValueSpec)
		if !is {
			return true
		}
		if of, is := spec.Type.(*ast.Ident); is && of.Name == name {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			values = append(values, value)
		}
		return true
	})
	return values
}
