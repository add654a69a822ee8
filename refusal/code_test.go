package refusal_test

import (
	"encoding/json"
	"testing"

	"github.com/dpsd-project/dpsd/refusal"
)

func TestCodesAreThoseOfCONNACKAndHTTPAndIoTHub(t *testing.T) {
	for text, want := range map[string]string{
		"1": "CONNACK 1", "5": "CONNACK 5", "400": "400", "599": "599", "400000": "400000", "401003": "401003", "599999": "599999", "unreachable": "unreachable",
	} {
		got, err := refusal.ParseCode(text)
		if err != nil || got.String() != want {
			t.Errorf("%q is %s, %v, want %s", text, got, err, want)
		}
		var again refusal.Code
		if data, err := json.Marshal(got); err != nil || json.Unmarshal(data, &again) != nil || again != got {
			t.Errorf("%q as JSON is %s (%v), which is read as %s", text, data, err, again)
		}
	}
	for _, text := range []string{"", "0", "6", "-1", "399", "600", "399999", "600000", "05", "+5", "5.0", "5e0", " 5", "4294967301", "18446744073709551621", "Unreachable", "0x5", "٥"} {
		if got, err := refusal.ParseCode(text); err == nil {
			t.Errorf("%q is accepted as %s", text, got)
		}
	}
}

func TestACodeInJSONIsANumberOrAString(t *testing.T) {
	for text, want := range map[string]refusal.Code{`5`: 5, `"5"`: 5, `401003`: 401003, `"401003"`: 401003, `"unreachable"`: refusal.Unreachable} {
		var got refusal.Code
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s is %s, %v", text, got, err)
		}
	}
	for _, text := range []string{`null`, `true`, `[5]`, `{}`, `-1`, `"-1"`, `""`, `5.0`, `"5\u0000"`, `unreachable`} {
		var got refusal.Code
		if err := json.Unmarshal([]byte(text), &got); err == nil {
			t.Errorf("%s is accepted as %s", text, got)
		}
	}
}
