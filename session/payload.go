package session

import (
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/input"
)

// maxPayload bounds what is read of payload_file, in bytes; dps.CheckPayload knows the
// limit of the service, which is lower.
const maxPayload = 128 << 10

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
		return nil, &classify.PayloadError{Path: path, Err: err}
	}
	return data, nil
}
