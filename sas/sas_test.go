package sas_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/sas"
)

// Keys of the published test vectors.
const (
	groupKey = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
	hubKey   = "18RQk/hOPJR9EbsJlk2j8WA6vWaj/yi+oaYg7zmxfQNdOyMSu+SJ8O7TSlZhDJCYmn4rzEiVKIzNiVAWjLxrGA=="
	serial   = "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6"
)

func decode(t *testing.T, text string) []byte {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// token returns the token for DPS that key signs.
func token(key []byte, resource string, expiry time.Time) string {
	return sas.Token(resource, sas.MAC(key, sas.Statement(resource, expiry)), expiry, "registration")
}

// parts splits a token into its parameters as sent.
func parts(t *testing.T, token string) map[string]string {
	t.Helper()
	rest, ok := strings.CutPrefix(token, "SharedAccessSignature ")
	if !ok {
		t.Fatalf("the token has another beginning: %.30q", token)
	}
	p := map[string]string{}
	for _, pair := range strings.Split(rest, "&") {
		name, value, _ := strings.Cut(pair, "=")
		p[name] = value
	}
	return p
}

// signature returns the decoded sig of a token.
func signature(t *testing.T, token string) string {
	t.Helper()
	sig, err := url.PathUnescape(parts(t, token)["sig"])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func TestTokenVectors(t *testing.T) {
	k := decode(t, hubKey)
	derived := sas.MAC(decode(t, groupKey), []byte(serial))

	t.Run("V2: the token of the derived key is identical", func(t *testing.T) {
		got := token(derived, "0ne00111111/registrations/"+serial, time.Unix(1700000000, 0))
		want := "SharedAccessSignature sr=0ne00111111%2Fregistrations%2Fsn-007-888-abc-mac-a1-b2-c3-d4-e5-f6&sig=2srIk05%2FHc3kiyY2AcAwJosiRYk6C6jOscAYhKLO2L8%3D&se=1700000000&skn=registration"
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
	t.Run("V3: the published token of a hub has this signature", func(t *testing.T) {
		p := parts(t, token(k, "MyExampleHub.azure-devices.net/devices/my-symkey-device", time.Unix(1663119026, 0)))
		if want := "f%2BwW8XOKeJOtiPc9Iwjc4OpExvPM7NlhM9qxN2a1aAM%3D"; p["sig"] != want {
			t.Errorf("got %s, want %s", p["sig"], want)
		}
		if p["se"] != "1663119026" {
			t.Errorf("se is %s", p["se"])
		}
	})
	t.Run("V4: the published token of DPS is reproduced", func(t *testing.T) {
		p := parts(t, token(k, "0ne003D3F98/registrations/my-symkey-device", time.Unix(1663952627, 0)))
		if want := "eNwg52xQdFTNf7bgPAlAJBCIcONivq%2Fck1lf3wtxI4A%3D"; p["sig"] != want {
			t.Errorf("got %s, want %s", p["sig"], want)
		}
		if want := "0ne003D3F98%2Fregistrations%2Fmy-symkey-device"; p["sr"] != want {
			t.Errorf("the signed resource is %s, not %s", p["sr"], want)
		}
	})
	t.Run("V4: the token as printed today, with its scope replaced, does not verify", func(t *testing.T) {
		got := signature(t, token(k, "0ne00111111/registrations/my-symkey-device", time.Unix(1663952627, 0)))
		if got == "eNwg52xQdFTNf7bgPAlAJBCIcONivq/ck1lf3wtxI4A=" {
			t.Error("the scope is not signed")
		}
		if got == "6GqlY2Tr8xDlSYE04oQcdEH7vznSt2LcTUobz9BmpAY=" {
			t.Error("the hex digits are lower case")
		}
		if want := "8VPprb8BiTkuVE0hBqHm/SVrzVpdD8VZcXugntdbhuU="; got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	})
	t.Run("V4: neither the scope nor the hex digits are lower-cased", func(t *testing.T) {
		expiry := time.Unix(1663952627, 0)
		got := signature(t, token(k, "0ne003D3F98/registrations/my-symkey-device", expiry))
		lowered := signature(t, token(k, "0ne003d3f98/registrations/my-symkey-device", expiry))
		if want := "ct4iuHZwwI8oQslf1A6BrCpkkSLcwFXpNAnKQtye8ts="; lowered != want {
			t.Errorf("a scope given in lower case signs to %s, not %s", lowered, want)
		}
		if got == lowered || got == "6bWV/hQqfS3eL4UNDGQOr69nAtK2jIFX4IGgN6jP6oI=" {
			t.Error("the resource was lower-cased")
		}
	})
	t.Run("V5: a colon is sent and signed as %3A, dot and underscore as they are", func(t *testing.T) {
		id := "gw:site-01.unit_7"
		p := parts(t, token(sas.MAC(decode(t, groupKey), []byte(id)), "0ne00111111/registrations/"+id, time.Unix(1700000000, 0)))
		if want := "0ne00111111%2Fregistrations%2Fgw%3Asite-01.unit_7"; p["sr"] != want {
			t.Errorf("sr is %s, not %s", p["sr"], want)
		}
		if want := "WzoiBJ0O3p17vpn0kb1%2B%2FUretOemNfEpa6HRZ%2BH4y0s%3D"; p["sig"] != want {
			t.Errorf("sig is %s, not %s", p["sig"], want)
		}
	})
	t.Run("V6: the string to sign keeps the capitals, and differs from the SDK's in the case of the hex digits only", func(t *testing.T) {
		p := parts(t, token(k, "0neFEEDC0DE/registrations/myRegistrationId", time.Unix(1578941692, 0)))
		toSign := p["sr"] + "\n" + p["se"]
		if want := "0neFEEDC0DE%2fregistrations%2fmyRegistrationId\n1578941692"; strings.ReplaceAll(toSign, "%2F", "%2f") != want {
			t.Errorf("got %q, want %q", toSign, want)
		}
		mac := hmac.New(sha256.New, k)
		mac.Write([]byte(toSign))
		sig, err := url.PathUnescape(p["sig"])
		if err != nil || sig != base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			t.Error("what is sent as sr and se is not what was signed")
		}
	})
	t.Run("a space is %20, never a plus sign", func(t *testing.T) {
		if p := parts(t, token(k, "a b+c~", time.Unix(0, 0))); p["sr"] != "a%20b%2Bc~" {
			t.Errorf("sr is %s", p["sr"])
		}
	})
}

func TestTheSignatureOfATokenIsFoundInBase64(t *testing.T) {
	for text, want := range map[string]string{
		token(decode(t, hubKey), "0ne003D3F98/registrations/my-symkey-device", time.Unix(1663952627, 0)): "eNwg52xQdFTNf7bgPAlAJBCIcONivq/ck1lf3wtxI4A=",
		"SharedAccessSignature sr=x&sig=%zz&se=1":                                                        "%zz",
		"a password": "",
	} {
		if got := sas.Signature(text); got != want {
			t.Errorf("%s: got %q, want %q", text, got, want)
		}
	}
}

func TestPercentEncodingInTokensIsRFC3986(t *testing.T) {
	// Every byte that is not unreserved becomes a percent sign and two upper-case hex digits.
	const unreserved = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
	for b := range 256 {
		want := string([]byte{byte(b)})
		if !strings.Contains(unreserved, want) || b >= 0x80 {
			const hex = "0123456789ABCDEF"
			want = "%" + string([]byte{hex[b>>4], hex[b&15]})
		}
		if b == '*' {
			want = "%2a" // as in Microsoft's SDK for Node.js
		}
		if got := parts(t, token(nil, string([]byte{byte(b)}), time.Unix(0, 0)))["sr"]; got != want {
			t.Errorf("byte %#02x is sent as %s, not %s", b, got, want)
		}
	}
}
