package simulator

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

func TestUndecodableBodiesAreExplained(t *testing.T) {
	for _, c := range []struct {
		name, body string
		strict     bool
		want       string
	}{
		{"an unknown member", `{"modelId":"x"}`, false, `the body has an unknown member: expected only registrationId, tpm, payload, csr, got "modelId"`},
		{"a member in other case", `{"RegistrationID":"x"}`, false, "The name of the member is registrationId. Case matters."},
		{"names without quotes, if that is strict", `{payload:{}}`, true, "the setting strict_json requires it"},
		{"a byte order mark", "\ufeff{}", false, "byte order mark"},
		{"a zero byte at the end", "{}\x00", false, "zero byte"},
		{"single quotes", `{'payload':{}}`, false, "double quotes"},
		{"the surroundings of a mistake", `{"payload":{"password":"` + strings.Repeat("s", 99) + `","a":1,}}`, false, `got "` + strings.Repeat("s", 11) + `\",\"a\":1,}}"`},
		{"an array", `[]`, false, "the body is not a JSON object"},
		{"another device's ID", `{"registrationId":"gw-2"}`, false, `expected "gw-1", got "gw-2"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, refusal := parseBody([]byte(c.body), "gw-1", c.strict)
			if refusal == nil || !strings.Contains(refusal.String(), c.want) {
				t.Errorf("%v does not say %s", refusal, c.want)
			}
		})
	}
}

func TestQuoteNames(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"names at any depth", `{a:{b:[{c:1},{"d":2}]},e:"f"}`, `{"a":{"b":[{"c":1},{"d":2}]},"e":"f"}`},
		{"literals are values in an object and in a list", `{a:true,b:[null,false,{c:null}]}`, `{"a":true,"b":[null,false,{"c":null}]}`},
		{"what looks like a name in a string", `{"a":"{b:1,c:2","d":"\",e:"}`, `{"a":"{b:1,c:2","d":"\",e:"}`},
		{"a name at the end", `{a`, `{"a"`},
		{"brackets that were not opened", `]}}{a:1}`, `]}}{"a":1}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := string(quoteNames([]byte(c.text))); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}

func FuzzQuoteNames(f *testing.F) {
	for _, text := range []string{`{"a":[1,{"b":"\"{c:1"}],"d":null}`, `{a:{b:1}}`, `[true,{a:false}]`, "{\"a\\", `{a:1,b`} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		quoted := quoteNames(text)
		if json.Valid(text) && !bytes.Equal(quoted, text) {
			t.Errorf("JSON was changed: %q to %q", text, quoted)
		}
		if again := quoteNames(quoted); json.Valid(quoted) && !bytes.Equal(again, quoted) {
			t.Errorf("a second time: %q to %q", quoted, again)
		}
		if bytes.Count(quoted, []byte(`"`)) == bytes.Count(text, []byte(`"`)) && !bytes.Equal(quoted, text) {
			t.Errorf("something else was changed: %q to %q", text, quoted)
		}
	})
}
