package enroll

import (
	"encoding/base64"
	"net/url"
	"testing"
	"time"
)

// The vectors of the service's published examples and of its SDKs. They test the verifier
// against constants, not against a signer of this project.
const (
	vectorGroupKey = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
	vectorKey      = "18RQk/hOPJR9EbsJlk2j8WA6vWaj/yi+oaYg7zmxfQNdOyMSu+SJ8O7TSlZhDJCYmn4rzEiVKIzNiVAWjLxrGA=="
)

func unbase64(t *testing.T, s string) []byte {
	t.Helper()
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestDeriveKey(t *testing.T) {
	for _, v := range []struct{ name, id, want string }{
		{"V1 a lower-case ID", "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="},
		{"V1 the same in upper case gives another key", "SN-007-888-ABC-MAC-A1-B2-C3-D4-E5-F6", "9GWVnYuoOLXlHc346XjhLRb9pKgIOrKSwxDRSOgnvXo="},
		{"V1 a trailing newline gives another key", "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6\n", "9xk+A3Y29nEzASjuakJUhcmNyb4ZjibgUKRXPMBArUU="},
		{"V5 special characters", "gw:site-01.unit_7", "TMuMF2vl4VdYyNACXKodhgW8fN8tS68rHDlIQfQdrkg="},
		{"V5 mixed case gives another key", "GW:Site-01.Unit_7", "61LOa7esLmyaKWtaGLy66OmkizMplHHXwkzsheSBySQ="},
	} {
		t.Run(v.name, func(t *testing.T) {
			got := base64.StdEncoding.EncodeToString(DeriveKey(unbase64(t, vectorGroupKey), v.id))
			if got != v.want {
				t.Errorf("got %s, want %s", got, v.want)
			}
		})
	}
	t.Run("V1 a group key that is not decoded gives a different key", func(t *testing.T) {
		got := base64.StdEncoding.EncodeToString(DeriveKey([]byte(vectorGroupKey), "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6"))
		if got != "/eqtUSc3oy1gyllte8P+6Y0WjjLFOc3tWeUuSgRh8x8=" {
			t.Error(got)
		}
	})
}

func TestTokenVectors(t *testing.T) {
	derived := "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="
	for _, v := range []struct {
		name, key, resource, sig, expiry string
		want                             bool
	}{
		{"V2 with the derived key", derived, "0ne00111111%2Fregistrations%2Fsn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "2srIk05/Hc3kiyY2AcAwJosiRYk6C6jOscAYhKLO2L8=", "1700000000", true},
		{"V2 not with the group key itself", vectorGroupKey, "0ne00111111%2Fregistrations%2Fsn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "2srIk05/Hc3kiyY2AcAwJosiRYk6C6jOscAYhKLO2L8=", "1700000000", false},
		{"V2 not with another expiry", derived, "0ne00111111%2Fregistrations%2Fsn-007-888-abc-mac-a1-b2-c3-d4-e5-f6", "2srIk05/Hc3kiyY2AcAwJosiRYk6C6jOscAYhKLO2L8=", "1700000001", false},
		{"V3 the published hub token", vectorKey, "MyExampleHub.azure-devices.net%2Fdevices%2Fmy-symkey-device", "f+wW8XOKeJOtiPc9Iwjc4OpExvPM7NlhM9qxN2a1aAM=", "1663119026", true},
		{"V4 the published DPS token", vectorKey, "0ne003D3F98%2Fregistrations%2Fmy-symkey-device", "eNwg52xQdFTNf7bgPAlAJBCIcONivq/ck1lf3wtxI4A=", "1663952627", true},
		{"V4 not as the page prints it, with another scope", vectorKey, "0ne00111111%2Fregistrations%2Fmy-symkey-device", "eNwg52xQdFTNf7bgPAlAJBCIcONivq/ck1lf3wtxI4A=", "1663952627", false},
		{"V4 another scope has a different signature", vectorKey, "0ne00111111%2Fregistrations%2Fmy-symkey-device", "8VPprb8BiTkuVE0hBqHm/SVrzVpdD8VZcXugntdbhuU=", "1663952627", true},
		{"V4 lower-case hex, signed as sent", vectorKey, "0ne00111111%2fregistrations%2fmy-symkey-device", "6GqlY2Tr8xDlSYE04oQcdEH7vznSt2LcTUobz9BmpAY=", "1663952627", true},
		{"V4 lower-case hex does not fit the upper-case signature", vectorKey, "0ne00111111%2fregistrations%2fmy-symkey-device", "8VPprb8BiTkuVE0hBqHm/SVrzVpdD8VZcXugntdbhuU=", "1663952627", false},
		{"V4 a lower-cased scope does not fit", vectorKey, "0ne003D3F98%2Fregistrations%2Fmy-symkey-device", "ct4iuHZwwI8oQslf1A6BrCpkkSLcwFXpNAnKQtye8ts=", "1663952627", false},
		{"V4 lower-case hex with capitals in the scope", vectorKey, "0ne003D3F98%2fregistrations%2fmy-symkey-device", "6bWV/hQqfS3eL4UNDGQOr69nAtK2jIFX4IGgN6jP6oI=", "1663952627", true},
		{"V5 special characters", "TMuMF2vl4VdYyNACXKodhgW8fN8tS68rHDlIQfQdrkg=", "0ne00111111%2Fregistrations%2Fgw%3Asite-01.unit_7", "WzoiBJ0O3p17vpn0kb1+/UretOemNfEpa6HRZ+H4y0s=", "1700000000", true},
	} {
		t.Run(v.name, func(t *testing.T) {
			token, err := parseToken("SharedAccessSignature sr=" + v.resource + "&sig=" + url.QueryEscape(v.sig) + "&se=" + v.expiry + "&skn=registration")
			if err != nil {
				t.Fatal(err)
			}
			if got := token.signedBy(unbase64(t, v.key)); got != v.want {
				t.Errorf("signed: %v, want %v", got, v.want)
			}
		})
	}
	t.Run("V6 the text to sign keeps its capitals", func(t *testing.T) {
		token, err := parseToken("SharedAccessSignature sr=0neFEEDC0DE%2fregistrations%2fmyRegistrationId&sig=AA%3D%3D&se=1578941692")
		if err != nil || token.toSign() != "0neFEEDC0DE%2fregistrations%2fmyRegistrationId\n1578941692" {
			t.Errorf("%q, %v", token.toSign(), err)
		}
	})
}

func TestTokenGrammar(t *testing.T) {
	for name, text := range map[string]string{
		"no prefix":               "sr=a&sig=AA%3D%3D&se=1",
		"no sr":                   "SharedAccessSignature sig=AA%3D%3D&se=1",
		"no sig":                  "SharedAccessSignature sr=a&se=1",
		"no se":                   "SharedAccessSignature sr=a&sig=AA%3D%3D",
		"se twice":                "SharedAccessSignature sr=a&sig=AA%3D%3D&se=1&se=2",
		"se is not a number":      "SharedAccessSignature sr=a&sig=AA%3D%3D&se=soon",
		"sig is not base64":       "SharedAccessSignature sr=a&sig=A&se=1",
		"skn names another key":   "SharedAccessSignature sr=a&sig=AA%3D%3D&se=1&skn=owner",
		"skn twice":               "SharedAccessSignature sr=a&sig=AA%3D%3D&se=1&skn=&skn=registration",
		"an unknown parameter":    "SharedAccessSignature sr=a&sig=AA%3D%3D&se=1&x=y",
		"sig badly percent-coded": "SharedAccessSignature sr=a&sig=%zz&se=1",
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			if _, err := parseToken(text); err == nil {
				t.Error("accepted")
			}
		})
	}
	for name, text := range map[string]string{
		"any order":               "SharedAccessSignature se=9999999999&skn=registration&sig=AA%3D%3D&sr=S%2Fregistrations%2Fd",
		"an sr that is not coded": "SharedAccessSignature sr=S/registrations/d&sig=AA%3D%3D&skn=registration&se=9999999999",
		"no skn":                  "SharedAccessSignature sr=s%2fregistrations%2fD&sig=AA%3D%3D&se=9999999999",
		"an empty skn at the end": "SharedAccessSignature sr=S%2Fregistrations%2Fd&sig=AA%3D%3D&se=9999999999&skn=",
		"an empty skn before sr":  "SharedAccessSignature skn=&sr=S%2Fregistrations%2Fd&sig=AA%3D%3D&se=9999999999",
	} {
		t.Run(name+" is accepted", func(t *testing.T) {
			token, err := parseToken(text)
			if err != nil {
				t.Fatal(err)
			}
			if err := token.check("S", "d", time.Unix(1700000000, 0)); err != nil {
				t.Error(err)
			}
		})
	}
	token, err := parseToken("SharedAccessSignature sr=S%2Fregistrations%2Fd&sig=AA%3D%3D&se=1700000000")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("a token is valid until the second of its expiry", func(t *testing.T) {
		if err := token.check("S", "d", time.Unix(1699999999, 0)); err != nil {
			t.Error(err)
		}
		if token.check("S", "d", time.Unix(1700000000, 0)) == nil {
			t.Error("still valid at its expiry")
		}
	})
	t.Run("a token for another device or scope is refused", func(t *testing.T) {
		now := time.Unix(1600000000, 0)
		if token.check("S", "e", now) == nil || token.check("T", "d", now) == nil {
			t.Error("accepted")
		}
	})
}

func FuzzParseToken(f *testing.F) {
	f.Add("SharedAccessSignature sr=S%2Fregistrations%2Fd&sig=AA%3D%3D&se=1700000000&skn=registration")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := parseToken(text)
		if err != nil {
			return
		}
		_ = token.check("S", "d", time.Unix(0, 0))
		if token.signedBy([]byte("a key that was not used to sign")) && len(token.signature) != 32 {
			t.Error("a signature of a different length was accepted")
		}
	})
}
