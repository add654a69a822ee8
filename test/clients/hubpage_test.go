package clients

import (
	"context"
	"encoding/json"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/consumer"
	"github.com/dpsd-project/dpsd/hub"
	"github.com/dpsd-project/dpsd/refusal"
)

// requests matches a command in docs/consumers.md that sends a request, and the response, if it follows.
var requests = regexp.MustCompile("(?ms)^```sh\n(curl [^\n]*/run/dpsd/hub/meter\\.sock[^\n]*)\n```\n(?:\n```json\n(.*?)^```$)?")

// TestThePageAboutServicesShowsTheResponses runs the commands on the page, and compares the members of the
// responses with those on the page.
func TestThePageAboutServicesShowsTheResponses(t *testing.T) {
	if _, err := exec.LookPath("curl"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	text, err := os.ReadFile("../../docs/consumers.md")
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "meter.sock")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var board consumer.Board
	board.Post(consumer.State{Withheld: consumer.NotAssigned})
	server := consumer.Server{
		Consumer: consumer.Consumer{Name: "meter", Scope: consumer.Scope{Module: "meter"}},
		Board:    &board,
		MAC:      func(context.Context, hub.Identity, []byte) ([]byte, error) { return make([]byte, 32), nil },
		Refused: func(context.Context, string, refusal.Code) (refusal.Answer, error) {
			return refusal.Answer{Action: refusal.Counting, Because: "one report is no reason to register"}, nil
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(ctx, l) }()
	t.Cleanup(func() { cancel(); <-ended })
	// ask runs a command of the page for this socket.
	ask := func(command string) string {
		command = strings.ReplaceAll(command, "/run/dpsd/hub/meter.sock", socket)
		command = strings.ReplaceAll(command, "--max-time 10", "--max-time 1")
		out, err := exec.Command("sh", "-c", command).Output()
		if err != nil {
			t.Errorf("%s: %v", command, err)
		}
		return string(out)
	}
	examples := requests.FindAllStringSubmatch(string(text), -1)
	if len(examples) < 6 {
		t.Fatalf("the page has %d requests", len(examples))
	}

	// This section contains the response before the assignment, without a preceding request.
	_, after, _ := strings.Cut(string(text), "\n### Wait for the assignment\n")
	_, after, _ = strings.Cut(after, "```json\n")
	notYet, _, _ := strings.Cut(after, "```")
	if got, want := members(t, ask(examples[0][1])), members(t, notYet); !maps.EqualFunc(got, want, equal) {
		t.Errorf("before the assignment, the answer is %v, and the page has %v", got, want)
	}

	board.Post(consumer.State{
		Hub: hub.Identity{Host: "contoso.azure-devices.net", DeviceID: "press-7"}, Generation: 1, Tokens: true,
		RootsFile: "/etc/ssl/certs/ca-certificates.crt", Modules: map[string]consumer.Module{"meter": {Ready: true}},
	})
	for _, example := range examples {
		answer := ask(example[1])
		switch {
		case strings.Contains(example[1], "/v1/certificate"): // a module has none
			if code := members(t, answer)["code"]; code != string(consumer.CertificateNotAllowed) {
				t.Errorf("%s prints %s", example[1], answer)
			}
		case strings.Contains(example[1], "/v1/events"):
			answer, _, _ = strings.Cut(answer, "\n")
			if event := members(t, answer)["event"]; event != string(consumer.Present) {
				t.Errorf("the first event is %s", answer)
			}
		case example[2] == "":
			if members(t, answer)["code"] != nil {
				t.Errorf("%s prints %s", example[1], answer)
			}
		default:
			got, want := members(t, answer), members(t, example[2])
			if strings.Contains(example[1], "/v1/token") { // these members depend on the time
				for _, name := range []string{"token", "expiry"} {
					if got[name] == nil || want[name] == nil {
						t.Errorf("the answer or the page has no %s", name)
					}
					delete(got, name)
					delete(want, name)
				}
			}
			if !maps.EqualFunc(got, want, equal) {
				t.Errorf("%s prints\n%v\nand the page has\n%v", example[1], got, want)
			}
		}
	}
	description, err := os.ReadFile("../../docs/hub.openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	var api struct {
		Components struct {
			Schemas struct {
				Code struct {
					Enum []string `json:"enum"`
				} `json:"Code"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(description, &api); err != nil || len(api.Components.Schemas.Code.Enum) == 0 {
		t.Fatalf("%v: the description has no codes", err)
	}
	for _, code := range api.Components.Schemas.Code.Enum {
		if !strings.Contains(string(text), "`"+code+"`") {
			t.Errorf("the page does not explain %s", code)
		}
	}
}

// members returns the members of a JSON object.
func members(t *testing.T, text string) map[string]any {
	t.Helper()
	var all map[string]any
	if err := json.Unmarshal([]byte(text), &all); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return all
}

// equal compares the values of members.
func equal(a, b any) bool {
	first, _ := json.Marshal(a) // a value that has been decoded can be encoded
	second, _ := json.Marshal(b)
	return string(first) == string(second)
}
