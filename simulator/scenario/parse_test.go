package scenario_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dpsd-project/dpsd/simulator/scenario"
	"github.com/dpsd-project/dpsd/simulator/tomlfile"
)

func TestParse(t *testing.T) {
	t.Run("settings and rules are parsed as written", func(t *testing.T) {
		sc, err := scenario.Parse("s.toml", strings.NewReader(`
[settings]
polls = 0
reply_delay = "1s"
tls_max = "1.3"
[[rule]]
on = "poll"
registration_id = "gw-*"
delay = "1m30s"
body = ""
connack = 3
`))
		if sc == nil || err == nil {
			t.Fatal("connack on a poll was accepted")
		}
		if *sc.Settings.Polls != 0 || sc.Settings.ReplyDelay != time.Second || sc.Settings.TLSMax != "1.3" {
			t.Errorf("%+v", sc.Settings)
		}
		r := sc.Rules[0]
		if r.On != scenario.OnPoll || r.RegistrationID != "gw-*" || r.Delay != 90*time.Second || r.Body == nil || *r.Body != "" || *r.Connack != 3 {
			t.Errorf("%+v", r)
		}
	})
	for _, c := range []struct{ name, text, want string }{
		{"an unknown key", "[[rule]]\non = \"poll\"\n  statsu = 500\n", "s.toml:3:3: rule.statsu: unknown key"},
		{"an unknown table", "[setings]\n", "s.toml:1:2: setings: unknown key"},
		{"text that is not TOML", "[[rule]\n", "s.toml:1:"},
		{"a value of another type", "[[rule]]\nretry_after = 3\n", "s.toml:2:15: "},
		{"a duration that is none", "[settings]\nreply_delay = \"soon\"\n", "s.toml:2:15: "},
		{"an unknown stage", "\n[[rule]]\non = \"pool\"\n", "s.toml:3:1: rule.on: \"pool\" is not one of accept, tls, upgrade, connect"},
		{"a rule without a stage", "\n[[rule]]\nclose = true\n", "s.toml:2:3: rule.on: \"\" is not one of"},
		{"a key at the wrong stage", "[[rule]]\non = \"poll\"\n[[rule]]\non = \"poll\"\nconnack = 3\n", "s.toml:5:1: rule.connack: does not apply to \"poll\", only to: connect"},
		{"a registration ID before it is known", "[[rule]]\non = \"accept\"\nregistration_id = \"x\"\n", "s.toml:3:1: rule.registration_id: does not apply to"},
		{"a pattern that is none", "[[rule]]\non = \"poll\"\nregistration_id = \"[\"\n", "s.toml:3:1: rule.registration_id: \"[\" is not a pattern"},
		{"a negative number", "[[rule]]\non = \"poll\"\ntimes = -1\n", "s.toml:3:1: rule.times: -1 is negative"},
		{"a return code that is not a byte", "[[rule]]\non = \"connect\"\nconnack = 256\n", "s.toml:3:1: rule.connack: 256 is not a byte"},
		{"a negative return code", "[[rule]]\non = \"subscribe\"\nsuback = -1\n", "s.toml:3:1: rule.suback: -1 is not a byte"},
		{"a negative time", "[[rule]]\non = \"poll\"\ndelay = \"-1s\"\n", "s.toml:3:1: rule.delay: -1s is negative"},
		{"a text that is not one of those allowed", "[[rule]]\non = \"poll\"\nthen = \"stop\"\n", "s.toml:3:1: rule.then: \"stop\" is not one of close, reset, silent"},
		{"two ends in one rule", "[[rule]]\non = \"poll\"\nclose = true\nreset = true\n", "s.toml:2:1: rule.on: only one of close, reset, silent, garbage and refuse"},
		{"an unknown certificate", "[[rule]]\non = \"tls\"\nserver_certificate = \"old\"\n", "s.toml:3:1: rule.server_certificate: \"old\" is not one of expired"},
		{"an unknown TLS version", "[settings]\ntls_max = \"1.4\"\n", "s.toml:2:1: settings.tls_max: \"1.4\" is not one of"},
		{"an api-version that is not a date", "[settings]\napi_versions = [\"2019-13-31\"]\n", "s.toml:2:1: settings.api_versions:"},
		{"an unknown type of key", "[settings]\ncsr_keys = [\"P-256\", \"RSA-1024\"]\n", "s.toml:2:1: settings.csr_keys: \"RSA-1024\" is not one of P-256"},
		{"an unknown format of a chain", "[settings]\nchain_format = \"PEM\"\n", "s.toml:2:1: settings.chain_format:"},
		{"an unknown fault of a chain", "[[rule]]\non = \"register\"\nchain = \"bad\"\n", "s.toml:3:1: rule.chain: \"bad\" is not one of empty, "},
		{"a fault of a chain at a poll", "[[rule]]\non = \"poll\"\nchain = \"empty\"\n", "s.toml:3:1: rule.chain: does not apply to \"poll\", only to: register"},
		{"a limit to requests with a CSR where there are none", "[[rule]]\non = \"connect\"\ncsr = true\n", "s.toml:3:1: rule.csr: does not apply to"},
		{"a negative lifetime of certificates", "[settings]\ncertificate_life = \"-1h\"\n", "s.toml:2:1: settings.certificate_life: -1h0m0s is negative"},
		{"a negative delay of certificates", "[settings]\ncertificate_delay = \"-1h\"\n", "s.toml:2:1: settings.certificate_delay: -1h0m0s is negative"},
		{"polls below zero", "[settings]\npolls = -1\n", "s.toml:2:1: settings.polls: -1 is negative"},
	} {
		t.Run(c.name+" is refused with its place", func(t *testing.T) {
			_, err := scenario.Parse("s.toml", strings.NewReader(c.text))
			var wrong *tomlfile.Error
			if !errors.As(err, &wrong) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	t.Run("an error code may be negative", func(t *testing.T) {
		sc, err := scenario.Parse("s.toml", strings.NewReader("[[rule]]\non = \"poll\"\nerror_code = -1\n"))
		if err != nil || sc.Rules[0].ErrorCode != -1 {
			t.Error(err)
		}
	})
	t.Run("every mistake is reported, not only the first", func(t *testing.T) {
		_, err := scenario.Parse("s.toml", strings.NewReader("a = 1\nb = 2\n"))
		if err == nil || strings.Count(err.Error(), "unknown key") != 2 {
			t.Error(err)
		}
	})
}

func TestSettingsThatAScenarioDoesNotContainComeFromTheDefaults(t *testing.T) {
	defaults := scenario.Settings{
		Polls: new(1), PollLimit: new(7), RetryAfter: "3", ReplyDelay: time.Second,
		Features: map[string][]string{"2019-03-31": {}}, CSRKeys: []string{"P-256"},
		CertificateLife: time.Hour, CertificateDelay: time.Minute,
	}
	t.Run("an empty scenario has the defaults", func(t *testing.T) {
		sc, err := defaults.Parse("s.toml", strings.NewReader(""))
		if err != nil || *sc.Settings.Polls != 1 || *sc.Settings.PollLimit != 7 || sc.Settings.RetryAfter != "3" || sc.Settings.ReplyDelay != time.Second ||
			sc.Settings.CertificateLife != time.Hour || sc.Settings.CertificateDelay != time.Minute {
			t.Errorf("%+v, %v", sc, err)
		}
	})
	t.Run("a scenario replaces them, also by zero, and does not change them", func(t *testing.T) {
		sc, err := defaults.Parse("s.toml", strings.NewReader("[settings]\npolls = 0\nreply_delay = \"0s\"\nretry_after = \"none\"\npoll_limit = 0\ncsr_keys = [\"P-384\"]\nfeatures = { \"2030-01-01\" = [\"csr\"] }\n"))
		if err != nil || *sc.Settings.Polls != 0 || *sc.Settings.PollLimit != 0 || sc.Settings.RetryAfter != "none" || sc.Settings.ReplyDelay != 0 ||
			len(sc.Settings.CSRKeys) != 1 || sc.Settings.CSRKeys[0] != "P-384" {
			t.Errorf("%+v, %v", sc, err)
		}
		if _, replaced := sc.Settings.Features["2019-03-31"]; replaced || len(sc.Settings.Features) != 1 {
			t.Error(sc.Settings.Features)
		}
		if *defaults.Polls != 1 || *defaults.PollLimit != 7 || len(defaults.Features) != 1 || defaults.CSRKeys[0] != "P-256" {
			t.Errorf("%+v", defaults)
		}
	})
	t.Run("the live service replies after 300 ms and wants one poll after 3 s, fast settings want none", func(t *testing.T) {
		live, fast := scenario.Live(), scenario.Fast()
		if *live.Polls != 1 || live.RetryAfter != "3" || live.ReplyDelay != 300*time.Millisecond || *fast.Polls != 0 || fast.ReplyDelay != 0 {
			t.Errorf("%+v, %+v", live, fast)
		}
	})
}
