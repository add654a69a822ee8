package dps

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// DefaultResponseTimeout is the time that a Registration waits for a reply.
	DefaultResponseTimeout = 60 * time.Second

	// minWait is the shortest pause between a reply and the next poll: the service
	// allows a device five polls in ten seconds.
	minWait = 2 * time.Second

	// maxOperationAge is how long an operation may stay at "assigning". After that, a new
	// registration is more likely to end than further polls.
	maxOperationAge = 24 * time.Hour

	// maxRequest is the size of the largest message that the service accepts, in bytes.
	maxRequest = 96 << 10
)

// Registration is the state machine of one registration: it registers, then polls until the
// operation ends. It outlives connections: call [Registration.Begin] on each new
// connection; it continues the known operation.
//
// At most one request is outstanding, and none is sent before the service's Retry-After has
// passed. The zero value with Identity set is ready to use. A Registration is not safe for
// concurrent use.
type Registration struct {
	Identity        Identity
	Payload         json.RawMessage // sent with the register request: a JSON object (see CheckPayload), or nil for none
	ResponseTimeout time.Duration   // 0 means DefaultResponseTimeout

	// CSR is a PKCS #10 certificate request in DER, or nil for none. The service issues a
	// certificate for each register request that contains one. This requires the api-version
	// 2026-11-01 or, as a preview, 2025-07-01-preview.
	CSR []byte

	// RequestIDs is added to the number of a request, starting with 1, to form its $rid. If
	// each Registration has its own range, a reply to an earlier Registration matches no
	// request.
	RequestIDs uint64

	phase     phase
	request   string    // phase requested: RequestRegister or RequestPoll
	requestID string    // phase requested: $rid of the request
	deadline  time.Time // phase requested: end of the response time-out; phase waiting: when the next request is due
	notBefore time.Time // end of the last reply's Retry-After

	operation string    // operationId of the running operation, "" for none
	accepted  time.Time // when the operation was first seen

	requests uint64 // sent so far
}

type phase int

const (
	idle      phase = iota // no request is outstanding or due; Begin continues
	requested              // a request is outstanding
	waiting                // the next request is due at the deadline
)

// Step is the result of an event: a message to publish (Send), the Assignment, or neither,
// in which case the caller waits for the Deadline.
type Step struct {
	Send       *Message
	Assignment *Assignment
}

// CheckPayload reports whether b can be the payload of a register request: a JSON object in
// valid UTF-8, without duplicate names, and small enough for the service. The error matches
// ErrPayload and does not quote b.
func CheckPayload(b []byte) error {
	if len(b) > maxRequest {
		return fmt.Errorf("%w: %d bytes; DPS accepts at most %d", ErrPayload, len(b), maxRequest)
	}
	o, err := parseDocument(b)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrPayload, strings.Replace(err.Error(), "the body", "it", 1))
	}
	if n := len(o.encode()); n > maxRequest-1024 {
		return fmt.Errorf("%w: %d bytes; DPS accepts at most %d including the rest of the request", ErrPayload, n, maxRequest)
	}
	return nil
}

// Begin starts or continues the registration on a new connection, after its SUBACK. The
// step publishes the register request, or polls the known operation. While the service's
// Retry-After has not passed, the step is zero and Waiting is true. A request that was
// outstanding on the previous connection is sent again. The error matches ErrPayload.
func (r *Registration) Begin(now time.Time) (Step, error) {
	if now.Before(r.notBefore) {
		r.wait(r.notBefore)
		return Step{}, nil
	}
	return r.send(now)
}

// Handle processes one received message. It ignores messages that do not answer the
// outstanding request: another topic, another $rid, a second reply.
//
// The error is a *ServiceError or a *MalformedError. After it, no request is outstanding,
// and the caller decides when to call Begin. The operation is kept if the service failed
// temporarily or the reply was malformed; every other error discards it.
func (r *Registration) Handle(now time.Time, m Message) (Step, error) {
	if r.phase != requested {
		return Step{}, nil
	}
	reply, err := ParseReply(m)
	return r.Take(now, m.Topic, reply, err)
}

// Take is Handle for a message that ParseReply has parsed: topic is the topic of the
// message. The simulation of a fleet parses a message only once for all gateways.
func (r *Registration) Take(now time.Time, topic string, reply Reply, err error) (Step, error) {
	if r.phase != requested || errors.Is(err, ErrNotReply) || reply.RequestID != "" && reply.RequestID != r.requestID {
		return Step{}, nil
	}

	request := r.request
	r.reset()
	r.notBefore = time.Time{}
	if reply.RetryAfter > 0 {
		r.notBefore = now.Add(reply.RetryAfter)
	}

	if malformed, is := errors.AsType[*MalformedError](err); is {
		malformed.Request = request
		if reply.RegistrationStatus == statusAssigned {
			r.forget()
		}
		return Step{}, malformed
	}
	if reply.Error != nil {
		reply.Error.Request = request
		if !reply.Error.Temporary() {
			r.forget()
		}
		return Step{}, reply.Error
	}
	if a := reply.Assignment; a != nil {
		r.forget()
		r.notBefore = time.Time{}
		// The service documents registration IDs as case-insensitive.
		if a.RegistrationID != "" && !strings.EqualFold(a.RegistrationID, r.Identity.RegistrationID) {
			return Step{}, &MalformedError{
				Request: request, Topic: topic, RetryAfter: reply.RetryAfter,
				Reason: fmt.Sprintf("the assignment is for the registration ID %q", clean(a.RegistrationID, 128)),
			}
		}
		if a.RegistrationID == "" {
			a.RegistrationID = r.Identity.RegistrationID
		}
		return Step{Assignment: a}, nil
	}

	// Assigning.
	if reply.OperationID == "" && r.operation == "" {
		return Step{}, &MalformedError{
			Request: request, Topic: topic, RetryAfter: reply.RetryAfter,
			Reason: "assigning without an operationId",
		}
	}
	if request == RequestRegister {
		r.accepted = now
	}
	if reply.OperationID != "" {
		r.operation = reply.OperationID
	}
	r.wait(now.Add(max(reply.RetryAfter, minWait)))
	return Step{}, nil
}

// Advance continues after Deadline; before it, Advance does nothing. The step publishes the
// request that is due. The error matches ErrNoReply if the outstanding request received no
// reply; its operation is kept.
func (r *Registration) Advance(now time.Time) (Step, error) {
	if r.phase == idle || now.Before(r.deadline) {
		return Step{}, nil
	}
	if r.phase == requested {
		err := fmt.Errorf("%w to the %s request within %v", ErrNoReply, r.request, r.responseTimeout())
		r.reset()
		return Step{}, err
	}
	return r.send(now)
}

// Deadline returns when to call Advance: at the end of the response time-out, or when the
// next request is due. It is zero if neither applies.
func (r *Registration) Deadline() time.Time { return r.deadline }

// Waiting reports whether no request is outstanding and the next one is due at Deadline. In
// the meantime, the caller may close the connection and later call Begin on a new one.
func (r *Registration) Waiting() bool { return r.phase == waiting }

// NotBefore returns the end of the last reply's Retry-After: the service does not want a
// request before it. It is zero if the reply had none. It is also set after an error.
func (r *Registration) NotBefore() time.Time { return r.notBefore }

// OperationID returns the service's ID of the running operation, or "" if there is none.
func (r *Registration) OperationID() string { return r.operation }

// reset returns to the idle phase.
func (r *Registration) reset() {
	r.phase, r.request, r.requestID, r.deadline = idle, "", "", time.Time{}
}

func (r *Registration) wait(due time.Time) {
	r.phase, r.request, r.requestID = waiting, "", ""
	r.deadline, r.notBefore = due, due
}

func (r *Registration) forget() { r.operation, r.accepted = "", time.Time{} }

func (r *Registration) responseTimeout() time.Duration {
	if r.ResponseTimeout > 0 {
		return r.ResponseTimeout
	}
	return DefaultResponseTimeout
}

// send returns the next request: a poll if an operation is known and not too old, otherwise
// a register request.
func (r *Registration) send(now time.Time) (Step, error) {
	if r.operation != "" && now.Sub(r.accepted) >= maxOperationAge {
		r.forget()
	}
	r.reset()
	id := strconv.FormatUint(r.RequestIDs+r.requests+1, 36) // the shortest form that needs no escaping in a topic
	request, m := RequestPoll, Message{}
	if r.operation != "" {
		// The observed IDs need no escaping. Any other must not add a parameter or a
		// wildcard.
		m.Topic = pollPrefix + id + "&operationId=" + escape(r.operation)
	} else {
		body, err := r.body()
		if err != nil {
			return Step{}, err
		}
		request, m = RequestRegister, Message{Topic: registerPrefix + id, Payload: body}
	}
	r.requests++
	r.phase, r.request, r.requestID = requested, request, id
	r.deadline, r.notBefore = now.Add(r.responseTimeout()), time.Time{}
	return Step{Send: &m}, nil
}

// body returns the body of the register request: the registration ID, the payload and the
// CSR, if any. An error matches ErrPayload: without a payload, the body is never too long.
func (r *Registration) body() ([]byte, error) {
	id, err := json.Marshal(r.Identity.RegistrationID)
	if err != nil {
		return nil, err
	}
	o := object{{"registrationId", id}}
	if r.Payload != nil {
		if err := CheckPayload(r.Payload); err != nil {
			return nil, err
		}
		o = append(o, member{"payload", r.Payload})
	}
	if r.CSR != nil {
		o = append(o, member{"csr", []byte(`"` + base64.StdEncoding.EncodeToString(r.CSR) + `"`)})
	}
	body := o.encode()
	if len(body) > maxRequest {
		return nil, fmt.Errorf("%w: the request has %d bytes with it; DPS accepts at most %d", ErrPayload, len(body), maxRequest)
	}
	return body, nil
}
