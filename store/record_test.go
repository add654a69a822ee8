package store_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/store"
)

func TestEqualJSON(t *testing.T) {
	tests := []struct {
		say  string
		a, b string
		want bool
	}{
		{"the order of keys does not count", `{"a":1,"b":{"c":2,"d":3}}`, `{"b":{"d":3,"c":2},"a":1}`, true},
		{"the order of elements counts", `[1,2]`, `[2,1]`, false},
		{"white space does not count", `{"a":[1,2]}`, "{ \"a\" :\t[1 ,\n2] }", true},
		{"white space within a string counts", `"a b"`, `"a  b"`, false},
		{"an escape equals its character", `"\u00e9\/"`, `"é/"`, true},
		{"large integers that share a float64 differ", `9007199254740993`, `9007199254740992`, false},
		{"fractions that share a float64 differ", `0.1`, `0.1000000000000000055`, false},
		{"a fraction of zeros is an integer", `1`, `1.000`, true},
		{"an exponent is evaluated", `1.5e3`, `1500`, true},
		{"a negative exponent is evaluated too", `15e-1`, `1.5`, true},
		{"the sign of an exponent and its case do not count", `1E+2`, `1e2`, true},
		{"minus zero is zero", `-0.0`, `0`, true},
		{"zero has no exponent", `0e99`, `0`, true},
		{"the sign counts", `-1`, `1`, false},
		{"huge exponents take no memory", `1e999999999`, `10e999999998`, true},
		{"and differ", `1e999999999`, `1e999999998`, false},
		{"exponents beyond 64 bits are compared as text", `1e99999999999999999999`, `1e99999999999999999999`, true},
		{"exponents beyond 64 bits with different texts differ", `1e99999999999999999999`, `10e99999999999999999998`, false},
		{"a number is not its text", `1`, `"1"`, false},
		{"null is not absent in an object", `{"a":null}`, `{}`, false},
		{"null is not false", `null`, `false`, false},
		{"an empty object is not an empty array", `{}`, `[]`, false},
		{"an additional key counts", `{"a":1}`, `{"a":1,"b":2}`, false},
		{"another key counts", `{"a":1}`, `{"b":1}`, false},
		{"an additional element counts", `[1]`, `[1,1]`, false},
		{"no payload differs from an empty object", ``, `{}`, false},
		{"no payload equals no payload", ``, ``, true},
	}
	for _, test := range tests {
		t.Run(test.say, func(t *testing.T) {
			if got := store.EqualJSON([]byte(test.a), []byte(test.b)); got != test.want {
				t.Errorf("%s and %s: %v", test.a, test.b, got)
			}
			if got := store.EqualJSON([]byte(test.b), []byte(test.a)); got != test.want {
				t.Errorf("in the opposite order: %v", got)
			}
		})
	}
}

func TestParse(t *testing.T) {
	whole := content(t, "testdata", "state.json")
	edits := []struct{ say, old, new string }{
		{"generation 0", `"generation": 1`, `"generation": 0`},
		{"a generation that JSON readers round", `"generation": 1`, `"generation": 9007199254740992`},
		{"a generation beyond 64 bits", `"generation": 1`, `"generation": 18446744073709551616`},
		{"a negative generation", `"generation": 1`, `"generation": -1`},
		{"a generation as text", `"generation": 1`, `"generation": "1"`},
		{"schema 0", `"schema": 1`, `"schema": 0`},
		{"a schema as text", `"schema": 1`, `"schema": "1"`},
		{"another status", `"status": "assigned"`, `"status": "failed"`},
		{"a hub that is not a host name", `contoso-eu.azure-devices.net",` + "\n", `contoso eu",` + "\n"},
		{"no device ID", `"deviceId": "gw-0001",` + "\n", ""},
		{"an invalid date", `"provisionedAt": "2026`, `"provisionedAt": "today`},
	}
	for _, edit := range edits {
		t.Run("a record with "+edit.say+" is damaged even if its checksum matches", func(t *testing.T) {
			changed := reseal(strings.Replace(whole, edit.old, edit.new, 1))
			if changed == whole {
				t.Fatal("the edit changed nothing")
			}
			var damaged *store.DamagedError
			if _, err := store.Parse([]byte(changed)); !errors.As(err, &damaged) {
				t.Errorf("Parse: %v, want *DamagedError", err)
			}
		})
	}
	t.Run("the largest generation that JSON readers do not round is accepted", func(t *testing.T) {
		rec, err := store.Parse([]byte(reseal(strings.Replace(whole, `"generation": 1`, `"generation": 9007199254740991`, 1))))
		if err != nil || rec.Generation != 1<<53-1 {
			t.Errorf("Parse: %v, %v", rec.Generation, err)
		}
	})
	t.Run("the reason describes the damage", func(t *testing.T) {
		last := whole[strings.LastIndex(whole, `  "checksum": `):]
		for _, tt := range []struct{ say, data, reason string }{
			{"nothing", "", "the file is empty"},
			{"a changed byte", strings.Replace(whole, "gw-0001", "gw-0002", 1), "the checksum does not match"},
			{"a changed digit of the checksum", strings.Replace(whole, `"sha256:04`, `"sha256:05`, 1), "the checksum does not match"},
			{"a cut file", whole[:300], "not the JSON of a record"},
			{"no checksum", "{\n  \"schema\": 1\n}\n", "no checksum on the second-to-last line"},
			{"a checksum that is not on a separate line", strings.Replace(whole, ",\n"+last, ", "+last, 1), "no checksum on the second-to-last line"},
			{"a checksum of another kind", strings.ReplaceAll(whole, `"sha256:`, `"sha512:`), "no checksum on the second-to-last line"},
			{"a blank after the record", whole + " ", "no checksum on the second-to-last line"},
			{"a last line without a line feed", strings.TrimSuffix(whole, "\n") + " ", "no checksum on the second-to-last line"},
			{"the checksum alone", last, "not the JSON of a record"},
			{"an empty line and the checksum", "\n" + last, "the checksum does not match"},
			{"schema 0", reseal(strings.Replace(whole, `"schema": 1`, `"schema": 0`, 1)), "schema is not 1"},
			{"generation 0", reseal(strings.Replace(whole, `"generation": 1`, `"generation": 0`, 1)), "generation is out of range"},
			{"another status", reseal(strings.Replace(whole, `"status": "assigned"`, `"status": "failed"`, 1)), "status is not assigned"},
		} {
			var damaged *store.DamagedError
			if _, err := store.Parse([]byte(tt.data)); !errors.As(err, &damaged) || damaged.Reason != tt.reason {
				t.Errorf("%s: %v, want %s", tt.say, err, tt.reason)
			}
		}
	})
	t.Run("a member that a later version added is ignored", func(t *testing.T) {
		rec, err := store.Parse([]byte(reseal(strings.Replace(whole, `  "status"`, `  "later": {"a": 1},`+"\n"+`  "status"`, 1))))
		if err != nil || rec.DeviceID != "gw-0001" {
			t.Errorf("Parse: %v, %v", rec, err)
		}
	})
	t.Run("the issued certificates are found in the registration state", func(t *testing.T) {
		for state, want := range map[string][]string{
			`{"issuedCertificateChain":["AAAA","BBBB"]}`: {"AAAA", "BBBB"},
			`{"issuedCertificateChain":null}`:            nil,
			`{"issuedCertificateChain":"AAAA"}`:          nil,
			`{}`:                                         nil,
			``:                                           nil,
		} {
			if got := (store.Record{RegistrationState: []byte(state)}).IssuedCertificateChain(); !slices.Equal(got, want) {
				t.Errorf("%s: %q", state, got)
			}
		}
	})
}
