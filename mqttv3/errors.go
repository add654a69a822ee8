package mqttv3

import (
	"cmp"
	"errors"
	"fmt"
)

// ErrClosed is returned by every call on a connection that has ended. It wraps the cause,
// if any: io.EOF, a *net.OpError, a TLS alert, a *ProtocolError.
var ErrClosed = errors.New("MQTT connection closed")

// ErrPacketTooLarge reports that a packet of the client or the server exceeds the limit of
// the connection. A packet of the server is rejected before memory is allocated for it.
var ErrPacketTooLarge = errors.New("MQTT packet exceeds the size limit")

// ErrInvalid reports that an argument cannot be expressed in MQTT 3.1.1, or in the part of
// it that this package supports. Nothing was sent.
var ErrInvalid = errors.New("not valid in MQTT 3.1.1")

// ErrNotMQTT matches every *NotMQTTError.
var ErrNotMQTT = errors.New("the peer does not speak MQTT")

// ErrTimeout matches every *TimeoutError.
var ErrTimeout = errors.New("no answer in time")

// NotMQTTError reports that the peer's first bytes are not a CONNACK [MQTT-3.2.0-1]: a web
// server, a captive portal, another protocol.
type NotMQTTError struct {
	// First contains up to 512 of the peer's first bytes.
	First []byte
}

// Error includes the beginning of First.
func (e *NotMQTTError) Error() string {
	return fmt.Sprintf("%v; its reply begins with %.40q", ErrNotMQTT, e.First)
}

// Unwrap makes errors.Is(err, ErrNotMQTT) true.
func (e *NotMQTTError) Unwrap() error { return ErrNotMQTT }

// ConnackError reports that the server refused the connection.
type ConnackError struct {
	// ReturnCode is the code of the CONNACK packet, never 0. The standard defines 1 to 5;
	// other values are kept unchanged.
	ReturnCode byte
}

// Error describes the return code as the standard does.
func (e *ConnackError) Error() string {
	return fmt.Sprintf("the server refused the sign-in: %q (CONNACK return code %d)", refusalOf(e.ReturnCode).text, e.ReturnCode)
}

// SubackError reports that the server refused a subscription (return code 0x80).
type SubackError struct {
	// Filter is the topic filter that was refused.
	Filter string
}

// Error includes the topic filter.
func (e *SubackError) Error() string {
	return fmt.Sprintf("the server refused the subscription to %q", e.Filter)
}

// ProtocolError reports that a packet violates the standard or does not match earlier
// packets. It ends the connection [MQTT-4.8.0-1].
type ProtocolError struct {
	// Packet is the packet's name, as in "SUBACK".
	Packet string
	// Reason describes the violation.
	Reason string
}

// Error returns text such as "protocol violation: SUBACK: …".
func (e *ProtocolError) Error() string {
	return "protocol violation: " + e.Packet + ": " + e.Reason
}

// TimeoutError reports which packet was not received or written within [Options.Timeout].
type TimeoutError struct {
	// Exchange is the missing packet: "CONNACK", "SUBACK", "PINGRESP"; or "PUBLISH" if a
	// message could not be written.
	Exchange string
}

// Error includes the name of the packet.
func (e *TimeoutError) Error() string { return ErrTimeout.Error() + ": " + e.Exchange }

// Unwrap makes errors.Is(err, ErrTimeout) true.
func (e *TimeoutError) Unwrap() error { return ErrTimeout }

// Timeout returns true, as net.Error requires for a time-out.
func (e *TimeoutError) Timeout() bool { return true }

// refusals are the descriptions of the return codes in table 3.1 of the standard, in short
// form, and their reason codes in version 5.
var refusals = map[byte]refusal{
	1: {"unacceptable protocol version", 0x84},
	2: {"identifier rejected", 0x85},
	3: {"server unavailable", 0x88},
	4: {"bad user name or password", 0x86},
	5: {"not authorized", 0x87},
}

type refusal struct {
	text   string
	reason byte
}

// refusalOf returns the refusal with a return code. Other codes are unspecified errors.
func refusalOf(code byte) refusal {
	return cmp.Or(refusals[code], refusal{"reserved return code", 0x80})
}
