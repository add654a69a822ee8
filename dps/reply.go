package dps

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
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
	statusBlacklist  = "blacklisted" // what disabled was called before
)

// maxRetryAfter is the longest wait the service can ask for. A larger number
// counts as this.
const maxRetryAfter = 24 * time.Hour

// maxOperationID bounds what goes back to the service in a topic. Those seen have
// 55 characters.
const maxOperationID = 512

const (
	// maxPayload bounds the payload of an assignment, in bytes and without its white
	// space, and maxDepth how deep it is nested: it is published to consumers, whose JSON
	// readers have limits of their own.
	maxPayload = 128 << 10
	maxDepth   = 100
)

// Message is one MQTT PUBLISH, in either direction.
type Message struct {
	Topic   string
	Payload []byte
}

// Reply is one parsed answer of the service. Exactly one of these holds: Error is
// set; Assignment is set and RegistrationStatus is "assigned"; RegistrationStatus
// is "assigning".
type Reply struct {
	RequestID  string        // $rid of the topic
	Status     int           // the number in the topic, 100..599
	RetryAfter time.Duration // what the topic asked for, up to a day; 0 when absent or unreadable

	OperationID        string // "" when the body has none
	RegistrationStatus string // status of the body, "" in an error reply
	Assignment         *Assignment
	Error              *ServiceError // its Request is not known here
}

// Assignment is what a device came for.
type Assignment struct {
	AssignedHub            string // a host name
	DeviceID               string // 1..128 bytes; may differ from the registration ID
	RegistrationID         string // as the service spells it
	Substatus              string // e.g. "initialAssignment"; "" when absent, as all that follow
	CreatedDateTimeUtc     string
	LastUpdatedDateTimeUtc string
	ETag                   string
	ConnectionProfile      string          // e.g. "mqttV5"
	Payload                json.RawMessage // what a custom allocation function returned; nil when absent
	IssuedCertificateChain []string        // base64 DER, leaf first; nil when absent
	// State is the whole registrationState as compact JSON, members unknown to this
	// package too, without tpm.authenticationKey and without the members of
	// symmetricKey: those are secrets.
	State json.RawMessage
}

// ParseReply parses one received message. The error is ErrNotReply for a foreign
// topic, else a *MalformedError; the Reply then still holds what the topic said.
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

// parseTopic reads "$dps/registrations/res/{status}/?$rid={rid}&retry-after={s}".
// Parameters come in any order; those unknown are skipped.
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
		switch {
		case name == "$rid":
			r.RequestID = value
			requestIDs++
		case strings.EqualFold(name, "retry-after"):
			r.RetryAfter = max(r.RetryAfter, parseRetryAfter(value))
		}
	}
	number := strings.TrimSuffix(path, "/")
	if len(number) != 3 || !digits(number) || number[0] < '1' || number[0] > '5' {
		return r, errors.New("the topic has no status")
	}
	for _, c := range number {
		r.Status = r.Status*10 + int(c-'0')
	}
	switch {
	case requestIDs == 0 || requestIDs == 1 && r.RequestID == "":
		return r, errors.New("the topic has no $rid")
	case requestIDs > 1:
		return r, errors.New("the topic has more than one $rid")
	}
	return r, nil
}

// parseRetryAfter reads seconds: digits only, larger than a day counts as a day, 0
// when unreadable.
func parseRetryAfter(s string) time.Duration {
	if s == "" || !digits(s) {
		return 0
	}
	s = strings.TrimLeft(s, "0")
	if len(s) > len("86400") {
		return maxRetryAfter
	}
	var seconds time.Duration
	for _, c := range s {
		seconds = seconds*10 + time.Duration(c-'0')
	}
	return min(seconds*time.Second, maxRetryAfter)
}

func digits(s string) bool {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return true
}

// parseBody fills in what the body says. The body's status decides: 200 has carried
// "assigning" and "failed", and 500 has carried "failed".
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
		// Recorded before its contents are judged: an operation that ended in an
		// unusable assignment has ended all the same.
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

// parseError reads an error reply. Its number is known from the topic, so a body
// that is missing, cut or not JSON costs the details only, never the verdict.
func (r *Reply) parseError(body []byte) {
	o, err := parseDocument(body)
	if err == nil {
		switch status, _ := o.text("status"); status {
		case statusFailed, statusDisabled, statusUnassigned, statusBlacklist:
			r.parseEnd(o, status)
			return
		}
	}
	r.Error = &ServiceError{Status: r.Status, RetryAfter: r.RetryAfter}
	r.Error.details(o)
}

// parseEnd reads an operation that ended without an assignment.
func (r *Reply) parseEnd(o object, status string) {
	if status == statusBlacklist {
		status = statusDisabled
	}
	e := &ServiceError{Status: r.Status, RegistrationStatus: status, RetryAfter: r.RetryAfter}
	e.details(o)
	if raw, ok := o.get("registrationState"); ok {
		if state, err := parseObject(raw, "registrationState"); err == nil {
			if code, err := state.number("errorCode"); err == nil && code != 0 {
				e.Code = code
			}
			if message, err := state.text("errorMessage"); err == nil && message != "" {
				e.Message = clean(message, 1024)
				e.nested(message)
			}
		}
	}
	r.RegistrationStatus = status
	r.Error = e
}

// details reads the members of an error body, as far as they can be read.
func (e *ServiceError) details(o object) {
	e.Code, _ = o.number("errorCode")
	if s, err := o.text("trackingId"); err == nil {
		e.TrackingID = clean(s, 256)
	}
	if s, err := o.text("message"); err == nil {
		e.Message = clean(s, 1024)
	}
	if s, err := o.text("timestampUtc"); err == nil {
		e.Timestamp = clean(s, 64)
	}
	raw, ok := o.get("info")
	if !ok {
		return
	}
	info, err := parseObject(raw, "info")
	if err != nil {
		return
	}
	for _, m := range info {
		if len(e.Info) == 16 {
			return
		}
		value, err := object{m}.text(m.name)
		if err != nil {
			value = string(m.value)
		}
		if e.Info == nil {
			e.Info = map[string]string{}
		}
		e.Info[clean(m.name, 64)] = clean(value, 256)
	}
}

// nested looks for the tracking ID where a hub's refusal hides it: errorMessage has
// been seen to hold a whole JSON error as text.
func (e *ServiceError) nested(message string) {
	o, err := parseDocument([]byte(message))
	if err != nil {
		return
	}
	var inner ServiceError
	inner.details(o)
	if e.TrackingID == "" {
		e.TrackingID = inner.TrackingID
	}
	if e.Timestamp == "" {
		e.Timestamp = inner.Timestamp
	}
}

// parseAssignment reads registrationState and refuses what must not become a
// record.
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
	switch {
	case status != "" && status != statusAssigned:
		return nil, fmt.Errorf("assigned, but registrationState says %q", clean(status, 32))
	case a.AssignedHub == "":
		return nil, errors.New("assigned without an assignedHub")
	// A hub is known by its name, not by an IPv4 address.
	case !hostname.Valid(a.AssignedHub) || digits(a.AssignedHub[strings.LastIndex(a.AssignedHub, ".")+1:]):
		return nil, fmt.Errorf("assignedHub %q is not a host name", clean(a.AssignedHub, 64))
	case a.DeviceID == "":
		return nil, errors.New("assigned without a deviceId")
	case len(a.DeviceID) > 128:
		return nil, fmt.Errorf("deviceId has %d bytes, more than 128", len(a.DeviceID))
	}
	if err := checkDeviceID(a.DeviceID); err != nil {
		return nil, err
	}
	if payload, ok := state.get("payload"); ok {
		a.Payload = compact(nil, payload)
		if len(a.Payload) > maxPayload {
			return nil, fmt.Errorf("payload has %d bytes, more than %d", len(a.Payload), maxPayload)
		}
		if depth(a.Payload) > maxDepth {
			return nil, fmt.Errorf("payload is nested deeper than %d levels", maxDepth)
		}
	}
	if depth(raw) > maxDepth+1 { // the payload is a member of it
		return nil, fmt.Errorf("registrationState is nested deeper than %d levels", maxDepth+1)
	}
	if chain, ok := state.get("issuedCertificateChain"); ok {
		if err := json.Unmarshal(chain, &a.IssuedCertificateChain); err != nil {
			return nil, errors.New("issuedCertificateChain is not a list of strings")
		}
		if slices.Contains(a.IssuedCertificateChain, "") {
			return nil, errors.New("issuedCertificateChain has an empty certificate")
		}
	}
	a.State = withoutSecrets(state).encode()
	return &a, nil
}

// withoutSecrets drops key material from a registrationState. Names are compared in
// any case: a reader that ignores case would find a secret that this kept.
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

// checkText refuses text that a state file must not carry. U+FFFD is refused too:
// it is what the JSON reader makes of half a surrogate pair.
func checkText(name, s string) error {
	for _, r := range s {
		switch {
		case unicode.IsControl(r):
			return fmt.Errorf("%s has a control character", name)
		case r == utf8.RuneError:
			return fmt.Errorf("%s has a damaged character", name)
		case r >= 0xFDD0 && r <= 0xFDEF, r&0xFFFE == 0xFFFE:
			return fmt.Errorf("%s has a Unicode noncharacter", name)
		}
	}
	return nil
}

// checkDeviceID refuses what a person or a program could take for another ID: what
// cannot be seen, what changes the direction of text, and what a reader might trim.
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
