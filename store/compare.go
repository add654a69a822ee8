package store

import (
	"bytes"
	"encoding/json"
	"io"
	"strconv"
	"strings"
)

// sameIdentity tells whether two normalised records say the same to those who
// read them. What only tells when and how the service came to it (substatus,
// dates, etag) does not count: it would wear the flash for nothing.
func sameIdentity(a, b Record) bool {
	return a.AssignedHub == b.AssignedHub &&
		a.DeviceID == b.DeviceID &&
		a.RegistrationID == b.RegistrationID &&
		a.IDScope == b.IDScope &&
		strings.EqualFold(a.Endpoint, b.Endpoint) &&
		a.ConnectionProfile == b.ConnectionProfile &&
		equalJSON(a.Payload, b.Payload) &&
		(bytes.Equal(a.RegistrationState, b.RegistrationState) || equalJSON(a.issued(), b.issued()))
}

// equalJSON compares two texts as JSON values: the order of keys and white space
// do not count, and numbers are compared by their exact decimal value, never
// rounded to a float64.
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
		if !ok || len(a) != len(b) {
			return false
		}
		for key, v := range a {
			w, ok := b[key]
			if !ok || !equalValue(v, w) {
				return false
			}
		}
		return true
	case []any:
		b, ok := b.([]any)
		if !ok || len(a) != len(b) {
			return false
		}
		for i := range a {
			if !equalValue(a[i], b[i]) {
				return false
			}
		}
		return true
	case json.Number:
		b, ok := b.(json.Number)
		return ok && (a == b || decimal(string(a)) == decimal(string(b)))
	}
	return a == b // string, bool, nil
}

// decimal brings a JSON number into one form: sign, digits without zeros at
// either end, exponent of ten. It never expands the exponent, so that 1e999999999
// costs no memory; an exponent beyond 64 bits stays as it is written.
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
