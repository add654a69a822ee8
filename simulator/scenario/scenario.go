// Package scenario reads what a simulated service is to do: how it behaves as a rule, and
// which faults its answers have. A [Script] says which rule acts on an event.
package scenario

import (
	"time"
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

// What an api-version can do besides registering.
const (
	FeatureCSR     = "csr"               // certificates are issued
	FeatureProfile = "connectionProfile" // the hub's protocol is named
)

var stages = []Stage{OnAccept, OnTLS, OnUpgrade, OnConnect, OnSubscribe, OnRegister, OnPoll, OnPuback, OnPing, OnUnsubscribe, OnDisconnect}

// Scenario scripts a simulated service: settings that hold for every device, and rules
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
	ReplyDelay time.Duration `toml:"-" key:"reply_delay"`
	// Refuse is when a wrong credential is refused: "late" by 401 on the
	// register answer, which is the default, or "early" by CONNACK 5.
	Refuse string `toml:"refuse" of:"late early"`
	// TLSMin is the lowest TLS version: "1.0", "1.1", "1.2" or "1.3". Empty is "1.2".
	TLSMin string `toml:"tls_min" of:"1.0 1.1 1.2 1.3"`
	// TLSMax is the highest TLS version. Empty is "1.2", as the service has it.
	TLSMax string `toml:"tls_max" of:"1.0 1.1 1.2 1.3"`
	// SessionTickets lets devices resume TLS sessions.
	SessionTickets bool `toml:"session_tickets"`
	// APIVersions are the api-versions that are served; another is refused
	// with CONNACK 5. Empty serves every one of the form YYYY-MM-DD[-preview].
	APIVersions []string `toml:"api_versions"`
	// UnknownAPIVersion is what becomes of an api-version without features in
	// Features: "serve" it with none, which is the default, or "refuse" it with CONNACK 5.
	UnknownAPIVersion string `toml:"unknown_api_version" of:"serve refuse"`
	// Features replaces the table of what each api-version can do, "csr" and
	// "connectionProfile". Nil is the table of the service.
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
// The tags "on" and "of" are those of checkFields.
type Rule struct {
	// On is the stage at which the rule acts. Required.
	On Stage `toml:"on"`
	// RegistrationID is a pattern as of path.Match. Empty matches all.
	RegistrationID string `toml:"registration_id" on:"connect subscribe register poll puback ping unsubscribe disconnect"`
	// Protocol is "mqtt" or "websocket" to act on one listener only.
	Protocol string `toml:"protocol" of:"mqtt websocket"`
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
	Then string `toml:"then" of:"close reset silent" on:"connect subscribe register poll ping unsubscribe"`
	// ByteByByte writes the answer one byte at a time; at accept everything of the connection, TLS included.
	ByteByByte bool `toml:"byte_by_byte" on:"accept connect subscribe register poll ping unsubscribe"`
	// Pace is the time between those bytes.
	Pace time.Duration `toml:"-" key:"pace" on:"accept connect subscribe register poll ping unsubscribe"`

	// ServerCertificate is "expired", "not-yet-valid", "wrong-host" or "other-ca".
	ServerCertificate string `toml:"server_certificate" of:"expired not-yet-valid wrong-host other-ca" on:"tls"`
	// TLSMin and TLSMax override the settings for the connection.
	TLSMin string `toml:"tls_min" of:"1.0 1.1 1.2 1.3" on:"tls"`
	TLSMax string `toml:"tls_max" of:"1.0 1.1 1.2 1.3" on:"tls"`
	// Alert is the fatal alert with which the handshake is refused, by its name in RFC 8446 6.
	Alert string `toml:"alert" on:"tls"`
	// AlertAt is when: "hello", which is the default, right after ClientHello,
	// or "certificate", after the client's certificate. From TLS 1.3 on the
	// latter is always bad_certificate.
	AlertAt string `toml:"alert_at" of:"hello certificate" on:"tls"`

	// Location is the header of a redirect.
	Location string `toml:"location" on:"upgrade"`
	// Subprotocol is the one that is agreed to, whatever was offered; "none" for none.
	Subprotocol string `toml:"subprotocol" on:"upgrade"`
	// Extension is one that the server claims to use, whatever was offered.
	Extension string `toml:"extension" on:"upgrade"`
	// Frames is the form of the answer over WebSocket: "split" (a frame for each
	// byte), "fragments" (one message in fragments of one byte), "ping" (a ping
	// ahead of it), or what MQTT forbids, "text", or what RFC 6455 forbids, which
	// has the other names of Frames.
	Frames string `toml:"frames" on:"connect subscribe register poll ping unsubscribe"`
	// CloseCode is the status of the close frame that Close and Then send over WebSocket; 0 is 1000.
	CloseCode int `toml:"close_code" on:"connect subscribe register poll puback ping unsubscribe disconnect"`

	// Connack is the return code of the CONNACK. 0 accepts the client unseen,
	// as a broker that is not DPS does; its credential is then not judged.
	Connack *int `toml:"connack" of:"byte" on:"connect"`
	// SessionPresent sets the session-present flag of the CONNACK.
	SessionPresent bool `toml:"session_present" on:"connect"`
	// Suback is the return code of the SUBACK, 128 for a refusal.
	Suback *int `toml:"suback" of:"byte" on:"subscribe"`
	// BeforeSuback sends a reply nobody asked for ahead of the SUBACK:
	// Status (200), RequestID ("1"), State ("assigned") and so on shape it.
	BeforeSuback bool `toml:"before_suback" on:"subscribe"`

	// Status is the status in the topic of the reply; from 400 on the body is
	// an error object unless State or Body say otherwise. At upgrade, the HTTP status.
	Status int `toml:"status" on:"upgrade subscribe register poll"`
	// RetryAfter is the text of retry-after, verbatim; "none" leaves the parameter out.
	RetryAfter string `toml:"retry_after" on:"subscribe register poll"`
	// State is the registration status in the body: "assigning", "assigned", "failed", "disabled" or "unassigned".
	State string `toml:"state" of:"assigning assigned failed disabled unassigned" on:"subscribe register poll"`
	// AssignedHub, DeviceID and Substatus replace what is assigned.
	AssignedHub string `toml:"assigned_hub" on:"subscribe register poll"`
	DeviceID    string `toml:"device_id" on:"subscribe register poll"`
	Substatus   string `toml:"substatus" on:"subscribe register poll"`
	// Payload is the JSON returned as registrationState.payload.
	Payload string `toml:"payload" on:"subscribe register poll"`
	// ErrorCode and ErrorMessage go into an error object or a failed state. Without: Status × 1000.
	ErrorCode    int    `toml:"error_code" of:"integer" on:"register poll"`
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

// Frames are the forms of an answer over WebSocket, see Rule.
var Frames = []string{
	"text", "split", "fragments", "ping",
	"bad-close", "fragmented-control", "interrupted", "long-control", "masked", "negative",
	"orphan", "reserved", "reserved-control", "rsv1", "rsv2", "rsv3",
}

// Alerts are the TLS alerts that a rule can send, RFC 5246 7.2 and RFC 8446 6.
var Alerts = map[string]byte{
	"unexpected_message": 10, "bad_record_mac": 20, "record_overflow": 22, "handshake_failure": 40,
	"bad_certificate": 42, "unsupported_certificate": 43, "certificate_revoked": 44, "certificate_expired": 45,
	"certificate_unknown": 46, "illegal_parameter": 47, "unknown_ca": 48, "access_denied": 49, "decode_error": 50,
	"decrypt_error": 51, "protocol_version": 70, "insufficient_security": 71, "internal_error": 80,
	"user_canceled": 90, "unrecognized_name": 112, "certificate_required": 116, "no_application_protocol": 120,
}
