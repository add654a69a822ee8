package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/hostname"
)

// Schema is the version of the record's format that this package writes. A later version of
// the same schema may add members; existing ones keep their names and meanings.
const Schema = 1

// Assigned is the only status of a record: a gateway that was never assigned has none.
const Assigned = "assigned"

const (
	// maxFile limits the size of a file that is read. A reply of the service has at most 1
	// MiB, and a record contains its payload twice.
	maxFile = 4 << 20
	// maxGeneration is the largest integer that every JSON reader represents exactly (RFC
	// 8259, section 6).
	maxGeneration = 1<<53 - 1
	// maxDeviceID is the service's limit, in characters.
	maxDeviceID = 128
	// maxPayload limits a published payload, in bytes, and maxDepth its nesting, since
	// readers have their own limits. The payload is a member of the registration state.
	maxPayload    = 128 << 10
	maxDepth      = 100
	maxStateDepth = maxDepth + 1
)

// Record contains the IoT hub and the device ID to which the gateway is assigned. Members
// that the service did not send are empty, and absent from the file.
type Record struct {
	Schema     int    `json:"schema"`     // set by Save
	Generation uint64 `json:"generation"` // set by Save; starts at 1 and never decreases
	Status     string `json:"status"`     // always Assigned; set by Save

	AssignedHub    string `json:"assignedHub"`    // host name
	DeviceID       string `json:"deviceId"`       // 1 to 128 characters
	RegistrationID string `json:"registrationId"` // as resolved
	IDScope        string `json:"idScope"`
	Endpoint       string `json:"endpoint"` // host name of the provisioning service

	Substatus              string `json:"substatus,omitempty"`
	CreatedDateTimeUtc     string `json:"createdDateTimeUtc,omitempty"`
	LastUpdatedDateTimeUtc string `json:"lastUpdatedDateTimeUtc,omitempty"`
	ETag                   string `json:"etag,omitempty"`              // opaque
	ConnectionProfile      string `json:"connectionProfile,omitempty"` // "classic", "mqttV5", …, as received

	// Payload is the result of the service's custom allocation, as received.
	Payload json.RawMessage `json:"payload,omitempty"`
	// RegistrationState is the service's whole registration state, including unknown
	// members but without secrets.
	RegistrationState json.RawMessage `json:"registrationState,omitempty"`

	// Certificate describes the issued certificate, or is nil if there is none. Set by Save.
	Certificate *Certificate `json:"certificate,omitempty"`

	ProvisionedAt     time.Time `json:"provisionedAt"`     // time of the last write, UTC, in whole seconds; set by Save
	ConfigFingerprint string    `json:"configFingerprint"` // see Fingerprint
	Checksum          string    `json:"checksum"`          // "sha256:" and 64 digits; set by Save
}

// IssuedCertificateChain returns the certificates that the service issued with the
// assignment in base64 DER, leaf first, or nil.
func (r Record) IssuedCertificateChain() []string {
	var chain []string
	if json.Unmarshal(r.issued(), &chain) != nil {
		return nil
	}
	return chain
}

func (r Record) issued() json.RawMessage {
	var state struct {
		Chain json.RawMessage `json:"issuedCertificateChain"`
	}
	if json.Unmarshal(r.RegistrationState, &state) != nil || string(state.Chain) == "null" {
		return nil
	}
	return state.Chain
}

// Fingerprint returns a hash that differs for configurations of different identities. It
// does not include credentials, since a renewed key does not change the identity. payload
// is the content of the payload file, or nil if none is configured.
func Fingerprint(endpoint, idScope, registrationID string, payload []byte) string {
	sum := ""
	if payload != nil {
		digest := sha256.Sum256(payload)
		sum = hex.EncodeToString(digest[:])
	}
	digest := sha256.Sum256([]byte("dpsd1\n" + strings.ToLower(endpoint) + "\n" + idScope + "\n" + registrationID + "\n" + sum + "\n"))
	return sumPrefix + hex.EncodeToString(digest[:])
}

// Validate checks whether rec may be published. Its hub must be a host name. Its device ID
// must have 1 to 128 characters, without invisible characters or leading and trailing
// blanks. Values for state.env must not contain characters that EnvironmentFile= does not
// support (control characters, invalid UTF-8, Unicode noncharacters). Its payload and
// registration state must be JSON with at most 100 levels of nesting, and the payload may
// have at most 128 KiB. Validate ignores the members that Save sets. The error is an
// *InvalidError.
func Validate(rec Record) error {
	if err := readable(rec); err != nil {
		return err
	}
	if reason := checkDeviceID(rec.DeviceID); reason != "" {
		return &InvalidError{"deviceId", reason}
	}
	if n := len(compact(rec.Payload)); n > maxPayload {
		return &InvalidError{"payload", fmt.Sprintf("has %d bytes, more than %d", n, maxPayload)}
	}
	if depth(rec.Payload) > maxDepth {
		return &InvalidError{"payload", fmt.Sprintf("is nested deeper than %d levels", maxDepth)}
	}
	if depth(rec.RegistrationState) > maxStateDepth {
		return &InvalidError{"registrationState", fmt.Sprintf("is nested deeper than %d levels", maxStateDepth)}
	}
	return nil
}

// checkDeviceID rejects characters that could make a person or a program read another ID:
// invisible characters, characters that change the direction of text, and leading or
// trailing blanks.
func checkDeviceID(s string) string {
	for _, r := range s {
		if unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return fmt.Sprintf("contains the invisible character %U", r)
		}
	}
	if strings.TrimSpace(s) != s {
		return "begins or ends with a blank"
	}
	return ""
}

// depth returns the nesting depth of JSON.
func depth(raw json.RawMessage) (deepest int) {
	level, quoted, escaped := 0, false, false
	for _, c := range raw {
		switch {
		case escaped:
			escaped = false
		case quoted && c == '\\':
			escaped = true
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			level++
			deepest = max(deepest, level)
		case c == '}' || c == ']':
			level--
		}
	}
	return deepest
}

// readable checks a record that is read. Save requires more, see Validate, but a record of
// an earlier version of dpsd remains valid.
func readable(rec Record) error {
	for _, v := range []struct{ member, value string }{
		{"assignedHub", rec.AssignedHub},
		{"deviceId", rec.DeviceID},
		{"registrationId", rec.RegistrationID},
		{"idScope", rec.IDScope},
		{"endpoint", rec.Endpoint},
	} {
		if v.value == "" {
			return &InvalidError{v.member, "is empty"}
		}
		if reason := checkText(v.value); reason != "" {
			return &InvalidError{v.member, reason}
		}
	}
	if reason := checkText(rec.ConnectionProfile); reason != "" {
		return &InvalidError{"connectionProfile", reason}
	}
	if c := rec.Certificate; c != nil {
		if reason := cmp.Or(checkText(c.CertificateFile), checkText(c.PrivateKeyFile)); reason != "" {
			return &InvalidError{"certificate", reason}
		}
	}
	if !hostname.Valid(rec.AssignedHub) {
		return &InvalidError{"assignedHub", "is not a host name"}
	}
	if utf8.RuneCountInString(rec.DeviceID) > maxDeviceID {
		return &InvalidError{"deviceId", fmt.Sprintf("is longer than %d characters", maxDeviceID)}
	}
	for _, v := range []struct {
		member string
		value  json.RawMessage
	}{{"payload", rec.Payload}, {"registrationState", rec.RegistrationState}} {
		if v.value != nil && !json.Valid(v.value) {
			return &InvalidError{v.member, "is not JSON"}
		}
	}
	return nil
}

// checkText rejects characters that systemd does not support in an EnvironmentFile=: with
// such a value, the consumer does not start or systemd silently ignores the whole file.
func checkText(s string) string {
	if !utf8.ValidString(s) {
		return "is not valid UTF-8"
	}
	for _, r := range s {
		switch {
		case unicode.IsControl(r):
			return "contains a control character"
		case r >= 0xFDD0 && r <= 0xFDEF, r&0xFFFE == 0xFFFE:
			return "contains a Unicode noncharacter"
		}
	}
	return ""
}

// normalise returns a record in the form in which it is stored.
func normalise(rec Record) (Record, error) {
	if err := Validate(rec); err != nil {
		return Record{}, err
	}
	rec.Schema, rec.Status, rec.Checksum = Schema, Assigned, ""
	rec.Payload = compact(rec.Payload)
	rec.RegistrationState = compact(rec.RegistrationState)
	return rec, nil
}

// compact returns JSON on one line, so that the number of a record's lines is fixed and its
// size is proportional to the received data. null counts as absent.
func compact(raw json.RawMessage) json.RawMessage {
	if raw == nil {
		return nil
	}
	var b bytes.Buffer
	if json.Compact(&b, bytes.ToValidUTF8(raw, []byte("\uFFFD"))) != nil || b.String() == "null" {
		return nil
	}
	return b.Bytes()
}

// wholeSeconds truncates t and limits its year to the four digits of RFC 3339, so that a
// wrong clock does not make a record unreadable.
func wholeSeconds(t time.Time) time.Time {
	t = t.UTC().Truncate(time.Second)
	switch {
	case t.Year() < 1:
		return time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC)
	case t.Year() > 9999:
		return time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	}
	return t
}

const (
	sumPrefix = "sha256:"
	// sumLine and sumEnd enclose the last member, which is on a separate line.
	sumLine = `  "checksum": "` + sumPrefix
	sumEnd  = "\"\n}\n"
	sumSize = len(sumLine) + 2*sha256.Size + len(sumEnd)
)

// encode returns the file of a normalised record, and the record with its checksum.
// Encoding its strings and its JSON does not fail.
func encode(rec Record) (Record, []byte) {
	rec.Checksum = ""
	var b bytes.Buffer
	// encoding/json implements the format except for two rules: one member per line, and
	// raw JSON on a single line.
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	b.WriteString("{\n")
	for _, m := range []struct {
		name  string
		value any
		skip  bool
	}{
		{"schema", rec.Schema, false},
		{"generation", rec.Generation, false},
		{"status", rec.Status, false},
		{"assignedHub", rec.AssignedHub, false},
		{"deviceId", rec.DeviceID, false},
		{"registrationId", rec.RegistrationID, false},
		{"idScope", rec.IDScope, false},
		{"endpoint", rec.Endpoint, false},
		{"substatus", rec.Substatus, rec.Substatus == ""},
		{"createdDateTimeUtc", rec.CreatedDateTimeUtc, rec.CreatedDateTimeUtc == ""},
		{"lastUpdatedDateTimeUtc", rec.LastUpdatedDateTimeUtc, rec.LastUpdatedDateTimeUtc == ""},
		{"etag", rec.ETag, rec.ETag == ""},
		{"connectionProfile", rec.ConnectionProfile, rec.ConnectionProfile == ""},
		{"payload", rec.Payload, rec.Payload == nil},
		{"registrationState", rec.RegistrationState, rec.RegistrationState == nil},
		{"certificate", rec.Certificate, rec.Certificate == nil},
		{"provisionedAt", rec.ProvisionedAt.Format(time.RFC3339), false},
		{"configFingerprint", rec.ConfigFingerprint, false},
	} {
		if m.skip {
			continue
		}
		fmt.Fprintf(&b, "  %q: ", m.name)
		_ = enc.Encode(m.value)
		b.Truncate(b.Len() - 1) // remove the encoder's line feed
		b.WriteString(",\n")
	}
	digest := sha256.Sum256(b.Bytes())
	rec.Checksum = sumPrefix + hex.EncodeToString(digest[:])
	b.WriteString(sumLine + rec.Checksum[len(sumPrefix):] + sumEnd)
	return rec, b.Bytes()
}

// Parse parses the contents of a state.json. It verifies the length, the checksum and the
// members. The error is a *DamagedError or a *NewerSchemaError.
func Parse(data []byte) (Record, error) {
	sum, summed := checksum(data)
	if summed {
		digest := sha256.Sum256(data[:len(data)-sumSize])
		if hex.EncodeToString(digest[:]) != sum {
			return Record{}, &DamagedError{Reason: "the checksum does not match"}
		}
	}
	var head struct {
		Schema     int64  `json:"schema"`
		Generation uint64 `json:"generation"`
	}
	err := json.Unmarshal(data, &head)
	// A later schema may store its checksum differently; the file only has to be JSON.
	if head.Schema > Schema && json.Valid(data) {
		return Record{}, &NewerSchemaError{Schema: head.Schema, Generation: min(head.Generation, maxGeneration)}
	}
	switch {
	case len(data) == 0:
		return Record{}, &DamagedError{Reason: "the file is empty"}
	case err != nil:
		return Record{}, &DamagedError{Reason: "not the JSON of a record", Err: err}
	case !summed:
		return Record{}, &DamagedError{Reason: "no checksum on the second-to-last line"}
	}
	var rec Record
	if err := json.Unmarshal(data, &rec); err != nil {
		return Record{}, &DamagedError{Reason: "not the JSON of a record", Err: err}
	}
	switch {
	case rec.Schema != Schema:
		return Record{}, &DamagedError{Reason: "schema is not " + fmt.Sprint(Schema)}
	case rec.Generation < 1 || rec.Generation > maxGeneration:
		return Record{}, &DamagedError{Reason: "generation is out of range"}
	case rec.Status != Assigned:
		return Record{}, &DamagedError{Reason: "status is not " + Assigned}
	}
	if err := readable(rec); err != nil {
		return Record{}, &DamagedError{Reason: "not a valid record", Err: err}
	}
	return rec, nil
}

// checksum returns the value of the last member, which must be on a separate line.
func checksum(data []byte) (string, bool) {
	at := len(data) - sumSize
	if at < 1 || data[at-1] != '\n' {
		return "", false
	}
	line, ok := bytes.CutPrefix(data[at:], []byte(sumLine))
	if !ok {
		return "", false
	}
	sum, ok := bytes.CutSuffix(line, []byte(sumEnd))
	return string(sum), ok
}
