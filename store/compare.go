package store

import (
	"bytes"
	"encoding/json"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// sameIdentity reports whether two normalised records contain the same identity. Members
// that only describe when and how the service assigned it (substatus, dates, etag) do not
// count, since writing them would wear the flash unnecessarily.
func sameIdentity(a, b Record) bool {
	return a.AssignedHub == b.AssignedHub &&
		a.DeviceID == b.DeviceID &&
		a.RegistrationID == b.RegistrationID &&
		a.IDScope == b.IDScope &&
		strings.EqualFold(a.Endpoint, b.Endpoint) &&
		a.ConnectionProfile == b.ConnectionProfile &&
		equalJSON(a.Payload, b.Payload) &&
		sameIssued(a, b)
}

// sameIssued compares the issued certificates: as published, or otherwise as received.
func sameIssued(a, b Record) bool {
	if a.Certificate != nil || b.Certificate != nil {
		return sameCertificate(a.Certificate, b.Certificate)
	}
	return bytes.Equal(a.RegistrationState, b.RegistrationState) || equalJSON(a.issued(), b.issued())
}

// equalJSON compares two texts as JSON values: it ignores the order of keys and white
// space, and compares numbers by their exact decimal values, without rounding to float64.
func equalJSON(a, b json.RawMessage) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, ok := decodeJSON(a)
	if !ok {
		return false
	}
	y, ok := decodeJSON(b)
	return ok && equalValue(x, y)
}

func decodeJSON(raw json.RawMessage) (any, bool) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if dec.Decode(&v) != nil {
		return nil, false
	}
	_, err := dec.Token()
	return v, err == io.EOF
}

func equalValue(a, b any) bool {
	switch a := a.(type) {
	case map[string]any:
		b, ok := b.(map[string]any)
		return ok && maps.EqualFunc(a, b, equalValue)
	case []any:
		b, ok := b.([]any)
		return ok && slices.EqualFunc(a, b, equalValue)
	case json.Number:
		b, ok := b.(json.Number)
		return ok && (a == b || decimal(string(a)) == decimal(string(b)))
	}
	return a == b // string, bool, nil
}

// decimal returns the canonical form of a JSON number: sign, digits without leading and
// trailing zeros, decimal exponent. It never expands the exponent, so 1e999999999 takes no
// memory; an exponent beyond 64 bits is not changed.
func decimal(s string) string {
	rest, negative := strings.CutPrefix(s, "-")
	mantissa, exponent := rest, int64(0)
	if i := strings.IndexAny(rest, "eE"); i >= 0 {
		var err error
		if exponent, err = strconv.ParseInt(rest[i+1:], 10, 62); err != nil {
			return s
		}
		mantissa = rest[:i]
	}
	whole, fraction, _ := strings.Cut(mantissa, ".")
	exponent -= int64(len(fraction))
	digits := strings.TrimLeft(whole+fraction, "0")
	trimmed := strings.TrimRight(digits, "0")
	exponent += int64(len(digits) - len(trimmed))
	if trimmed == "" {
		return "0"
	}
	sign := ""
	if negative {
		sign = "-"
	}
	return sign + trimmed + "e" + strconv.FormatInt(exponent, 10)
}
