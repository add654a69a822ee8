package config_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
)

// samples returns the files of testdata/aziot: name to contents. Each is written in the
// format of the templates that aziot-identity-service and aziot-edge install. Its last
// lines say what becomes of it: "#=" the lines of dpsd.toml, "#!" how the notes begin.
func samples(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/aziot/*.toml")
	if err != nil || len(files) < 10 {
		t.Fatal(files, err)
	}
	all := map[string]string{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(file)] = string(text)
	}
	return all
}

// marked returns the lines that begin with mark, without it.
func marked(text, mark string) (lines []string) {
	for line := range strings.Lines(text) {
		if rest, is := strings.CutPrefix(strings.TrimSuffix(line, "\n"), mark+" "); is {
			lines = append(lines, rest)
		}
	}
	return lines
}

// canaries are what is secret in the samples. A password is as short as "canary".
var canaries = regexp.MustCompile(`Y2FuYXJ5[A-Za-z0-9+/=]*|canary[-~\w]*`)

func TestFromAziot(t *testing.T) {
	for name, text := range samples(t) {
		t.Run(name+" becomes what it says", func(t *testing.T) {
			got, err := config.FromAziot("config.toml", strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			var settings []string
			for line := range strings.Lines(got.TOML) {
				if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
					settings = append(settings, line)
				}
			}
			if diff := cmp.Diff(marked(text, "#="), settings); diff != "" {
				t.Error(diff)
			}
			notes, comments := marked(text, "#!"), marked(got.TOML, "#")
			if len(notes) != len(got.Notes) {
				t.Errorf("there are %d notes, want %d: %v", len(got.Notes), len(notes), got.Notes)
			}
			for i := range min(len(notes), len(got.Notes)) {
				note := got.Notes[i].String()
				if !strings.HasPrefix(note, "config.toml:"+notes[i]) || strings.ContainsAny(note, "\n") {
					t.Errorf("note %d is %q, want %q", i, note, notes[i])
				}
				if got.TOML != "" && !slices.Contains(comments, note) {
					t.Errorf("%q is no comment of the result", note)
				}
			}
			if got.TOML == "" {
				if !slices.ContainsFunc(got.Notes, func(n *config.Note) bool { return strings.HasPrefix(n.Text, "cannot be carried over: ") }) {
					t.Error("nothing is carried over, and no note says why")
				}
				return
			}
			parse(t, got.TOML)
			parse(t, strings.ReplaceAll(got.TOML, "# ", "#"))
		})
		t.Run(name+" keeps its secrets", func(t *testing.T) {
			got, err := config.FromAziot("config.toml", strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			told := got.TOML
			for _, n := range got.Notes {
				told += n.String() + n.Command
			}
			for _, secret := range canaries.FindAllString(text, -1) {
				if strings.Contains(told, secret) {
					t.Errorf("%q is in what is told", secret)
				}
			}
		})
	}
	t.Run("the samples hold secrets of each kind, or these tests show nothing", func(t *testing.T) {
		if n := len(canaries.FindAllString(fmt.Sprint(samples(t)), -1)); n < 10 {
			t.Errorf("there are %d", n)
		}
	})
}

// TestCommandsOfFromAziot runs what the notes tell a person to type.
func TestCommandsOfFromAziot(t *testing.T) {
	credential := func(t *testing.T, file, text, name string) string {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := config.FromAziot(file, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(got.Notes, func(n *config.Note) bool { return strings.HasSuffix(n.Command, "/etc/credstore/"+name) })
		if i < 0 {
			t.Fatalf("no command of %v makes %s", got.Notes, name)
		}
		to := filepath.Join(t.TempDir(), "credstore", name)
		out, err := exec.Command("sh", "-c", strings.Replace(got.Notes[i].Command, "/etc/credstore/"+name, to, 1)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Fatalf("%s: %v, %s", got.Notes[i].Command, err, out)
		}
		info, err := os.Stat(to)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("its mode is %v, %v", info.Mode(), err)
		}
		contents, err := os.ReadFile(to)
		if err != nil {
			t.Fatal(err)
		}
		return string(contents)
	}
	for _, name := range []string{"symmetric-inline.toml", "symmetric-unpadded.toml", "edge.toml"} {
		for _, file := range []string{"config.toml", "it's a config.toml"} {
			t.Run("the command for "+name+" as "+file+" moves the key", func(t *testing.T) {
				text := samples(t)[name]
				key := credential(t, filepath.Join(t.TempDir(), file), text, "dps-primary-key")
				bytes, err := attest.DecodeKey([]byte(key))
				if err != nil || !strings.HasPrefix(string(bytes), "canary-of-an-inline-key") {
					t.Errorf("%q, %v", bytes, err)
				}
				if inline := strings.TrimRight(strings.TrimSpace(key), "="); !strings.Contains(text, inline) {
					t.Error("it is another key")
				}
			})
		}
	}
	t.Run("the command for the password of a proxy moves it", func(t *testing.T) {
		if got := credential(t, filepath.Join(t.TempDir(), "config.toml"), samples(t)["edge.toml"], "proxy-password"); got != "canary-9~x\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("the command for a key in a file makes text of its bytes", func(t *testing.T) {
		key := []byte("\x00canary\n\xff of 32 bytes, not text.\n\n")
		file := filepath.Join(t.TempDir(), "device-id.key")
		if err := os.WriteFile(file, key, 0o600); err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(samples(t)["symmetric-file.toml"], "/var/secrets/device-id.key", file, 1)
		got := credential(t, filepath.Join(t.TempDir(), "config.toml"), text, "dps-primary-key")
		if decoded, err := attest.DecodeKey([]byte(got)); err != nil || !bytes.Equal(decoded, key) {
			t.Errorf("%q, %v", decoded, err)
		}
	})
	t.Run("where no such command would give the secret, there is none", func(t *testing.T) {
		for say, change := range map[string][2]string{
			"an escape in the key":     {`value = "Y`, `value = "\u0059`},
			"the word once more":       {`# from the portal`, `# value = "b3RoZXI="`},
			"an escape in the address": {`:canary-9~x@`, `:canary%2d9~x@`},
			"a line of several lines":  {`{ value = "Y`, "{ \"value\" = \"\"\"\\\n  Y"},
		} {
			name := "symmetric-inline.toml"
			if strings.Contains(say, "address") {
				name = "edge.toml"
			}
			text := samples(t)[name]
			changed := strings.Replace(text, change[0], change[1], 1)
			if strings.HasPrefix(say, "a line") {
				changed = strings.Replace(changed, `" } # from`, `""" } # from`, 1)
			}
			if changed == text {
				t.Fatalf("%s: nothing to change", say)
			}
			got, err := config.FromAziot("config.toml", strings.NewReader(changed))
			if err != nil {
				t.Errorf("%s: %v", say, err)
			}
			for _, n := range got.Notes {
				if strings.HasPrefix(n.Command, "sed") && strings.HasSuffix(n.Command, map[bool]string{true: "proxy-password", false: "dps-primary-key"}[name == "edge.toml"]) {
					t.Errorf("%s: %s", say, n.Command)
				}
			}
		}
	})
}

func TestFromAziotRefuses(t *testing.T) {
	inline := samples(t)["symmetric-inline.toml"]
	x509 := samples(t)["x509-files.toml"]
	change := func(text, old, new string) string {
		t.Helper()
		if !strings.Contains(text, old) {
			t.Fatalf("no %q to change", old)
		}
		return strings.Replace(text, old, new, 1)
	}
	for _, c := range []struct{ say, text, want string }{
		{"no TOML", change(inline, `source = "dps"`, `source = dps`), `config.toml:3:10: TOML syntax: `},
		{"another file", "[dps]\nid_scope = \"0ne1\"\n", `config.toml: provisioning: the table is missing; is this the config.toml of IoT Edge`},
		{"nothing", "", `config.toml: provisioning: the table is missing`},
		{"provisioning that is no table", "provisioning = 1\n", `config.toml:1:1: provisioning: must be a table, not an integer`},
		{"no source", change(inline, `source = "dps"`, ``), `config.toml:2:2: provisioning.source: is missing; "dps", "manual" and "none" are known`},
		{"an unknown source", change(inline, `source = "dps"`, `source = "est"`), `config.toml:3:1: provisioning.source: "est" is unknown`},
		{"no scope", change(inline, `id_scope = "0ne0A1B2C3D"`, ``), `provisioning.id_scope: is missing; it is on the overview page`},
		{"a wrong scope", change(inline, `"0ne0A1B2C3D"`, `"0ne/1"`), `config.toml:5:1: provisioning.id_scope: "0ne/1" is no ID scope`},
		{"no endpoint", change(inline, `global_endpoint = `, `#`), `provisioning.global_endpoint: is missing`},
		{"an endpoint without TLS", change(inline, `"https://`, `"http://`), `config.toml:4:1: provisioning.global_endpoint: is no address of a provisioning service`},
		{"an endpoint that is no URL", change(inline, `"https://global.`, `"global.`), `is no address of a provisioning service`},
		{"no attestation", change(inline, "[provisioning.attestation]", "[other]"), `provisioning.attestation: is missing`},
		{"no method", change(inline, `method = "symmetric_key"`, ``), `provisioning.attestation.method: is missing`},
		{"an unknown method", change(inline, `"symmetric_key"`, `"password"`), `config.toml:8:1: provisioning.attestation.method: "password" is unknown`},
		{"no registration ID", change(inline, `registration_id = "gw-0001"`, ``), `provisioning.attestation.registration_id: is missing`},
		{"a wrong registration ID", change(inline, `"gw-0001"`, `"gw-%H"`), `config.toml:9:1: provisioning.attestation.registration_id: not a valid registration ID`},
		{"a key that is no base64", regexp.MustCompile(`value = "[^"]*"`).ReplaceAllString(inline, `value = "canary! canary! canary!"`), `config.toml:10:19: provisioning.attestation.symmetric_key.value: the key is not base64 text`},
		{"a key that is too short", regexp.MustCompile(`value = "[^"]*"`).ReplaceAllString(inline, `value = "Y2FuYXJ5"`), `the key must have 16 to 64 bytes`},
		{"a key that is no table", regexp.MustCompile(`symmetric_key = .*`).ReplaceAllString(inline, `symmetric_key = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnk="`), `provisioning.attestation.symmetric_key: must be a table, not a string`},
		{"a key without a place", regexp.MustCompile(`symmetric_key = .*`).ReplaceAllString(inline, `symmetric_key = { }`), `provisioning.attestation.symmetric_key.uri: is missing`},
		{"a certificate elsewhere", change(x509, `"file:///var/secrets/device-id.pem"`, `"https://example.org/device-id.pem"`), `config.toml:9:1: provisioning.attestation.identity_cert: is no URI of a file`},
		{"a certificate in a PKCS#11 token's words", change(x509, `"file:///var/secrets/device-id.pem"`, `"file:relative"`), `provisioning.attestation.identity_cert: is no URI of an absolute path`},
		{"no private key", change(x509, `identity_pk = "file:///var/secrets/device-id.key.pem"`, ``), `provisioning.attestation.identity_pk: is missing`},
		{"no certificate", change(x509, `identity_cert = `, `#`), `provisioning.attestation.identity_cert: is missing`},
		{"an unknown mode of reprovisioning", "auto_reprovisioning_mode = \"Never\"\n" + inline, `config.toml:1:1: auto_reprovisioning_mode: "Never" is unknown`},
		{"a novel", strings.Repeat("# once upon a time\n", 1<<16), `larger than 1 MiB`},
	} {
		t.Run(c.say, func(t *testing.T) {
			got, err := config.FromAziot("config.toml", strings.NewReader(c.text))
			var errs config.Errors
			if !errors.As(err, &errs) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want %s", err, c.want)
			}
			if got.TOML != "" || len(got.Notes) > 0 {
				t.Errorf("and yet there is %+v", got)
			}
			for _, secret := range canaries.FindAllString(c.text, -1) {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("%q is in %v", secret, err)
				}
			}
		})
	}
	t.Run("a reader that fails is another error", func(t *testing.T) {
		_, err := config.FromAziot("config.toml", failing{})
		if err == nil || errors.As(err, new(config.Errors)) || !strings.Contains(err.Error(), "config.toml") {
			t.Errorf("got %v", err)
		}
	})
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is on fire") }

func FuzzFromAziot(f *testing.F) {
	for _, text := range samples(f) {
		f.Add([]byte(text))
	}
	key := base64.StdEncoding.EncodeToString([]byte("canary-of-a-key-which-is-one"))
	f.Add([]byte("provisioning.source = \"dps\"\nprovisioning.attestation = [{}]\nagent.env.https_proxy = \"http://a:b@[::1]\"\n# " + key))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := config.FromAziot("x", bytes.NewReader(data))
		if err != nil {
			if !errors.As(err, new(config.Errors)) || got.TOML != "" {
				t.Fatalf("got %+v, %v", got, err)
			}
			return
		}
		for _, n := range got.Notes {
			if n.Text == "" || n.Key == "" || strings.ContainsAny(n.String(), "\n\r") {
				t.Fatalf("%+v", n)
			}
		}
		if got.TOML == "" {
			return
		}
		if broken := invariants(parse(t, got.TOML)); broken != "" {
			t.Fatalf("%s in %s", broken, got.TOML)
		}
	})
}
