package config_test

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/config"
	"github.com/dpsd-project/dpsd/config/aziot"
)

// What an import accepts becomes a configuration that keeps all promises.
func FuzzImportAziot(f *testing.F) {
	files, err := filepath.Glob("aziot/testdata/*.toml")
	if err != nil || len(files) < 10 {
		f.Fatal(files, err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(append(text, "[Service]\nEnvironment=\"https_proxy=http://a:b@c:1\"\n"...))
	}
	key := base64.StdEncoding.EncodeToString([]byte("canary-of-a-key-which-is-one"))
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
		if broken := invariants(parse(t, got.TOML)); broken != "" {
			t.Fatalf("%s in %s", broken, got.TOML)
		}
	})
}
