package signer

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Version is the version of the protocol.
const Version = 1

// maxLine is the maximum length of a request or an answer, including the line feed.
const maxLine = 8 << 10

// maxMessage is the maximum length of the message of a failure, in bytes.
const maxMessage = 512

// The requests.
const (
	requestPublicKey = "public-key"
	requestSchemes   = "schemes"
	requestSign      = "sign"
)

// request is a request of a client.
type request struct {
	Version int    `json:"version"`
	Request string `json:"request"`
	Scheme  Scheme `json:"scheme,omitempty"`
	Digest  []byte `json:"digest,omitempty"`
}

// answer is an answer of a signer. It contains one of the first three members, or an error with
// an optional message.
type answer struct {
	PublicKey []byte   `json:"public_key,omitempty"`
	Schemes   []Scheme `json:"schemes,omitempty"`
	Signature []byte   `json:"signature,omitempty"`
	Error     Code     `json:"error,omitempty"`
	Message   string   `json:"message,omitempty"`
}

// Code is the reason why a signer does not fulfill a request.
type Code string

// The codes. A client treats any other code as CodeUnavailable.
const (
	// CodeUnsupported means that the signer does not know the version, the request or the
	// scheme.
	CodeUnsupported Code = "unsupported"
	// CodeUnavailable means that the key cannot be used at the moment. A later attempt may
	// succeed.
	CodeUnavailable Code = "unavailable"
	// CodeRefused means that the key cannot be used until a person has corrected something,
	// such as a PIN.
	CodeRefused Code = "refused"
)

// Failure is the error answer of a signer.
type Failure struct {
	Code Code
	// Message is a human-readable explanation of at most 512 bytes. A client must not trust
	// it: it may contain control characters.
	Message string
}

// Error returns the code and the message.
func (f *Failure) Error() string {
	if f.Message == "" {
		return fmt.Sprintf("the signer answered %q", string(f.Code))
	}
	return fmt.Sprintf("the signer answered %q: %s", string(f.Code), f.Message)
}

func (f *Failure) kind() Kind {
	switch f.Code {
	case CodeUnsupported:
		return Unsupported
	case CodeRefused:
		return Refused
	}
	return Unavailable
}

// parseAnswer returns the answer to a request. If the signer reported an error, parseAnswer
// returns it as a *Failure. It ignores unknown members.
func parseAnswer(line []byte, to string) (answer, error) {
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return answer{}, fmt.Errorf("the answer to %q is not valid: %w", to, err)
	}
	if a.Error != "" {
		return answer{}, &Failure{clip(a.Error, 64), clip(a.Message, maxMessage)}
	}
	if len(map[string][]byte{requestPublicKey: a.PublicKey, requestSign: a.Signature}[to]) == 0 && (to != requestSchemes || len(a.Schemes) == 0) {
		return answer{}, fmt.Errorf("the answer to %q does not contain what was requested", to)
	}
	return a, nil
}

// parseRequest parses a request. It returns an error if it does not know the version.
func parseRequest(line []byte) (request, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return request{}, errors.New("the request is not valid JSON")
	}
	if r.Version != Version {
		return request{}, fmt.Errorf("the version of the protocol is %d, not %d", Version, r.Version)
	}
	return r, nil
}

// clip returns the first bytes of a text.
func clip[T ~string](text T, length int) T { return text[:min(len(text), length)] }
