package config_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
)

// line is one key of the annotated reference.
type line struct {
	table, key, value string
	commented         bool
}

// reference reads the keys of the annotated file, including those that are commented out. In
// prose, a space follows the "#".
func reference(t *testing.T) []line {
	t.Helper()
	header := regexp.MustCompile(`^#?\[\[?([a-z_]+)\]\]?$`)
	setting := regexp.MustCompile(`^(#?)([a-z_]+) = (.+)$`)
	var lines []line
	table := ""
	for i, text := range strings.Split(config.Reference(), "\n") {
		switch {
		case header.MatchString(text):
			table = header.FindStringSubmatch(text)[1]
		case setting.MatchString(text):
			m := setting.FindStringSubmatch(text)
			lines = append(lines, line{table, m[2], m[3], m[1] == "#"})
		case text == "" || strings.HasPrefix(text, "# ") || text == "#":
		default:
			t.Errorf("line %d of the reference is not a key, a header or prose: %q", i+1, text)
		}
	}
	return lines
}

// everything returns the reference with each key that is commented out, in place of
// registration_id, which excludes registration_id_file, and without api_version, whose value
// excludes [certificate].
func everything() string {
	text := regexp.MustCompile(`(?m)^#(\[|[a-z_]+ = )`).ReplaceAllString(config.Reference(), "$1")
	text = strings.Replace(text, "api_version = ", "#api_version = ", 1)
	return strings.Replace(text, "registration_id = ", "#registration_id = ", 1)
}

func TestReference(t *testing.T) {
	t.Run("it is a valid configuration", func(t *testing.T) {
		parse(t, config.Reference())
	})
	t.Run("its values equal the defaults of the code", func(t *testing.T) {
		got, want := parse(t, config.Reference()), parse(t, minimal)
		got.DPS.RegistrationID = want.DPS.RegistrationID // the reference has examples of ID, scope and credential
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("it has every key that Parse knows, and no other", func(t *testing.T) {
		has := map[string]bool{}
		for _, l := range reference(t) {
			has[l.table+"."+l.key] = true
		}
		for table, keys := range config.Keys() {
			for _, key := range keys {
				if !has[table+"."+key] {
					t.Errorf("%s.%s is not in the reference", table, key)
				}
				delete(has, table+"."+key)
			}
		}
		for key := range has {
			t.Errorf("%s is in the reference, but Parse does not know it", key)
		}
	})
	t.Run("each default in it is accepted alone", func(t *testing.T) {
		for _, l := range reference(t) {
			if l.commented || l.table == "credential" {
				continue
			}
			parse(t, with(l.table, l.key, l.value))
		}
	})
	t.Run("each example that is commented out is valid", func(t *testing.T) {
		for _, l := range reference(t) {
			if !l.commented || l.table == "credential" {
				continue
			}
			text := with(l.table, l.key, l.value)
			if l.key == "proxy_password" { // has no meaning without a user
				text = strings.Replace(text, "[transport]\n", "[transport]\nproxy_user = \"u\"\n", 1)
			}
			if _, err := config.Parse("dpsd.toml", strings.NewReader(text)); err != nil {
				t.Errorf("%s.%s: %v", l.table, l.key, err)
			}
		}
	})
	t.Run("it has a credential of each type, which is valid when the # is removed", func(t *testing.T) {
		c := parse(t, everything())
		var got, want []string
		for _, credential := range c.Credentials {
			got = append(got, credential.Type().Name)
		}
		for _, known := range attest.Types() {
			want = append(want, known.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		x := attest.X509{Certificate: attest.Reference{File: "/etc/dpsd/keys/device.pem"}, PrivateKey: attest.Reference{File: "/etc/dpsd/keys/device-key.pem"}}
		if c.Credentials[1] != attest.Credential(x) {
			t.Errorf("got %v", c.Credentials[1])
		}
	})
	t.Run("its values below [certificate] are the defaults of the table", func(t *testing.T) {
		text := minimal + "[certificate]\n"
		for _, l := range reference(t) {
			if l.table == "certificate" {
				text += l.key + " = " + l.value + "\n"
			}
		}
		if diff := cmp.Diff(parse(t, minimal+"[certificate]\n"), parse(t, text)); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("every key and table has a comment", func(t *testing.T) {
		var values map[string]any
		if err := toml.Unmarshal([]byte(config.Reference()), &values); err != nil {
			t.Fatal(err)
		}
		for table := range values {
			if !regexp.MustCompile(`(?m)^\[\[?` + table + `\]\]?\n# `).MatchString(config.Reference()) {
				t.Errorf("the table %s does not begin with a comment", table)
			}
		}
	})
	t.Run("its lines fit a terminal", func(t *testing.T) {
		for i, text := range strings.Split(config.Reference(), "\n") {
			if len(text) > 95 {
				t.Errorf("line %d has %d characters", i+1, len(text))
			}
		}
	})
}

// People copy the examples. The key files of all pages are in one directory, which only the
// service may read.
func TestAllPagesNameTheSameDirectoryOfKeyFiles(t *testing.T) {
	var pages []string
	for _, pattern := range []string{"../README.md", "../docs/*.md", "../docs/man/*", "../packaging/deb/README.md", "dpsd.toml", "manual.md"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	named := 0
	for _, page := range pages {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range regexp.MustCompile(`file:/etc/[\w/.…-]*`).FindAllString(strings.ReplaceAll(string(text), `\-`, "-"), -1) {
			named++
			if !strings.HasPrefix(path, "file:/etc/dpsd/keys/") {
				t.Errorf("%s names %s", page, path)
			}
		}
	}
	if named < 10 {
		t.Errorf("only %d references to files in %q", named, pages)
	}
}
