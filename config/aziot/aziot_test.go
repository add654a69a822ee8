package aziot_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/config/aziot"
	"github.com/dpsd-project/dpsd/test/configuration"
)

// samples returns the contents of the files of testdata by name. The files have the format
// of the templates that aziot-identity-service and aziot-edge install. Their last lines give
// the expected result: "#=" the lines of dpsd.toml, "#!" the beginnings of the notes.
func samples(t testing.TB) map[string]string {
	t.Helper()
	files, err := filepath.Glob("testdata/*.toml")
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

// canaries matches the secrets in the samples. The shortest password is "canary".
var canaries = regexp.MustCompile(`Y2FuYXJ5[A-Za-z0-9+/=]*|canary[-~\w]*`)

func TestImport(t *testing.T) {
	for name, text := range samples(t) {
		t.Run(name+" has the expected result", func(t *testing.T) {
			got, err := aziot.Import("config.toml", strings.NewReader(text))
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
					t.Errorf("%q is not a comment in the result", note)
				}
			}
			if got.TOML == "" {
				if !slices.ContainsFunc(got.Notes, func(n *aziot.Note) bool { return strings.HasPrefix(n.Text, "cannot be converted: ") }) {
					t.Error("nothing is converted, and no note gives the reason")
				}
				return
			}
			parse(t, got.TOML)
			parse(t, strings.ReplaceAll(got.TOML, "# ", "#"))
		})
		t.Run(name+" has no secret in its result", func(t *testing.T) {
			got, err := aziot.Import("config.toml", strings.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			output := got.TOML
			for _, n := range got.Notes {
				output += n.String() + n.Command
			}
			for _, secret := range canaries.FindAllString(text, -1) {
				if strings.Contains(output, secret) {
					t.Errorf("%q is in the notes", secret)
				}
			}
		})
	}
	t.Run("the samples contain secrets of each kind", func(t *testing.T) {
		if n := len(canaries.FindAllString(fmt.Sprint(samples(t)), -1)); n < 10 {
			t.Errorf("there are %d", n)
		}
	})
}

// TestCommandsOfImport runs the commands in the notes.
func TestCommandsOfImport(t *testing.T) {
	credential := func(t *testing.T, file, text, name string) string {
		t.Helper()
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := aziot.Import(file, strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(got.Notes, func(n *aziot.Note) bool { return strings.HasSuffix(n.Command, "/etc/credstore/"+name) })
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
	for _, name := range []string{"symmetric-inline.toml", "symmetric-unpadded.toml", "edge.toml", "multi-line-basic.toml", "multi-line-literal.toml"} {
		for _, file := range []string{"config.toml", "it's a config.toml"} {
			t.Run("the command for "+name+" as "+file+" moves the key", func(t *testing.T) {
				text := samples(t)[name]
				key := credential(t, filepath.Join(t.TempDir(), file), text, "dps-primary-key")
				bytes, err := attest.DecodeKey([]byte(key))
				if err != nil || !strings.HasPrefix(string(bytes), "canary-of-an-inline-key") {
					t.Errorf("%q, %v", bytes, err)
				}
				text = regexp.MustCompile(`[\\\s]`).ReplaceAllString(text, "")
				if inline := strings.TrimRight(strings.TrimSpace(key), "="); !strings.Contains(text, inline) {
					t.Error("the key has changed")
				}
			})
		}
	}
	t.Run("the command for the password of a proxy moves it", func(t *testing.T) {
		if got := credential(t, filepath.Join(t.TempDir(), "config.toml"), samples(t)["edge.toml"], "proxy-password"); got != "canary-9~x\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("the command for a key in a file encodes its bytes as text", func(t *testing.T) {
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
	t.Run("the commands for a certificate and its key copy their files, which only aziot may read", func(t *testing.T) {
		text := samples(t)["x509-files.toml"]
		for name, file := range map[string]string{"dps-certificate": "/var/secrets/device-id.pem", "dps-private-key": "/var/secrets/device-id.key.pem"} {
			own := filepath.Join(t.TempDir(), "it's here.pem")
			if err := os.WriteFile(own, []byte(name+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			uri := (&url.URL{Scheme: "file", Path: own}).String()
			if got := credential(t, filepath.Join(t.TempDir(), "config.toml"), strings.Replace(text, "file://"+file, uri, 1), name); got != name+"\n" {
				t.Errorf("%q", got)
			}
		}
	})
	t.Run("there is no command that would give a wrong secret", func(t *testing.T) {
		for say, change := range map[string][2]string{
			"an escape in the key":     {`value = "Y`, `value = "\u0059`},
			"the same word twice":      {`# from the portal`, `# value = "b3RoZXI="`},
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
			got, err := aziot.Import("config.toml", strings.NewReader(changed))
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

func TestImportRejects(t *testing.T) {
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
		{"a text that is not TOML", change(inline, `source = "dps"`, `source = dps`), `config.toml:3:10: TOML syntax: `},
		{"another file", "[other]\nkey = 1\n", `config.toml: provisioning: the table is missing; is this the config.toml of IoT Edge`},
		{"a file that is already converted", "[dps]\nid_scope = \"0ne1\"\n[provisioning]\non_boot = \"verify\"\n", `config.toml: this is a configuration of dpsd, which needs no conversion; import /etc/aziot/config.toml instead`},
		{"nothing", "", `config.toml: provisioning: the table is missing`},
		{"provisioning that is not a table", "provisioning = 1\n", `config.toml:1:1: provisioning: must be a table, not an integer`},
		{"no source", change(inline, `source = "dps"`, ``), `config.toml:2:2: provisioning.source: is missing; the sources are "dps", "manual" and "none"`},
		{"an unknown source", change(inline, `source = "dps"`, `source = "est"`), `config.toml:3:1: provisioning.source: "est" is unknown`},
		{"no scope", change(inline, `id_scope = "0ne0A1B2C3D"`, ``), `provisioning.id_scope: is missing; it is on the overview page`},
		{"a wrong scope", change(inline, `"0ne0A1B2C3D"`, `"0ne/1"`), `config.toml:5:1: provisioning.id_scope: "0ne/1" is not an ID scope`},
		{"no endpoint", change(inline, `global_endpoint = `, `#`), `provisioning.global_endpoint: is missing`},
		{"an endpoint without TLS", change(inline, `"https://`, `"http://`), `config.toml:4:1: provisioning.global_endpoint: is not the address of a provisioning service`},
		{"an endpoint that is not a URL", change(inline, `"https://global.`, `"global.`), `is not the address of a provisioning service`},
		{"no attestation", change(inline, "[provisioning.attestation]", "[other]"), `provisioning.attestation: is missing`},
		{"no method", change(inline, `method = "symmetric_key"`, ``), `provisioning.attestation.method: is missing`},
		{"an unknown method", change(inline, `"symmetric_key"`, `"password"`), `config.toml:8:1: provisioning.attestation.method: "password" is unknown`},
		{"no registration ID", change(inline, `registration_id = "gw-0001"`, ``), `provisioning.attestation.registration_id: is missing`},
		{"a wrong registration ID", change(inline, `"gw-0001"`, `"gw-%H"`), `config.toml:9:1: provisioning.attestation.registration_id: not a valid registration ID`},
		{"a key that is not base64", regexp.MustCompile(`value = "[^"]*"`).ReplaceAllString(inline, `value = "canary! canary! canary!"`), `config.toml:10:19: provisioning.attestation.symmetric_key.value: the key is not base64 text`},
		{"a key that is too short", regexp.MustCompile(`value = "[^"]*"`).ReplaceAllString(inline, `value = "Y2FuYXJ5"`), `the key must have 16 to 64 bytes`},
		{"a key that is not a table", regexp.MustCompile(`symmetric_key = .*`).ReplaceAllString(inline, `symmetric_key = "Y2FuYXJ5LWNhbmFyeS1jYW5hcnk="`), `config.toml:10:1: provisioning.attestation.symmetric_key: must be a table, not a string; write it as symmetric_key = { value = "…" }`},
		{"a URI that is not a table", regexp.MustCompile(`symmetric_key = .*`).ReplaceAllString(inline, `symmetric_key = "file:///var/secrets/canary.key"`), `must be a table, not a string; write it as symmetric_key = { uri = "…" }`},
		{"a registration ID in the wrong table", change(change(inline, `registration_id = "gw-0001"`, ``), `source = "dps"`, "source = \"dps\"\nregistration_id = \"gw-0001\""), `config.toml:4:1: provisioning.registration_id: is in the wrong table; it belongs below [provisioning.attestation]`},
		{"a registration ID above all tables", "registration_id = \"gw-0001\"\n" + change(inline, `registration_id = "gw-0001"`, ``), `config.toml:1:1: registration_id: is in the wrong table; it belongs below [provisioning.attestation]`},
		{"a scope in the wrong table", change(change(inline, `id_scope = "0ne0A1B2C3D"`, ``), `method = `, "id_scope = \"0ne0A1B2C3D\"\nmethod = "), `config.toml:8:1: provisioning.attestation.id_scope: is in the wrong table; it belongs below [provisioning]`},
		{"an attestation that is a top-level table", change(inline, "[provisioning.attestation]", "[attestation]"), `config.toml:7:2: attestation: is in the wrong table; it belongs below [provisioning]`},
		{"a scope by its name in config.yaml", change(inline, `id_scope = `, `scope_id = `), `config.toml:5:1: provisioning.scope_id: is called id_scope in this file`},
		{"a boot policy that is not a boolean", change(inline, `id_scope = `, "always_reprovision_on_startup = \"yes\"\nid_scope = "), `config.toml:5:1: provisioning.always_reprovision_on_startup: must be a boolean, not a string; write true or false`},
		{"the config.yaml of IoT Edge 1.1", sample(t, "config.yaml"), `config.toml:32:1: this is YAML, and looks like the config.yaml of IoT Edge 1.1; convert it with "iotedge config import"`},
		{"the 00-super.toml of identityd", sample(t, "identityd-00-super.toml"), `config.toml: this is the 00-super.toml of aziot-identityd, which "config apply" generates from /etc/aziot/config.toml; import /etc/aziot/config.toml instead`},
		{"the 00-super.toml of keyd", sample(t, "keyd-00-super.toml"), `config.toml: this is the 00-super.toml of aziot-keyd, `},
		{"the 00-super.toml of certd", sample(t, "certd-00-super.toml"), `config.toml: this is the 00-super.toml of aziot-certd, `},
		{"the 00-super.toml of edged", sample(t, "edged-00-super.toml"), `config.toml: this is the 00-super.toml of aziot-edged, `},
		{"a drop-in in place of the file", "[Service]\nEnvironment=\"https_proxy=http://proxy:3128\"\n", `config.toml: this is a systemd drop-in, which contains the proxy but no identity; specify config.toml first: dpsd config import-aziot /etc/aziot/config.toml config.toml`},
		{"the template, in which everything is a comment", regexp.MustCompile(`(?m)^`).ReplaceAllString(samples(t)["edge-template.toml"], "# "), `config.toml: every line is a comment, as in the template; uncomment one of the blocks that begin with [provisioning]`},
		{"a key without a place", regexp.MustCompile(`symmetric_key = .*`).ReplaceAllString(inline, `symmetric_key = { }`), `provisioning.attestation.symmetric_key.uri: is missing`},
		{"a certificate elsewhere", change(x509, `"file:///var/secrets/device-id.pem"`, `"https://example.org/device-id.pem"`), `config.toml:9:1: provisioning.attestation.identity_cert: is not the URI of a file`},
		{"a certificate with a relative path", change(x509, `"file:///var/secrets/device-id.pem"`, `"file:relative"`), `provisioning.attestation.identity_cert: is not the URI of an absolute path`},
		{"no private key", change(x509, `identity_pk = "file:///var/secrets/device-id.key.pem"`, ``), `provisioning.attestation.identity_pk: is missing`},
		{"no certificate", change(x509, `identity_cert = `, `#`), `provisioning.attestation.identity_cert: is missing`},
		{"an unknown mode of reprovisioning", "auto_reprovisioning_mode = \"Never\"\n" + inline, `config.toml:1:1: auto_reprovisioning_mode: "Never" is unknown`},
		{"a mode in the form of the template's comment", "auto_reprovisioning_mode = Dynamic\n" + inline, `config.toml:1:28: TOML syntax: `},
		{"a novel", strings.Repeat("# once upon a time\n", 1<<16), `larger than 1 MiB`},
	} {
		t.Run(c.say, func(t *testing.T) {
			got, err := aziot.Import("config.toml", strings.NewReader(c.text))
			var errs config.Errors
			if !errors.As(err, &errs) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("the error is %v, want %s", err, c.want)
			}
			if got.TOML != "" || len(got.Notes) > 0 {
				t.Errorf("the result is not empty: %+v", got)
			}
			for _, secret := range canaries.FindAllString(c.text, -1) {
				if err != nil && strings.Contains(err.Error(), secret) {
					t.Errorf("%q is in %v", secret, err)
				}
			}
		})
	}
	t.Run("an error of the reader is returned", func(t *testing.T) {
		_, err := aziot.Import("config.toml", failing{})
		if err == nil || errors.As(err, new(config.Errors)) || !strings.Contains(err.Error(), "config.toml") {
			t.Errorf("got %v", err)
		}
	})
}

// sample returns a file of testdata that is not in the format of config.toml.
func sample(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata/others", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestImportConvertsTheProxyOfTheUnits(t *testing.T) {
	const identityd = "/etc/systemd/system/aziot-identityd.service.d/"
	const edged = "/etc/systemd/system/aziot-edged.service.d/override.conf"
	const service = "# Editing /etc/systemd/system/aziot-identityd.service.d/override.conf\n[Unit]\nDescription=x\n[Service]\n"
	type file = [2]string
	for _, c := range []struct {
		says     string
		sample   string
		files    []file
		settings []string // of [transport]
		notes    []string // about proxies
	}{
		{"the form of Microsoft's documentation", "symmetric-inline.toml",
			[]file{{identityd + "override.conf", service + `Environment="https_proxy=http://proxy.example:3128"` + "\n"}},
			[]string{`proxy = "http://proxy.example:3128"`},
			[]string{identityd + `override.conf:5: https_proxy: is now transport.proxy = "http://proxy.example:3128"`}},
		{"the upper-case name overrides the lower-case name, as in the Identity Service", "symmetric-inline.toml",
			[]file{{identityd + "proxy.conf", service + "Environment=https_proxy=http://lower.example:3128 'HTTPS_PROXY=http://upper.example:3128'\n"}},
			[]string{`proxy = "http://upper.example:3128"`},
			[]string{identityd + `proxy.conf:5: HTTPS_PROXY: is now transport.proxy = "http://upper.example:3128"`,
				identityd + `proxy.conf:5: https_proxy: left out: HTTPS_PROXY in ` + identityd + `proxy.conf takes precedence`}},
		{"the later file is used", "symmetric-inline.toml",
			[]file{{identityd + "10.conf", service + "Environment=https_proxy=http://first.example:3128\n"}, {identityd + "20.conf", "[Service]\nEnvironment=\"https_proxy=http://second.example:3128\"\n"}},
			[]string{`proxy = "http://second.example:3128"`},
			[]string{identityd + `20.conf:2: https_proxy: is now transport.proxy = "http://second.example:3128"`}},
		{"an empty assignment resets the list", "symmetric-inline.toml",
			[]file{{identityd + "10.conf", service + "Environment=https_proxy=http://first.example:3128\nEnvironment=\n"}}, nil, nil},
		{"assignments in comments and in other sections have no effect", "symmetric-inline.toml",
			[]file{{identityd + "10.conf", "[Unit]\nEnvironment=https_proxy=http://a.example:3128\n[Service]\n# Environment=https_proxy=http://b.example:3128\n;Environment=https_proxy=http://c.example:3128\n"}}, nil, nil},
		{"a continued line", "symmetric-inline.toml",
			[]file{{identityd + "10.conf", service + "Environment=NO_PROXY=localhost \\\n  HTTPS_PROXY=http://proxy.example:3128\n"}},
			[]string{`proxy = "http://proxy.example:3128"`},
			[]string{identityd + `10.conf:5: NO_PROXY: left out: a proxy in dpsd.toml applies to every connection`, identityd + `10.conf:5: HTTPS_PROXY: is now transport.proxy = "http://proxy.example:3128"`}},
		{"user and password, with the doubled percent signs that systemd requires", "symmetric-inline.toml",
			[]file{{"override.conf", service + `Environment="https_proxy=http://gate%%20way:canary%%2d9@proxy.example:3128"` + "\n"}},
			[]string{`proxy = "http://proxy.example:3128"`, `proxy_user = "gate way"`, `proxy_password = "credential:proxy-password"`},
			[]string{`override.conf:5: https_proxy: is now transport.proxy = "http://proxy.example:3128"`,
				`override.conf:5: https_proxy: to do: put the password, without percent-encoding, into /etc/credstore/proxy-password`}},
		{"a percent sign alone", "symmetric-inline.toml",
			[]file{{"override.conf", service + `Environment="https_proxy=http://gateway:canary%409@proxy.example:3128"` + "\n"}}, nil,
			[]string{`override.conf:5: https_proxy: left out: systemd reads "%" as the start of a specifier; write it twice`}},
		{"the proxy of identityd overrides those of edged and of the agent, which are usually the same", "edge.toml",
			[]file{{edged, service + "Environment=https_proxy=http://edged.example:3128\n"}, {identityd + "override.conf", service + "Environment=https_proxy=http://identityd.example:3128\n"}},
			[]string{`protocols = ["websocket", "mqtt"]`, `proxy = "http://identityd.example:3128"`},
			[]string{`config.toml:40: agent.env.https_proxy: left out: https_proxy in ` + identityd + `override.conf takes precedence`,
				`config.toml:41: agent.env.no_proxy: left out: a proxy in dpsd.toml applies to every connection`,
				edged + `:5: https_proxy: left out: https_proxy in ` + identityd + `override.conf takes precedence`,
				identityd + `override.conf:5: https_proxy: is now transport.proxy = "http://identityd.example:3128"`}},
		{"an address that is not a proxy", "symmetric-inline.toml",
			[]file{{identityd + "10.conf", service + "Environment=HTTPS_PROXY=socks5://proxy.example:1080 https_proxy=\n"}}, nil,
			[]string{identityd + `10.conf:5: HTTPS_PROXY: left out: the address must begin with`, identityd + `10.conf:5: https_proxy: left out: it is empty`}},
	} {
		t.Run(c.says, func(t *testing.T) {
			var dropIns []aziot.DropIn
			for _, f := range c.files {
				dropIns = append(dropIns, aziot.DropIn{Name: f[0], Text: strings.NewReader(f[1])})
			}
			got, err := aziot.Import("config.toml", strings.NewReader(samples(t)[c.sample]), dropIns...)
			if err != nil {
				t.Fatal(err)
			}
			_, transport, _ := strings.Cut(got.TOML, "\n[transport]\n")
			transport, _, _ = strings.Cut(transport, "\n[")
			settings := strings.FieldsFunc(transport, func(r rune) bool { return r == '\n' })
			if diff := cmp.Diff(c.settings, settings, cmpopts.EquateEmpty()); diff != "" {
				t.Error(diff)
			}
			var notes []string
			for _, n := range got.Notes {
				if strings.Contains(strings.ToLower(n.Key), "_proxy") || n.Key == "EnvironmentFile" {
					notes = append(notes, n.String())
				}
			}
			if len(notes) != len(c.notes) {
				t.Errorf("the notes are\n%s", strings.Join(notes, "\n"))
			}
			for i := range min(len(notes), len(c.notes)) {
				if !strings.HasPrefix(notes[i], c.notes[i]) {
					t.Errorf("note %d is %q, want %q", i, notes[i], c.notes[i])
				}
			}
			if strings.Contains(got.TOML, "canary") {
				t.Error("the password is in the result")
			}
		})
	}
	t.Run("a drop-in of aziot-edged shows that the gateway has IoT Edge, which has a different default", func(t *testing.T) {
		got, err := aziot.Import("config.toml", strings.NewReader(samples(t)["symmetric-inline.toml"]), aziot.DropIn{Name: edged, Text: strings.NewReader(service)})
		if err != nil || !strings.Contains(got.TOML, "\non_boot = \"verify\"\n") {
			t.Errorf("%v\n%s", err, got.TOML)
		}
	})
	t.Run("the command for the password extracts it from the drop-in", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "override.conf")
		text := "[Service]\nEnvironment=\"https_proxy=http://gateway:canary-9~x@proxy.example:3128\"\n"
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := aziot.Import("config.toml", strings.NewReader(samples(t)["symmetric-inline.toml"]), aziot.DropIn{Name: file, Text: strings.NewReader(text)})
		if err != nil {
			t.Fatal(err)
		}
		command := got.Notes[len(got.Notes)-1].Command
		to := filepath.Join(t.TempDir(), "proxy-password")
		if out, err := exec.Command("sh", "-c", strings.Replace(command, "/etc/credstore/proxy-password", to, 1)).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, %s", command, err, out)
		}
		if password, err := os.ReadFile(to); err != nil || string(password) != "canary-9~x\n" {
			t.Errorf("%q, %v", password, err)
		}
	})
	t.Run("a drop-in that cannot be read is an error", func(t *testing.T) {
		_, err := aziot.Import("config.toml", strings.NewReader(samples(t)["symmetric-inline.toml"]), aziot.DropIn{Name: "override.conf", Text: failing{}})
		if err == nil || !strings.Contains(err.Error(), "override.conf") {
			t.Errorf("got %v", err)
		}
	})
}

// parse fails the test if a text is not a configuration of dpsd.
func parse(t testing.TB, text string) *config.Config {
	t.Helper()
	c, err := config.Parse("dpsd.toml", strings.NewReader(text))
	if err != nil {
		t.Fatalf("%v\nin\n%s", err, text)
	}
	return c
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("the disk is on fire") }

func FuzzImport(f *testing.F) {
	for _, text := range samples(f) {
		f.Add([]byte(text))
	}
	key := base64.StdEncoding.EncodeToString([]byte("canary-of-a-key-which-is-one"))
	f.Add([]byte(samples(f)["symmetric-inline.toml"] + "[Service]\nEnvironment=\"https_proxy=http://a:b@c:1\"\n"))
	f.Add([]byte("provisioning.source = \"dps\"\nprovisioning.attestation = [{}]\nagent.env.https_proxy = \"http://a:b@[::1]\"\n# " + key))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := aziot.Import("x", bytes.NewReader(data), aziot.DropIn{Name: "y", Text: bytes.NewReader(data)})
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
		if broken := configuration.Broken(parse(t, got.TOML)); broken != "" {
			t.Fatalf("%s in %s", broken, got.TOML)
		}
	})
}
