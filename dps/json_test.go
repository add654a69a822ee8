package dps

import (
	"encoding/json"
	"testing"
	"unicode/utf8"
)

// Most texts are quoted without encoding/json, which must not show.
func TestTextsAreQuotedAsEncodingJSONReadsThem(t *testing.T) {
	for r := rune(0); r < 0x300; r++ {
		for _, text := range []string{string(r), "gw-" + string(r) + "1"} {
			var read string
			quoted := quote(nil, text)
			if err := json.Unmarshal(quoted, &read); err != nil || read != text {
				t.Errorf("%q is quoted as %s, which is read as %q, %v", text, quoted, read, err)
			}
			if r >= ' ' && r < utf8.RuneSelf && r != '"' && r != '\\' && string(quoted) != `"`+text+`"` {
				t.Errorf("%q is quoted as %s", text, quoted)
			}
		}
	}
	if got := string(quote([]byte("before"), `a"b`)); got != `before"a\"b"` {
		t.Errorf("behind another text it is %s", got)
	}
}
