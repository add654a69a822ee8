package dps_test

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/dpsd-project/dpsd/dps"
)

func TestNamesInARegistrationStateAreUnchanged(t *testing.T) {
	for r := rune(0); r < 0x300; r++ {
		for _, name := range []string{string(r), "gw-" + string(r) + "1"} {
			quoted, err := json.Marshal(name)
			if err != nil {
				t.Fatal(err)
			}
			reply, err := dps.ParseReply(assigned(`{"assignedHub":"hub.net","deviceId":"d",` + string(quoted) + `:1}`))
			if err != nil {
				t.Fatal(err)
			}
			state := string(reply.Assignment.State)
			var read map[string]json.RawMessage
			if err := json.Unmarshal([]byte(state), &read); err != nil || string(read[name]) != "1" {
				t.Errorf("%q is published as %s, %v", name, state, err)
			}
			if r >= ' ' && r < utf8.RuneSelf && r != '"' && r != '\\' && state != `{"assignedHub":"hub.net","deviceId":"d","`+name+`":1}` {
				t.Errorf("%q is published as %s", name, state)
			}
		}
	}
}
