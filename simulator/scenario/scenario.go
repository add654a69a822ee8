// Package scenario reads scenarios, which define how a simulated service behaves in general and
// which faults its answers have. A [Script] selects the rule that acts on an event.
package scenario

import (
	"time"
)

// maxPad leaves space for the topic in the largest MQTT packet, 268,435,455 bytes.
const maxPad = 268_000_000

// Stage is a point of a connection at which a rule can act.
type Stage string

// The stages in the order in which a connection reaches them. Before OnConnect the
// registration ID is unknown.
const (
	OnAccept      Stage = "accept"      // the TCP connection is open, no byte was read
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

// The stages of a connection to an assigned hub. The stages before CONNECT are those above.
const (
	OnHubConnect   Stage = "hub-connect"   // CONNECT was read
	OnHubSubscribe Stage = "hub-subscribe" // SUBSCRIBE was read
	OnHubPublish   Stage = "hub-publish"   // the PUBLISH of telemetry was read
	OnHubTwin      Stage = "hub-twin"      // the PUBLISH of a request for the device twin was read
	OnHubPing      Stage = "hub-ping"      // PINGREQ was read
	OnHubRequest   Stage = "hub-request"   // an HTTPS request was read
)

// The features of an api-version in addition to registration.
const (
	FeatureCSR     = "csr"               // certificates are issued
	FeatureProfile = "connectionProfile" // the hub's protocol is named
)

// The values of Settings.ChainFormat and Settings.WithoutPolicy other than the defaults.
const (
	ChainBase64PEM = "base64-pem"
	ChainPEM       = "pem"
	PolicyAssign   = "assign"
)

// keyTypes are the values of Settings.CSRKeys.
var keyTypes = []string{"P-256", "P-384", "P-521", "RSA-2048", "RSA-3072", "RSA-4096"}

var stages = []Stage{OnAccept, OnTLS, OnUpgrade, OnConnect, OnSubscribe, OnRegister, OnPoll, OnPuback, OnPing, OnUnsubscribe, OnDisconnect,
	OnHubConnect, OnHubSubscribe, OnHubPublish, OnHubTwin, OnHubPing, OnHubRequest}

// Scenario defines the behaviour of a simulated service: settings that apply to every device, and
// rules that make single answers faulty. The zero value is a well-behaved service.
type Scenario struct {
	Settings Settings
	// Rules are tried in order. Only the first rule that matches and is not exhausted acts.
	Rules []Rule
}

// Settings are properties of a well-behaved service.
type Settings struct {
	// Polls is how many polls a registration takes until its final answer. Nil means 2; 0 means
	// that the answer to the register request is final. One and two were observed in the service.
	Polls *int `toml:"polls"`
	// RetryAfter is the text of retry-after in a 202. Empty means "3"; "none" omits the parameter.
	RetryAfter string `toml:"retry_after"`
	// ReplyDelay is the time between a request's PUBACK and its reply. The live service takes
	// 300 ms to one second.
	ReplyDelay time.Duration `toml:"-" key:"reply_delay"`
	// StrictPaths serves MQTT over WebSocket only at the documented path, /$iothub/websocket.
	// Otherwise it is also at / and /mqtt, the default paths of MQTT libraries.
	StrictPaths bool `toml:"strict_paths"`
	// StrictJSON refuses a request with a member name that is not quoted. The service accepts it.
	StrictJSON bool `toml:"strict_json"`
	// Refuse is when a wrong credential is refused: "late" by a 401 in the register answer,
	// which is the default, or "early" by CONNACK 5.
	Refuse string `toml:"refuse" of:"late early"`
	// TLSMin is the lowest TLS version: "1.0", "1.1", "1.2" or "1.3". Empty means "1.2".
	TLSMin string `toml:"tls_min" of:"1.0 1.1 1.2 1.3"`
	// TLSMax is the highest TLS version. Empty means "1.2", as in the service.
	TLSMax string `toml:"tls_max" of:"1.0 1.1 1.2 1.3"`
	// SessionTickets lets devices resume TLS sessions.
	SessionTickets bool `toml:"session_tickets"`
	// APIVersions are the api-versions that are served; any other is refused with
	// CONNACK 5. If it is empty, every one of the form YYYY-MM-DD[-preview] is served.
	APIVersions []string `toml:"api_versions"`
	// UnknownAPIVersion is what happens to an api-version that is not in Features: "serve"
	// serves it without features, which is the default, and "refuse" refuses it with CONNACK 5.
	UnknownAPIVersion string `toml:"unknown_api_version" of:"serve refuse"`
	// Features replaces the table of the features of each api-version, "csr" and
	// "connectionProfile". Nil means the table of the service.
	Features map[string][]string `toml:"features"`
	// CSRKeys are the types of keys for which certificates are issued: "P-256", "P-384",
	// "P-521", "RSA-2048", "RSA-3072" or "RSA-4096". Empty means P-256, P-384 and RSA-2048.
	CSRKeys []string `toml:"csr_keys"`
	// CertificateLife is the lifetime of a certificate that is issued for a CSR, for enrollments
	// that do not set their own. 0 means 30 days. The service issues certificates for 7 to 90 days.
	CertificateLife time.Duration `toml:"-" key:"certificate_life"`
	// CertificateDelay is the time after which an issued certificate becomes valid. 0 means that
	// its validity begins an hour before it is issued.
	CertificateDelay time.Duration `toml:"-" key:"certificate_delay"`
	// ChainWithoutRoot omits the root of an issued certificate from its chain. The
	// specification requires the root.
	ChainWithoutRoot bool `toml:"chain_without_root"`
	// ChainFormat is the format of each certificate in a chain: "der" for base64 of DER, which
	// is the default, "base64-pem" for base64 of PEM, or "pem".
	ChainFormat string `toml:"chain_format" of:"der base64-pem pem"`
	// WithoutPolicy is what happens to a CSR if the enrollment has NoCertificates: "refuse"
	// answers 400, which is the default, and "assign" assigns the device without a chain.
	WithoutPolicy string `toml:"without_policy" of:"refuse assign"`
	// PollLimit is how many polls a device may send in 10 s, in a burst or one by one;
	// further polls are answered 429. Nil means 5, as in the service, or no limit if
	// RetryAfter itself asks for less than 2 s. 0 means no limit.
	PollLimit *int `toml:"poll_limit"`
	// RegisterLimit is how many registrations the service accepts per minute; 0 means no limit.
	RegisterLimit int `toml:"register_limit"`
	// ThrottleRetryAfter is the text of retry-after in the 429 of a limit. Empty means
	// the time until the next request is allowed; "none" omits the parameter.
	ThrottleRetryAfter string `toml:"throttle_retry_after"`
}

// Rule is one fault. The zero value of a field means the normal behaviour. Skip and Times
// count for each registration ID separately, and at a hub for each device of the hub; at the
// stages before CONNECT they count over all connections.
//
// The tags "on" and "of" are those of checkFields.
type Rule struct {
	// On is the stage at which the rule acts. It is required.
	On Stage `toml:"on"`
	// RegistrationID is a pattern of path.Match. If it is empty, it matches all IDs.
	RegistrationID string `toml:"registration_id" on:"connect subscribe register poll puback ping unsubscribe disconnect"`
	// Hub and Device are patterns of path.Match for the host name of the hub and the device ID
	// there. If one is empty, it matches all. A device pattern also selects the modules of the device, and
	// {deviceId}/{moduleId} selects a single module.
	Hub    string `toml:"hub" on:"hub-connect hub-subscribe hub-publish hub-twin hub-ping hub-request"`
	Device string `toml:"device" on:"hub-connect hub-subscribe hub-publish hub-twin hub-ping hub-request"`
	// Protocol is "mqtt" or "websocket" for a rule that acts on one listener only, or "https"
	// for one that acts only on the requests of the device API over HTTPS.
	Protocol string `toml:"protocol" of:"mqtt websocket https"`
	// Resumed limits the rule to connections that resumed a TLS session.
	Resumed bool `toml:"resumed" on:"upgrade connect subscribe register poll hub-connect"`
	// CSR limits the rule to register requests with a CSR, and to the polls of their operations.
	CSR bool `toml:"csr" on:"register poll"`
	// Skip is how many matches the rule ignores first.
	Skip int `toml:"skip"`
	// Times is how often the rule acts; 0 means always.
	Times int `toml:"times"`
	// From and Until limit the time in which the rule acts, counted from the start of the
	// scenario. Zero means no limit.
	From  time.Duration `toml:"-" key:"from"`
	Until time.Duration `toml:"-" key:"until"`
	// Chance is the probability with which the rule acts, above 0 and up to 1;
	// 0 means 1. The seed determines it for each registration ID separately.
	Chance float64 `toml:"chance"`

	// Delay passes before the other effects of the rule.
	Delay time.Duration `toml:"-" key:"delay"`
	// Refuse drops the connection immediately and closes the listener for that time: the
	// kernel then refuses all connections.
	Refuse time.Duration `toml:"-" key:"refuse" on:"accept"`
	// Close closes the connection cleanly instead of answering.
	Close bool `toml:"close"`
	// Reset drops the connection instead of answering: TCP RST, no TLS close_notify.
	Reset bool `toml:"reset"`
	// Silent omits the answer. Up to CONNECT the connection sends nothing more.
	Silent bool `toml:"silent"`
	// Garbage is sent verbatim instead of the answer; at accept it is sent without TLS, after
	// the client's first bytes. Then the connection is closed or, with Silent, held open.
	Garbage string `toml:"garbage" on:"accept upgrade connect subscribe register poll puback ping unsubscribe disconnect hub-connect hub-subscribe hub-publish hub-twin hub-ping hub-request"`
	// GarbageHex is Garbage in hexadecimal, for bytes that are not text. Spaces are ignored.
	GarbageHex string `toml:"garbage_hex" on:"accept upgrade connect subscribe register poll puback ping unsubscribe disconnect hub-connect hub-subscribe hub-publish hub-twin hub-ping hub-request"`
	// AfterUp and AfterDown let that many bytes of the stream, including TLS, pass in
	// that direction before Close, Reset or Garbage happens. With Silent the direction
	// stalls there.
	AfterUp   int `toml:"after_up" on:"accept"`
	AfterDown int `toml:"after_down" on:"accept"`
	// DelayUp and DelayDown delay each piece of the stream that is read from the client
	// or written to it.
	DelayUp   time.Duration `toml:"-" key:"delay_up" on:"accept"`
	DelayDown time.Duration `toml:"-" key:"delay_down" on:"accept"`
	// Then is what follows an answer: "close", "reset" or "silent" (nothing more is sent).
	Then string `toml:"then" of:"close reset silent" on:"connect subscribe register poll ping unsubscribe hub-connect hub-subscribe hub-publish hub-twin hub-ping hub-request"`
	// ByteByByte writes the answer one byte at a time; at accept it applies to the whole
	// connection, including TLS.
	ByteByByte bool `toml:"byte_by_byte" on:"accept connect subscribe register poll ping unsubscribe hub-connect hub-subscribe hub-publish hub-twin hub-ping"`
	// Pace is the time between those bytes.
	Pace time.Duration `toml:"-" key:"pace" on:"accept connect subscribe register poll ping unsubscribe hub-connect hub-subscribe hub-publish hub-twin hub-ping"`

	// ServerCertificate is "expired", "not-yet-valid", "wrong-host" or "other-ca".
	ServerCertificate string `toml:"server_certificate" of:"expired not-yet-valid wrong-host other-ca" on:"tls"`
	// TLSMin and TLSMax override the settings for the connection.
	TLSMin string `toml:"tls_min" of:"1.0 1.1 1.2 1.3" on:"tls"`
	TLSMax string `toml:"tls_max" of:"1.0 1.1 1.2 1.3" on:"tls"`
	// Alert is the fatal alert with which the handshake is refused, named as in RFC 8446 6.
	Alert string `toml:"alert" on:"tls"`
	// AlertAt is when the alert is sent: "hello", which is the default, immediately after
	// ClientHello, or "certificate", after the client's certificate. With TLS 1.3, the
	// latter is always bad_certificate.
	AlertAt string `toml:"alert_at" of:"hello certificate" on:"tls"`

	// Location is the Location header of a redirect.
	Location string `toml:"location" on:"upgrade"`
	// Subprotocol is the one that the server selects, regardless of the offer; "none" selects none.
	Subprotocol string `toml:"subprotocol" on:"upgrade"`
	// Extension is one that the server claims to use, regardless of the offer.
	Extension string `toml:"extension" on:"upgrade"`
	// Frames is the form of the answer over WebSocket: "split" (a frame for each byte),
	// "fragments" (one message in fragments of one byte), "ping" (preceded by a ping),
	// "text", which MQTT forbids, or one of the other names in Frames, which RFC 6455
	// forbids.
	Frames string `toml:"frames" on:"connect subscribe register poll ping unsubscribe hub-connect hub-subscribe hub-publish hub-twin hub-ping"`
	// CloseCode is the status of the close frame that Close and Then send over WebSocket; 0
	// means 1000.
	CloseCode int `toml:"close_code" on:"connect subscribe register poll puback ping unsubscribe disconnect hub-connect hub-subscribe hub-publish hub-twin hub-ping"`

	// Connack is the return code of the CONNACK. 0 accepts the client without checking its
	// credential, like a broker that is not DPS.
	Connack *int `toml:"connack" of:"byte" on:"connect hub-connect"`
	// SessionPresent sets the session-present flag of the CONNACK.
	SessionPresent bool `toml:"session_present" on:"connect hub-connect"`
	// Suback is the return code of the SUBACK; 128 is a refusal.
	Suback *int `toml:"suback" of:"byte" on:"subscribe hub-subscribe"`
	// BeforeSuback sends an unsolicited reply before the SUBACK: Status (200), RequestID
	// ("1"), State ("assigned") and so on define it.
	BeforeSuback bool `toml:"before_suback" on:"subscribe"`

	// Status is the status in the topic of the reply. From 400 on, the body is an error
	// object unless State or Body specify otherwise. At upgrade and hub-request it is the HTTP
	// status.
	Status int `toml:"status" on:"upgrade subscribe register poll hub-twin hub-request"`
	// RetryAfter is the text of retry-after, verbatim; "none" omits the parameter. At
	// hub-request it is that of the HTTP header.
	RetryAfter string `toml:"retry_after" on:"subscribe register poll hub-request"`
	// State is the registration status in the body: "assigning", "assigned", "failed",
	// "disabled" or "unassigned".
	State string `toml:"state" of:"assigning assigned failed disabled unassigned" on:"subscribe register poll"`
	// AssignedHub, DeviceID and Substatus replace the assigned values.
	AssignedHub string `toml:"assigned_hub" on:"subscribe register poll"`
	DeviceID    string `toml:"device_id" on:"subscribe register poll"`
	Substatus   string `toml:"substatus" on:"subscribe register poll"`
	// Payload is the JSON returned as registrationState.payload.
	Payload string `toml:"payload" on:"subscribe register poll"`
	// Chain is one of Chains: what is wrong with the chain that is issued for the CSR of the
	// request. The certificate is issued with the register request, and sent with the final
	// answer.
	Chain string `toml:"chain" on:"register"`
	// ErrorCode and ErrorMessage go into an error object or a failed state. The default is
	// Status × 1000. At hub-connect, an error code refuses the client with CONNACK 5, and only
	// the packet log contains the code, because MQTT 3.1.1 cannot transmit it.
	ErrorCode    int    `toml:"error_code" of:"integer" on:"register poll hub-connect hub-request"`
	ErrorMessage string `toml:"error_message" on:"register poll hub-connect hub-request"`
	// Omit names members that are omitted from the body, at any depth.
	Omit []string `toml:"omit" on:"subscribe register poll"`
	// Body replaces the body verbatim. At upgrade and hub-request it is the body of the HTTP
	// response.
	Body *string `toml:"body" on:"upgrade subscribe register poll hub-twin hub-request"`
	// Cut truncates the body to that many bytes.
	Cut int `toml:"cut" on:"subscribe register poll"`
	// Pad fills the body with spaces up to that many bytes.
	Pad int `toml:"pad" on:"subscribe register poll"`
	// RequestID replaces the $rid of the reply.
	RequestID string `toml:"request_id" on:"subscribe register poll"`
	// Topic replaces the whole topic of the reply. In it, {rid} is the request's $rid.
	Topic string `toml:"topic" on:"subscribe register poll"`
	// Replies is how many replies are sent, each with its own packet identifier; 0 means one.
	Replies int `toml:"replies" on:"register poll"`
	// Duplicate sends the reply a second time with the DUP flag and the same packet identifier.
	Duplicate bool `toml:"duplicate" on:"register poll"`
	// BeforePuback sends the reply before the request's PUBACK.
	BeforePuback bool `toml:"before_puback" on:"register poll"`
	// NoPuback omits the request's PUBACK; the reply is still sent.
	NoPuback bool `toml:"no_puback" on:"register poll hub-publish"`
	// AfterPuback acknowledges the request immediately; Delay, Close, Reset, Silent and Garbage
	// follow.
	AfterPuback bool `toml:"after_puback" on:"register poll hub-publish"`
}

// Chains lists the values of Rule.Chain. docs/simulator.md describes them.
var Chains = []string{
	"empty", "not-a-list", "not-text", "garbage",
	"leaf-only", "reordered", "duplicate", "hundred", "megabyte",
	"foreign-leaf", "wrong-name", "two-names", "self-signed", "leaf-ca", "wrong-signature", "rsa-8192",
	"expired", "expired-issuer", "short-issuer", "not-yet-valid",
}

// Frames lists the forms of an answer over WebSocket, see Rule.
var Frames = []string{
	"text", "split", "fragments", "ping",
	"bad-close", "fragmented-control", "interrupted", "long-control", "masked", "negative",
	"orphan", "reserved", "reserved-control", "rsv1", "rsv2", "rsv3",
}

// Alerts lists the TLS alerts that a rule can send, RFC 5246 7.2 and RFC 8446 6.
var Alerts = map[string]byte{
	"unexpected_message": 10, "bad_record_mac": 20, "record_overflow": 22, "handshake_failure": 40,
	"bad_certificate": 42, "unsupported_certificate": 43, "certificate_revoked": 44, "certificate_expired": 45,
	"certificate_unknown": 46, "illegal_parameter": 47, "unknown_ca": 48, "access_denied": 49, "decode_error": 50,
	"decrypt_error": 51, "protocol_version": 70, "insufficient_security": 71, "internal_error": 80,
	"user_canceled": 90, "unrecognized_name": 112, "certificate_required": 116, "no_application_protocol": 120,
}
