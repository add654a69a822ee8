package enroll

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"
	"testing"
	"time"
)

const explainedScope = "0neABCDEF01"

// explained returns entries with a group and two individual enrollments, and their keys.
func explained(t *testing.T) (entries Entries, group, individual, other []byte) {
	t.Helper()
	group, individual, other = unbase64(t, vectorGroupKey), unbase64(t, vectorKey), []byte(strings.Repeat("o", 32))
	base := base64.StdEncoding.EncodeToString
	entries, err := Compile(&Enrollments{
		Individuals: []Individual{
			{RegistrationID: "press-7", Attestation: Attestation{Type: "symmetric-key", PrimaryKey: base(individual)}},
			{RegistrationID: "press-8", Attestation: Attestation{Type: "symmetric-key", PrimaryKey: base(other)}},
			{RegistrationID: "camera-1", Attestation: Attestation{Type: "x509"}, Thumbprint: strings.Repeat("0", 40)},
		},
		Groups: []Group{{Name: "keys", Attestation: Attestation{Type: "symmetric-key", PrimaryKey: base(group)}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return entries, group, individual, other
}

// written is a token as a device writes it: what it signs, with which key, and what it sends.
type written struct {
	signed    string // "": what the service verifies
	sr, se    string
	key       []byte
	signature string // instead of the percent-encoded base64 of the HMAC-SHA256
}

func (w written) String() string {
	if w.signed == "" {
		w.signed = w.sr + "\n" + w.se
	}
	if w.signature == "" {
		w.signature = url.QueryEscape(base64.StdEncoding.EncodeToString(sign(w.signed, w.key)))
	}
	return "SharedAccessSignature sr=" + w.sr + "&sig=" + w.signature + "&se=" + w.se
}

func TestAWrongTokenIsExplainedWithItsLikelyMistake(t *testing.T) {
	entries, group, individual, other := explained(t)
	base := base64.StdEncoding.EncodeToString
	const se = "1900000000"
	sr := func(id string) string { return escaped(explainedScope, id) }
	plain := explainedScope + "/registrations/gw-1"
	gw := DeriveKey(group, "gw-1")
	digest := sign(sr("gw-1")+"\n"+se, gw)
	sha := func(mac interface {
		Write([]byte) (int, error)
		Sum([]byte) []byte
	}) string {
		_, _ = mac.Write([]byte(sr("gw-1") + "\n" + se))
		return url.QueryEscape(base(mac.Sum(nil)))
	}
	for _, c := range []struct {
		name  string
		id    string
		token fmt.Stringer
		want  string
	}{
		{"the key of the group itself", "gw-1", written{sr: sr("gw-1"), se: se, key: group}, "The group key itself was used."},
		{"the text of the group's key", "gw-1", written{sr: sr("gw-1"), se: se, key: []byte(vectorGroupKey)}, "The base64 text of the group key was used."},
		{"the text of the derived key", "gw-1", written{sr: sr("gw-1"), se: se, key: []byte(base(gw))}, "Decode the key from base64 before you sign with it."},
		{"a key that was derived from the text of the group's key", "gw-1", written{sr: sr("gw-1"), se: se, key: DeriveKey([]byte(vectorGroupKey), "gw-1")}, "Decode the group key from base64 before you derive"},
		{"a key that was derived twice", "gw-1", written{sr: sr("gw-1"), se: se, key: DeriveKey(gw, "gw-1")}, "The device key was derived twice."},
		{"a key for the ID and a line feed", "gw-1", written{sr: sr("gw-1"), se: se, key: DeriveKey(group, "gw-1\n")}, "which echo adds without -n"},
		{"a registration ID with capitals and a key for the small letters", "GW-1", written{sr: sr("GW-1"), se: se, key: gw}, `The device key was derived for "gw-1", but the device registers as "GW-1".`},
		{"a registration ID with small letters and a key for the capitals", "gw-1", written{sr: sr("gw-1"), se: se, key: DeriveKey(group, "GW-1")}, `The device key was derived for "GW-1", but the device registers as "gw-1".`},
		{"a device with an individual enrollment and a group key", "press-7", written{sr: sr("press-7"), se: se, key: DeriveKey(group, "press-7")}, `derived from the key of the group "keys", but the device's individual enrollment takes precedence`},
		{"the key of another individual enrollment", "press-7", written{sr: sr("press-7"), se: se, key: other}, `The key belongs to the individual enrollment of "press-8".`},
		{"a group's device with the key of an individual enrollment", "gw-1", written{sr: sr("gw-1"), se: se, key: individual}, `The key belongs to the individual enrollment of "press-7".`},
		{"a key that was derived from that of an individual enrollment", "press-7", written{sr: sr("press-7"), se: se, key: DeriveKey(individual, "press-7")}, "Sign with the enrollment's key itself."},
		{"the text of an individual enrollment's key", "press-7", written{sr: sr("press-7"), se: se, key: []byte(vectorKey)}, "Decode the key from base64 before you sign with it."},

		{"a resource that was signed without percent-encoding", "gw-1", written{signed: plain + "\n" + se, sr: sr("gw-1"), se: se, key: gw}, "The sr in the token differs from the text that was signed"},
		{"a resource that was sent without percent-encoding", "gw-1", written{signed: sr("gw-1") + "\n" + se, sr: plain, se: se, key: gw}, "The sr in the token differs from the text that was signed"},
		{"hexadecimal digits of another case", "gw-1", written{signed: strings.ReplaceAll(sr("gw-1"), "%2F", "%2f") + "\n" + se, sr: sr("gw-1"), se: se, key: gw}, "The sr in the token differs from the text that was signed"},
		{"a resource that was lower-cased before it was signed", "gw-1", written{signed: strings.ToLower(sr("gw-1")) + "\n" + se, sr: sr("gw-1"), se: se, key: gw}, "differs in case"},
		{"a resource that was percent-encoded twice before it was signed", "gw-1", written{signed: url.QueryEscape(sr("gw-1")) + "\n" + se, sr: sr("gw-1"), se: se, key: gw}, "percent-encoded twice"},
		{"no line feed", "gw-1", written{signed: sr("gw-1") + se, sr: sr("gw-1"), se: se, key: gw}, "The text that was signed has no line feed between sr and se."},
		{"a backslash and n", "gw-1", written{signed: sr("gw-1") + `\n` + se, sr: sr("gw-1"), se: se, key: gw}, "A backslash and the letter n"},
		{"a carriage return", "gw-1", written{signed: sr("gw-1") + "\r\n" + se, sr: sr("gw-1"), se: se, key: gw}, "A carriage return"},
		{"a line feed at the end", "gw-1", written{signed: sr("gw-1") + "\n" + se + "\n", sr: sr("gw-1"), se: se, key: gw}, "The text that was signed ends with a line feed."},
		{"seconds signed and milliseconds sent", "gw-1", written{signed: sr("gw-1") + "\n" + se, sr: sr("gw-1"), se: se + "000", key: gw}, "in a different unit"},
		{"milliseconds signed and seconds sent", "gw-1", written{signed: sr("gw-1") + "\n" + se + "000", sr: sr("gw-1"), se: se, key: gw}, "in a different unit"},
		{"a wrong key and an expiry in milliseconds", "gw-1", written{sr: sr("gw-1"), se: se + "000", key: []byte("unknown")}, "The se looks like milliseconds."},
		{"two mistakes, the group's key and no line feed", "gw-1", written{signed: sr("gw-1") + se, sr: sr("gw-1"), se: se, key: group}, "derived from it. The text that was signed has no line feed"},
		{"an unknown key", "gw-1", written{sr: sr("gw-1"), se: se, key: []byte("unknown")}, "Compare the key and the registration ID with the enrollment."},

		{"a signature in hexadecimal", "gw-1", written{sr: sr("gw-1"), se: se, signature: hex.EncodeToString(digest)}, "The signature looks hexadecimal."},
		{"the base64 of hexadecimal digits", "gw-1", written{sr: sr("gw-1"), se: se, signature: url.QueryEscape(base([]byte(hex.EncodeToString(digest))))}, "The signature is the base64 of hexadecimal digits."},
		{"HMAC-SHA1", "gw-1", written{sr: sr("gw-1"), se: se, signature: sha(hmac.New(sha1.New, gw))}, "HMAC-SHA1"},
		{"HMAC-SHA512", "gw-1", written{sr: sr("gw-1"), se: se, signature: sha(hmac.New(sha512.New, gw))}, "HMAC-SHA512"},
		{"a plus sign that became a space", "gw-1", written{sr: sr("gw-1"), se: se, signature: "a b"}, "+ becomes %2B"},
		{"a signature that was percent-encoded twice", "gw-1", written{sr: sr("gw-1"), se: se, signature: "AA%253D%253D"}, "The signature was percent-encoded twice."},
		{"a signature in base64url", "gw-1", written{sr: sr("gw-1"), se: se, signature: "-_-_"}, "base64url"},
		{"a signature without its padding", "gw-1", written{sr: sr("gw-1"), se: se, signature: "AA"}, "is missing the = at the end"},

		{"an expiry in the past", "gw-1", written{sr: sr("gw-1"), se: "1700000000", key: gw}, "the device's clock is behind"},
		{"a lifetime instead of an expiry", "gw-1", written{sr: sr("gw-1"), se: "3600", key: gw}, "The se looks like a lifetime"},
		{"an expiry with a fraction", "gw-1", written{sr: sr("gw-1"), se: "1900000000.5", key: gw}, "whole seconds"},
		{"a hub's token", "gw-1", written{sr: url.QueryEscape("h.azure-devices.net/devices/gw-1"), se: se, key: gw}, "The token is for an IoT hub."},
		{"the scope of another service", "gw-1", written{sr: escaped("0neFFFFFFFF", "gw-1"), se: se, key: gw}, "The ID scope belongs to a different DPS instance."},
		{"a resource that was percent-encoded twice", "gw-1", written{sr: url.QueryEscape(sr("gw-1")), se: se, key: gw}, "The sr was percent-encoded twice."},
		{"a token for a device that is enrolled with a certificate", "camera-1", written{sr: sr("camera-1"), se: se, key: gw}, "requires a certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, refusal := entries.ByToken(explainedScope, c.id, c.token.String(), time.Unix(1800000000, 0))
			if refusal == nil {
				t.Fatal("the token was accepted")
			}
			if got := refusal.String(); !strings.Contains(got, c.want) {
				t.Errorf("%s\ndoes not say %q", got, c.want)
			}
		})
	}
	t.Run("the texts that were expected and given", func(t *testing.T) {
		_, refusal := entries.ByToken(explainedScope, "gw-1", written{signed: plain + "\n" + se, sr: sr("gw-1"), se: se, key: gw}.String(), time.Unix(1800000000, 0))
		want := `the HMAC-SHA256 of "0neABCDEF01%2Fregistrations%2Fgw-1\n1900000000" with the device key that is derived for "gw-1" from the key of the group "keys"`
		if refusal.Expected != want {
			t.Errorf("expected %s\nwant     %s", refusal.Expected, want)
		}
		if want := `the signature of "0neABCDEF01/registrations/gw-1\n1900000000"`; refusal.Given != want {
			t.Errorf("given %s\nwant  %s", refusal.Given, want)
		}
		_, refusal = entries.ByToken(explainedScope, "gw-1", written{sr: sr("GW-1"), se: se, key: []byte("unknown")}.String(), time.Unix(1800000000, 0))
		if want := `a different signature; the token's sr and se give "0neABCDEF01%2Fregistrations%2FGW-1\n1900000000"`; refusal.Given != want {
			t.Errorf("given %s\nwant  %s", refusal.Given, want)
		}
	})
	t.Run("a device without an enrollment", func(t *testing.T) {
		_, refusal := Entries{}.ByToken(explainedScope, "gw-1", written{sr: sr("gw-1"), se: se, key: gw}.String(), time.Unix(1800000000, 0))
		if refusal.Code != 404201 || !strings.Contains(refusal.Expected, `an individual enrollment of "gw-1"`) {
			t.Errorf("%+v", refusal)
		}
	})
}

func TestAnExplanationNeverContainsAKeyOrASignature(t *testing.T) {
	entries, group, _, _ := explained(t)
	base := base64.StdEncoding.EncodeToString
	gw := base(DeriveKey(group, "gw-1"))
	sr := escaped(explainedScope, "gw-1")
	for name, password := range map[string]string{
		"the key as the password":               gw,
		"the key after the prefix":              "SharedAccessSignature " + gw,
		"the key as the name of a parameter":    "SharedAccessSignature " + gw + "=1&sr=a",
		"the key as sr":                         "SharedAccessSignature sr=" + gw + "&sig=AA%3D%3D&se=1900000000",
		"the key as skn":                        "SharedAccessSignature sr=a&sig=AA%3D%3D&se=1900000000&skn=" + gw,
		"the key as se":                         "SharedAccessSignature sr=a&sig=AA%3D%3D&se=" + gw,
		"the percent-encoded key as se":         "SharedAccessSignature sr=a&sig=AA%3D%3D&se=" + url.QueryEscape(gw),
		"the key as sig":                        "SharedAccessSignature sr=" + sr + "&se=1900000000&sig=" + url.QueryEscape(gw),
		"a connection string":                   "HostName=h;DeviceId=gw-1;SharedAccessKey=" + gw,
		"the group's key of 64 bytes as sr":     "SharedAccessSignature sr=" + vectorGroupKey + "&sig=AA%3D%3D&se=1900000000",
		"a token that the group key has signed": written{sr: sr, se: "1900000000", key: group}.String(),
	} {
		t.Run(name, func(t *testing.T) {
			_, refusal := entries.ByToken(explainedScope, "gw-1", password, time.Unix(1800000000, 0))
			text := refusal.String()
			signature := base64.StdEncoding.EncodeToString(sign(sr+"\n1900000000", group))
			for _, secret := range []string{gw, url.QueryEscape(gw), vectorGroupKey, "AA%3D", signature, url.QueryEscape(signature)} {
				if strings.Contains(text, secret) {
					t.Errorf("%s contains %s", text, secret)
				}
			}
		})
	}
}

func TestQuote(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a line feed is escaped", "a\nb", `"a\nb"`},
		{"an escape sequence is escaped", "\x1b[2J", `"\x1b[2J"`},
		{"invalid UTF-8 is escaped", "\xff", `"\xff"`},
		{"a direction mark is escaped", "a\u202eb", `"a\u202eb"`},
		{"letters of other languages are shown", "Tür", `"Tür"`},
		{"a long text is truncated", strings.Repeat("ä,", 200), `"` + strings.Repeat("ä,", 100) + `…"`},
		{"a key is masked", "k=" + vectorKey, `"k=[masked]"`},
		{"a registration ID of 60 letters is shown", strings.Repeat("a", 60), `"` + strings.Repeat("a", 60) + `"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := Quote(c.text); got != c.want {
				t.Errorf("got %s, want %s", got, c.want)
			}
		})
	}
}
