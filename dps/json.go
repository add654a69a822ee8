package dps

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// member is a name and a value of a JSON object. An object keeps the order of the text.
type member struct {
	name  string
	value json.RawMessage
}

type object []member

// get returns the value of a member. null counts as absent, since older versions of the
// service and some SDKs write absent members that way.
func (o object) get(name string) (json.RawMessage, bool) {
	for _, m := range o {
		if m.name == name {
			return m.value, !bytes.Equal(m.value, []byte("null"))
		}
	}
	return nil, false
}

// text returns a string member, or "" if it is absent.
func (o object) text(name string) (string, error) {
	raw, ok := o.get(name)
	if !ok {
		return "", nil
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("%s is not a string", name)
	}
	return s, nil
}

// number returns an integer member, or 0 if it is absent.
func (o object) number(name string) (int, error) {
	raw, ok := o.get(name)
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseInt(string(raw), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%s is not an integer", name)
	}
	return int(n), nil
}

// parseDocument parses a whole body: one JSON object in valid UTF-8, with no data after it
// and no duplicate names in any object. encoding/json alone would replace invalid UTF-8,
// take the last of two equal names, and match names in any case.
func parseDocument(body []byte) (object, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, errors.New("the body is empty")
	}
	if !utf8.Valid(body) {
		return nil, errors.New("the body is not UTF-8")
	}
	var whole json.RawMessage
	if err := json.Unmarshal(body, &whole); err != nil {
		return nil, fmt.Errorf("the body is not JSON: %w", err)
	}
	if err := checkNames(body); err != nil {
		return nil, err
	}
	return parseObject(whole, "the body")
}

// maxMembers limits the members of a body, at any depth: a member takes a hundred times as
// much memory as its text. A payload of 128 KiB has fewer.
const maxMembers = 1 << 15

// checkNames rejects an object with duplicate names, at any depth: two readers could see
// two different values.
func checkNames(body []byte) error {
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	type level struct {
		names map[string]bool // nil in an array
		value bool            // the next token is a value
	}
	var stack []level
	members := 0
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("the body is not JSON: %w", err)
		}
		top := len(stack) - 1
		if name, ok := token.(string); ok && top >= 0 && stack[top].names != nil && !stack[top].value {
			if stack[top].names[name] {
				return fmt.Errorf("the member %q occurs twice", clean(name, 64))
			}
			if members++; members > maxMembers {
				return fmt.Errorf("the body has more than %d members", maxMembers)
			}
			stack[top].names[name] = true
			stack[top].value = true
			continue
		}
		switch token {
		case json.Delim('{'):
			stack = append(stack, level{names: map[string]bool{}})
			continue
		case json.Delim('['):
			stack = append(stack, level{})
			continue
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:top]
			top--
		}
		if top >= 0 {
			stack[top].value = false
		}
	}
}

// parseObject parses an object of a text that has been checked. where names the object in
// the error.
func parseObject(raw json.RawMessage, where string) (object, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	if token, err := d.Token(); err != nil || token != json.Delim('{') {
		return nil, fmt.Errorf("%s is not a JSON object", where)
	}
	var o object
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, fmt.Errorf("%s is not a JSON object: %w", where, err)
		}
		name, _ := token.(string)
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, fmt.Errorf("%s is not a JSON object: %w", where, err)
		}
		o = append(o, member{name, value})
	}
	return o, nil
}

// depth returns the nesting depth of valid JSON.
func depth(raw json.RawMessage) (deepest int) {
	level, quoted, escaped := 0, false, false
	for _, c := range raw {
		if quoted {
			quoted = escaped || c != '"'
			escaped = !escaped && c == '\\'
			continue
		}
		switch c {
		case '"':
			quoted = true
		case '{', '[':
			level++
			deepest = max(deepest, level)
		case '}', ']':
			level--
		}
	}
	return deepest
}

// encode returns the object as compact JSON.
func (o object) encode() []byte {
	var b bytes.Buffer
	names := json.NewEncoder(&b)
	names.SetEscapeHTML(false)
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		_ = names.Encode(m.name) // encoding a string into memory does not fail
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return compact(b.Bytes())
}

// compact returns raw, which is valid JSON, without its white space.
func compact(raw []byte) []byte {
	var b bytes.Buffer
	_ = json.Compact(&b, raw) // fails only for invalid JSON
	return b.Bytes()
}
