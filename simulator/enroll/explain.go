package enroll

import (
	"regexp"
	"strconv"
	"strings"
)

// Refusal is why the service refuses a device: the error code and the message that the device
// receives, and the explanation that it does not receive.
type Refusal struct {
	Code    int
	Message string
	Explanation
}

// Explanation describes a refusal to the person who runs the device. No part of it contains a
// key, a signature or a password.
type Explanation struct {
	// Reason is what was wrong.
	Reason string `json:"reason"`
	// Expected and Given are what the service expected and what the device sent. They are
	// empty if the reason says it all.
	Expected string `json:"expected,omitempty"`
	Given    string `json:"given,omitempty"`
	// Advice names the likely mistake in a sentence. It is empty if the mistake is unknown.
	Advice string `json:"advice,omitempty"`
}

// String returns the explanation as one line of text.
func (e Explanation) String() string {
	text := e.Reason
	switch {
	case e.Expected != "" && e.Given != "":
		text += ": expected " + e.Expected + ", got " + e.Given
	case e.Expected != "":
		text += ": expected " + e.Expected
	case e.Given != "":
		text += ": got " + e.Given
	}
	if e.Advice != "" {
		text += ". " + e.Advice
	}
	return text
}

// maxQuoted is how many bytes of a text Quote shows.
const maxQuoted = 300

// secrets matches what looks like a key or a signature: the base64 of 16 bytes or more, or a
// parameter whose value is secret.
var secrets = regexp.MustCompile(`(?i)(?:[a-z0-9+/_-]{20,}={1,2}|[a-z0-9+/_-]{20,}(?:%3d){1,2}|[a-z0-9+/]{64,}|\b(?:sig|sharedaccesskey|password)=[^&;\s]*)`)

// Quote quotes a text that a device has sent. It escapes what could confuse a terminal, masks
// what looks like a key, and truncates a long text.
func Quote(text string) string {
	text = secrets.ReplaceAllString(text, "[masked]")
	if len(text) > maxQuoted {
		text = strings.ToValidUTF8(text[:maxQuoted], "") + "…"
	}
	return strconv.QuoteToGraphic(text)
}
