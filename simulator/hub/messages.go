package hub

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// The limits of cloud-to-device messages, from the documentation of IoT Hub.
const (
	MaxQueued       = 50          // messages in the queue of a device
	MaxCloudMessage = 64 << 10    // bytes in a message
	lockTimeout     = time.Minute // of a message that a device receives over HTTPS
	maxDeliveries   = 10          // after which the hub discards a message
)

// The error codes of these messages.
const (
	codeQueueFull = 403004
	codeLockLost  = 412002
	codeTooLarge  = 413001
)

// Delivery is a cloud-to-device message that a device receives.
type Delivery struct {
	Number     int    // of the message among those of its device: 1, 2, …
	Deliveries int    // the number of earlier, unsuccessful deliveries
	Lock       string // identifies this delivery; in lower case
	Payload    []byte
}

// Receiver is a connection that receives the cloud-to-device messages of a device.
type Receiver struct {
	// Wake is called when there may be a message to take. It must not block.
	Wake func()
}

// Messages holds the queues of the cloud-to-device messages of all devices in memory. A message
// remains in its queue until the device completes it. The zero value has no messages. The methods are safe
// for concurrent use.
type Messages struct {
	mu  sync.Mutex
	all map[string]*queue // by User.DeviceKey
}

// queue is the queue of a device.
type queue struct {
	receiver *Receiver  // nil unless a connection has subscribed
	messages []*message // in the order in which they were sent
	sent     int
	locks    int
}

// message is a message in a queue.
type message struct {
	Delivery           // Lock is "" unless the message is being delivered
	holder   *Receiver // nil if the device receives the message over HTTPS
	until    time.Time // end of a lock without a holder
}

// of returns the queue of a device. The caller holds m.mu.
func (m *Messages) of(u User) *queue {
	if m.all == nil {
		m.all = map[string]*queue{}
	}
	q := m.all[u.DeviceKey()]
	if q == nil {
		q = &queue{}
		m.all[u.DeviceKey()] = q
	}
	return q
}

// Send adds a message to the queue of a device, unless the queue is full or the message is too large.
func (m *Messages) Send(u User, payload []byte) *enroll.Refusal {
	if len(payload) > MaxCloudMessage {
		return refuse(codeTooLarge, "MessageTooLarge", fmt.Sprintf("the message is larger than %d bytes", MaxCloudMessage))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.of(u)
	if len(q.messages) >= MaxQueued {
		return refuse(codeQueueFull, "DeviceMaximumQueueDepthExceeded", fmt.Sprintf("%d messages wait for the device", len(q.messages)))
	}
	q.sent++
	q.messages = append(q.messages, &message{Delivery: Delivery{Number: q.sent, Payload: slices.Clone(payload)}})
	q.wake()
	return nil
}

// Subscribe makes a connection the only receiver of the messages of a device. Messages that an
// earlier connection has not acknowledged are queued again.
func (m *Messages) Subscribe(u User, r *Receiver) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.of(u)
	if q.receiver != r {
		q.requeue(q.receiver)
	}
	q.receiver = r
	q.wake()
}

// Unsubscribe ends the delivery to a connection, which can still acknowledge what it has received.
func (m *Messages) Unsubscribe(u User, r *Receiver) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if q := m.of(u); q.receiver == r {
		q.receiver = nil
	}
}

// Release is called when a connection that has subscribed ends: the messages that it has not
// acknowledged are queued again.
func (m *Messages) Release(u User, r *Receiver) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.of(u)
	if q.receiver == r {
		q.receiver = nil
	}
	q.requeue(r)
	q.wake()
}

// Take delivers all available messages to a connection. next is when the lock of another message
// expires, or zero if no message is locked.
func (m *Messages) Take(u User, r *Receiver, now time.Time) (all []Delivery, next time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.of(u)
	if q.receiver != r { // another connection has subscribed since then
		return nil, time.Time{}
	}
	for _, one := range q.messages {
		switch {
		case one.free(now):
			q.lock(one)
			one.holder, one.until = r, time.Time{}
			all = append(all, one.Delivery)
		case one.holder == nil && (next.IsZero() || one.until.Before(next)):
			next = one.until
		}
	}
	return all, next
}

// Receive delivers one message over HTTPS, and locks it for a minute.
func (m *Messages) Receive(u User, now time.Time) (d Delivery, found bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.of(u)
	for _, one := range q.messages {
		if one.free(now) {
			q.lock(one)
			one.holder, one.until = nil, now.Add(lockTimeout)
			return one.Delivery, true
		}
	}
	return Delivery{}, false
}

// Complete removes a message from the queue. It returns false if the lock has been lost.
func (m *Messages) Complete(u User, lock string, now time.Time) bool {
	return m.settle(u, lock, now, (*queue).remove)
}

// Abandon queues a message again. It returns false if the lock has been lost.
func (m *Messages) Abandon(u User, lock string, now time.Time) bool {
	return m.settle(u, lock, now, (*queue).again)
}

func (m *Messages) settle(u User, lock string, now time.Time, what func(*queue, *message)) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	q := m.of(u)
	i := slices.IndexFunc(q.messages, func(one *message) bool { return one.Lock == lock && !one.free(now) })
	if i < 0 {
		return false
	}
	what(q, q.messages[i])
	q.wake()
	return true
}

// forget removes the messages of a device.
func (m *Messages) forget(u User) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.all, u.DeviceKey())
}

func (q *queue) wake() {
	if q.receiver != nil {
		q.receiver.Wake()
	}
}

func (q *queue) lock(one *message) {
	q.locks++
	one.Lock = fmt.Sprintf("%08x-0000-4000-8000-%012x", one.Number, q.locks)
}

func (q *queue) remove(one *message) {
	q.messages = slices.DeleteFunc(q.messages, func(m *message) bool { return m == one })
}

// again queues a message again after an unsuccessful delivery, unless that was the last permitted one.
func (q *queue) again(one *message) {
	one.Lock, one.holder = "", nil
	if one.Deliveries++; one.Deliveries >= maxDeliveries {
		q.remove(one)
	}
}

// requeue queues again all messages that a connection has not acknowledged.
func (q *queue) requeue(holder *Receiver) {
	if holder == nil {
		return
	}
	for _, one := range slices.Clone(q.messages) {
		if one.holder == holder {
			q.again(one)
		}
	}
}

// free reports whether a message may be delivered. An expired lock does not count as a delivery.
func (m *message) free(now time.Time) bool {
	return m.Lock == "" || m.holder == nil && !now.Before(m.until)
}

// MessageFilter returns the topic filter for the cloud-to-device messages of the device.
func (u User) MessageFilter() string { return "devices/" + u.Device + "/messages/devicebound/#" }

// MessageTopic returns the topic of a cloud-to-device message, with its system properties.
func (u User) MessageTopic() string {
	return strings.TrimSuffix(u.MessageFilter(), "#") + "%24.to=" + url.QueryEscape(u.path()+"/messages/deviceBound")
}

// answerMessages answers a request of a device about its messages:
//
//	GET    /devices/{id}/messages/deviceBound
//	DELETE /devices/{id}/messages/deviceBound/{lock}
//	POST   /devices/{id}/messages/deviceBound/{lock}/abandon
//
// The endpoint is the path after the device ID in lower case.
func (h *Hub) answerMessages(u User, r *http.Request, endpoint string) Response {
	lock, abandon := strings.CutSuffix(strings.TrimPrefix(strings.TrimPrefix(endpoint, EndpointDeviceBound), "/"), "/abandon")
	settle := h.Messages.Complete
	switch {
	case r.Method == http.MethodGet && lock == "" && !abandon:
		d, found := h.Messages.Receive(u, h.Now())
		if !found {
			return Response{Status: http.StatusNoContent}
		}
		return Response{Status: http.StatusOK, Body: d.Payload, ETag: d.Lock, Header: http.Header{
			"Content-Type":          {"application/octet-stream"},
			"Iothub-Deliverycount":  {strconv.Itoa(d.Deliveries)},
			"Iothub-Sequencenumber": {strconv.Itoa(d.Number)},
			"Iothub-To":             {u.path() + "/messages/deviceBound"},
		}}
	case lock == "" || strings.Contains(lock, "/"):
		return unsupported(r)
	case r.Method == http.MethodPost && abandon:
		settle = h.Messages.Abandon
	case r.Method != http.MethodDelete || abandon:
		return unsupported(r)
	}
	if !settle(u, lock, h.Now()) {
		return Failure(codeLockLost/1000, refuse(codeLockLost, "DeviceMessageLockLost", "no message has the lock "+enroll.Quote(lock)+", or the lock has expired"))
	}
	return Response{Status: http.StatusNoContent}
}
