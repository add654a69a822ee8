package main

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/dpsd-project/dpsd/check"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/event"
	"github.com/dpsd-project/dpsd/journal"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// unclean returns the first part of a text of several lines that a terminal would interpret
// or show differently, or "".
func unclean(text string) string {
	if !utf8.ValidString(text) {
		return "invalid UTF-8"
	}
	at := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && r != '\t' && !unicode.IsGraphic(r) })
	if at < 0 {
		return ""
	}
	return text[max(0, at-20):min(len(text), at+4)]
}

// printed returns the outputs of the commands that show a status, for a status that a daemon
// has sent.
func printed(t *testing.T, report statusReport) map[string]string {
	t.Helper()
	all := map[string]string{}
	for name, asJSON := range map[string]bool{"dpsd status": false, "dpsd status --json": true} {
		var out bytes.Buffer
		if err := report.show(&terminal{Writer: &out, columns: 80}, asJSON); err != nil {
			t.Fatal(err)
		}
		all[name] = out.String()
	}
	for name, asJSON := range map[string]bool{"dpsd certificate status": false, "dpsd certificate status --json": true} {
		var out bytes.Buffer
		if err := reportOn(report.Status, true, nil, margin{}).show(&terminal{Writer: &out, columns: 80}, asJSON); err != nil {
			t.Fatal(err)
		}
		all[name] = out.String()
	}
	var out bytes.Buffer
	screen := &terminal{Writer: &out, columns: 80}
	screen.complain(errors.New("not provisioned"+(installation{}).obstacle(report.Status)), report.Text)
	screen.complain(errors.New(report.Text), "")
	all["dpsd wait"] = out.String()
	all["the progress"] = (&terminal{columns: 80}).line("Waiting: " + report.Text)
	return all
}

// FuzzTheTerminalStaysClean checks that the output of commands contains no control
// characters, even if a compromised daemon, its files or peers of dpsd check send some.
func FuzzTheTerminalStaysClean(f *testing.F) {
	for _, seed := range []string{"plain", "\x1b[2J\x1b]0;title\a", "\u202egpj.exe\u2066", "a\u2028b\u2029c\u0085d\u009b2J", "\xff\xfe\x00", "a\r\nb\tc\x7f", "\"quotes\\n\"", strings.Repeat("\x1b", 5000)} {
		f.Add(seed, []byte(`{"text":"x","health":"degraded","faults":[{"code":"`+strings.ToValidUTF8(strings.Map(func(r rune) rune {
			if r < ' ' || r == '"' || r == '\\' {
				return -1
			}
			return r
		}, seed), "")+`","standing":true}]}`), []byte(`[{"trigger":"x","steps":[{"stage":"\u001b","milliseconds":1}],"outcome":"fault","clock":"\u009b"}]`))
	}
	directory := f.TempDir()
	f.Fuzz(func(t *testing.T, text string, status, attempts []byte) {
		if err := os.WriteFile(filepath.Join(directory, "attempts.json"), attempts, 0o600); err != nil {
			t.Fatal(err)
		}
		var sent control.Status
		_ = json.Unmarshal(status, &sent) // as far as it is valid
		sent.Text += text
		fault := control.Fault{Code: text, Class: text, Stage: text, Summary: text, Cause: text, Advice: text, Credential: text, TrackingID: text, Unresolved: true}
		sent.Faults = append([]control.Fault{fault}, sent.Faults...)
		sent.Identity = &control.Identity{AssignedHub: text, DeviceID: text, RegistrationID: text, IDScope: text, Endpoint: text, ConnectionProfile: text}
		sent.IssuedCertificate = &control.IssuedCertificate{State: text, Request: text, NotBefore: &time.Time{}, NotAfter: &time.Time{}, Serial: text, SHA256: text, Issuer: text, Due: text}
		sent.Connection = &control.Connection{Protocol: text, Address: text, Proxy: text}
		sent.Next = &control.Next{Why: text, Lane: text}
		if y := sent.Now.Year(); y < 1 || y > 9999 {
			sent.Now = time.Time{}
		}
		report := statusReport{Status: sent, Stopped: &check.Stop{Detail: text, Advice: text}, History: store.Attempts("", directory)}
		for by, out := range printed(t, report) {
			if dirt := unclean(out); dirt != "" {
				t.Errorf("%s prints %q", by, dirt)
			}
		}

		// Text from peers reaches dpsd check and the log through Classify.
		peer := classify.Classify(transport.Errors{{Protocol: transport.MQTT, Stage: transport.StageTLS, Address: "h:8883", Err: &transport.CertificateError{
			Certificate: &x509.Certificate{}, Host: "h", Err: x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{text}}, Host: text}}}})
		var out bytes.Buffer
		printStep(&terminal{Writer: &out, columns: 80}, check.Result{Name: check.TLS, Subject: text, Status: check.Failed, Code: peer.Code, Detail: peer.Err.Error(), Advice: text})
		if dirt := unclean(out.String()); dirt != "" || strings.Count(out.String(), "\n") > 2 {
			t.Errorf("dpsd check prints %q", out.String())
		}
		for _, line := range logged(t, zap.String("fault", string(peer.Code)), zap.NamedError("cause", &net.DNSError{Name: text, Err: text}), zap.String("trackingId", text)) {
			if dirt := unclean(line); dirt != "" || len(line) > 24<<10 || !json.Valid([]byte(line)) {
				t.Errorf("the log has %d bytes, %q", len(line), dirt)
			}
		}
	})
}

// logged returns the log entry of a fault with these fields: lines of JSON, because standard
// error is neither a terminal nor the journal.
func logged(t *testing.T, fields ...zap.Field) []string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stderr := os.Stderr
	os.Stderr = file
	log := journal.Open(journal.Auto)
	os.Stderr = stderr
	zap.New(log.Core(zapcore.InfoLevel)).Warn(event.Fault, fields...)
	log.Close()
	text, err := os.ReadFile(file.Name())
	if err != nil || len(text) == 0 {
		t.Fatalf("the log is %q: %v", text, err)
	}
	return strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
}

func TestStatusIsPrintedCompletelyWithANameOf190000BytesInACertificate(t *testing.T) {
	fault := classify.Classify(x509.HostnameError{Certificate: &x509.Certificate{DNSNames: []string{strings.Repeat("\x1b]0;x\a", 32_000)}}, Host: "h"})
	report := statusReport{Running: true, Status: control.Status{Health: control.Unprovisioned, Text: "Next attempt in 7s: " + string(fault.Code) + ": " + fault.Err.Error()}}
	for range control.MaxFaults {
		report.Faults = append(report.Faults, control.Fault{Code: string(fault.Code), Cause: fault.Err.Error(), Unresolved: true})
	}
	for by, out := range printed(t, report) {
		if dirt := unclean(out); dirt != "" || len(out) > 32<<10 {
			t.Errorf("%s prints %d bytes, %q", by, len(out), dirt)
		}
		if !strings.Contains(out, `\x1b]0;x`) && by != "the progress" && by != "dpsd status --json" && !strings.HasPrefix(by, "dpsd certificate") {
			t.Errorf("%s does not show the name in the certificate: %.500s", by, out)
		}
	}
}
