package event_test

import (
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/fault"
)

func TestEveryEntryIsComplete(t *testing.T) {
	form, seen := regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`), map[string]bool{}
	for _, e := range event.Catalogue() {
		if !form.MatchString(e.Name) {
			t.Errorf("%q: a name is lower-case words joined by hyphens", e.Name)
		}
		if seen[e.Name] {
			t.Errorf("%s occurs twice", e.Name)
		}
		seen[e.Name] = true
		if e.Priority.String() == "" {
			t.Errorf("%s has no priority", e.Name)
		}
		for _, text := range []string{e.Sentence, e.Meaning} {
			if text == "" || strings.ContainsAny(text, "\n\t") {
				t.Errorf("%s: sentence and meaning are one line each, got %q", e.Name, text)
			}
		}
		if strings.Contains(e.Sentence, "[[") {
			t.Errorf("%s: square brackets mark an optional part, so [[…]] would lose its brackets: %q", e.Name, e.Sentence)
		}
	}
}

// A part in brackets is omitted if its field is empty. Text that contains brackets would lose them.
func TestEveryOptionalPartOfASentenceHasAField(t *testing.T) {
	part := regexp.MustCompile(`\[[^\]]*\]`)
	for _, e := range event.Catalogue() {
		for _, optional := range part.FindAllString(e.Sentence, -1) {
			if !strings.Contains(optional, "{") {
				t.Errorf("%s: the part %s has no field", e.Name, optional)
			}
		}
	}
}

func TestEveryDeclaredNameIsInTheCatalogue(t *testing.T) {
	source, err := os.ReadFile("event.go")
	if err != nil {
		t.Fatal(err)
	}
	declared := regexp.MustCompile(`(?m)^\t[A-Z]\w+\s+= "([^"]+)"`).FindAllSubmatch(source, -1)
	if len(declared) != len(event.Catalogue()) {
		t.Errorf("%d names are declared, %d are in the catalogue", len(declared), len(event.Catalogue()))
	}
	for _, m := range declared {
		if _, known := event.Describe(string(m[1])); !known {
			t.Errorf("%s is declared but not in the catalogue", m[1])
		}
	}
}

func TestMessageIDsNeverChange(t *testing.T) {
	// printf 'dpsd event assigned' | sha256sum | cut -c1-32
	if got, want := event.MessageID(event.Assigned), "2e9d58aed7656135ba5c4cc2e5afe250"; got != want {
		t.Errorf("%s, want %s: entries of older versions would lose their text", got, want)
	}
	seen := map[string]string{}
	for _, e := range fault.Catalogue() {
		seen[e.Code.MessageID()] = string(e.Code)
	}
	for _, e := range event.Catalogue() {
		id := event.MessageID(e.Name)
		if !regexp.MustCompile(`^[0-9a-f]{32}$`).MatchString(id) || seen[id] != "" {
			t.Errorf("%s: %q, as %s", e.Name, id, seen[id])
		}
		seen[id] = e.Name
	}
}

func TestAMessageIsOneLineOfText(t *testing.T) {
	at := time.Date(2026, 3, 1, 8, 15, 0, 0, time.FixedZone("", 3600))
	for _, tt := range []struct {
		what, event string
		fields      map[string]any
		want        string
	}{
		{"a part in brackets is included if all its values are known", event.Connected,
			map[string]any{"address": "192.0.2.1:8883", "protocol": "mqtt", "proxy": "proxy:3128"},
			"Connected to 192.0.2.1:8883 over mqtt through proxy:3128"},
		{"a part in brackets is omitted if a value is empty", event.Connected,
			map[string]any{"address": "192.0.2.1:8883", "protocol": "mqtt", "proxy": ""},
			"Connected to 192.0.2.1:8883 over mqtt"},
		{"a missing required value is a dash", event.Connected, nil, "Connected to - over -"},
		{"zero is a value outside of brackets", event.FilesChanged, map[string]any{"attemptIn": time.Duration(0)},
			"An input has changed; next attempt in 0s"},
		{"durations are rounded for people", event.FilesChanged, map[string]any{"attemptIn": 90*time.Second + 312*time.Millisecond},
			"An input has changed; next attempt in 1m30s"},
		{"short durations are rounded to milliseconds", event.FilesChanged, map[string]any{"attemptIn": 250*time.Millisecond + 3},
			"An input has changed; next attempt in 250ms"},
		{"negative durations are rounded too", event.ClockStepped, map[string]any{"by": -90*time.Second - 3}, "The clock was changed by -1m30s"},
		{"times are UTC", event.CertificateExpires, map[string]any{"certificate": "device certificate", "notAfter": at}, "The device certificate expires on 2026-03-01 07:15:00 UTC"},
		{"a stage is described by dpsd's activity", event.StoppedLate, map[string]any{"stage": "state"}, "Stopped without disconnecting while saving the assignment"},
		{"an unknown stage is shown by its name", event.StoppedLate, map[string]any{"stage": "tpm"}, "Stopped without disconnecting while tpm"},
		{"a reload without changes says so", event.Reloaded, map[string]any{"changed": false}, "Configuration reloaded; no changes"},
		{"a reload with changes says that they are in effect", event.Reloaded, map[string]any{"changed": true}, "Configuration reloaded; changes applied"},
		{"omitted entries are counted", event.Stopping, map[string]any{"repeated": int64(7), "since": at}, "Stopping (7 more since 2026-03-01 07:15:00 UTC)"},
		{"line feeds are folded", event.WatchFailed, map[string]any{"error": "one\n\ttwo\r\n"}, "Cannot detect file changes: one two"},
		{"control characters for terminals are escaped", event.WatchFailed, map[string]any{"error": "\x1b[2J \u202egnol\x07 \xff"}, `Cannot detect file changes: \x1b[2J \u202egnol\a \xff`},
		{"braces and brackets in a value are not interpreted", event.WatchFailed, map[string]any{"error": "{address} [x] {"}, "Cannot detect file changes: {address} [x] {"},
		{"a long value leaves room for the others", event.Fault,
			map[string]any{"fault": "tls-failed", "stage": "tls", "cause": strings.Repeat("ä", 3000), "advice": "Look."},
			"tls-failed while setting up TLS: " + strings.Repeat("ä", 248) + "… (6000 bytes). Look."},
		{"the credential is included if it caused the fault", event.Fault,
			map[string]any{"fault": "unauthorized", "class": "credential", "stage": "register", "cause": "401", "credential": "symmetric-key file:a"},
			"unauthorized while registering with symmetric-key file:a: 401"},
		{"the credential is omitted if it did not cause the fault", event.Fault,
			map[string]any{"fault": "service-error", "class": "transient", "stage": "register", "cause": "500", "credential": "symmetric-key file:a"},
			"service-error while registering: 500"},
		{"an event of a later version has its fields", "tpm-reset", map[string]any{"b": "x", "a": time.Second}, "tpm-reset a=1s b=x"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			if got := event.Message(tt.event, tt.fields); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
		})
	}
}

func TestEveryStageHasAText(t *testing.T) {
	source, err := os.ReadFile("../fault/fault.go")
	if err != nil {
		t.Fatal(err)
	}
	stages := regexp.MustCompile(`Stage = "([a-z]+)"`).FindAllSubmatch(source, -1)
	if len(stages) < 10 {
		t.Fatalf("%d stages", len(stages))
	}
	for _, m := range stages {
		if s := fault.Stage(m[1]); s.Doing() == string(s) {
			t.Errorf("there is no text for the stage %s", s)
		}
	}
}

// Generators and other programs read the catalogue, so it must not have other dependencies.
func TestImportsStayInTheStandardLibrary(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil || len(files) < 4 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, imp := range parsed.Imports {
			if path := strings.Trim(imp.Path.Value, `"`); strings.Contains(path, ".") && !strings.HasPrefix(path, "github.com/dpsd-project/dpsd/") {
				t.Errorf("%s imports %s", file, path)
			}
		}
	}
}
