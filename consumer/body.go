package consumer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/foreign"
	"github.com/dpsd-project/dpsd/refusal"
)

// read returns the body of a request. A GET has none.
func read(w http.ResponseWriter, r *http.Request) ([]byte, *problem) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
		return nil, &problem{Problem: Problem{Code: BodyTooLarge, Error: fmt.Sprintf("the body has more than %d bytes", maxBody)}, status: http.StatusRequestEntityTooLarge}
	}
	switch {
	case err != nil:
		return nil, badRequest("the body is incomplete", "")
	case r.Method == http.MethodGet && len(body) > 0:
		return nil, badRequest("a GET request must not have a body", "remove the body: the socket determines the content of the response")
	}
	return body, nil
}

// only reads a JSON object that can have one member, and returns its value, or nil if the body is
// empty or the object has no members. Everything else is an error: a consumer that sends another
// member would expect an effect that the member does not have. form is the advice about the body.
func only(body []byte, member, form string) (value json.RawMessage, wrong *problem) {
	body = bytes.TrimSpace(body)
	if len(body) == 0 {
		return nil, nil
	}
	if !utf8.Valid(body) {
		return nil, badRequest("the body is not UTF-8", "")
	}
	if !json.Valid(body) || body[0] != '{' {
		return nil, badRequest("the body is not a JSON object", form)
	}
	// The text is a valid object, so the decoder cannot fail.
	decoder := json.NewDecoder(bytes.NewReader(body))
	_, _ = decoder.Token()
	for decoder.More() {
		name, _ := decoder.Token()
		switch {
		case name != member:
			return nil, badRequest(fmt.Sprintf("the body has the unknown member %s", foreign.Line(strconv.Quote(fmt.Sprint(name)), maxName)), form)
		case value != nil:
			return nil, badRequest(fmt.Sprintf("the body has the member %q twice", member), form)
		}
		_ = decoder.Decode(&value)
	}
	return value, nil
}

// maxName is the maximum number of bytes of an unknown name in an error.
const maxName = 64

// lifetime reads the body of POST /v1/token.
func lifetime(body []byte, usual time.Duration) (time.Duration, *problem) {
	value, wrong := only(body, "lifetime", `send {"lifetime": SECONDS}, or no body`)
	if wrong != nil || value == nil {
		return usual, wrong
	}
	seconds, err := strconv.Atoi(string(value))
	if err != nil || seconds < int(MinLifetime.Seconds()) || seconds > int(MaxLifetime.Seconds()) {
		return 0, &problem{Problem: Problem{
			Code: LifetimeOutOfRange, Error: "the lifetime must be a whole number of seconds from 60 to 3600", Advice: "omit lifetime to use the configured one",
		}, status: http.StatusBadRequest}
	}
	return time.Duration(seconds) * time.Second, nil
}

// report reads the body of POST /v1/refused.
func report(body []byte) (code refusal.Code, wrong *problem) {
	const form = `send {"code": CODE} with the code that the hub returned`
	value, wrong := only(body, "code", form)
	switch {
	case wrong != nil:
		return 0, wrong
	case value == nil:
		return 0, badRequest("the body has no code", form)
	}
	if err := json.Unmarshal(value, &code); err != nil {
		return 0, &problem{Problem: Problem{Code: CodeUnknown, Error: foreign.Line(err.Error(), maxBody)}, status: http.StatusBadRequest}
	}
	return code, nil
}
