package simulator

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// maxPad leaves room for the topic in the largest packet of MQTT, 268,435,455 bytes.
const maxPad = 268_000_000

// A Stage is a moment of a connection at which a rule can act.
type Stage string

// The stages in the order in which a connection meets them. Before
// OnConnect the registration ID is not known.
const (
	OnAccept      Stage = "accept"      // the TCP connection is there, no byte was read
	OnTLS         Stage = "tls"         // the handshake: its certificate and versions; delay, close, reset, silent act when it is complete
	OnUpgrade     Stage = "upgrade"     // the HTTP request of a WebSocket was read
	OnConnect     Stage = "connect"     // CONNECT was read
	OnSubscribe   Stage = "subscribe"   // SUBSCRIBE was read
	OnRegister    Stage = "register"    // the PUBLISH of a register request was read
	OnPoll        Stage = "poll"        // the PUBLISH of a poll was read
	OnPuback      Stage = "puback"      // the client acknowledged a reply
	OnPing        Stage = "ping"        // PINGREQ was read
	OnUnsubscribe Stage = "unsubscribe" // UNSUBSCRIBE was read
	OnDisconnect  Stage = "disconnect"  // DISCONNECT was read
)

var stages = []Stage{OnAccept, OnTLS, OnUpgrade, OnConnect, OnSubscribe, OnRegister, OnPoll, OnPuback, OnPing, OnUnsubscribe, OnDisconnect}

// Scenario scripts a Server: settings that hold for every device, and rules
// that make single answers wrong. The zero value is a well-behaved service.
type Scenario struct {
	Settings Settings
	// Rules are tried in order; the first that matches and is not used up acts, alone.
	Rules []Rule
}

// Settings are properties of a well-behaved service.
type Settings struct {
	// Polls is how many polls a registration takes until its final answer.
	// Nil is 2, as the service does it; 0 answers the register request finally.
	Polls *int `toml:"polls"`
	// RetryAfter is the text of retry-after in a 202. Empty is "3"; "none" leaves the parameter out.
	RetryAfter string `toml:"retry_after"`
	// ReplyDelay is the time between a request's PUBACK and its reply. The live service takes about one second.
	ReplyDelay time.Duration `toml:"-"`
	// Refuse is when a wrong credential is refused: "late" by 401 on the
	// register answer, which is the default, or "early" by CONNACK 5.
	Refuse string `toml:"refuse"`
	// TLSMin is the lowest TLS version: "1.0", "1.1", "1.2" or "1.3". Empty is "1.2".
	TLSMin string `toml:"tls_min"`
	// TLSMax is the highest TLS version. Empty is "1.2", as the service has it.
	TLSMax string `toml:"tls_max"`
	// SessionTickets lets devices resume TLS sessions.
	SessionTickets bool `toml:"session_tickets"`
	// APIVersions are the api-versions that are served; another is refused
	// with CONNACK 5. Empty serves every one of the form YYYY-MM-DD[-preview].
	APIVersions []string `toml:"api_versions"`
	// UnknownAPIVersion is what becomes of an api-version without features in
	// Features: "serve" it with none, which is the default, or "refuse" it with CONNACK 5.
	UnknownAPIVersion string `toml:"unknown_api_version"`
	// Features replaces the table of what each api-version can do, "csr" and
	// "connectionProfile". Nil is BuiltInFeatures.
	Features map[string][]string `toml:"features"`
	// PollLimit is how many polls a device has in 10 s, at once or one by one;
	// above that it is answered 429. Nil is 5, as the service has it, or no
	// limit where RetryAfter itself asks for less than 2 s. 0 is no limit.
	PollLimit *int `toml:"poll_limit"`
	// RegisterLimit is how many registrations the service takes in a minute; 0 is no limit.
	RegisterLimit int `toml:"register_limit"`
	// ThrottleRetryAfter is the text of retry-after in the 429 of a limit.
	// Empty is the time until the next request is free; "none" leaves the parameter out.
	ThrottleRetryAfter string `toml:"throttle_retry_after"`
}

// Rule is one fault. The zero value of a field means "as usual". Counting
// with Skip and Times is done for each registration ID by itself; at the
// stages before CONNECT over all connections.
//
// The tag "on" names the stages at which a field has a meaning; without it, all.
type Rule struct {
	// On is the stage at which the rule acts. Required.
	On Stage `toml:"on"`
	// RegistrationID is a pattern as of path.Match. Empty matches all.
	RegistrationID string `toml:"registration_id" on:"connect subscribe register poll puback ping unsubscribe disconnect"`
	// Protocol is "mqtt" or "websocket" to act on one listener only.
	Protocol string `toml:"protocol"`
	// Resumed lets the rule act only on a connection that resumed a TLS session.
	Resumed bool `toml:"resumed" on:"upgrade connect subscribe register poll"`
	// Skip is how many matches pass untouched first.
	Skip int `toml:"skip"`
	// Times is how often the rule acts; 0 is always.
	Times int `toml:"times"`
	// From and Until bound the time in which the rule acts, counted from the
	// start of the scenario. Zero is no bound.
	From  time.Duration `toml:"-" key:"from"`
	Until time.Duration `toml:"-" key:"until"`
	// Chance is the probability with which the rule acts, above 0 and up to 1;
	// 0 is 1. The seed decides it, for each registration ID by itself.
	Chance float64 `toml:"chance"`

	// Delay passes before anything else of the rule happens.
	Delay time.Duration `toml:"-" key:"delay"`
	// Refuse drops the connection at once and closes the listener for that
	// time: the kernel then refuses whoever comes.
	Refuse time.Duration `toml:"-" key:"refuse" on:"accept"`
	// Close closes the connection in good order instead of answering.
	Close bool `toml:"close"`
	// Reset drops the connection instead of answering: TCP RST, no TLS close_notify.
	Reset bool `toml:"reset"`
	// Silent leaves the answer out. Up to CONNECT the connection says nothing any more.
	Silent bool `toml:"silent"`
	// Garbage is sent in place of the answer, byte for byte; at accept
	// without TLS, after the client has spoken. Then the connection is closed, or with Silent held.
	Garbage string `toml:"garbage" on:"accept upgrade connect subscribe register poll puback ping unsubscribe disconnect"`
	// GarbageHex is Garbage written in hexadecimal, for bytes that are no text. Spaces are left out.
	GarbageHex string `toml:"garbage_hex" on:"accept upgrade connect subscribe register poll puback ping unsubscribe disconnect"`
	// AfterUp and AfterDown let so many bytes of the stream, TLS included,
	// pass in that direction before Close, Reset or Garbage happens; with
	// Silent that direction stalls there.
	AfterUp   int `toml:"after_up" on:"accept"`
	AfterDown int `toml:"after_down" on:"accept"`
	// DelayUp and DelayDown hold up every piece of the stream that is read from
	// the client, or written to it.
	DelayUp   time.Duration `toml:"-" key:"delay_up" on:"accept"`
	DelayDown time.Duration `toml:"-" key:"delay_down" on:"accept"`
	// Then is what follows an answer: "close", "reset" or "silent" (nothing any more).
	Then string `toml:"then" on:"connect subscribe register poll ping unsubscribe"`
	// ByteByByte writes the answer one byte at a time; at accept everything of the connection, TLS included.
	ByteByByte bool `toml:"byte_by_byte" on:"accept connect subscribe register poll ping unsubscribe"`
	// Pace is the time between those bytes.
	Pace time.Duration `toml:"-" key:"pace" on:"accept connect subscribe register poll ping unsubscribe"`

	// ServerCertificate is "expired", "not-yet-valid", "wrong-host" or "other-ca".
	ServerCertificate string `toml:"server_certificate" on:"tls"`
	// TLSMin and TLSMax override the settings for the connection.
	TLSMin string `toml:"tls_min" on:"tls"`
	TLSMax string `toml:"tls_max" on:"tls"`
	// Alert is the fatal alert with which the handshake is refused, by its name in RFC 8446 6.
	Alert string `toml:"alert" on:"tls"`
	// AlertAt is when: "hello", which is the default, right after ClientHello,
	// or "certificate", after the client's certificate. From TLS 1.3 on the
	// latter is always bad_certificate.
	AlertAt string `toml:"alert_at" on:"tls"`

	// Location is the header of a redirect.
	Location string `toml:"location" on:"upgrade"`
	// Subprotocol is the one that is agreed to, whatever was offered; "none" for none.
	Subprotocol string `toml:"subprotocol" on:"upgrade"`
	// Extension is one that the server claims to use, whatever was offered.
	Extension string `toml:"extension" on:"upgrade"`
	// Frames is the form of the answer over WebSocket: "split" (a frame for each
	// byte), "fragments" (one message in fragments of one byte), "ping" (a ping
	// ahead of it), or what MQTT forbids, "text", or what RFC 6455 forbids, which
	// has the names of brokenFrames.
	Frames string `toml:"frames" on:"connect subscribe register poll ping unsubscribe"`
	// CloseCode is the status of the close frame that Close and Then send over WebSocket; 0 is 1000.
	CloseCode int `toml:"close_code" on:"connect subscribe register poll puback ping unsubscribe disconnect"`

	// Connack is the return code of the CONNACK. 0 accepts the client unseen,
	// as a broker that is not DPS does; its credential is then not judged.
	Connack *int `toml:"connack" on:"connect"`
	// SessionPresent sets the session-present flag of the CONNACK.
	SessionPresent bool `toml:"session_present" on:"connect"`
	// Suback is the return code of the SUBACK, 128 for a refusal.
	Suback *int `toml:"suback" on:"subscribe"`
	// BeforeSuback sends a reply nobody asked for ahead of the SUBACK:
	// Status (200), RequestID ("1"), State ("assigned") and so on shape it.
	BeforeSuback bool `toml:"before_suback" on:"subscribe"`

	// Status is the status in the topic of the reply; from 400 on the body is
	// an error object unless State or Body say otherwise. At upgrade, the HTTP status.
	Status int `toml:"status" on:"upgrade subscribe register poll"`
	// RetryAfter is the text of retry-after, verbatim; "none" leaves the parameter out.
	RetryAfter string `toml:"retry_after" on:"subscribe register poll"`
	// State is the registration status in the body: "assigning", "assigned", "failed", "disabled" or "unassigned".
	State string `toml:"state" on:"subscribe register poll"`
	// AssignedHub, DeviceID and Substatus replace what is assigned.
	AssignedHub string `toml:"assigned_hub" on:"subscribe register poll"`
	DeviceID    string `toml:"device_id" on:"subscribe register poll"`
	Substatus   string `toml:"substatus" on:"subscribe register poll"`
	// Payload is the JSON returned as registrationState.payload.
	Payload string `toml:"payload" on:"subscribe register poll"`
	// ErrorCode and ErrorMessage go into an error object or a failed state. Without: Status × 1000.
	ErrorCode    int    `toml:"error_code" on:"register poll"`
	ErrorMessage string `toml:"error_message" on:"register poll"`
	// Omit names members left out of the body, at any depth.
	Omit []string `toml:"omit" on:"subscribe register poll"`
	// Body replaces the body, byte for byte. At upgrade, the body of the HTTP response.
	Body *string `toml:"body" on:"upgrade subscribe register poll"`
	// Cut keeps only that many bytes of the body.
	Cut int `toml:"cut" on:"subscribe register poll"`
	// Pad fills the body with spaces up to that many bytes.
	Pad int `toml:"pad" on:"subscribe register poll"`
	// RequestID replaces the $rid of the reply.
	RequestID string `toml:"request_id" on:"subscribe register poll"`
	// Topic replaces the whole topic of the reply; {rid} in it is the request's $rid.
	Topic string `toml:"topic" on:"subscribe register poll"`
	// Replies is how many replies are sent, each with its own packet identifier; 0 is one.
	Replies int `toml:"replies" on:"register poll"`
	// Duplicate sends the reply a second time with the DUP flag and the same packet identifier.
	Duplicate bool `toml:"duplicate" on:"register poll"`
	// BeforePuback sends the reply ahead of the request's PUBACK.
	BeforePuback bool `toml:"before_puback" on:"register poll"`
	// NoPuback leaves the request's PUBACK out; the reply comes all the same.
	NoPuback bool `toml:"no_puback" on:"register poll"`
	// AfterPuback acknowledges the request at once; Delay, Close, Reset, Silent and Garbage come after that.
	AfterPuback bool `toml:"after_puback" on:"register poll"`
}

// A FileError is one thing wrong in a scenario or enrollments file.
type FileError struct {
	File         string // the name given to the parser
	Line, Column int    // counted from 1; 0 when it has no place in the file
	Key          string // the dotted key, "" when the text is not TOML
	Problem      string
}

// Error gives the problem in the form FILE:LINE:COLUMN: KEY: PROBLEM.
func (e *FileError) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", e.Line, e.Column)
	}
	b.WriteString(": ")
	if e.Key != "" {
		b.WriteString(e.Key)
		b.WriteString(": ")
	}
	b.WriteString(e.Problem)
	return b.String()
}

// duration reads "1s500ms" from TOML, which has no such type.
type duration time.Duration

func (d *duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf("%q is not a duration such as \"1.5s\"", text)
	}
	*d = duration(v)
	return nil
}

// ParseScenario reads a scenario from TOML. The name is used in errors,
// which are of type *FileError, joined when there are several.
func ParseScenario(name string, r io.Reader) (*Scenario, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var file struct {
		Settings struct {
			Settings
			ReplyDelay duration `toml:"reply_delay"`
		} `toml:"settings"`
		Rules []struct {
			Rule
			Delay     duration `toml:"delay"`
			From      duration `toml:"from"`
			Until     duration `toml:"until"`
			Refuse    duration `toml:"refuse"`
			DelayUp   duration `toml:"delay_up"`
			DelayDown duration `toml:"delay_down"`
			Pace      duration `toml:"pace"`
		} `toml:"rule"`
	}
	if err := decodeStrict(name, text, &file); err != nil {
		return nil, err
	}
	sc := &Scenario{Settings: file.Settings.Settings}
	sc.Settings.ReplyDelay = time.Duration(file.Settings.ReplyDelay)
	for _, r := range file.Rules {
		r.Rule.Delay, r.Rule.Pace = time.Duration(r.Delay), time.Duration(r.Pace)
		r.Rule.From, r.Rule.Until = time.Duration(r.From), time.Duration(r.Until)
		r.Rule.Refuse = time.Duration(r.Refuse)
		r.Rule.DelayUp, r.Rule.DelayDown = time.Duration(r.DelayUp), time.Duration(r.DelayDown)
		sc.Rules = append(sc.Rules, r.Rule)
	}
	return sc, locate(name, text, sc.problems())
}

// decodeStrict decodes TOML and turns the library's errors into FileErrors.
func decodeStrict(name string, text []byte, into any) error {
	err := toml.NewDecoder(bytes.NewReader(text)).DisallowUnknownFields().Decode(into)
	var missing *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case errors.As(err, &missing):
		errs := make([]error, 0, len(missing.Errors))
		for _, e := range missing.Errors {
			line, column := e.Position()
			errs = append(errs, &FileError{name, line, column, strings.Join(e.Key(), "."), "unknown key"})
		}
		return errors.Join(errs...)
	case errors.As(err, &wrong):
		line, column := wrong.Position()
		return &FileError{name, line, column, strings.Join(wrong.Key(), "."), strings.TrimPrefix(wrong.Error(), "toml: ")}
	case err != nil:
		return &FileError{File: name, Problem: err.Error()}
	}
	return nil
}

// A problem is a value that is wrong by itself, named by table ("rule"), its index and key.
type problem struct {
	table string
	index int
	key   string
	text  string
}

// locate gives each problem its place in the TOML text.
func locate(name string, text []byte, problems []problem) error {
	if len(problems) == 0 {
		return nil
	}
	type place struct {
		table string
		index int
		key   string
	}
	at := map[place]unstable.Position{}
	count := map[string]int{}
	current := place{}
	parser := unstable.Parser{}
	parser.Reset(text)
	for parser.NextExpression() {
		e := parser.Expression()
		it := e.Key()
		var parts []string
		var start unstable.Range
		for it.Next() {
			if len(parts) == 0 {
				start = it.Node().Raw
			}
			parts = append(parts, string(it.Node().Data))
		}
		position := parser.Shape(start).Start
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table := strings.Join(parts, ".")
			current = place{table: table, index: count[table]}
			count[table]++
			at[current] = position
		case unstable.KeyValue:
			at[place{current.table, current.index, strings.Join(parts, ".")}] = position
		}
	}
	errs := make([]error, 0, len(problems))
	for _, p := range problems {
		where, ok := at[place{p.table, p.index, p.key}]
		if !ok {
			where = at[place{p.table, p.index, ""}]
		}
		key := p.table
		if p.key != "" {
			key += "." + p.key
		}
		errs = append(errs, &FileError{name, where.Line, where.Column, key, p.text})
	}
	return errors.Join(errs...)
}

// Validate tells what is wrong with a scenario made in Go. ParseScenario has done it already.
func (sc *Scenario) Validate() error {
	problems := sc.problems()
	errs := make([]error, 0, len(problems))
	for _, p := range problems {
		key := p.table
		if p.table == "rule" {
			key = fmt.Sprintf("rule[%d]", p.index)
		}
		if p.key != "" {
			key += "." + p.key
		}
		errs = append(errs, &FileError{File: "scenario", Key: key, Problem: p.text})
	}
	return errors.Join(errs...)
}

func (sc *Scenario) problems() []problem {
	var all []problem
	bad := func(table string, index int, key, format string, args ...any) {
		all = append(all, problem{table, index, key, fmt.Sprintf(format, args...)})
	}
	one := func(table string, index int, key, value string, of ...string) {
		if value != "" && !slices.Contains(of, value) {
			bad(table, index, key, "%q is none of %s", value, strings.Join(of, ", "))
		}
	}
	versions := []string{"1.0", "1.1", "1.2", "1.3"}
	s := sc.Settings
	if s.Polls != nil && *s.Polls < 0 {
		bad("settings", 0, "polls", "%d is negative", *s.Polls)
	}
	if s.ReplyDelay < 0 {
		bad("settings", 0, "reply_delay", "%v is negative", s.ReplyDelay)
	}
	one("settings", 0, "refuse", s.Refuse, "late", "early")
	one("settings", 0, "tls_min", s.TLSMin, versions...)
	one("settings", 0, "tls_max", s.TLSMax, versions...)
	if tlsVersion(s.TLSMin) > tlsVersion(s.TLSMax) {
		bad("settings", 0, "tls_min", "is above tls_max")
	}
	for _, v := range s.APIVersions {
		if !isAPIVersion(v) {
			bad("settings", 0, "api_versions", "%q is not of the form YYYY-MM-DD[-preview]", v)
		}
	}
	s.checkService(func(key, format string, args ...any) { bad("settings", 0, key, format, args...) })
	for i, r := range sc.Rules {
		if !slices.Contains(stages, r.On) {
			names := make([]string, len(stages))
			for i, s := range stages {
				names[i] = string(s)
			}
			bad("rule", i, "on", "%q is none of %s", r.On, strings.Join(names, ", "))
			continue
		}
		for key, where := range r.keys() {
			if where != "" && !slices.Contains(strings.Fields(where), string(r.On)) {
				bad("rule", i, key, "has no meaning on %q, only on: %s", r.On, where)
			}
		}
		if _, err := path.Match(r.RegistrationID, ""); err != nil {
			bad("rule", i, "registration_id", "%q is not a pattern", r.RegistrationID)
		}
		one("rule", i, "protocol", r.Protocol, "mqtt", "websocket")
		one("rule", i, "then", r.Then, "close", "reset", "silent")
		one("rule", i, "server_certificate", r.ServerCertificate, "expired", "not-yet-valid", "wrong-host", "other-ca")
		one("rule", i, "tls_min", r.TLSMin, versions...)
		one("rule", i, "tls_max", r.TLSMax, versions...)
		one("rule", i, "state", r.State, "assigning", "assigned", "failed", "disabled", "unassigned")
		one("rule", i, "alert", r.Alert, slices.Sorted(maps.Keys(alerts))...)
		one("rule", i, "alert_at", r.AlertAt, "hello", "certificate")
		one("rule", i, "frames", r.Frames, append([]string{"text", "split", "fragments", "ping"}, slices.Sorted(maps.Keys(brokenFrames))...)...)
		for key, v := range map[string]int{
			"skip": r.Skip, "times": r.Times, "cut": r.Cut, "replies": r.Replies, "status": r.Status,
			"after_up": r.AfterUp, "after_down": r.AfterDown, "pad": r.Pad, "close_code": r.CloseCode,
			"delay": int(r.Delay), "from": int(r.From), "until": int(r.Until), "refuse": int(r.Refuse),
			"delay_up": int(r.DelayUp), "delay_down": int(r.DelayDown), "pace": int(r.Pace),
		} {
			if v < 0 {
				bad("rule", i, key, "is negative")
			}
		}
		for key, v := range map[string]*int{"connack": r.Connack, "suback": r.Suback} {
			if v != nil && (*v < 0 || *v > 255) {
				bad("rule", i, key, "%d is not a byte", *v)
			}
		}
		if r.Chance < 0 || r.Chance > 1 {
			bad("rule", i, "chance", "%v is not between 0 and 1", r.Chance)
		}
		if r.Until > 0 && r.Until <= r.From {
			bad("rule", i, "until", "is not after from")
		}
		if r.Pad > maxPad {
			bad("rule", i, "pad", "is above %d, which no packet can hold", maxPad)
		}
		if r.CloseCode > 4999 || r.CloseCode > 0 && r.CloseCode < 1000 {
			bad("rule", i, "close_code", "%d is no status of a close frame", r.CloseCode)
		}
		if _, err := hex.DecodeString(strings.ReplaceAll(r.GarbageHex, " ", "")); err != nil {
			bad("rule", i, "garbage_hex", "%v", err)
		}
		if r.Garbage != "" && r.GarbageHex != "" {
			bad("rule", i, "garbage_hex", "there is garbage already")
		}
		garbage := r.Garbage != "" || r.GarbageHex != ""
		if (r.AfterUp > 0 || r.AfterDown > 0) && !r.Close && !r.Reset && !r.Silent && !garbage {
			bad("rule", i, "on", "after_up and after_down need one of close, reset, silent and garbage")
		}
		instead := 0
		for _, b := range []bool{r.Close, r.Reset, r.Silent && !garbage, garbage, r.Refuse > 0} {
			if b {
				instead++
			}
		}
		if instead > 1 {
			bad("rule", i, "on", "only one of close, reset, silent, garbage and refuse can happen")
		}
	}
	slices.SortStableFunc(all, func(a, b problem) int {
		if a.index != b.index {
			return a.index - b.index
		}
		return strings.Compare(a.key, b.key)
	})
	return all
}

// keys gives the TOML keys that are set, each with the stages it belongs to.
func (r Rule) keys() map[string]string {
	set := map[string]string{}
	v := reflect.ValueOf(r)
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if v.Field(i).IsZero() {
			continue
		}
		key := f.Tag.Get("toml")
		if key == "-" {
			key = f.Tag.Get("key")
		}
		set[key] = f.Tag.Get("on")
	}
	return set
}

// tlsVersion reads a version; the empty text is the service's own.
func tlsVersion(text string) uint16 {
	switch text {
	case "1.0":
		return tls.VersionTLS10
	case "1.1":
		return tls.VersionTLS11
	case "1.2":
		return tls.VersionTLS12
	case "1.3":
		return tls.VersionTLS13
	}
	return tls.VersionTLS12
}

// isAPIVersion checks the form YYYY-MM-DD[-preview].
func isAPIVersion(s string) bool {
	day := strings.TrimSuffix(s, "-preview")
	_, err := time.Parse(time.DateOnly, day)
	return err == nil
}

// script is a scenario being played: it counts how often each rule met each device.
type script struct {
	Scenario
	seed  seed
	start time.Time
	mu    sync.Mutex
	count []map[string]int // by rule, by registration ID
	drawn []map[string]int // how often chance was asked, likewise
	usual map[Stage]*Rule  // what is where no rule acts; not to be changed
}

func newScript(sc *Scenario, seed seed) *script {
	s := &script{seed: seed, start: time.Now()}
	if sc != nil {
		s.Settings = sc.Settings
		s.Rules = slices.Clone(sc.Rules)
	}
	s.count = make([]map[string]int, len(s.Rules))
	s.drawn = make([]map[string]int, len(s.Rules))
	for i := range s.count {
		s.count[i], s.drawn[i] = map[string]int{}, map[string]int{}
	}
	s.usual = make(map[Stage]*Rule, len(stages))
	for _, on := range stages {
		s.usual[on] = &Rule{On: on}
	}
	return s
}

// match finds the rule for an event, and counts it. A rule that an earlier
// one keeps from acting does not count the event: so rules of one stage form a sequence.
func (s *script) match(on Stage, protocol, registrationID string, resumed bool) *Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	age := time.Since(s.start)
	for i := range s.Rules {
		r := &s.Rules[i]
		if r.On != on || r.Protocol != "" && r.Protocol != protocol || r.Resumed && !resumed {
			continue
		}
		if r.RegistrationID != "" {
			if ok, _ := path.Match(r.RegistrationID, registrationID); !ok {
				continue
			}
		}
		if age < r.From || r.Until > 0 && age >= r.Until || !s.chance(i, registrationID) {
			continue
		}
		n := s.count[i][registrationID]
		if r.Times > 0 && n >= r.Skip+r.Times {
			continue
		}
		if n < r.Skip {
			s.count[i][registrationID]++
			continue
		}
		if r.Times > 0 {
			s.count[i][registrationID]++
		}
		return r
	}
	return s.usual[on]
}

// chance draws whether a rule may act now; s.mu is held.
func (s *script) chance(i int, registrationID string) bool {
	if s.Rules[i].Chance == 0 {
		return true
	}
	s.drawn[i][registrationID]++
	b := s.seed.draw(fmt.Sprintf("chance %d %s %d", i, registrationID, s.drawn[i][registrationID]), 8)
	return float64(binary.BigEndian.Uint64(b)>>11)/(1<<53) < s.Rules[i].Chance
}

// garbage gives the bytes of Garbage or GarbageHex.
func (r *Rule) garbage() []byte {
	if r.GarbageHex == "" {
		return []byte(r.Garbage)
	}
	b, _ := hex.DecodeString(strings.ReplaceAll(r.GarbageHex, " ", "")) // checked by problems
	return b
}

func (s *Settings) polls() int {
	if s.Polls == nil {
		return 2
	}
	return *s.Polls
}

func (s *Settings) retryAfter() string {
	if s.RetryAfter == "" {
		return "3"
	}
	return s.RetryAfter
}
