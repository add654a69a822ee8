package redact_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"runtime"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/redact"
)

func TestTokens(t *testing.T) {
	for text, want := range map[string]string{
		"refused: SharedAccessSignature sr=0ne1%2Fregistrations%2Fgw&sig=aB%2Fc%3D&se=17&skn=registration, sorry": "refused: [masked] sorry",
		`{"token":"SharedAccessSignature sr=h.azure-devices.net%2Fdevices%2Fgw&sig=aB%2Fc%3D&se=17"}`:             `{"token":"[masked]"}`, // of a hub
		`{"m":"SharedAccessSignature sr=a&sig=b","n":1}`:                                                          `{"m":"[masked]","n":1}`,
		"/x?SharedAccessSignature%20sr%3Da%26sig%3Db z":                                                           "/x?[masked] z",
		"GET /?sr=a&sig=aB%2Fc%3D&se=1":                                                                           "GET /?sr=a&sig=[masked]&se=1",
		"sig%3DaB%252Fc":                                                                                          "sig=[masked]",
		"HostName=h;DeviceId=d;SharedAccessKey=aBc=;X=1":                                                          "HostName=h;DeviceId=d;SharedAccessKey=[masked];X=1",
		"Proxy-Authorization: Basic Z2F0ZXdheTpwYXNz":                                                             "Proxy-Authorization: Basic [masked]",
		"authorization: bearer eyJhbGciOi.eyJzd.Sfl":                                                              "authorization: bearer [masked]",
		"HTTPS_PROXY=http://gw:pa/ss@proxy:3128 and http://u@h":                                                   "HTTPS_PROXY=http://[masked]@proxy:3128 and http://[masked]@h",
		"a\n-----BEGIN EC PRIVATE KEY-----\nMHcC\n-----END EC PRIVATE KEY-----\nb":                                "a\n[masked]\nb",
		"-----BEGIN PRIVATE KEY-----\nMHcC\ncut":                                                                  "[masked]",
	} {
		if got := redact.Tokens(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
	for _, text := range []string{
		"the proxy wants basic authentication. A bearer of bad news.",
		"mqtts://global.azure-devices-provisioning.net:8883/x and somebody@example.net",
		"design=modern signature",
		"-----BEGIN CERTIFICATE-----",
	} {
		if got := redact.Tokens(text); got != text {
			t.Errorf("there is no secret in %q, which became %q", text, got)
		}
	}
}

func TestProse(t *testing.T) {
	for text, want := range map[string]string{
		"# old: mJ3kQ9xV2LrT8pZc1Wb7Yg==":                                       "# old: [masked]",
		"# 00112233445566778899aabbccddeeff":                                    "# [masked]",
		"# password = hunter2 of the proxy":                                     "# password = [masked] of the proxy",
		"# the password is hunter2":                                             "# the password is [masked]",
		"# a password is asked for in https://wiki.example/how-to-set-it-there": "# a password is [masked] for in https://wiki.example/how-to-set-it-there",
		`# secret: "credential:proxy-password"`:                                 `# secret: "credential:proxy-password"`,
		"# /usr/share/dpsd/examples/dpsd.toml":                                  "# /usr/share/dpsd/examples/dpsd.toml",
		"# 2026-11-23 08:15:42 1234567890123456789012":                          "# 2026-11-23 08:15:42 1234567890123456789012",
	} {
		if got := redact.Prose(text); got != want {
			t.Errorf("%q became %q, want %q", text, got, want)
		}
	}
}

func TestKnown(t *testing.T) {
	const password = `p/w"&<é 7+_`
	raw := []byte{0xfb, 1, 2, 0xff, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 0xfe}
	key := base64.StdEncoding.EncodeToString(raw)
	asJSON, _ := json.Marshal(password)
	private := privateKey(t)
	var known redact.Known
	known.Add([]byte(password + "\n"))
	known.Add([]byte(key))
	known.Add(private)
	known.Add([]byte("tiny"))
	known.Add([]byte("abc"))
	lines := strings.Split(string(private), "\n")
	for name, text := range map[string]string{
		"as it is":                     password,
		"in JSON":                      strings.Trim(string(asJSON), `"`),
		"in a query":                   url.QueryEscape(password),
		"in a path":                    url.PathEscape(password),
		"in small escapes":             strings.NewReplacer("%2B", "%2b", "%2F", "%2f", "%3D", "%3d").Replace(url.QueryEscape(key)),
		"in hex":                       hex.EncodeToString([]byte(password)),
		"in capital hex":               strings.ToUpper(hex.EncodeToString([]byte(password))),
		"in base64":                    base64.StdEncoding.EncodeToString([]byte(password)),
		"a key as the portal shows it": key,
		"a key without its padding":    strings.TrimRight(key, "="),
		"a key for addresses":          base64.URLEncoding.EncodeToString(raw),
		"the bytes of a key in hex":    hex.EncodeToString(raw),
		"a line of a private key":      lines[1],
		"the PEM of it in base64":      base64.StdEncoding.EncodeToString(private),
		"a word of four letters":       "tiny",
	} {
		t.Run("a secret is found "+name, func(t *testing.T) {
			got := known.Mask("before " + text + " after")
			if strings.Contains(got, strings.TrimRight(text, "=")) || !strings.HasPrefix(got, "before [") || !strings.HasSuffix(got, " after") {
				t.Errorf("%q became %q", text, got)
			}
		})
	}
	for _, before := range []string{"", "1", "12", "123"} {
		whole := base64.StdEncoding.EncodeToString([]byte(before + "gateway:" + password + "@x"))
		if got := known.Mask(whole); !strings.Contains(got, redact.Mark) {
			t.Errorf("%d bytes into the base64 of a longer text it is not found: %s", len(before)+8, got)
		}
	}
	for _, text := range []string{"destiny", "abc", "certificate"} {
		if got := known.Mask(text); got != text {
			t.Errorf("%q became %q", text, got)
		}
	}
	if got := new(redact.Known).Mask("text"); got != "text" {
		t.Errorf("with no secret known the text became %q", got)
	}
	t.Run("parts of a key and keys with blanks in them are found", func(t *testing.T) {
		for name, text := range map[string]string{
			"cut at the end":              key[:16],
			"cut at the begin":            key[8:],
			"its first 12 characters":     key[:12],
			"its last 12 characters":      strings.TrimSuffix(key, "==")[10:],
			"with blanks":                 key[:7] + " " + key[7:12] + "\n\t" + key[12:],
			"with escaped line feeds":     key[:7] + `\n` + key[7:],
			"with escaped blanks":         key[:7] + `\r\t\b\f` + key[7:],
			"in hex with blanks":          strings.Join(strings.Split(hex.EncodeToString(raw), ""), " "),
			"its bytes in hex, cut":       hex.EncodeToString(raw)[:13],
			"its last bytes in hex":       hex.EncodeToString(raw)[20:],
			"a password with blanks":      strings.Join(strings.Split("p/w\"&<é 7+_", ""), " "),
			"a password, twice":           "p/w é 7 + _ p/w é 7+_",
			"with an end that is escaped": key[:10] + strings.ReplaceAll(url.QueryEscape(key[10:]), "O", "%4f"),
		} {
			for _, around := range []struct{ before, after string }{{"", ""}, {"", " after"}, {"before ", ""}, {"before ", " after"}, {"", `\`}} {
				if got, want := known.Mask(around.before+text+around.after), around.before+redact.Mark+around.after; got != want {
					t.Errorf("%s, %q became %q", name, around.before+text+around.after, got)
				}
			}
		}
		wrapped := base64.StdEncoding.EncodeToString([]byte("x:" + key))
		if got := known.Mask(wrapped[:20]); got != wrapped[:3]+redact.Mark {
			t.Errorf("in base64, wrapped and cut, it became %q", got)
		}
		for _, text := range []string{key[:11], "two words", private256} {
			if got := known.Mask(text); got != text {
				t.Errorf("%q became %q", text, got)
			}
		}
	})
	t.Run("a key is found whatever is between its characters and however each is escaped", func(t *testing.T) {
		each := func(format string) string {
			var b strings.Builder
			for _, c := range []byte(key) {
				fmt.Fprintf(&b, format, c)
			}
			return b.String()
		}
		between := func(text, separator string, size int) string {
			var b strings.Builder
			for i := 0; i < len(text); i += size {
				b.WriteString(text[i:min(i+size, len(text))] + separator)
			}
			return b.String()
		}
		for name, text := range map[string]string{
			"no-break spaces":       between(key, "\u00a0", 1),
			"zero-width spaces":     between(key, "\u200b", 1),
			"bidi controls":         between(key, "\u202e", 1),
			"per cent":              each("%%%02X"),
			"JSON":                  each(`\u%04x`),
			"C":                     each(`\x%02x`),
			"HTML":                  each("&#%d;"),
			"HTML, hexadecimal":     each("&#x%x;"),
			"hex with colons":       between(hex.EncodeToString(raw), ":", 2),
			"hex with hyphens":      between(hex.EncodeToString([]byte(key)), "-", 2),
			"the base64 of its hex": base64.StdEncoding.EncodeToString([]byte("x" + hex.EncodeToString([]byte(key)))),
			"pieces":                between(key, " | ", 11),
		} {
			got := known.Mask("before " + text + " after")
			if !strings.HasPrefix(got, "before ") || !strings.HasSuffix(got, " after") || len(got) > 40 || strings.Count(got, redact.Mark) != 1 {
				t.Errorf("%s: %q became %q", name, text, got)
			}
		}
	})
	t.Run("a secret is found in every encoding of its bytes", func(t *testing.T) {
		const signature = "q7Xc0v/9mJ3kQ+xV2LrT8pZc1Wb7YgDA5uE4sN6hB0o="
		binary, _ := base64.StdEncoding.DecodeString(signature)
		list := func(format, separator string) func([]byte) string {
			return func(secret []byte) string {
				var all []string
				for _, c := range secret {
					all = append(all, fmt.Sprintf(format, c))
				}
				return strings.Join(all, separator)
			}
		}
		// wide is UTF-16 in one or the other byte order.
		wide := func(secret []byte, big bool) (units []byte) {
			for _, c := range secret {
				if big {
					units = append(units, 0, c)
				} else {
					units = append(units, c, 0)
				}
			}
			return units
		}
		encodings := map[string]func([]byte) string{
			"a decimal list":                 list("%d", ", "),
			"a decimal list in brackets":     func(b []byte) string { return "[" + list("%d", ",")(b) + "]" },
			"a decimal list with blanks":     func(b []byte) string { return fmt.Sprintf("%d", b) },
			"a decimal list with hyphens":    list("%d", "-"),
			"a padded decimal list, wrapped": list("%03d", "\n"),
			"an octal list":                  list("%03o", " "),
			"an octal list with prefixes":    list("0o%o", ", "),
			"octal escapes":                  list(`\%03o`, ""),
			"a hexadecimal list":             list("0x%02x", ", "),
			"a hexadecimal list in capitals": list("0X%X", ";"),
			"a hexadecimal list, not padded": list("%x", " "),
			"hexadecimal escapes":            list(`\x%02x`, ""),
			"code points":                    list("U+%04X", " "),
			"a binary list":                  list("%08b", " "),
			"numbers of an address":          list("%%%02X", ""),
			"signed bytes": func(b []byte) string {
				all := []string{}
				for _, c := range b {
					all = append(all, fmt.Sprint(int8(c)))
				}
				return strings.Join(all, ", ")
			},
			"base32":                          base32.StdEncoding.EncodeToString,
			"base32 without padding":          base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString,
			"base32 in small letters":         func(b []byte) string { return strings.ToLower(base32.StdEncoding.EncodeToString(b)) },
			"base32hex":                       base32.HexEncoding.EncodeToString,
			"base64url":                       base64.URLEncoding.EncodeToString,
			"base64url without padding":       base64.RawURLEncoding.EncodeToString,
			"base64url with escaped padding":  func(b []byte) string { return strings.ReplaceAll(base64.URLEncoding.EncodeToString(b), "=", "%3D") },
			"base64url with dots for padding": base64.URLEncoding.WithPadding('.').EncodeToString,
			"base64 that is wrapped":          func(b []byte) string { e := base64.StdEncoding.EncodeToString(b); return e[:20] + "\r\n" + e[20:] },
		}
		ofText := map[string]func([]byte) string{
			"a list of UTF-16LE": func(b []byte) string { return fmt.Sprintf("%d", wide(b, false)) },
			"hex of UTF-16LE":    func(b []byte) string { return hex.EncodeToString(wide(b, false)) },
			"hex of UTF-16BE":    func(b []byte) string { return strings.ToUpper(hex.EncodeToString(wide(b, true))) },
			"base64 of UTF-16LE": func(b []byte) string { return base64.StdEncoding.EncodeToString(wide(b, false)) },
			"base64 of UTF-16BE": func(b []byte) string { return base64.StdEncoding.EncodeToString(wide(b, true)) },
			"UTF-16LE":           func(b []byte) string { return string(wide(b, false)) },
		}
		ofBinary := map[string]func([]byte) string{
			"the bytes": func(b []byte) string { return string(b) },
			"the bytes as characters": func(b []byte) string {
				r := []rune{}
				for _, c := range b {
					r = append(r, rune(c))
				}
				return string(r)
			},
			"a string of C, mixed":             func(b []byte) string { return strings.Trim(fmt.Sprintf("%q", b), `"`) },
			"a string of JSON with characters": func(b []byte) string { return list(`\u%04x`, "")(b) },
		}
		var known redact.Known
		known.Add([]byte(signature))
		known.Add([]byte("hunter2"))
		// most is the number of bytes that may remain unmasked; with 0, only text that
		// belongs to no byte of the secret may remain.
		check := func(name, text string, most int) {
			t.Helper()
			got := known.Mask("before " + text + " after")
			rest := strings.TrimSuffix(strings.TrimPrefix(got, "before "), " after")
			around := strings.NewReplacer(redact.Mark, "", "%3D", "").Replace(rest)
			if !strings.Contains(rest, redact.Mark) || most > 0 && len(around) > most || most == 0 && strings.Trim(around, `[]=.\U+`) != "" {
				t.Errorf("%s: %q became %q", name, text, got)
			}
		}
		const ends = 8
		for name, encode := range encodings {
			check(name, encode([]byte(signature)), 0)
			check(name+", of the bytes", encode(binary), 0)
		}
		for name, encode := range ofText {
			check(name, encode([]byte(signature)), ends)
		}
		for name, encode := range ofBinary {
			check(name, encode(binary), 2*ends) // some bytes are escaped by name
		}
		check("a short password as a list", list("%d", ", ")([]byte("hunter2")), 0)
		for _, text := range []string{
			"192.168.0.1 10.0.0.138 00:1b:44:11:3a:b7 2026-11-29T13:14:15.161718Z 1, 2, 3, 4, 5, 6, 7, 8",
			`C:\new\101\141\tmp &#38; %20 \x`, "%", `\`, "&#", "-", "x", "0x",
		} {
			if got := known.Mask(text); got != text {
				t.Errorf("%q became %q", text, got)
			}
		}
	})
	t.Run("a private key that encoding/pem does not recognize is found", func(t *testing.T) {
		certificate := strings.ReplaceAll(string(private), "PRIVATE KEY", "CERTIFICATE")
		for name, file := range map[string]string{
			"a byte order mark":                           "\ufeff" + string(private),
			"no line feed between it and a certificate":   strings.TrimSpace(strings.Replace(certificate, "M", "N", 1)) + string(private),
			"blanks in front of its lines":                "  " + strings.ReplaceAll(string(private), "\n", "\n  "),
			"an end that is cut off":                      strings.TrimSuffix(string(private), "-----\n"),
			"a truncated certificate in front of the key": certificate[:60] + "\n" + string(private),
		} {
			var known redact.Known
			known.Add([]byte(file))
			if got := known.Mask("before " + lines[1] + " after"); got != "before "+redact.Mark+" after" {
				t.Errorf("%s: it became %q", name, got)
			}
		}
	})
	t.Run("a certificate is not masked", func(t *testing.T) {
		certificate := strings.ReplaceAll(string(private), "PRIVATE KEY", "CERTIFICATE")
		var known redact.Known
		known.Add([]byte(certificate))
		if got := known.Mask(certificate); got != certificate {
			t.Errorf("it became %q", got)
		}
	})
}

func TestTheLengthOfASecretDecidesWhereItIsFound(t *testing.T) {
	of := func(secrets ...string) (known redact.Known) {
		for _, secret := range secrets {
			known.Add([]byte(secret))
		}
		return known
	}
	// The second line of this key has 8 characters, none of which is escaped.
	private := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: append(make([]byte, 48), 1, 2, 3, 4, 5, 6)})
	binary := strings.Repeat("\xff", 8)
	for _, tt := range []struct {
		name       string
		known      redact.Known
		text, want string
	}{
		{"3 bytes nowhere", of("abc"), "abc", "abc"},
		{"4 bytes where they are the text", of("tiny"), "tiny", "[masked]"},
		{"4 bytes where they are a word, each time", of("tiny"), "tiny, tiny", "[masked], [masked]"},
		{"4 bytes at the end, not within a word before", of("tiny"), "destiny tinyer tiny", "destiny tinyer [masked]"},
		{"7 bytes not within a word", of("abcdefg"), "xabcdefgy", "xabcdefgy"},
		{"8 bytes within a word", of("abcdefgh"), "xabcdefghy", "x[masked]y"},
		{"8 bytes that are no text within a word", of(binary), "x" + binary + "y", "x[masked]y"},
		{"a line of 8 characters of a private key within a word", of(string(private)), "xAQIDBAUGy", "x[masked]y"},
		{"8 bytes in blanks", of("abcdefgh"), "a b c d e f g h", "[masked]"},
		{"7 bytes not in blanks", of("abcdefg"), "a b c d e f g", "a b c d e f g"},
		{"8 bytes with all else escaped", of("a!b!c!d!"), "a%21b%21c%21d%21", "[masked]"},
		{"256 bytes with all else escaped", of(strings.Repeat("a!", 128)), strings.Repeat("a%21", 128), "[masked]"},
		{"the 8 bytes of a key in hex", of("AAECAwQFBgc="), "0001020304050607", "[masked]"},
		{"the 7 bytes of what may be a word not in hex", of("AAECAwQFBg=="), "00010203040506", "00010203040506"},
		{"6 bytes in the base64 of themselves", of("secret"), base64.StdEncoding.EncodeToString([]byte("secret")), "[masked]"},
		{"7 bytes at the first place in base64", of("secret1"), base64.StdEncoding.EncodeToString([]byte("gw:secret1~~")), "Z3c6[masked]X5+"},
		{"7 bytes at the second place", of("secret1"), base64.StdEncoding.EncodeToString([]byte("asecret1~~~")), "YX[masked]F+fn4="},
		{"7 bytes at the third place", of("secret1"), base64.StdEncoding.EncodeToString([]byte("absecret1~~~")), "YWJ[masked]fn5+"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.known.Mask(tt.text); got != tt.want {
				t.Errorf("%q became %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}

func privateKey(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// private256 is the beginning of all P-256 public keys, which private keys contain too.
const private256 = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE"

// BenchmarkMask masks a usual text and the longest text from a peer.
func BenchmarkMask(b *testing.B) {
	var known redact.Known
	known.Add([]byte("q7Xc0v/9mJ3kQ+xV2LrT8pZc1Wb7YgDA5uE4sN6hB0o="))
	known.Add([]byte("q7Xc0v%2F9mJ3kQ%2BxV2LrT8pZc1Wb7YgDA5uE4sN6hB0o%3D"))
	line := `dps: the service answered 401, error 401002: {"errorCode":401002,"trackingId":"5d32e4f1-9a0b-4c7e","message":"not authorized","timestampUtc":"2026-11-29T13:14:15Z"} `
	for name, text := range map[string]string{
		"an answer":          line,
		"190 kB of text":     strings.Repeat(line, 190_000/len(line)),
		"190 kB of numbers":  strings.Repeat("83, 105, ", 190_000/9),
		"190 kB of escapes":  strings.Repeat(`\123\x5`, 190_000/7),
		"190 kB of one word": strings.Repeat("0", 190_000),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				known.Mask(text)
			}
		})
	}
	b.Run("the secrets themselves", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			var known redact.Known
			known.Add([]byte("q7Xc0v/9mJ3kQ+xV2LrT8pZc1Wb7YgDA5uE4sN6hB0o="))
		}
	})
}

func TestMaskingTakesMemoryInProportionToTheText(t *testing.T) {
	var known redact.Known
	known.Add([]byte("q7Xc0v/9mJ3kQ+xV2LrT8pZc1Wb7YgDA5uE4sN6hB0o="))
	for _, unit := range []string{"83, 105, ", `\123\x5`, "0", "%", "q7Xc0v/9mJ3k ", "&#83; ", `\u0053`} {
		text := strings.Repeat(unit, 190_000/len(unit))
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		known.Mask(text)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > 120*uint64(len(text)) {
			t.Errorf("%q, repeated to %d bytes, takes %d bytes of memory", unit, len(text), took)
		}
	}
}
