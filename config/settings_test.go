package config_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config"
)

// rewritten returns the configuration written from the settings of text, and the settings.
func rewritten(t testing.TB, text string) (string, []config.Setting) {
	t.Helper()
	_, all, err := config.ParseSettings("dpsd.toml", strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	table, element := "", 0
	for _, s := range all {
		if s.Value == nil {
			continue
		}
		if s.Table != table || s.Element != element {
			table, element = s.Table, s.Element
			b.WriteString(s.Header() + "\n")
		}
		b.WriteString(s.TOML() + "\n")
	}
	return b.String(), all
}

func TestSettings(t *testing.T) {
	t.Run("every key that Parse knows is listed once for each table that has it", func(t *testing.T) {
		_, all := rewritten(t, everything())
		listed := map[string]int{}
		for _, s := range all {
			listed[s.Table+"."+s.Key]++
		}
		want := map[string]int{"credential.type": len(attest.Types())}
		for _, credential := range attest.Types() {
			for _, k := range credential.Keys(nil) {
				want["credential."+k.Name]++
			}
		}
		for table, keys := range config.Keys() {
			for _, key := range keys {
				if table != "credential" {
					want[table+"."+key] = 1
				}
			}
		}
		if diff := cmp.Diff(want, listed); diff != "" {
			t.Error(diff)
		}
	})
	for say, text := range map[string]string{
		"the smallest configuration":             minimal,
		"the reference":                          config.Reference(),
		"one that sets everything":               everything(),
		"one with an empty [certificate]":        minimal + "[certificate]\n",
		"one with a whole [certificate]":         with("certificate", "request", "\"when-offered\"\nkey_type = \"rsa-2048\"\nkey_store = \"tpm\"\nrenew_at = \"80%\"\ngroup = \"tls\""),
		"one with two consumers":                 with("consumer", "lifetime", `"1m"`) + "[[consumer]]\nname = \"b\"\nscope = \"module:b\"\n",
		"one without a registration ID":          "[dps]\nid_scope = \"0ne1\"\n[[credential]]\ntype = \"x509\"\ncertificate = 'file:/a \"b\\c'\nprivate_key = \"file:/ü/<&>\"\n",
		"one with paths and words to be cleaned": with("state", "directory", `"/var//lib/./dpsd/"`),
	} {
		t.Run(say+", written from its settings, is the same configuration", func(t *testing.T) {
			again, _ := rewritten(t, text)
			if diff := cmp.Diff(parse(t, text), parse(t, again)); diff != "" {
				t.Errorf("%s\n%s", diff, again)
			}
		})
	}
	t.Run("a value has a position or is the default", func(t *testing.T) {
		_, all := rewritten(t, minimal+"[retry]\n  max = \"2m0s\"\n")
		find := func(key string) config.Setting {
			i := slices.IndexFunc(all, func(s config.Setting) bool { return s.Table+"."+s.Key == key })
			return all[i]
		}
		line := strings.Count(minimal, "\n") + 2
		if got, want := find("retry.max"), (config.Setting{Table: "retry", Key: "max", Value: "2m", Line: line, Column: 3}); !cmp.Equal(got, want) {
			t.Errorf("max: %+v, want %+v", got, want)
		}
		if got, want := find("retry.initial"), (config.Setting{Table: "retry", Key: "initial", Value: "1s"}); !cmp.Equal(got, want) {
			t.Errorf("initial: %+v, want %+v", got, want)
		}
		if got, want := find("transport.ca_file"), (config.Setting{Table: "transport", Key: "ca_file"}); !cmp.Equal(got, want) {
			t.Errorf("ca_file: %+v, want %+v", got, want)
		}
		if got := find("credential.key"); got.Line == 0 || got.Value != "file:/etc/dpsd/device.key" && !strings.HasPrefix(got.Value.(string), "credential:") {
			t.Errorf("key: %+v", got)
		}
	})
	t.Run("a key of [certificate] has no value unless the table is present", func(t *testing.T) {
		for text, want := range map[string][]any{
			minimal: {"2019-03-31", nil, nil, nil, nil, nil},
			minimal + "[certificate]\nrenew_at = \"50%\"\n": {"2026-11-01", "required", "ec-p384", "file", "50%", "dpsd-certificate"},
		} {
			_, all := rewritten(t, text)
			var got []any
			for _, s := range all {
				if s.Table == "certificate" || s.Key == "api_version" {
					got = append(got, s.Value)
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		}
	})
	t.Run("the errors are those of Parse", func(t *testing.T) {
		_, _, err := config.ParseSettings("dpsd.toml", strings.NewReader("[dps]\nid_scop = \"x\"\n"))
		_, want := config.Parse("dpsd.toml", strings.NewReader("[dps]\nid_scop = \"x\"\n"))
		if err == nil || err.Error() != want.Error() {
			t.Errorf("%v, want %v", err, want)
		}
	})
}
