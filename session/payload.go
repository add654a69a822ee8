package session

import (
	"github.com/dpsd-project/dpsd/classify"
	"github.com/dpsd-project/dpsd/dps"
	"github.com/dpsd-project/dpsd/input"
)

// maxPayload limits the size of payload_file, in bytes. dps.CheckPayload applies the limit
// of the service, which is lower.
const maxPayload = 128 << 10

// ReadPayload returns the JSON object to send, or nil without a file. Package classify
// classifies its errors.
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
