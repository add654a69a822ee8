package config_test

import (
	"strings"
	"testing"

	"github.com/dpsd-project/dpsd/config"
)

func TestTheFingerprintDependsOnlyOnTheMeaning(t *testing.T) {
	const whole = "[dps]\nid_scope = \"0ne00000000\"\n[[credential]]\ntype = \"x509\"\ncertificate = \"file:/c\"\nprivate_key = \"file:/k\"\n[retry]\nmax = \"5m\"\n"
	of := func(text string) string {
		t.Helper()
		c, err := config.Parse("dpsd.toml", strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return c.Fingerprint()
	}
	first := of(whole)
	for says, text := range map[string]string{
		"the same text":                   whole,
		"another comment":                 whole + "# changed\n",
		"a key that has its default":      strings.Replace(whole, "max = \"5m\"\n", "", 1),
		"another way to write a duration": strings.Replace(whole, "5m", "300s", 1),
	} {
		if got := of(text); got != first {
			t.Errorf("%s has another fingerprint", says)
		}
	}
	for says, change := range map[string][2]string{
		"the ID scope":        {"0ne00000000", "0ne00000001"},
		"a path":              {"file:/k", "file:/K"},
		"the kind of a path":  {"file:/k", "credential:k"},
		"a delay":             {"5m", "6m"},
		"the registration ID": {"[dps]", "[dps]\nregistration_id = \"gw-1\""},
		"a consumer":          {"[retry]", "[[consumer]]\nname = \"a\"\nscope = \"device\"\n[retry]"},
		"the log":             {"[retry]", "[log]\nlevel = \"debug\"\n[retry]"},
		"the state directory": {"[retry]", "[state]\ndirectory = \"/srv\"\n[retry]"},
	} {
		if of(strings.Replace(whole, change[0], change[1], 1)) == first {
			t.Errorf("%s does not change the fingerprint", says)
		}
	}
}
