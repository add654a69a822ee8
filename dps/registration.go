package dps

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

const (
	// DefaultResponseTimeout is how long an answer is waited for.
	DefaultResponseTimeout = 60 * time.Second

	// minWait is the shortest pause between a reply and the next poll: the service
	// allows a device five polls in ten seconds.
	minWait = 2 * time.Second

	// maxOperationAge is how long an operation may stay at "assigning". Then
	// registering again is likelier to end than polling on.
	maxOperationAge = 24 * time.Hour

	// maxRequest is the largest message the service takes.
	maxRequest = 96 << 10
)

// Registration is one round of asking the service for a hub: register, then poll
// until the operation ends. It outlives connections: [Registration.Begin] starts on
// each fresh one, and continues the operation it knows.
//
// At most one request is outstanding, and none leaves before the service's
// Retry-After has passed. The zero value with Identity set is ready. It is not safe
// for concurrent use.
type Registration struct {
	Identity        Identity
	Payload         json.RawMessage // sent with the register request; nil for none, else a JSON object (see CheckPayload)
	ResponseTimeout time.Duration   // 0 is DefaultResponseTimeout

	// RequestIDs is added to the number of a request, from 1 on, to make its $rid.
	// Where each Registration has its own range, a reply that comes too late, or
	// before anything was asked, answers nothing.
	RequestIDs uint64

	phase     phase
	request   string    // phase requested: RequestRegister or RequestPoll
	requestID string    // phase requested: $rid of the request
	deadline  time.Time // phase requested: when its answer is given up; waiting: when the next request is due
	notBefore time.Time // what the last reply asked for, as a point in time

	operation string    // operationId of the running operation, "" for none
	accepted  time.Time // when the operation was first seen

	requests uint64 // sent so far
}

type phase int

const (
	idle      phase = iota // nothing is under way; Begin goes on
	requested              // a request is outstanding
	waiting                // the next request has its time
)

// Step is what to do now: publish Send, or rejoice over Assignment. The zero Step is
// nothing but to wait for the Deadline.
type Step struct {
	Send       *Message
	Assignment *Assignment
}

// CheckPayload reports whether b can be the payload of a register request: one JSON
// object, valid UTF-8, no name twice, small enough for the service. The error
// matches ErrPayload and does not quote b.
func CheckPayload(b []byte) error {
	if len(b) > maxRequest {
		return fmt.Errorf("%w: %d bytes, the service takes %d", ErrPayload, len(b), maxRequest)
	}
	o, err := parseDocument(b)
	if err != nil {
		return fmt.Errorf("%w: %s", ErrPayload, strings.Replace(err.Error(), "the body", "it", 1))
	}
	if n := len(o.encode()); n > maxRequest-1024 {
		return fmt.Errorf("%w: %d bytes, the service takes %d with what is around it", ErrPayload, n, maxRequest)
	}
	return nil
}

// Begin starts or continues on a fresh connection, after its SUBACK. The step
// publishes the register request, or the poll of the operation that is known; it is
// zero, and Waiting is true, when the service asked for a wait that is not over. A
// request that was outstanding on the connection before is asked again. The error
// matches ErrPayload.
func (r *Registration) Begin(now time.Time) (Step, error) {
	if now.Before(r.notBefore) {
		r.wait(r.notBefore)
		return Step{}, nil
	}
	return r.send(now)
}

// Handle takes one received message. Whatever does not answer the outstanding
// request is ignored: another topic, another $rid, a second reply.
//
// The error is a *ServiceError or a *MalformedError; then nothing is outstanding, and
// Begin goes on when the caller thinks fit. A poll that failed on the service's side
// or on the way keeps its operation, every other error forgets it.
func (r *Registration) Handle(now time.Time, m Message) (Step, error) {
	if r.phase != requested {
		return Step{}, nil
	}
	reply, err := ParseReply(m)
	return r.Take(now, m.Topic, reply, err)
}

// Take is Handle for a message that ParseReply has read: topic is that of the message.
// A rehearsal of a fleet reads only once what all gateways receive.
func (r *Registration) Take(now time.Time, topic string, reply Reply, err error) (Step, error) {
	if r.phase != requested || errors.Is(err, ErrNotReply) || reply.RequestID != "" && reply.RequestID != r.requestID {
		return Step{}, nil
	}

	request := r.request
	r.rest()
	r.notBefore = time.Time{}
	if reply.RetryAfter > 0 {
		r.notBefore = now.Add(reply.RetryAfter)
	}

	var malformed *MalformedError
	if errors.As(err, &malformed) {
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
		// The service calls registration IDs case-insensitive.
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

// Advance is called when Deadline has passed; before it, it does nothing. The step
// publishes the request that is due. The error matches ErrNoReply when the
// outstanding request went unanswered; its operation is kept.
func (r *Registration) Advance(now time.Time) (Step, error) {
	if r.phase == idle || now.Before(r.deadline) {
		return Step{}, nil
	}
	if r.phase == requested {
		err := fmt.Errorf("%w to the %s request within %v", ErrNoReply, r.request, r.responseTimeout())
		r.rest()
		return Step{}, err
	}
	return r.send(now)
}

// Deadline returns when to call Advance: the end of the response time-out, or when
// the next request is due. It is zero when nothing is awaited.
func (r *Registration) Deadline() time.Time { return r.deadline }

// Waiting reports that no request is outstanding and Deadline is when the next one
// is due. A caller may close the connection meanwhile and Begin on another.
func (r *Registration) Waiting() bool { return r.phase == waiting }

// NotBefore returns the time before which the service wants no further request, as
// its last reply asked; zero when it did not ask. It is set after an error too.
func (r *Registration) NotBefore() time.Time { return r.notBefore }

// OperationID returns the service's name of the running operation, "" for none.
func (r *Registration) OperationID() string { return r.operation }

// rest leaves nothing outstanding.
func (r *Registration) rest() {
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

// send makes the next request: a poll when an operation is known and not too old,
// else a register.
func (r *Registration) send(now time.Time) (Step, error) {
	if r.operation != "" && now.Sub(r.accepted) >= maxOperationAge {
		r.forget()
	}
	r.rest()
	id := strconv.FormatUint(r.RequestIDs+r.requests+1, 36) // the shortest that needs no escape in a topic
	request, m := RequestPoll, Message{}
	if r.operation != "" {
		// Those seen need no escape. One that does must not add a parameter or a wildcard.
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

// body returns the register request: the registration ID, and the payload when there
// is one.
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
	return o.encode(), nil
}
