package simulator

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dpsd-project/dpsd/simulator/enroll"
)

// registration is the content of a register request.
type registration struct {
	payload any             // JSON with numbers as json.Number, nil for none
	csr     json.RawMessage // nil for none
}

// registrationMembers are the members of DeviceRegistration. tpm has no effect over MQTT.
var registrationMembers = []string{"registrationId", "tpm", "payload", "csr"}

// parseBody checks the body of a register request. It may be empty, because the user name
// identifies the device. Member names need quotes only if strict is set.
func parseBody(body []byte, registrationID string, strict bool) (registration, *enroll.Refusal) {
	var wanted registration
	if len(bytes.TrimSpace(body)) == 0 {
		return wanted, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(lenient(body, strict), &members); err != nil {
		return wanted, undecodable(explainJSON(body, err, strict))
	}
	for name := range members {
		if !slices.Contains(registrationMembers, name) {
			return wanted, undecodable(explainMember(name))
		}
	}
	if raw, there := members["registrationId"]; there {
		var id string
		if json.Unmarshal(raw, &id) != nil {
			return wanted, undecodable(enroll.Explanation{Reason: "the body's registrationId is not a string"})
		}
		if !strings.EqualFold(id, registrationID) {
			return wanted, badRequest(enroll.Explanation{
				Reason: "the body's registrationId is not that of the connection", Expected: enroll.Quote(registrationID), Given: enroll.Quote(id),
			})
		}
	}
	if raw, there := members["payload"]; there {
		in := json.NewDecoder(bytes.NewReader(raw))
		in.UseNumber()
		var payload map[string]any
		if in.Decode(&payload) != nil { // null is fine: the Python SDK sends it
			return wanted, undecodable(enroll.Explanation{Reason: "the payload is not a JSON object"})
		}
		if payload != nil {
			wanted.payload = payload
		}
	}
	if raw, there := members["csr"]; there && string(raw) != "null" {
		wanted.csr = raw
	}
	return wanted, nil
}

// codeUndecodable is the error code of a body that the service cannot decode.
const codeUndecodable = 400012

// undecodable refuses a body from which the service cannot make a DeviceRegistration.
func undecodable(e enroll.Explanation) *enroll.Refusal {
	return &enroll.Refusal{Code: codeUndecodable, Message: "Deserialization error.", Explanation: e}
}

// badRequest refuses a body whose values are wrong, with the reason as the message.
func badRequest(e enroll.Explanation) *enroll.Refusal {
	return &enroll.Refusal{Code: 400000, Message: e.Reason, Explanation: e}
}

// maxExcerpt is how many bytes before and after a mistake an explanation shows.
const maxExcerpt = 20

func explainMember(name string) enroll.Explanation {
	e := enroll.Explanation{
		Reason: "the body has an unknown member", Expected: "only " + strings.Join(registrationMembers, ", "), Given: enroll.Quote(name),
		Advice: "The service does not ignore unknown members. Data for a custom allocation belongs in payload.",
	}
	for _, known := range registrationMembers {
		if strings.EqualFold(known, name) {
			e.Advice = fmt.Sprintf("The name of the member is %s. Case matters.", known)
		}
	}
	return e
}

func explainJSON(body []byte, err error, strict bool) enroll.Explanation {
	e := enroll.Explanation{Reason: "the body is not a JSON object", Expected: `an empty body, or an object such as {"registrationId":"…"}`}
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) { // its surroundings are shown, not all data of the device
		text, at := lenient(body, strict), int(syntax.Offset)
		e.Reason += " (" + syntax.Error() + ")"
		e.Given = enroll.Quote(string(text[max(0, at-maxExcerpt):min(len(text), at+maxExcerpt)]))
	}
	switch {
	case strict && json.Valid(quoteNames(body)):
		e.Advice = "The member names are not quoted, and the setting strict_json requires it."
	case bytes.HasSuffix(body, []byte{0}):
		e.Advice = "The message ends with a zero byte, which is not part of JSON."
	case bytes.HasPrefix(body, []byte("\ufeff")):
		e.Advice = "The message begins with a byte order mark, which is not part of JSON."
	case bytes.ContainsRune(body, '\'') && json.Valid(bytes.ReplaceAll(body, []byte("'"), []byte(`"`))):
		e.Advice = "The strings are in single quotes. JSON requires double quotes."
	}
	return e
}

// lenient returns a body as strict JSON. Sketches in the field do not quote the names of
// members, and the service accepts their bodies.
func lenient(body []byte, strict bool) []byte {
	if strict {
		return body
	}
	return quoteNames(body)
}

// quoteNames quotes the names of members that are not quoted, at any depth, and changes
// nothing else. A name consists of letters, digits, underscores and dollar signs.
func quoteNames(text []byte) []byte {
	var out bytes.Buffer
	var objects []bool // for each open bracket: whether it is that of an object
	named := false     // a name may begin here
	for in := bytes.NewReader(text); ; {
		c, err := in.ReadByte()
		if errors.Is(err, io.EOF) {
			return out.Bytes()
		}
		switch {
		case c == '{' || c == '[':
			objects = append(objects, c == '{')
			named = c == '{'
		case c == '}' || c == ']':
			objects = objects[:max(0, len(objects)-1)]
			named = false
		case c == ',':
			named = len(objects) > 0 && objects[len(objects)-1]
		case c == '"':
			named = false
			out.WriteByte(c)
			copyString(in, &out)
			continue
		case named && isNameByte(c) && (c < '0' || c > '9'):
			named = false
			_ = in.UnreadByte() // after a successful ReadByte it does not fail
			copyName(in, &out)
			continue
		case !bytes.ContainsRune([]byte(" \t\r\n"), rune(c)):
			named = false
		}
		out.WriteByte(c)
	}
}

// copyString copies the rest of a string up to its closing quote.
func copyString(in io.ByteReader, out *bytes.Buffer) {
	for escaped := false; ; {
		c, err := in.ReadByte()
		if err != nil {
			return
		}
		out.WriteByte(c)
		switch {
		case escaped:
			escaped = false
		case c == '\\':
			escaped = true
		case c == '"':
			return
		}
	}
}

// copyName copies a name in quotes.
func copyName(in *bytes.Reader, out *bytes.Buffer) {
	out.WriteByte('"')
	defer out.WriteByte('"')
	for {
		c, err := in.ReadByte()
		if err != nil {
			return
		}
		if !isNameByte(c) {
			_ = in.UnreadByte()
			return
		}
		out.WriteByte(c)
	}
}

func isNameByte(c byte) bool {
	return c == '_' || c == '$' || '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}
