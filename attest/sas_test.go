package attest_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/attest"
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

// registrationToken returns the token for DPS that key signs.
func registrationToken(key []byte, resource string, expiry time.Time) string {
	return sas.Token(resource, sas.MAC(key, sas.Statement(resource, expiry)), expiry, "registration")
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
		if want := registrationToken(decode(t, groupKey), sub.Resource, end); p.Password != want {
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
		if want := registrationToken(decode(t, hubKey), sub.Resource, p.Expires); p.Password != want {
			t.Error("the token was not made with the new key")
		}
	})
	t.Run("it authenticates a statement", func(t *testing.T) {
		mac, err := c.MAC(context.Background(), attest.Secrets{}, []byte("a statement"))
		if err != nil || !bytes.Equal(mac, sas.MAC(decode(t, hubKey), []byte("a statement"))) {
			t.Errorf("got %x, %v", mac, err)
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
		if mac, same := c.MAC(context.Background(), attest.Secrets{}, nil); mac != nil || same == nil || same.Error() != err.Error() {
			t.Errorf("MAC returns %x, %v", mac, same)
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
