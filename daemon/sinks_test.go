package daemon

import (
	"bytes"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/control"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/fault"
	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/mqttv3"
	"github.com/dpsd-project/dpsd/store"
	"github.com/dpsd-project/dpsd/transport"
)

// The maximum size in bytes of each output of a daemon, for any data that peers have sent.
const (
	statusLimit   = len("STATUS=") + control.MaxText
	documentLimit = 64 << 10 // of the status
	entryLimit    = 8 << 10  // of a recorded attempt
	fileLimit     = 64 << 10 // of all of them
)

// sinks is a supervisor without a loop, and all its outputs.
type sinks struct {
	*supervisor
	t     testing.TB
	notes []string // to the service manager
}

func newSinks(t testing.TB, state, runtime string) *sinks {
	k := &sinks{t: t}
	d := &Daemon{
		Settings: Settings{Dialer: &transport.Dialer{Host: "h"}, Credentials: []attest.Credential{attest.SymmetricKey{}}},
		Store:    store.Options{Directory: state, RuntimeDirectory: runtime},
		Notify:   func(note string) error { k.notes = append(k.notes, note); return nil },
		Log:      zap.NewNop(), BootTime: func() time.Duration { return time.Hour }, Rand: seeded(1),
	}
	k.supervisor = d.supervisor()
	var err error
	if k.store, err = store.Open(k.Store, time.Now()); err != nil {
		t.Fatal(err)
	}
	return k
}

// fails makes a registration with the password end with an error.
func (k *sinks) fails(err error, password string) {
	now := time.Now()
	r := registered{err: err, recording: &recording{began: now, trigger: "start"}, credential: "symmetric-key",
		connection: &control.Connection{Protocol: "mqtt", Address: "h:8883"}}
	r.request.Proof.Password = password
	failed, _ := k.failed(k.classify(r, now), r.err, r.credential, now)
	k.record(r, failed, now)
	if err := k.recorder.flight.Add(<-k.recorder.attempts, now); err != nil {
		k.t.Fatal(err)
	}
	k.board.Post(k.status(now))
}

// shown returns all outputs by name.
func (k *sinks) shown() map[string]string {
	k.t.Helper()
	document, _ := k.board.Document(time.Now())
	attempts, err := os.ReadFile(filepath.Join(k.Store.RuntimeDirectory, "attempts.json"))
	if err != nil {
		k.t.Fatal(err)
	}
	var metrics bytes.Buffer
	k.measures.write(&metrics)
	all := map[string]string{"the status": string(document), "attempts.json": string(attempts), "the metrics": metrics.String(), "the fault": k.failures.last.Error() + k.failures.last.TrackingID}
	for n, note := range k.notes {
		all[fmt.Sprintf("note %d to the service manager", n)] = note
	}
	return all
}

// check verifies that all outputs are within the limits.
func (k *sinks) check() {
	k.t.Helper()
	for by, text := range k.shown() {
		limit := statusLimit
		switch by {
		case "the status":
			limit = documentLimit
		case "attempts.json":
			limit = fileLimit
		case "the metrics":
			limit = fileLimit
		case "the fault":
			limit = foreign.MaxFault
		}
		if len(text) > limit {
			k.t.Errorf("%s has %d bytes, more than %d", by, len(text), limit)
		}
		texts := []string{text}
		if strings.HasPrefix(text, "{") || strings.HasPrefix(text, "[") {
			var document any
			if err := json.Unmarshal([]byte(text), &document); err != nil {
				k.t.Errorf("%s is not JSON: %v", by, err)
			}
			texts = stringsOf(document)
			if list, is := document.([]any); is {
				for _, entry := range list {
					if one, _ := json.Marshal(entry); len(one) > entryLimit {
						k.t.Errorf("an entry of %s has %d bytes", by, len(one))
					}
				}
			}
		}
		for _, text := range texts {
			dirty := func(r rune) bool { return !unicode.IsGraphic(r) && (by != "the metrics" || r != '\n') }
			if strings.ContainsFunc(text, dirty) || !utf8.ValidString(text) {
				k.t.Errorf("%s shows %q", by, text)
			}
		}
	}
}

// stringsOf returns the texts in a JSON document.
func stringsOf(document any) (texts []string) {
	switch v := document.(type) {
	case string:
		return []string{v}
	case []any:
		for _, e := range v {
			texts = append(texts, stringsOf(e)...)
		}
	case map[string]any:
		for name, e := range v {
			texts = append(append(texts, name), stringsOf(e)...)
		}
	}
	return texts
}

// foreignErrors returns the errors that contain a text of a peer.
func foreignErrors(text string) []error {
	certificate := &x509.Certificate{DNSNames: []string{text}}
	certificate.Subject.CommonName, certificate.Issuer.CommonName = text, text
	hostname := x509.HostnameError{Certificate: certificate, Host: "h"}
	both := func(stage transport.Stage, err error) error {
		return classify.At(fault.StageTCP, transport.Errors{
			{Protocol: transport.MQTT, Stage: stage, Address: "h:8883", Proxy: text, Err: err},
			{Protocol: transport.WebSocket, Stage: stage, Address: "h:443", Err: fmt.Errorf("again: %w", err)},
		})
	}
	said, _ := json.Marshal(text)
	_, reply := dps.ParseReply(dps.Message{Topic: "$dps/registrations/res/200/?$rid=" + text, Payload: []byte(`{"status":` + string(said) + `}`)})
	if reply == nil {
		reply = errors.New(text)
	}
	refusal := &dps.ServiceError{Request: dps.RequestRegister, Status: 401, Code: 401002, Message: text, TrackingID: text}
	_, damaged := store.Parse([]byte(text))
	return []error{
		both(transport.StageTLS, &transport.CertificateError{Certificate: certificate, Host: "h", Err: hostname}),
		both(transport.StageTLS, &transport.CertificateError{Certificate: certificate, Host: "h", Err: x509.UnknownAuthorityError{Cert: certificate}}),
		both(transport.StageTLS, &transport.NotTLSError{First: []byte(text)[:min(len(text), 256)], Err: errors.New(text)}),
		both(transport.StageProxy, &transport.ProxyError{Status: 407, Reason: text, Schemes: []string{text}, Location: text}),
		both(transport.StageWebSocket, &transport.UpgradeError{Status: 101, Location: text, ContentType: text, Reason: text}),
		both(transport.StageName, &net.DNSError{Name: text, Server: text, Err: text}),
		classify.At(fault.StageConnect, &mqttv3.NotMQTTError{First: []byte(text)[:min(len(text), 512)]}),
		classify.At(fault.StageRegister, refusal), classify.At(fault.StagePoll, reply),
		classify.At(fault.StageState, &store.WriteError{Path: "/s/" + text, Err: damaged}),
		classify.Circumstances{Inspector: text}.Classify(refusal),
		errors.New(text),
	}
}

func TestTheLongestTextOfAPeerStaysWithinTheLimitOfEachOutput(t *testing.T) {
	for name, piece := range map[string]string{
		"escape sequences": "\x1b]0;title\a", "characters that JSON escapes": `"\`, "characters that HTML escapes": "<&>",
		"overrides of the direction": "\u202e", "line separators": "\u2028\u2029\u0085", "line feeds": "a\r\n", "invalid UTF-8": "\xff", "text": "é",
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Repeat(piece, 190_000/len(piece))
			k := newSinks(t, t.TempDir(), t.TempDir())
			defer k.store.Close()
			for _, err := range foreignErrors(text) {
				k.fails(err, "")
			}
			k.check()
			// However long a name is, the end of the message remains: the issuer.
			if cause := classify.Classify(foreignErrors(text)[0]).Err.Error(); !strings.Contains(cause, "issued by") {
				t.Errorf("the cause is %q", cause)
			}
			if n := len(k.history.faults); n != control.MaxFaults {
				t.Errorf("the status holds %d faults", n)
			}
		})
	}
}

// Each output limits its texts without relying on Classify, which is not used here.
func TestEachOutputOfAFaultHasItsOwnLimit(t *testing.T) {
	for name, piece := range map[string]string{"escape sequences": "\x1b]0;title\a\u202e\n", "backslashes": `\`} {
		t.Run(name, func(t *testing.T) { limitsOfTheirOwn(t, strings.Repeat(piece, 190_000/len(piece))) })
	}
}

func limitsOfTheirOwn(t *testing.T, text string) {
	k := newSinks(t, t.TempDir(), t.TempDir())
	defer k.store.Close()
	now := time.Now()
	for n := range store.MaxAttempts + 1 {
		raw := fault.Fault{Code: fault.NoReply, Stage: fault.Stage(fmt.Sprint("stage", n)), Err: errors.New(text), TrackingID: text}
		failed := failure{Fault: raw, Credential: text, Advice: text}
		r := registered{err: raw.Err, recording: &recording{began: now, trigger: text}, credential: text, connection: &control.Connection{Protocol: text, Address: text, Proxy: text}}
		k.failures.last = raw
		k.history.failed(failed, now)
		k.waiting(now, lastFault(raw))
		k.systemd.setStatus(text)
		k.record(r, failed, now)
		if err := k.recorder.flight.Add(<-k.recorder.attempts, now); err != nil {
			t.Fatal(err)
		}
	}
	k.failures.last = fault.Fault{}
	k.board.Post(k.status(now))
	k.check()
	if len(k.history.faults) != control.MaxFaults || len(k.notes) == 0 {
		t.Errorf("%d faults, %d notes: too few outputs were checked", len(k.history.faults), len(k.notes))
	}
}

// FuzzForeignText checks that certificate names, replies, answers of proxies, DNS names and the
// daemon's own files go through Classify, and that all outputs of the daemon remain clean,
// within their limits, and without the secret that a peer repeats. FuzzTheTerminalStaysClean
// covers the log and the terminal.
func FuzzForeignText(f *testing.F) {
	const signature = "q7Xc0v/9mJ3kQ+xV2LrT8pZc1Wb7YgDA5uE4sN6hB0o="
	for _, seed := range []string{"plain", "\x1b[2J\a", "\u202e\u2066\ufeff", "\u2028\u2029\u0085\u009b", "\xff\x00", "a\r\nb\tc", `"\<&>`, strings.Repeat("\x1b", 3000)} {
		f.Add(seed, seed, []byte(seed))
	}
	state, runtime := f.TempDir(), f.TempDir()
	f.Fuzz(func(t *testing.T, before, after string, file []byte) {
		for _, path := range []string{filepath.Join(state, "state.json"), filepath.Join(runtime, "attempts.json")} {
			if err := os.WriteFile(path, file, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		k := newSinks(t, state, runtime)
		defer k.store.Close()
		escaped := strings.NewReplacer("/", "%2F", "+", "%2B", "=", "%3D").Replace(signature)
		password := "SharedAccessSignature sr=gw-1&sig=" + escaped + "&se=1"
		for _, err := range foreignErrors(before + " " + signature + " " + after) {
			k.fails(err, password)
		}
		for form, echo := range map[string]string{
			"itself": signature, "in base64": base64.StdEncoding.EncodeToString([]byte("sig=" + escaped)), "in hex": hex.EncodeToString([]byte(signature)),
			"in base32": base32.StdEncoding.EncodeToString([]byte(signature)), "as numbers": fmt.Sprintf("%d", []byte(signature)),
		} {
			k.fails(errors.New(before+" "+echo+" "+after), password)
			for by, text := range k.shown() {
				if strings.Contains(text, echo[8:]) && !strings.Contains(before+after+string(file), echo[8:]) {
					t.Errorf("%s shows the signature, %s", by, form)
				}
			}
		}
		k.check()
	})
}
