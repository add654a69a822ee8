package attest_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
)

// Keys of the published test vectors.
const (
	groupKey = "8isrFI1sGsIlvvFSSFRiMfCNzv21fjbE/+ah/lSh3lF8e2YG1Te7w1KpZhJFFXJrqYKi9yegxkqIChbqOS9Egw=="
	hubKey   = "18RQk/hOPJR9EbsJlk2j8WA6vWaj/yi+oaYg7zmxfQNdOyMSu+SJ8O7TSlZhDJCYmn4rzEiVKIzNiVAWjLxrGA=="
	serial   = "sn-007-888-abc-mac-a1-b2-c3-d4-e5-f6"
)

func decode(t *testing.T, text string) []byte {
	t.Helper()
	key, err := attest.DecodeKey([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func derive(t *testing.T, id string) string {
	t.Helper()
	return base64.StdEncoding.EncodeToString(attest.DeriveKey(decode(t, groupKey), id))
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

func TestDerivedKeyVectors(t *testing.T) {
	for _, c := range []struct{ name, id, key string }{
		{"V1: the derived key equals the published one", serial, "Jsm0lyGpjaVYVP2g3FnmnmG9dI/9qU24wNoykUmermc="},
		{"V1: an ID in upper case derives the other value in circulation", strings.ToUpper(serial), "9GWVnYuoOLXlHc346XjhLRb9pKgIOrKSwxDRSOgnvXo="},
		{"V5: special characters are part of the derivation", "gw:site-01.unit_7", "TMuMF2vl4VdYyNACXKodhgW8fN8tS68rHDlIQfQdrkg="},
		{"V5: mixed case derives another key", "GW:Site-01.Unit_7", "61LOa7esLmyaKWtaGLy66OmkizMplHHXwkzsheSBySQ="},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := derive(t, c.id); got != c.key {
				t.Errorf("got %s, want %s", got, c.key)
			}
		})
	}
	t.Run("V1: the group key is decoded before use", func(t *testing.T) {
		undecoded := base64.StdEncoding.EncodeToString(attest.DeriveKey([]byte(groupKey), serial))
		if want := "/eqtUSc3oy1gyllte8P+6Y0WjjLFOc3tWeUuSgRh8x8="; undecoded != want {
			t.Fatalf("the wrong key is not the known wrong key: %s", undecoded)
		}
		if derive(t, serial) == undecoded {
			t.Error("the key was used as text")
		}
	})
	t.Run("V1: a newline in the ID gives the known wrong key, not the right key", func(t *testing.T) {
		withNewline := derive(t, serial+"\n")
		if want := "9xk+A3Y29nEzASjuakJUhcmNyb4ZjibgUKRXPMBArUU="; withNewline != want {
			t.Fatalf("got %s, want %s", withNewline, want)
		}
		if derive(t, serial) == withNewline {
			t.Error("the key was derived from an ID with a newline")
		}
	})
}

func TestTokenVectors(t *testing.T) {
	k := decode(t, hubKey)
	derived := attest.DeriveKey(decode(t, groupKey), serial)

	t.Run("V2: the token of the derived key is identical", func(t *testing.T) {
		got := attest.Token(derived, "0ne00111111/registrations/"+serial, time.Unix(1700000000, 0))
		want := "SharedAccessSignature sr=0ne00111111%2Fregistrations%2Fsn-007-888-abc-mac-a1-b2-c3-d4-e5-f6&sig=2srIk05%2FHc3kiyY2AcAwJosiRYk6C6jOscAYhKLO2L8%3D&se=1700000000&skn=registration"
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	})
	t.Run("V3: the published token of a hub has this signature", func(t *testing.T) {
		p := parts(t, attest.Token(k, "MyExampleHub.azure-devices.net/devices/my-symkey-device", time.Unix(1663119026, 0)))
		if want := "f%2BwW8XOKeJOtiPc9Iwjc4OpExvPM7NlhM9qxN2a1aAM%3D"; p["sig"] != want {
			t.Errorf("got %s, want %s", p["sig"], want)
		}
		if p["se"] != "1663119026" {
			t.Errorf("se is %s", p["se"])
		}
	})
	t.Run("V4: the published token of DPS is reproduced", func(t *testing.T) {
		p := parts(t, attest.Token(k, "0ne003D3F98/registrations/my-symkey-device", time.Unix(1663952627, 0)))
		if want := "eNwg52xQdFTNf7bgPAlAJBCIcONivq%2Fck1lf3wtxI4A%3D"; p["sig"] != want {
			t.Errorf("got %s, want %s", p["sig"], want)
		}
		if want := "0ne003D3F98%2Fregistrations%2Fmy-symkey-device"; p["sr"] != want {
			t.Errorf("the signed resource is %s, not %s", p["sr"], want)
		}
	})
	t.Run("V4: the token as printed today, with its scope replaced, does not verify", func(t *testing.T) {
		got := signature(t, attest.Token(k, "0ne00111111/registrations/my-symkey-device", time.Unix(1663952627, 0)))
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
		got := signature(t, attest.Token(k, "0ne003D3F98/registrations/my-symkey-device", expiry))
		lowered := signature(t, attest.Token(k, "0ne003d3f98/registrations/my-symkey-device", expiry))
		if want := "ct4iuHZwwI8oQslf1A6BrCpkkSLcwFXpNAnKQtye8ts="; lowered != want {
			t.Errorf("a scope given in lower case signs to %s, not %s", lowered, want)
		}
		if got == lowered || got == "6bWV/hQqfS3eL4UNDGQOr69nAtK2jIFX4IGgN6jP6oI=" {
			t.Error("the resource was lower-cased")
		}
	})
	t.Run("V5: a colon is sent and signed as %3A, dot and underscore as they are", func(t *testing.T) {
		id := "gw:site-01.unit_7"
		p := parts(t, attest.Token(attest.DeriveKey(decode(t, groupKey), id), "0ne00111111/registrations/"+id, time.Unix(1700000000, 0)))
		if want := "0ne00111111%2Fregistrations%2Fgw%3Asite-01.unit_7"; p["sr"] != want {
			t.Errorf("sr is %s, not %s", p["sr"], want)
		}
		if want := "WzoiBJ0O3p17vpn0kb1%2B%2FUretOemNfEpa6HRZ%2BH4y0s%3D"; p["sig"] != want {
			t.Errorf("sig is %s, not %s", p["sig"], want)
		}
	})
	t.Run("V6: the string to sign keeps the capitals, and differs from the SDK's in the case of the hex digits only", func(t *testing.T) {
		p := parts(t, attest.Token(k, "0neFEEDC0DE/registrations/myRegistrationId", time.Unix(1578941692, 0)))
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
		if p := parts(t, attest.Token(k, "a b+c~", time.Unix(0, 0))); p["sr"] != "a%20b%2Bc~" {
			t.Errorf("sr is %s", p["sr"])
		}
	})
}

func TestTheSignatureOfATokenIsFoundInBase64(t *testing.T) {
	for token, want := range map[string]string{
		attest.Token(decode(t, hubKey), "0ne003D3F98/registrations/my-symkey-device", time.Unix(1663952627, 0)): "eNwg52xQdFTNf7bgPAlAJBCIcONivq/ck1lf3wtxI4A=",
		"SharedAccessSignature sr=x&sig=%zz&se=1": "%zz",
		"a password": "",
	} {
		if got := attest.Signature(token); got != want {
			t.Errorf("%s: got %q, want %q", token, got, want)
		}
	}
}

func TestDecodeKey(t *testing.T) {
	raw := func(n int) string { return base64.StdEncoding.EncodeToString(make([]byte, n)) }
	for _, c := range []struct {
		name, text string
		want       error
		size       int
	}{
		{"a key of 16 bytes is accepted", raw(16), nil, 16},
		{"a key of 64 bytes is accepted", raw(64), nil, 64},
		{"15 bytes are too few", raw(15), attest.ErrKeyLength, 0},
		{"65 bytes are too many", raw(65), attest.ErrKeyLength, 0},
		{"an empty key is too short", "", attest.ErrKeyLength, 0},
		{"white space around the key is ignored", " \t\r\n" + groupKey + "\r\n\n", nil, 64},
		{"a key wrapped by base64(1) is accepted", groupKey[:76] + "\n" + groupKey[76:] + "\n", nil, 64},
		{"two keys in a file are invalid", groupKey + "\n" + groupKey, attest.ErrNotBase64, 0},
		{"a truncated key is invalid", groupKey[:50], attest.ErrNotBase64, 0},
		{"base64 without padding is invalid", strings.TrimRight(groupKey, "="), attest.ErrNotBase64, 0},
		{"the base64 alphabet for URLs is invalid", strings.ReplaceAll(groupKey, "/", "_"), attest.ErrNotBase64, 0},
		{"a connection string is not a key", "HostName=x;SharedAccessKey=" + groupKey, attest.ErrNotBase64, 0},
		{"a PEM file is not a key", "-----BEGIN PRIVATE KEY-----\n", attest.ErrNotBase64, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			key, err := attest.DecodeKey([]byte(c.text))
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Fatalf("got error %v, want %v", err, c.want)
			}
			if len(key) != c.size {
				t.Errorf("got %d bytes, want %d", len(key), c.size)
			}
			if err != nil && strings.Contains(err.Error(), groupKey[:10]) {
				t.Errorf("the error contains the key: %v", err)
			}
		})
	}
}

func TestSymmetricKeyProof(t *testing.T) {
	file := filepath.Join(t.TempDir(), "key")
	write(t, file, groupKey+"\n")
	c := attest.SymmetricKey{Key: attest.Reference{File: file}}
	sub := attest.Subject{Resource: "0ne00111111/registrations/gw-1", RegistrationID: "gw-1"}
	now := time.Date(2026, 11, 23, 8, 0, 0, 999, time.UTC)

	t.Run("the token is valid for one hour, and there is no certificate", func(t *testing.T) {
		p, err := c.Prove(context.Background(), sub, attest.Secrets{}, now)
		if err != nil {
			t.Fatal(err)
		}
		end := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
		if want := attest.Token(decode(t, groupKey), sub.Resource, end); p.Password != want {
			t.Errorf("got %s, want %s", p.Password, want)
		}
		if !p.Expires.Equal(end) || p.Certificate != nil {
			t.Errorf("expires %v, certificate %v", p.Expires, p.Certificate)
		}
	})
	t.Run("a renewed key signs the next proof", func(t *testing.T) {
		write(t, file, hubKey)
		p, err := c.Prove(context.Background(), sub, attest.Secrets{}, now)
		if err != nil {
			t.Fatal(err)
		}
		if want := attest.Token(decode(t, hubKey), sub.Resource, p.Expires); p.Password != want {
			t.Error("the token was not made with the new key")
		}
	})
	t.Run("the error about a key that is not base64 names its reference without its text", func(t *testing.T) {
		write(t, file, "S3CRET not base64")
		_, err := c.Prove(context.Background(), sub, attest.Secrets{}, now)
		var secret *attest.SecretError
		if !errors.As(err, &secret) || !errors.Is(err, attest.ErrNotBase64) {
			t.Fatalf("got %v", err)
		}
		if secret.Reference != c.Key || secret.Path != file || strings.Contains(err.Error(), "S3CRET") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("its name consists of its type and its reference", func(t *testing.T) {
		c := attest.SymmetricKey{Key: attest.Reference{Credential: "dps-primary-key"}}
		if got := c.String(); got != "symmetric-key credential:dps-primary-key" {
			t.Errorf("got %q", got)
		}
		if got := c.References(); len(got) != 1 || got[0] != c.Key {
			t.Errorf("it refers to %v", got)
		}
	})
	t.Run("without a reference there is no proof", func(t *testing.T) {
		if _, err := (attest.SymmetricKey{}).Prove(context.Background(), sub, attest.Secrets{}, now); !errors.Is(err, attest.ErrNoReference) {
			t.Errorf("got %v", err)
		}
	})
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
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
		if got := parts(t, attest.Token(nil, string([]byte{byte(b)}), time.Unix(0, 0)))["sr"]; got != want {
			t.Errorf("byte %#02x is sent as %s, not %s", b, got, want)
		}
	}
}
