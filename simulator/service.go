package simulator

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// seed makes everything that looks random from one number and a purpose, so
// that a second run gives the same values whatever the order of the devices.
type seed uint64

func (s seed) draw(purpose string, n int) []byte {
	var key [8]byte
	binary.BigEndian.PutUint64(key[:], uint64(s))
	var out []byte
	for i := byte(0); len(out) < n; i++ {
		mac := hmac.New(sha256.New, key[:])
		mac.Write([]byte{i})
		mac.Write([]byte(purpose))
		out = mac.Sum(out)
	}
	return out[:n]
}

func (s seed) guid(purpose string) string {
	b := s.draw(purpose, 16)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80 // RFC 9562 version 4
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// An object is a JSON object that keeps the order of its members, compact,
// without the members it has not: the way the service writes.
type object []member

type member struct {
	key   string
	value any
}

// MarshalJSON writes the members in their order.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		for j, part := range []any{m.key, m.value} {
			if j > 0 {
				b.WriteByte(':')
			}
			text, err := marshal(part)
			if err != nil {
				return nil, err
			}
			b.Write(text)
		}
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// marshal is json.Marshal that leaves <, > and & alone.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	out := json.NewEncoder(&b)
	out.SetEscapeHTML(false)
	if err := out.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// without drops members by name, at any depth.
func (o object) without(names []string) object {
	var kept object
	for _, m := range o {
		if slices.Contains(names, m.key) {
			continue
		}
		if inner, ok := m.value.(object); ok {
			m.value = inner.without(names)
		}
		kept = append(kept, m)
	}
	return kept
}

// timestamp writes up to seven fractional digits without trailing zeros.
func timestamp(t time.Time) string {
	return t.UTC().Truncate(100 * time.Nanosecond).Format("2006-01-02T15:04:05.9999999Z")
}

// reply is what the service answers to a request.
type reply struct {
	status     int
	retryAfter string // text of retry-after, "none" for none
	body       object
	final      bool // a registration has come to its end
}

// device is what the service remembers of a registration ID.
type device struct {
	operationID string
	pending     int // polls still answered with "assigning"
	registered  int // how often
	replies     int // for tracking IDs
	created     time.Time
	updated     time.Time
}

// service is DPS without the network: two requests, two answers.
type service struct {
	seed     seed
	settings func() Settings

	mu      sync.Mutex
	devices map[string]*device // by lower-case registration ID
}

func (s *service) device(registrationID string) *device {
	key := strings.ToLower(registrationID)
	d := s.devices[key]
	if d == nil {
		d = &device{}
		s.devices[key] = d
	}
	return d
}

// operationID has the form seen on the wire: a generation, 16 hex digits
// that depend on the registration ID alone, a GUID.
func (s *service) newOperationID(registrationID string, n int) string {
	sum := sha256.Sum256([]byte(strings.ToLower(registrationID)))
	return fmt.Sprintf("5.%x.%s", sum[:8], s.seed.guid(fmt.Sprintf("operation %s %d", registrationID, n)))
}

// answer gives the reply to a request of an authenticated device, already
// bent by the rule.
func (s *service) answer(req request, body []byte, who *principal, rule *Rule, now time.Time) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.device(who.registrationID)
	d.replies++
	set := s.settings()

	if rule.Status >= 400 && rule.State == "" {
		return s.failure(rule.Status, who, d, rule, "The scenario says so.", now)
	}
	if who.refused != nil {
		return s.failure(0, who, d, &Rule{ErrorCode: who.refused.code, ErrorMessage: who.refused.message}, "", now)
	}
	if req.poll {
		if d.operationID == "" || req.operationID != d.operationID {
			return s.failure(0, who, d, &Rule{ErrorCode: 404203, ErrorMessage: "Operation not found."}, "", now)
		}
	} else {
		if err := checkBody(body, who.registrationID); err != nil {
			return s.failure(0, who, d, &Rule{ErrorCode: 400000, ErrorMessage: err.Error()}, "", now)
		}
		if !who.enrollment.grant.Disabled {
			d.registered++
			d.operationID = s.newOperationID(who.registrationID, d.registered)
			d.pending = set.polls()
			if d.created.IsZero() {
				d.created = now
			}
		}
	}

	state := rule.State
	if state == "" {
		switch {
		case who.enrollment.grant.Disabled:
			state = "disabled"
		case req.poll && d.pending <= 1 || !req.poll && d.pending == 0:
			state = "assigned"
		default:
			state = "assigning"
		}
		if req.poll && d.pending > 1 {
			d.pending--
		}
	}
	r := reply{status: 200, retryAfter: "none", final: true}
	if state == "assigning" {
		r.status, r.retryAfter, r.final = 202, set.retryAfter(), false
	} else {
		d.updated = now
	}
	if rule.Status != 0 {
		r.status = rule.Status
	}
	r.body = s.status(state, !req.poll, who, d, rule)
	return r
}

// status builds a RegistrationOperationStatus. The answer to a register
// request that goes on has no registrationState yet.
func (s *service) status(state string, first bool, who *principal, d *device, rule *Rule) object {
	result := object{}
	if state == "assigned" && who.certificate {
		result = append(result, member{"x509", object{}})
	}
	result = append(result, member{"registrationId", who.registrationID})
	switch state {
	case "assigned":
		deviceID := who.registrationID
		if who.enrollment != nil && who.enrollment.deviceID != "" {
			deviceID = who.enrollment.deviceID
		}
		hub, payload := defaultHub, ""
		if who.enrollment != nil {
			hub, payload = who.enrollment.hub(who.registrationID), who.enrollment.grant.Payload
		}
		etag := base64.StdEncoding.EncodeToString([]byte(`"` + s.seed.guid(fmt.Sprintf("etag %s %d", who.registrationID, d.registered)) + `"`))
		result = append(result,
			member{"createdDateTimeUtc", timestamp(d.created)},
			member{"assignedHub", or(rule.AssignedHub, hub)},
			member{"deviceId", or(rule.DeviceID, deviceID)},
			member{"status", state},
			member{"substatus", or(rule.Substatus, "initialAssignment")},
			member{"lastUpdatedDateTimeUtc", timestamp(d.updated)},
			member{"etag", etag})
		if payload = or(rule.Payload, payload); payload != "" {
			result = append(result, member{"payload", verbatim(payload)})
		}
	case "failed":
		code := rule.ErrorCode
		if code == 0 {
			code = 400207
		}
		result = append(result,
			member{"createdDateTimeUtc", timestamp(d.created)},
			member{"status", state},
			member{"errorCode", code},
			member{"errorMessage", or(rule.ErrorMessage, "Custom allocation failed with status code: 400")},
			member{"lastUpdatedDateTimeUtc", timestamp(d.updated)})
	default:
		result = append(result, member{"status", state})
	}
	operationID := d.operationID
	if state == "disabled" {
		operationID = ""
	}
	body := object{{"operationId", operationID}, {"status", state}}
	if state != "assigning" || !first {
		body = append(body, member{"registrationState", result})
	}
	return body
}

// failure builds an error object, ProvisioningServiceErrorDetails. Without a
// status it is the leading part of the error code.
func (s *service) failure(status int, who *principal, d *device, rule *Rule, message string, now time.Time) reply {
	code := rule.ErrorCode
	if code == 0 {
		code = status * 1000
	}
	if status == 0 {
		status = code / 1000
	}
	return reply{status: status, retryAfter: "none", body: object{
		{"errorCode", code},
		{"trackingId", s.seed.guid(fmt.Sprintf("tracking %s %d", who.registrationID, d.replies))},
		{"message", or(rule.ErrorMessage, message)},
		{"timestampUtc", timestamp(now)},
	}}
}

// verbatim is JSON written as it was given; a scenario may give what is none.
func verbatim(text string) any {
	if json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	return text
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

// checkBody checks a register request. It may be empty, since the user name
// says who registers; members that are not known are left alone.
func checkBody(body []byte, registrationID string) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	var members map[string]json.RawMessage
	if json.Unmarshal(body, &members) != nil {
		return fmt.Errorf("the body is not a JSON object")
	}
	if raw, there := members["registrationId"]; there {
		var id string
		if json.Unmarshal(raw, &id) != nil || !strings.EqualFold(id, registrationID) {
			return fmt.Errorf("the body's registrationId is not that of the connection")
		}
	}
	if raw, there := members["payload"]; there {
		var payload map[string]json.RawMessage
		if json.Unmarshal(raw, &payload) != nil { // null is fine: the Python SDK sends it
			return fmt.Errorf("the payload is not a JSON object")
		}
	}
	return nil
}

// unasked builds the reply of a service that answers before it was asked.
func (s *service) unasked(who *principal, rule *Rule, now time.Time) reply {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := reply{status: 200, retryAfter: "none"}
	if rule.Status != 0 {
		r.status = rule.Status
	}
	d := &device{operationID: s.newOperationID(who.registrationID, 0), created: now, updated: now}
	r.body = s.status(rule.State, false, who, d, rule)
	return r
}
