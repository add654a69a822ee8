package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
)

func TestRedactLeavesAConfigurationAsItIs(t *testing.T) {
	for name, text := range map[string]string{
		"the reference":               config.Reference(),
		"line ends of Windows":        "[dps]\r\nid_scope = \"0ne00000000\" # ours\r\n",
		"an array over several lines": "[transport]\nprotocols = [\n  \"mqtt\", # first\n  \"websocket\",\n]\n",
		"references":                  "[[credential]]\ntype = \"symmetric-key\"\nkey = \"file:/etc/dpsd/keys/device.key\"\n#key = 'credential:dps-primary-key'\n",
		"no end of line":              "[log]\nlevel = \"info\"",
		"comments":                    "# Gateway 12, hall 3; see https://wiki.example/gateways/12\n# the key is credential:dps-primary-key\n",
		"a number out of range":       "[transport]\nmqtt_port = 88833\n",
		"a misspelt table":            "[dsp]\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, taken := config.Redact([]byte(text))
			if got != text || taken != nil {
				t.Errorf("it has become\n%s\nfrom\n%s\nand %q was taken out", got, text, taken)
			}
		})
	}
}

func TestRedactTakesSecretsOut(t *testing.T) {
	const key = "dGhpcyBpcyB0aGUga2V5IG9mIGdhdGV3YXkgbnVtYmVyIDE="
	for name, text := range map[string]string{
		"an inline key":                      "[[credential]]\ntype = \"symmetric-key\"\nkey = \"SECRET\"\n",
		"one in single quotes":               "[[credential]]\nkey = 'SECRET' # the key\n",
		"one without quotes":                 "[[credential]]\nkey = SECRET\n",
		"one whose quotes are not closed":    "[[credential]]\nkey = \"SECRET\nprivate_key = \"file:/etc/dpsd/device.key\"\n",
		"one behind a reference":             "[[credential]]\nkey = \"file:/x\" SECRET\n",
		"one under a misspelt key":           "[[credential]]\nkeey = \"SECRET\"\n",
		"one under the key of another table": "[dps]\nkey = \"SECRET\"\n",
		"one under a key that is text":       "[dps]\nendpoint = \"SECRET\"\n",
		"one as a table":                     "[SECRET]\n",
		"one as a key":                       "SECRET = 1\n",
		"one alone on its line":              "[dps]\nSECRET\n",
		"one in a string of several lines":   "[[credential]]\nkey = \"\"\"\nSECRET\n# SECRET\n\"\"\"\n[dps]\n",
		"one in an array":                    "[transport]\nprotocols = [\"SECRET\"]\n",
		"one in an array of several lines":   "[transport]\nprotocols = [\n\"SECRET\",\n]\n",
		"one in an inline table":             "dps = { id_scope = \"SECRET\" }\n",
		"one under a dotted key":             "dps.id_scope = \"SECRET\"\n",
		"one that is commented out":          "[[credential]]\n#key = \"SECRET\"\n",
		"one in a comment":                   "# it was SECRET before\n",
		"one behind a comment sign":          "[dps]\nid_scope = \"0ne1\" # SECRET\n",
		"one in an address":                  "[transport]\nproxy = \"http://gateway:SECRET@proxy:3128\"\n",
		"one in an address in a comment":     "# http://gateway:SECRET@proxy:3128\n",
		"one in bytes that are no UTF-8":     "[dps]\n\xff\xfe SECRET\n",
		"one behind a byte order mark":       "\ufeffkey = \"SECRET\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, _ := config.Redact([]byte(strings.ReplaceAll(text, "SECRET", key)))
			if strings.Contains(got, key[:20]) {
				t.Errorf("it is still there:\n%s", got)
			}
			if strings.Count(got, "\n") != strings.Count(text, "\n") {
				t.Errorf("the numbers of lines are others:\n%s", got)
			}
		})
	}
	for name, text := range map[string]string{
		"a password in its place":         "[transport]\nproxy_password = \"hunter2\"\n",
		"a password that a comment names": "# password: hunter2\n",
		"a password as an inline value":   "[transport]\nproxy_pasword = hunter2\n",
		"a line that is no TOML":          "hunter2\n",
		"a password with blanks":          "[transport]\nproxy_password = \"x hunter2 y\"\n",
	} {
		t.Run(name, func(t *testing.T) {
			if got, _ := config.Redact([]byte(text)); strings.Contains(got, "hunter2") {
				t.Errorf("it is still there:\n%s", got)
			}
		})
	}
	t.Run("what was taken out is told, to be found elsewhere", func(t *testing.T) {
		_, taken := config.Redact([]byte("[transport]\nproxy_password = \"hunter2\"\n"))
		if !slices.Contains(taken, "hunter2") {
			t.Errorf("told is %q", taken)
		}
	})
}

func TestRedactKnowsATypeOfCredentialByItsDescription(t *testing.T) {
	types := append(attest.Types(), ticket{}.Type())
	text := "[[credential]]\ntype = \"ticket\"\nstub = \"file:/stub\"\nsecret = \"file:/secret\"\n"
	if got, taken := config.RedactTypes([]byte(text), types); got != text || taken != nil {
		t.Errorf("got\n%s\nand %q was taken out", got, taken)
	}
	if got, _ := config.RedactTypes([]byte(strings.Replace(text, "file:/secret", "hunter2", 1)), types); strings.Contains(got, "hunter2") || !strings.Contains(got, "file:/stub") {
		t.Errorf("a secret in the place of a reference: got\n%s", got)
	}
}

func FuzzRedact(f *testing.F) {
	f.Add(config.Reference())
	f.Add("[[credential]]\nkey = \"\"\"\nx\n'''\n")
	f.Fuzz(func(t *testing.T, text string) {
		got, _ := config.Redact([]byte(text))
		if strings.Count(got, "\n") != strings.Count(text, "\n") {
			t.Error("the numbers of lines are others")
		}
	})
}
