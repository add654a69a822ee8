package journal

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/event"
)

var update = flag.Bool("update", false, "rewrite the golden file and the pages that are generated from the catalogues")

var noon = time.Date(2026, 3, 1, 12, 0, 0, 123456789, time.UTC)

// samples are example fields for each event.
var samples = map[string][]zap.Field{
	event.Started: {zap.String("endpoint", "global.azure-devices-provisioning.net"), zap.String("idScope", "0ne00000000"),
		zap.String("publishedHub", "hub.example"), zap.Uint64("generation", 3), zap.String("version", "1.2.3")},
	event.ClockNotWatched:              {zap.Error(errors.New("timerfd_create: function not implemented"))},
	event.WatchFailed:                  {zap.Error(errors.New("too many open files"))},
	event.NotifyFailed:                 {zap.Error(errors.New("dial unixgram /run/systemd/notify: connect: no such file or directory"))},
	event.StateNotice:                  {zap.String("notice", "/var/lib/dpsd/state.env: repaired")},
	event.ConfigurationDoubtful:        {zap.String("doubt", `id_scope "One00000000" does not begin with "0ne"; Azure's ID scopes do`), zap.String("advice", "Copy the ID scope from the overview page of your DPS instance; it is not the name of the instance.")},
	event.ConsumerWithoutSocket:        {zap.String("consumer", "telemetry"), zap.String("advice", "Run: systemctl enable dpsd-hub@telemetry.socket && systemctl restart --no-block dpsd")},
	event.ConsumerNotConfigured:        {zap.String("consumer", "telemetry"), zap.String("advice", "Add a [[consumer]] with name = \"telemetry\" and run: systemctl reload dpsd; or run: systemctl disable --now dpsd-hub@telemetry.socket && systemctl restart --no-block dpsd")},
	event.ConsumerFailed:               {zap.String("consumer", "telemetry"), zap.Error(errors.New("it is not a Unix stream socket"))},
	event.ConsumerKeyFailed:            {zap.String("consumer", "telemetry"), zap.Error(errors.New("file:/etc/dpsd/keys/device.key: no such file or directory"))},
	event.ModuleCreated:                {zap.String("module", "telemetry"), zap.String("hub", "hub.example"), zap.String("deviceId", "gw-1")},
	event.ModuleRemoved:                {zap.String("module", "telemetry"), zap.String("hub", "hub.example"), zap.String("deviceId", "gw-1")},
	event.HubRefuses:                   {zap.String("consumer", "telemetry"), zap.String("code", "CONNACK 5"), zap.String("action", "counting"), zap.String("because", "dpsd acts after 3 reports over 15 min; this is report 1.")},
	event.HubChecked:                   {zap.String("hub", "hub.example"), zap.String("consumer", "telemetry"), zap.String("finding", "confirmed"), zap.NamedError("error", errors.New("hub-refused: the hub answered with status 401")), zap.String("action", "reprovisioning"), zap.String("because", "The hub also refused a request that dpsd sent as the device."), zap.Duration("attemptIn", 30*time.Second)},
	event.RefusalsNotKept:              {zap.Error(errors.New("write /run/dpsd/refusals.json: no space left on device"))},
	event.Published:                    {zap.String("assignedHub", "hub.example"), zap.String("deviceId", "gw-1"), zap.Uint64("generation", 3), zap.String("policy", "verify")},
	event.RecordOfAnotherConfiguration: nil,
	event.Phase:                        {zap.String("stage", "register"), zap.String("status", "Registering gw-1 with global.azure-devices-provisioning.net"), zap.Duration("limit", time.Minute)},
	event.CertificateNotValidNow:       {zap.Error(errors.New("file:/etc/dpsd/keys/device.pem: the certificate has expired (not after 2025-01-01T00:00:00Z)"))},
	event.Connected:                    {zap.String("protocol", "mqtt"), zap.String("address", "192.0.2.7:8883"), zap.String("proxy", "")},
	event.ResumptionFailed:             {zap.String("cause", "connection-lost: EOF")},
	event.Waiting:                      {zap.String("why", "DPS asked dpsd to wait (Retry-After)"), zap.Duration("retryIn", 10*time.Minute)},
	event.FloorNotKept:                 {zap.Error(errors.New("open /run/dpsd/floors.json: read-only file system")), zap.Duration("wait", 2*time.Minute)},
	event.Fault: {zap.String("fault", "unauthorized"), zap.String("stage", "register"), zap.String("class", "credential"),
		zap.NamedError("cause", errors.New("DPS answered the register request with 401, error 401002:\nwrong \x1b[1mkey\xff")), zap.Int("serviceCode", 401002), zap.String("trackingId", "79a6f6d2"),
		zap.String("credential", "symmetric-key credential:dps-primary-key"), zap.String("lane", "refused"), zap.Duration("retryIn", 312345*time.Millisecond),
		zap.String("advice", "Compare the key or certificate with the enrollment, and check the gateway's clock.")},
	event.Assigned: {zap.String("assignedHub", "hub.example"), zap.String("deviceId", "gw-1"), zap.String("registrationId", "gw-1"), zap.String("substatus", "initialAssignment"),
		zap.Uint64("generation", 3), zap.String("state", "written"), zap.String("protocol", "mqtt"), zap.String("otherName", "hub.device.example"), zap.Int("faults", 42), zap.Time("faultsSince", noon.Add(-3*time.Hour))},
	event.ConfirmationNotKept:  {zap.Error(errors.New("read-only file system"))},
	event.TransportNotKept:     {zap.Error(errors.New("read-only file system"))},
	event.FilesChanged:         {zap.Duration("attemptIn", 250*time.Millisecond)},
	event.ClockStepped:         {zap.Duration("by", 365*24*time.Hour), zap.Time("now", noon)},
	event.NetworkChanged:       {zap.Duration("attemptIn", 1250*time.Millisecond)},
	event.ControlFailed:        {zap.Error(errors.New("listen unix /run/dpsd/.s: bind: permission denied"))},
	event.AttemptNotRecorded:   {zap.Error(errors.New("cannot write /run/dpsd/attempts.json: no space left on device"))},
	event.MetricsNotWritten:    {zap.Error(errors.New("open /var/lib/prometheus/.dpsd.prom: read-only file system"))},
	event.AskedFor:             {zap.Duration("attemptIn", 42*time.Second)},
	event.Reloaded:             {zap.Bool("changed", false)},
	event.ReloadRefused:        {zap.String("fault", "configuration-invalid"), zap.Error(errors.New("dpsd.toml:2:1: dps.id_scop: unknown key\ndpsd.toml:9:1: retry.max: \"x\" is not a duration"))},
	event.CertificateRequested: {zap.String("why", "the renewal is due"), zap.String("keyType", "ec-p384")},
	event.CertificateIssued:    {zap.Time("notBefore", noon), zap.Time("notAfter", noon.Add(30*24*time.Hour)), zap.String("serial", "5d9a0c41"), zap.String("issuer", "CN=Issuing CA 1")},
	event.CertificateExpired:   {zap.String("certificate", "device certificate"), zap.Time("notAfter", noon.Add(-time.Hour)), zap.String("because", ""), zap.String("advice", "Install a renewed certificate: dpsd reads a \"file:\" again when it changes; for a \"credential:\", run: systemctl restart --no-block dpsd")},
	event.CertificateExpires:   {zap.String("certificate", "device certificate"), zap.Time("notAfter", noon.Add(7*24*time.Hour)), zap.Int("withinDays", 7), zap.String("because", "certificate 2 of 3 in its chain"), zap.String("advice", "Have the issuer renew that certificate, and install the new chain: dpsd reads a \"file:\" again when it changes; for a \"credential:\", run: systemctl restart --no-block dpsd")},
	event.StateRestored:        {zap.String("directory", "/var/lib/dpsd"), zap.Uint64("generation", 3)},
	event.Hung:                 {zap.String("stage", "state"), zap.Time("deadline", noon)},
	event.LogLost:              {zap.Int("lost", 17), zap.Time("since", noon)},
	event.Stopping:             nil,
	event.StoppedLate:          {zap.String("stage", "state")},
}

// written returns a journal entry as text, starting with its MESSAGE.
func written(entry map[string]string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", entry["MESSAGE"])
	for _, name := range slices.Sorted(maps.Keys(entry)) {
		if name != "MESSAGE" {
			fmt.Fprintf(&b, "  %s=%s\n", name, strings.ReplaceAll(entry[name], "\n", "\n    "))
		}
	}
	return b.String()
}

// The golden file shows how a changed sentence or field appears to an operator.
func TestEveryEventInTheJournal(t *testing.T) {
	const golden = "testdata/entries.golden"
	logged := fieldsOf(t)
	var b strings.Builder
	level := map[event.Priority]zapcore.Level{event.Error: zap.ErrorLevel, event.Warning: zap.WarnLevel, event.Debug: zap.DebugLevel}
	for _, e := range event.Catalogue() {
		fields, found := samples[e.Name]
		if !found {
			t.Errorf("there is no sample of %s", e.Name)
		}
		if names := slices.Sorted(maps.Keys(values(fields))); !slices.Equal(names, logged[e.Name]) {
			t.Errorf("the sample of %s has %v, the program logs it with %v", e.Name, names, logged[e.Name])
		}
		entry := zapcore.Entry{Level: level[e.Priority], Time: noon, Message: e.Name}
		fmt.Fprintln(&b, written(assignments(entry, values(clean(fields)))))
	}
	repeated := append(slices.Clone(samples[event.Fault]), zap.Int("repeated", 7), zap.Time("since", noon))
	fmt.Fprintln(&b, written(assignments(zapcore.Entry{Level: zap.WarnLevel, Time: noon, Message: event.Fault}, values(clean(repeated)))))
	again := zapcore.Entry{Level: zap.DebugLevel, Time: noon, Message: event.Connected}
	fmt.Fprint(&b, written(assignments(again, values(samples[event.Connected]))))
	same(t, golden, b.String())
}

// same compares a file with a text, or writes it with -update.
func same(t *testing.T, file, text string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.Split(string(have), "\n"), strings.Split(text, "\n")); d != "" {
		t.Errorf("%s differs (-file +program); to accept the difference, run go test ./journal -update\n%s", file, d)
	}
}

func TestNamesOfFields(t *testing.T) {
	for name, want := range map[string]string{
		"fault": "DPSD_FAULT", "assignedHub": "DPSD_ASSIGNED_HUB", "deviceId": "DPSD_DEVICE_ID",
		"idScope": "DPSD_ID_SCOPE", "createdDateTimeUtc": "DPSD_CREATED_DATE_TIME_UTC", "registrationID": "DPSD_REGISTRATION_ID",
		"sha256Sum": "DPSD_SHA256_SUM", "x-y.z ä": "DPSD_X_Y_Z__", "": "DPSD_",
	} {
		if got := Field(name); got != want {
			t.Errorf("%q is %s, want %s", name, got, want)
		}
	}
}

func TestPriorities(t *testing.T) {
	for _, tt := range []struct {
		what, event string
		level       zapcore.Level
		want        event.Priority
	}{
		{"the catalogue's: zap has no notice", event.Assigned, zap.InfoLevel, event.Notice},
		{"debug for what repeats itself", event.Assigned, zap.DebugLevel, event.Debug},
		{"that of zap for an event of a later version: error", "later", zap.ErrorLevel, event.Error},
		{"warning", "later", zap.WarnLevel, event.Warning},
		{"info", "later", zap.InfoLevel, event.Info},
	} {
		if got := priority(zapcore.Entry{Message: tt.event, Level: tt.level}); got != tt.want {
			t.Errorf("%s: %d, want %d", tt.what, got, tt.want)
		}
	}
}

// In the worst case, every field of an event contains text in which every character must be
// escaped.
func TestEveryEntryIsLimitedAndReadableWhateverItsFields(t *testing.T) {
	hostile := strings.Repeat("\x1b]0;x\a\u202e\u2028\\\"\n", 50_000)
	logged := fieldsOf(t)
	for _, e := range event.Catalogue() {
		fields := []zap.Field{zap.Int("repeated", 7), zap.Time("since", noon)}
		for i, name := range logged[e.Name] {
			if i%2 == 0 {
				fields = append(fields, zap.NamedError(name, errors.New(hostile)))
			} else {
				fields = append(fields, zap.String(name, hostile))
			}
		}
		for _, level := range []zapcore.Level{zap.DebugLevel, zap.ErrorLevel} {
			entry := zapcore.Entry{Level: level, Time: noon, Message: e.Name}
			r := structured()(entry, clean(fields))
			sentence := sentences(time.TimeOnly)(entry, clean(fields)).line
			for form, got := range map[string][]byte{"datagram": r.datagram, "line of JSON": r.line, "sentence": sentence} {
				if len(got) > 24<<10 {
					t.Errorf("the %s of %s has %d bytes", form, e.Name, len(got))
				}
			}
			if strings.Count(string(sentence), "\n") != 1 {
				t.Errorf("the sentence of %s has several lines", e.Name)
			}
			if strings.Count(string(r.line), "\n") != 1 || !json.Valid(r.line) {
				t.Errorf("not a line of JSON: %.200q", r.line)
			}
			for name, value := range assignments(entry, values(clean(fields))) {
				if len(value) > valueLimit || strings.ContainsFunc(value, func(r rune) bool { return r != '\n' && !unicode.IsGraphic(r) }) {
					t.Errorf("%s of %s has %d bytes: %.60q", name, e.Name, len(value), value)
				}
			}
		}
	}
}

func TestTheCoreCleansTheFieldsOfEntries(t *testing.T) {
	var out bytes.Buffer
	l := start(jsonLines(), nil, &out)
	log := zap.New(l.Core(zap.InfoLevel)).With(zap.String("with", "\x1b"))
	log.Warn(event.WatchFailed, zap.Error(errors.New("a\u202eb")))
	l.Close()
	if got := out.String(); !strings.Contains(got, `"with":"\\x1b"`) || !strings.Contains(got, `"error":"a\\u202eb"`) {
		t.Errorf("the line is %s", got)
	}
}

func TestTheProtocolOfTheJournal(t *testing.T) {
	got := encode(map[string]string{"MESSAGE": "a=b", "DPSD_ERROR": "one\ntwo"})
	want := "DPSD_ERROR\n\x07\x00\x00\x00\x00\x00\x00\x00one\ntwo\nMESSAGE=a=b\n"
	if string(got) != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestALineOfJSONHasTheEventAndItsFields(t *testing.T) {
	r := jsonLines()(zapcore.Entry{Level: zap.WarnLevel, Time: noon, Message: event.FloorNotKept}, samples[event.FloorNotKept])
	var got map[string]any
	if err := json.Unmarshal(r.line, &got); err != nil || r.datagram != nil || !strings.HasSuffix(string(r.line), "}\n") {
		t.Fatalf("%q: %v", r.line, err)
	}
	want := map[string]any{"level": "warn", "time": "2026-03-01T12:00:00Z", "event": "floor-not-kept",
		"error": "open /run/dpsd/floors.json: read-only file system", "wait": "2m0s"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestATerminalShowsSentences(t *testing.T) {
	r := sentences(time.TimeOnly)(zapcore.Entry{Level: zap.WarnLevel, Time: noon, Message: event.WatchFailed}, samples[event.WatchFailed])
	if got, want := string(r.line), "12:00:00 warn  Cannot detect file changes: too many open files\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestAnEntryForTheSystemLoggerHasTheFormOfSyslog(t *testing.T) {
	zone := time.Local
	t.Cleanup(func() { time.Local = zone })
	time.Local = time.FixedZone("CET", 3600)
	at := time.Date(2026, 1, 2, 12, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		says  string
		entry zapcore.Entry
		want  string
	}{
		{"an event has the priority of the catalogue", zapcore.Entry{Level: zap.InfoLevel, Time: at, Message: event.Stopping}, "<30>Jan  2 13:04:05 dpsd[7]: Stopping"},
		{"a repetition at level debug has the priority debug", zapcore.Entry{Level: zap.DebugLevel, Time: at, Message: event.Stopping}, "<31>Jan  2 13:04:05 dpsd[7]: Stopping"},
		{"a warning has the priority warning", zapcore.Entry{Level: zap.WarnLevel, Time: at, Message: event.WatchFailed}, "<28>Jan  2 13:04:05 dpsd[7]: "},
	} {
		t.Run(tt.says, func(t *testing.T) {
			r := toSyslog(7)(tt.entry, samples[tt.entry.Message])
			if got := string(r.datagram); !strings.HasPrefix(got, tt.want) || strings.Contains(got, "\n") {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if got := string(r.line); !strings.HasPrefix(got, "2026-01-02T12:04:05Z "+tt.entry.Level.String()) || !strings.HasSuffix(got, "\n") {
				t.Errorf("without a system logger: %q", got)
			}
		})
	}
}
