package mqttv3

import (
	"errors"
	"fmt"
)

// ErrClosed is returned by every call on a connection that has ended. It wraps
// the cause where there was one: io.EOF, a *net.OpError, a TLS alert, a
// *ProtocolError.
var ErrClosed = errors.New("MQTT connection closed")

// ErrPacketTooLarge tells that a packet, ours or the server's, is above the
// limit of the connection. The server's is refused before memory is set aside
// for it.
var ErrPacketTooLarge = errors.New("MQTT packet above the size limit")

// ErrInvalid tells that an argument cannot be expressed in MQTT 3.1.1, or not in
// the part of it spoken here. Nothing was sent.
var ErrInvalid = errors.New("not valid in MQTT 3.1.1")

// ErrNotMQTT matches every *NotMQTTError.
var ErrNotMQTT = errors.New("the peer does not speak MQTT")

// ErrTimeout matches every *TimeoutError.
var ErrTimeout = errors.New("no answer in time")

// NotMQTTError tells that the peer's first bytes are not a CONNACK
// [MQTT-3.2.0-1]: a web server, a captive portal, another protocol.
type NotMQTTError struct {
	// First holds what the peer said, up to 512 bytes.
	First []byte
}

// Error shows the beginning of what the peer said.
func (e *NotMQTTError) Error() string {
	return fmt.Sprintf("%v: it began with %.40q", ErrNotMQTT, e.First)
}

// Unwrap makes errors.Is(err, ErrNotMQTT) true.
func (e *NotMQTTError) Unwrap() error { return ErrNotMQTT }

// ConnackError tells that the server refused the connection.
type ConnackError struct {
	// ReturnCode is the code of the CONNACK packet, never 0. The standard
	// defines 1 to 5; anything else is passed on as it came.
	ReturnCode byte
}

// Error names the return code in the words of the standard.
func (e *ConnackError) Error() string {
	return fmt.Sprintf("the server answered the sign-in with %q (CONNACK return code %d)", returnCodeText(e.ReturnCode), e.ReturnCode)
}

// SubackError tells that the server refused a subscription (return code 0x80).
type SubackError struct {
	// Filter is the topic filter that was refused.
	Filter string
}

// Error names the topic filter.
func (e *SubackError) Error() string {
	return fmt.Sprintf("subscription to %q refused by the server", e.Filter)
}

// ProtocolError tells that a packet breaks the standard, or does not fit what
// went before. It ends the connection [MQTT-4.8.0-1].
type ProtocolError struct {
	// Packet is the packet's name, as in "SUBACK".
	Packet string
	// Reason says what is wrong with it.
	Reason string
}

// Error reads "protocol violation: SUBACK: …".
func (e *ProtocolError) Error() string {
	return "protocol violation: " + e.Packet + ": " + e.Reason
}

// TimeoutError tells which answer did not come within [Options.Timeout].
type TimeoutError struct {
	// Exchange is the packet that was waited for: "CONNACK", "SUBACK",
	// "PINGRESP"; or "PUBLISH" when a message could not be written.
	Exchange string
}

// Error names the packet that did not come.
func (e *TimeoutError) Error() string { return ErrTimeout.Error() + ": " + e.Exchange }

// Unwrap makes errors.Is(err, ErrTimeout) true.
func (e *TimeoutError) Unwrap() error { return ErrTimeout }

// Timeout makes it a time-out in the sense of net.Error.
func (e *TimeoutError) Timeout() bool { return true }

// returnCodeText is table 3.1 of the standard, in short.
func returnCodeText(code byte) string {
	switch code {
	case 1:
		return "unacceptable protocol version"
	case 2:
		return "identifier rejected"
	case 3:
		return "server unavailable"
	case 4:
		return "bad user name or password"
	case 5:
		return "not authorized"
	}
	return "reserved return code"
}
