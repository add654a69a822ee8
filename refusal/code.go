package refusal

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Code is what a consumer reports about its hub: the return code of an MQTT CONNACK (1–5), an
// HTTP status (400–599), an error code of IoT Hub (400000–599999), or Unreachable. The zero
// value is not a valid code.
type Code int

// Unreachable means that the consumer cannot connect to the hub at all.
const Unreachable Code = -1

const unreachable = "unreachable"

// moduleNotFound is the code of a hub that knows the device, but not the module.
const moduleNotFound Code = 404_010

var errCode = errors.New(`the code is not a return code of CONNACK (1 to 5), an HTTP status (400 to 599), an error code of IoT Hub (400000 to 599999), or "unreachable"`)

// ParseCode returns the code that text contains.
func ParseCode(text string) (Code, error) {
	if text == unreachable {
		return Unreachable, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || strconv.Itoa(n) != text || !Code(n).numeric() {
		return 0, errCode
	}
	return Code(n), nil
}

func (c Code) numeric() bool {
	return c >= 1 && c <= 5 || c >= 400 && c <= 599 || c >= 400_000 && c <= 599_999
}

// UnmarshalJSON reads the code from a JSON number or string.
func (c *Code) UnmarshalJSON(data []byte) error {
	text := string(data)
	if len(data) > 0 && data[0] == '"' {
		if err := json.Unmarshal(data, &text); err != nil {
			return err
		}
	}
	parsed, err := ParseCode(text)
	if err != nil {
		return err
	}
	*c = parsed
	return nil
}

// MarshalJSON writes the code as UnmarshalJSON reads it.
func (c Code) MarshalJSON() ([]byte, error) {
	if c == Unreachable {
		return json.Marshal(unreachable)
	}
	return json.Marshal(int(c))
}

// String returns the code as a log entry contains it.
func (c Code) String() string {
	switch {
	case c == Unreachable:
		return unreachable
	case c <= 5:
		return fmt.Sprintf("CONNACK %d", int(c))
	}
	return strconv.Itoa(int(c))
}

// Kind is what a code says about the identity of the consumer.
type Kind string

// The kinds.
const (
	Identity    Kind = "identity"    // the hub does not accept the identity
	Throttled   Kind = "throttled"   // the hub accepts it, but limits its requests
	Unavailable Kind = "unavailable" // the hub is not working, or cannot be reached
	Other       Kind = "other"       // the request was wrong, or the code says nothing about the identity
)

// Kind returns the kind of the code.
func (c Code) Kind() Kind {
	switch c {
	case 2, 4, 5:
		return Identity
	case 3, Unreachable:
		return Unavailable
	case 403_002, 403_003, 403_004, 403_005, 403_006, 403_007:
		return Throttled // quotas and limits (Azure page "Troubleshooting Azure IoT Hub error codes")
	case moduleNotFound, 404_103, 404_104:
		return Other // a module is missing, or a connection has ended
	}
	switch status := c.status(); {
	case status == 401 || status == 403 || status == 404:
		return Identity
	case status == 429:
		return Throttled
	case status >= 500:
		return Unavailable
	}
	return Other
}

// status returns the HTTP status with which an IoT Hub error code begins.
func (c Code) status() int {
	if c >= 400_000 {
		return int(c / 1000)
	}
	return int(c)
}
