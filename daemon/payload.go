package daemon

import (
	"fmt"

	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/input"
)

// maxPayload bounds what is read of payload_file, in bytes; dps.CheckPayload knows the
// limit of the service, which is lower.
const maxPayload = 128 << 10

// payloadError says that payload_file cannot be sent.
type payloadError struct {
	path string
	err  error
}

func (e *payloadError) Error() string { return fmt.Sprintf("payload_file %s: %v", e.path, e.err) }
func (e *payloadError) Unwrap() error { return e.err }

// ReadPayload returns the JSON object to send, nil without a file. Classify knows
// its errors.
func ReadPayload(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	data, err := input.Read(path, maxPayload)
	if err == nil {
		err = dps.CheckPayload(data)
	}
	if err != nil {
		return nil, &payloadError{path, err}
	}
	return data, nil
}
