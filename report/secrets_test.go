package report

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/config"
)

// written returns the archive of a gateway with a configuration. All outputs that quote the
// configuration do so: dpsd config show, dpsd check, and the status after a rejected reload.
func written(t *testing.T, text string) map[string]string {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("PATH", dir) // without tools of the system
	file := filepath.Join(dir, "dpsd.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	_, settings, err := config.ParseSettings(file, strings.NewReader(text))
	quoting := func(context.Context) ([]byte, error) {
		return json.Marshal(map[string]string{"detail": fmt.Sprint(err)})
	}
	archive, _, failed := Gateway{
		Configuration: file, Directory: dir, StateDirectory: filepath.Join(dir, "state"), RuntimeDirectory: filepath.Join(dir, "run"),
		Show: func() ([]byte, error) {
			var b bytes.Buffer
			for _, s := range settings {
				fmt.Fprintln(&b, s.TOML())
			}
			return b.Bytes(), err
		},
		Check: quoting, Status: quoting, Metrics: quoting,
		OnFile:   func() ([]byte, error) { return nil, nil },
		Progress: func(string) {},
	}.Write(t.Context(), filepath.Join(dir, "report.tar.gz"))
	if failed != nil {
		t.Fatal(failed)
	}
	return parts(t, archive)
}

// parts returns the files of a report, by their name below its directory.
func parts(t *testing.T, archive string) map[string]string {
	t.Helper()
	f, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	parts := map[string]string{}
	for members := tar.NewReader(packed); ; {
		header, err := members.Next()
		if errors.Is(err, io.EOF) {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(members)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		parts[name] = string(text)
	}
}

func TestNoSecretInAConfigurationReachesTheArchive(t *testing.T) {
	const key = "dGhpcyBpcyB0aGUga2V5IG9mIGdhdGV3YXkgbnVtYmVyIDE="
	for name, text := range map[string]string{
		"an inline key":                         "[[credential]]\ntype = \"symmetric-key\"\nkey = \"SECRET\"\n",
		"one in single quotes":                  "[[credential]]\nkey = 'SECRET' # the key\n",
		"one without quotes":                    "[[credential]]\nkey = SECRET\n",
		"one whose quotes are not closed":       "[[credential]]\nkey = \"SECRET\nprivate_key = \"file:/etc/dpsd/device.key\"\n",
		"one after a reference":                 "[[credential]]\nkey = \"file:/x\" SECRET\n",
		"one under a misspelled key":            "[[credential]]\nkeey = \"SECRET\"\n",
		"one under the key of another table":    "[dps]\nkey = \"SECRET\"\n",
		"one under a key that is text":          "[dps]\nendpoint = \"SECRET!\"\n",
		"one as a table":                        "[SECRET]\n",
		"one as a table twice":                  "[SECRET]\nx = 1\n[SECRET]\n",
		"one as an array of tables":             "[[SECRET]]\n",
		"one as a key":                          "SECRET = 1\n",
		"one as a key of a table":               "[dps]\n\"SECRET\" = 1\n",
		"one alone on its line":                 "[dps]\nSECRET\n",
		"one in a string of several lines":      "[[credential]]\nkey = \"\"\"\nSECRET\n# SECRET\n\"\"\"\n[dps]\n",
		"one in an array":                       "[transport]\nprotocols = [\"SECRET\"]\n",
		"one in an array of several lines":      "[transport]\nprotocols = [\n\"SECRET\",\n]\n",
		"one in an inline table":                "dps = { id_scope = \"SECRET!\" }\n",
		"one under a dotted key":                "dps.id_scope = \"SECRET!\"\n",
		"one in place of a duration":            "[transport]\nconnect_timeout = \"SECRET\"\n",
		"one in place of a level":               "[log]\nlevel = \"SECRET\"\n",
		"one in place of a type":                "[[credential]]\ntype = \"SECRET\"\n",
		"one that is commented out":             "[[credential]]\n#key = \"SECRET\"\n",
		"one in a comment":                      "# the password: SECRET before\n",
		"one after a comment sign":              "[dps]\nid_scope = \"0ne1\" # the token is SECRET\n",
		"one in an address":                     "[transport]\nproxy = \"http://gateway:SECRET@proxy:3128\"\n",
		"one in an address with blanks":         "[transport]\nproxy = \"http://gateway:SECRET x@proxy:3128\"\n",
		"one in an address in a comment":        "# http://gateway:SECRET@proxy:3128\n",
		"one in bytes that are not UTF-8":       "[dps]\n\xff\xfe SECRET\n",
		"one after a byte order mark":           "\ufeffkey = \"SECRET\"\n",
		"a password in its place":               "[transport]\nproxy_password = \"SECRET\"\n",
		"a password as an inline value":         "[transport]\nproxy_pasword = SECRET\n",
		"a password with blanks":                "[transport]\nproxy_password = \"x SECRET y\"\n",
		"one below a table that is not a table": "dps = 1\n[dps]\nSECRET = \"SECRET\"\n",
	} {
		for _, secret := range []string{key, "hunter2"} {
			t.Run(name+", "+secret, func(t *testing.T) {
				for part, text := range written(t, strings.ReplaceAll(text, "SECRET", secret)) {
					if strings.Contains(text, strings.TrimRight(secret, "=")) {
						t.Errorf("%s contains it:\n%s", part, text)
					}
				}
			})
		}
	}
}

func TestAReportWithAnInvalidConfigurationContainsTheErrorsAndTheirPositions(t *testing.T) {
	parts := written(t, "[dps]\nid_scope = \"0ne00000000\"\n[log]\nlevel = \"hunter2\"\n")
	for _, part := range []string{"README.txt", "check.json"} {
		if !strings.Contains(parts[part], "dpsd.toml:4:1: log.level: ") || !strings.Contains(parts[part], "is unknown; write ") {
			t.Errorf("%s does not contain the error:\n%s", part, parts[part])
		}
	}
	if _, raw := parts["dpsd.toml"]; raw || parts["config.toml"] != "" {
		t.Errorf("the configuration is in the archive:\n%s%s", parts["dpsd.toml"], parts["config.toml"])
	}
}

func TestAReportMasksNothingInAConfigurationWithoutSecrets(t *testing.T) {
	text := "# Gateway 12, hall 3; see https://wiki.example/gateways/12\n" + config.Reference() + "[certificate]\nrenew_at = \"80%\"\ngroup = \"tls-users\"\n"
	parts := written(t, text)
	for _, line := range []string{"id_scope = ", "request = \"required\"", "key_type = \"ec-p384\"", "renew_at = \"80%\"", "group = \"tls-users\""} {
		if !strings.Contains(parts["config.toml"], line) {
			t.Errorf("%s is not in config.toml:\n%s", line, parts["config.toml"])
		}
	}
	if strings.Contains(parts["config.toml"], "masked") {
		t.Errorf("config.toml is\n%s", parts["config.toml"])
	}
}
