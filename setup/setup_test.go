package setup_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/setup"
)

// key returns the text of a key of a size, and the key.
func key(size int) (string, []byte) {
	raw := bytes.Repeat([]byte{0xfb, 1, 2, 0xff}, 16)[:size]
	return base64.StdEncoding.EncodeToString(raw), raw
}

func TestAKeyIsFoundInTheFormsInWhichPeopleCopyIt(t *testing.T) {
	for _, size := range []int{32, 64} {
		text, raw := key(size)
		for name, copied := range map[string]string{
			"as it is":                    text,
			"with blanks around it":       "  " + text + "\r\n",
			"in double quotes":            `"` + text + `"`,
			"in typographic quotes":       "“" + text + "”",
			"in quotes with a comma":      `"` + text + `",`,
			"with a line break":           text[:20] + "\r\n" + text[20:],
			"with a line break in quotes": `"` + text[:20] + "\n" + text[20:] + `"`,
			"with its name in JSON":       `"primaryKey": "` + text + `"`,
			"with its name in a shell":    "DPS_SYMMETRIC_KEY=" + text,
			"as a terminal marks a paste": "\x1b[200~" + text + "\x1b[201~",
			"with a no-break space":       text + "\u00a0",
		} {
			got, note, err := setup.ParseKey([]byte(copied), "the text")
			if err != nil || !bytes.Equal(got, raw) {
				t.Errorf("%d bytes %s: %x, %v", size, name, got, err)
			}
			if asIs := strings.TrimSpace(strings.ReplaceAll(strings.ReplaceAll(copied, "\n", ""), "\r", "")) == text; asIs == (note != "") {
				t.Errorf("%d bytes %s: the note is %q", size, name, note)
			}
		}
	}
}

func TestATextThatIsNotAKeyIsNamedAndNotRepeated(t *testing.T) {
	text, raw := key(32)
	pfx := append([]byte{0x30, 0x82, 0x01, 0x0a, 0x02, 0x01, 0x03, 0x30, 0x82, 0x01, 0x03}, make([]byte, 259)...)
	for _, row := range []struct{ name, copied, want string }{
		{"nothing", "\n", "the key is missing"},
		{"the connection string of a device", "HostName=h.azure-devices.net;DeviceId=d;SharedAccessKey=" + text, "connection string of a device in an IoT hub"},
		{"the connection string of a policy", "HostName=h;SharedAccessKeyName=owner;SharedAccessKey=" + text, "Never store it on a gateway"},
		{"a SAS token", "SharedAccessSignature sr=x&sig=" + text, "a SAS token"},
		{"two keys without a space", text + text, "more than one key"},
		{"both keys in JSON", `{"primaryKey":"` + text + `","secondaryKey":"` + text + `"}`, "more than one key"},
		{"both keys with their names", "primaryKey=" + text + "\nsecondaryKey=" + text, "more than one key"},
		{"PEM", "-----BEGIN PRIVATE KEY-----\n" + text, "PEM"},
		{"hexadecimal digits", hex.EncodeToString(raw), "hexadecimal digits"},
		{"base64 of hexadecimal digits", base64.StdEncoding.EncodeToString([]byte(hex.EncodeToString(raw[:16]))), "base64 of 32 hexadecimal digits"},
		{"two keys", text + "\n" + text, "more than one key"},
		{"two keys on one line", text + " " + text, "more than one key"},
		{"a part of a key", text[:29], "cut off"},
		{"something else", "correct horse, battery staple!", "not base64"},
		{"bytes that look like a PFX but are not", string(pfx), "not base64"},
	} {
		got, _, err := setup.ParseKey([]byte(row.copied), "the text")
		if err == nil || !strings.Contains(err.Error(), row.want) || got != nil {
			t.Errorf("%s: %x, %v, want %q", row.name, got, err, row.want)
		}
		if err != nil && (strings.Contains(err.Error(), text[:20]) || strings.Contains(err.Error(), "staple")) {
			t.Errorf("%s: the error repeats the text: %v", row.name, err)
		}
	}
}

func TestALineOfAKeyIsDistinguishedFromAKey(t *testing.T) {
	short, _ := key(32)
	long, _ := key(64)
	for _, text := range []string{short[:20], long[:44], long[:64], long[:76], `"` + long[:64], "x"} {
		if !setup.Partial([]byte(text)) {
			t.Errorf("%q is not a part of a key", text)
		}
	}
	for _, text := range []string{short, long, `"` + short + `"`, "", "HostName=x.y", "-----BEGIN X", long + "AAAA"} {
		if setup.Partial([]byte(text)) {
			t.Errorf("%q is a part of a key", text)
		}
	}
}

func TestIDScopesAndRegistrationIDsAreRecognizedAndMistakesExplained(t *testing.T) {
	for text, want := range map[string]string{"0ne00123456": "0ne00123456", "'0neAB',": "0neAB", "scope~1": "scope~1"} {
		if got, err := setup.ParseIDScope(text); got != want || err != nil {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"":                                     "is missing",
		"x.azure-devices-provisioning.net":     "Service endpoint",
		"X.Azure-Devices-Provisioning.us":      "Service endpoint",
		"x.azure-devices.net":                  "IoT hub",
		"/subscriptions/1/resourceGroups/x":    "resource ID",
		"7a0f1d3c-2b4e-4f60-8a1b-0c2d3e4f5a6b": "subscription",
		"0ne 1":                                "is not an ID scope",
	} {
		if _, err := setup.ParseIDScope(text); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `"Overview"`) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	for scope, doubtful := range map[string]bool{"0ne1": false, "0NE1": false, "One1": true, "my-dps": true} {
		if doubt := setup.DoubtIDScope(scope); (doubt != "") != doubtful {
			t.Errorf("%s: %q", scope, doubt)
		}
	}
	for text, want := range map[string]string{"gw-1": "gw-1", `"gw-1"`: "gw-1", "GW-1": "gw-1", "a.b:c_d-": "a.b:c_d-"} {
		got, note, err := setup.ParseRegistrationID(text)
		if got != want || err != nil || (note != "") != (text == "GW-1") {
			t.Errorf("%q: %q, %q, %v", text, got, note, err)
		}
	}
	for _, text := range []string{"", "gw 1", "gw/1", "-gw", strings.Repeat("g", 129)} {
		if got, _, err := setup.ParseRegistrationID(text); err == nil {
			t.Errorf("%q: %q", text, got)
		}
	}
}

func TestTheIDsOfThisMachineAreOffered(t *testing.T) {
	host := attest.Host{
		Hostname:  func() (string, error) { return "Gateway-7", nil },
		MachineID: func() (string, error) { return strings.Repeat("ab", 16), nil },
	}
	offered := func(files map[string]string) (ids []string) {
		root := t.TempDir()
		for name, text := range files {
			path := filepath.Join(root, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, []byte(text), 0o600)); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range setup.Identities(root, host) {
			ids = append(ids, i.ID)
		}
		return ids
	}
	const tree, product = "sys/firmware/devicetree/base/serial-number", "sys/class/dmi/id/product_serial"
	for _, row := range []struct {
		name  string
		files map[string]string
		want  []string
	}{
		{"no serial number", nil, []string{strings.Repeat("ab", 16), "gateway-7"}},
		{"of a device tree, which ends with NUL", map[string]string{tree: "10000000A1B2C3D4\x00"}, []string{strings.Repeat("ab", 16), "10000000a1b2c3d4", "gateway-7"}},
		{"of the firmware", map[string]string{product: "5CG1234XYZ\n"}, []string{strings.Repeat("ab", 16), "5cg1234xyz", "gateway-7"}},
		{"a placeholder", map[string]string{product: "To be filled by O.E.M.\n", "sys/class/dmi/id/board_serial": "Default string\n"}, []string{strings.Repeat("ab", 16), "gateway-7"}},
		{"zeros", map[string]string{product: "00000000\n", tree: "0123456789\x00"}, []string{strings.Repeat("ab", 16), "gateway-7"}},
		{"characters that DPS does not accept", map[string]string{product: "A/B 12\n"}, []string{strings.Repeat("ab", 16), "gateway-7"}},
	} {
		if got := offered(row.files); !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, want %q", row.name, got, row.want)
		}
	}
	host.Hostname = func() (string, error) { return "localhost", nil }
	host.MachineID = func() (string, error) { return "uninitialized", nil }
	if got := offered(nil); got != nil {
		t.Errorf("an image before its first boot: %q", got)
	}
}
