package dps

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/hostname"
)

// The values of a reply's status member.
const (
	statusUnassigned = "unassigned"
	statusAssigning  = "assigning"
	statusAssigned   = "assigned"
	statusFailed     = "failed"
	statusDisabled   = "disabled"
	statusBlacklist  = "blacklisted" // the former name of disabled
)

// maxRetryAfter is the longest delay that the service can ask for, in seconds: a day.
// Larger numbers are reduced to it.
const maxRetryAfter = 86400

// maxOperationID is the length of the longest operation ID that is accepted. The observed
// IDs have 55 characters. The ID is sent back to the service in a topic.
const maxOperationID = 512

const (
	// maxPayload limits the payload of an assignment, in bytes without white space, and
	// maxDepth limits its nesting: it is published to consumers, whose JSON readers have
	// their own limits.
	maxPayload = 128 << 10
	maxDepth   = 100
)

// Message is one MQTT PUBLISH, in either direction.
type Message struct {
	Topic   string
	Payload []byte
}

// Reply is a parsed reply of the service. Exactly one of the following is true: Error is
// set; Assignment is set and RegistrationStatus is "assigned"; RegistrationStatus is
// "assigning".
type Reply struct {
	RequestID  string        // $rid of the topic
	Status     int           // the number in the topic, 100..599
	RetryAfter time.Duration // the topic's retry-after, at most a day; 0 when absent or unreadable

	OperationID        string // "" if the body has none
	RegistrationStatus string // status of the body, "" in an error reply
	Assignment         *Assignment
	Error              *ServiceError // without its Request
}

// Assignment is the result of a successful registration.
type Assignment struct {
	AssignedHub            string // a host name
	DeviceID               string // 1..128 bytes; may differ from the registration ID
	RegistrationID         string // in the service's spelling
	Substatus              string // e.g. "initialAssignment"; this and the following are "" when absent
	CreatedDateTimeUtc     string
	LastUpdatedDateTimeUtc string
	ETag                   string
	ConnectionProfile      string          // e.g. "mqttV5"
	Payload                json.RawMessage // returned by a custom allocation function; nil when absent
	// IssuedCertificateChain is the answer to a CSR as compact JSON, normally a list of
	// certificates, leaf first; nil when absent. It is not checked: an unusable chain does
	// not make the assignment unusable.
	IssuedCertificateChain json.RawMessage
	// State is the whole registrationState as compact JSON, including members unknown to
	// this package. The secrets are removed: tpm.authenticationKey and the members of
	// symmetricKey.
	State json.RawMessage
}

// DropIssuedCertificateChain removes the chain from the assignment and from State, because an
// unusable chain must not be published.
func (a *Assignment) DropIssuedCertificateChain() {
	a.IssuedCertificateChain = nil
	state, err := parseObject(a.State, "registrationState")
	if err != nil {
		return // State is the output of this package
	}
	a.State = slices.DeleteFunc(state, func(m member) bool { return m.name == "issuedCertificateChain" }).encode()
}

// ParseReply parses one received message. The error is ErrNotReply for any other topic, or
// a *MalformedError, in which case the Reply still contains the values of the topic.
func ParseReply(m Message) (Reply, error) {
	r, err := parseTopic(m.Topic)
	if err == nil {
		err = r.parseBody(m.Payload)
	}
	if err != nil && !errors.Is(err, ErrNotReply) {
		err = &MalformedError{Reason: err.Error(), Topic: m.Topic, RetryAfter: r.RetryAfter}
	}
	return r, err
}

// parseTopic reads "$dps/registrations/res/{status}/?$rid={rid}&retry-after={s}". The
// parameters may have any order; unknown ones are skipped.
func parseTopic(topic string) (Reply, error) {
	var r Reply
	rest, ok := strings.CutPrefix(topic, responsePrefix)
	if !ok {
		return r, ErrNotReply
	}
	path, query, _ := strings.Cut(rest, "?")
	requestIDs := 0
	for parameter := range strings.SplitSeq(query, "&") {
		name, value, _ := strings.Cut(parameter, "=")
		if name == "$rid" {
			r.RequestID = value
			requestIDs++
		}
		if strings.EqualFold(name, "retry-after") {
			r.RetryAfter = max(r.RetryAfter, parseRetryAfter(value))
		}
	}
	number := strings.TrimSuffix(path, "/")
	status, err := strconv.Atoi(number)
	if err != nil || len(number) != 3 || status < 100 || status > 599 {
		return r, errors.New("the topic has no status")
	}
	r.Status = status
	if requestIDs > 1 {
		return r, errors.New("the topic has more than one $rid")
	}
	if r.RequestID == "" {
		return r, errors.New("the topic has no $rid")
	}
	return r, nil
}

// parseRetryAfter parses a number of seconds that consists of digits. It returns at most a
// day, and 0 if s is unreadable.
func parseRetryAfter(s string) time.Duration {
	if !digits(s) {
		return 0
	}
	n, _ := strconv.ParseUint(s, 10, 64) // the largest number if s is out of range
	return time.Duration(min(n, maxRetryAfter)) * time.Second
}

// digits reports whether s consists of decimal digits.
func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// parseBody sets the fields that come from the body. The body's status decides: "assigning"
// and "failed" have been observed with 200, and "failed" with 500.
func (r *Reply) parseBody(body []byte) error {
	if r.Status >= 300 {
		r.parseError(body)
		return nil
	}
	o, err := parseDocument(body)
	if err != nil {
		return err
	}
	status, err := o.text("status")
	if err != nil {
		return err
	}
	operation, err := o.text("operationId")
	if err != nil {
		return err
	}
	if len(operation) > maxOperationID {
		return fmt.Errorf("operationId has %d bytes", len(operation))
	}
	if err := checkText("operationId", operation); err != nil {
		return err
	}
	switch status {
	case statusAssigning:
	case statusAssigned:
		// The status is set before the assignment is checked: an operation that ended with
		// an unusable assignment has ended nevertheless.
		r.RegistrationStatus = status
		if r.Assignment, err = parseAssignment(o); err != nil {
			return err
		}
	case statusFailed, statusDisabled, statusUnassigned, statusBlacklist:
		r.parseEnd(o, status)
	case "":
		return errors.New("the body has no status")
	default:
		return fmt.Errorf("unknown status %q", clean(status, 32))
	}
	r.OperationID = operation
	r.RegistrationStatus = status
	return nil
}

// parseError parses an error reply. The status is known from the topic, so if the body is
// missing, truncated or not JSON, only the details are lost.
func (r *Reply) parseError(body []byte) {
	o, _ := parseDocument(body)
	switch status, _ := o.text("status"); status {
	case statusFailed, statusDisabled, statusUnassigned, statusBlacklist:
		r.parseEnd(o, status)
	default:
		r.Error = r.refusal(o)
	}
}

// parseEnd parses the reply for an operation that ended without an assignment.
func (r *Reply) parseEnd(o object, status string) {
	if status == statusBlacklist {
		status = statusDisabled
	}
	e := r.refusal(o)
	e.RegistrationStatus = status
	raw, _ := o.get("registrationState")
	state, _ := parseObject(raw, "registrationState")
	if code, _ := state.number("errorCode"); code != 0 {
		e.Code = code
	}
	if message, _ := state.text("errorMessage"); message != "" {
		e.Message = clean(message, 1024)
		if e.TrackingID == "" {
			// If a hub refused the device, errorMessage may contain a whole JSON error as
			// text.
			inner, _ := parseDocument([]byte(message))
			e.TrackingID = r.refusal(inner).TrackingID
		}
	}
	r.RegistrationStatus = status
	r.Error = e
}

// refusal parses the members of an error body that are readable.
func (r *Reply) refusal(o object) *ServiceError {
	code, _ := o.number("errorCode")
	trackingID, _ := o.text("trackingId")
	message, _ := o.text("message")
	return &ServiceError{Status: r.Status, RetryAfter: r.RetryAfter, Code: code, TrackingID: clean(trackingID, 256), Message: clean(message, 1024)}
}

// parseAssignment parses registrationState and rejects values that must not be published.
func parseAssignment(o object) (*Assignment, error) {
	raw, ok := o.get("registrationState")
	if !ok {
		return nil, errors.New("assigned without a registrationState")
	}
	state, err := parseObject(raw, "registrationState")
	if err != nil {
		return nil, err
	}
	var a Assignment
	var status string
	for _, field := range []struct {
		name string
		to   *string
	}{
		{"assignedHub", &a.AssignedHub},
		{"deviceId", &a.DeviceID},
		{"registrationId", &a.RegistrationID},
		{"status", &status},
		{"substatus", &a.Substatus},
		{"createdDateTimeUtc", &a.CreatedDateTimeUtc},
		{"lastUpdatedDateTimeUtc", &a.LastUpdatedDateTimeUtc},
		{"etag", &a.ETag},
		{"connectionProfile", &a.ConnectionProfile},
	} {
		if *field.to, err = state.text(field.name); err != nil {
			return nil, err
		}
		if err := checkText(field.name, *field.to); err != nil {
			return nil, err
		}
	}
	if status != "" && status != statusAssigned {
		return nil, fmt.Errorf("assigned, but registrationState says %q", clean(status, 32))
	}
	if a.AssignedHub == "" {
		return nil, errors.New("assigned without an assignedHub")
	}
	// An IPv4 address is not the name of a hub.
	if !hostname.Valid(a.AssignedHub) || digits(a.AssignedHub[strings.LastIndex(a.AssignedHub, ".")+1:]) {
		return nil, fmt.Errorf("assignedHub %q is not a host name", clean(a.AssignedHub, 64))
	}
	if a.DeviceID == "" {
		return nil, errors.New("assigned without a deviceId")
	}
	if len(a.DeviceID) > 128 {
		return nil, fmt.Errorf("deviceId has %d bytes, more than 128", len(a.DeviceID))
	}
	if err := checkDeviceID(a.DeviceID); err != nil {
		return nil, err
	}
	if payload, ok := state.get("payload"); ok {
		a.Payload = compact(payload)
		if len(a.Payload) > maxPayload {
			return nil, fmt.Errorf("payload has %d bytes, more than %d", len(a.Payload), maxPayload)
		}
		if depth(a.Payload) > maxDepth {
			return nil, fmt.Errorf("payload is nested deeper than %d levels", maxDepth)
		}
	}
	if depth(raw) > maxDepth+1 { // the payload is one of its members
		return nil, fmt.Errorf("registrationState is nested deeper than %d levels", maxDepth+1)
	}
	if chain, ok := state.get("issuedCertificateChain"); ok {
		a.IssuedCertificateChain = compact(chain)
	}
	a.State = withoutSecrets(state).encode()
	return &a, nil
}

// withoutSecrets removes key material from a registrationState. It ignores the case of
// names, as some readers do.
func withoutSecrets(state object) object {
	kept := make(object, 0, len(state))
	for _, m := range state {
		tpm, symmetric := strings.EqualFold(m.name, "tpm"), strings.EqualFold(m.name, "symmetricKey")
		if tpm || symmetric {
			inner, err := parseObject(m.value, m.name)
			if err != nil {
				continue
			}
			var rest object
			for _, n := range inner {
				if tpm && !strings.EqualFold(n.name, "authenticationKey") {
					rest = append(rest, n)
				}
			}
			m.value = rest.encode()
		}
		kept = append(kept, m)
	}
	return kept
}

// checkText rejects text that a state file must not contain. It also rejects U+FFFD, which
// the JSON decoder substitutes for half a surrogate pair.
func checkText(name, s string) error {
	switch {
	case strings.ContainsFunc(s, unicode.IsControl):
		return fmt.Errorf("%s has a control character", name)
	case strings.ContainsRune(s, utf8.RuneError):
		return fmt.Errorf("%s has a damaged character", name)
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.Is(unicode.Noncharacter_Code_Point, r) }):
		return fmt.Errorf("%s has a Unicode noncharacter", name)
	}
	return nil
}

// checkDeviceID rejects characters that could make a person or a program read another ID:
// invisible characters, characters that change the direction of text, and leading or
// trailing blanks.
func checkDeviceID(s string) error {
	for _, r := range s {
		if unicode.In(r, unicode.Cf, unicode.Zl, unicode.Zp) {
			return fmt.Errorf("deviceId has the invisible character %U", r)
		}
	}
	if strings.TrimSpace(s) != s {
		return errors.New("deviceId begins or ends with a blank")
	}
	return nil
}
