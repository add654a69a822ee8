package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

func TestTheProgramHasTheSettingsOfTheLiveServiceUnlessItIsFastOrTheScenarioHasOthers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "scenario.toml")
	if err := os.WriteFile(file, []byte("[settings]\nretry_after = \"7\"\n[[rule]]\non = \"poll\"\nstatus = 500\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name       string
		flags      flags
		polls      int
		delay      time.Duration
		retryAfter string
		rules      int
	}{
		{"without flags, there is one poll after 3 s, and each answer takes 300 ms", flags{}, 1, 300 * time.Millisecond, "3", 0},
		{"with --fast, there is neither a poll nor a delay", flags{fast: true}, 0, 0, "", 0},
		{"a scenario changes only what it contains", flags{scenario: file}, 1, 300 * time.Millisecond, "7", 1},
		{"a scenario changes what --fast sets", flags{scenario: file, fast: true}, 0, 0, "7", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			sc, err := c.flags.readScenario()
			if err != nil {
				t.Fatal(err)
			}
			if s := sc.Settings; *s.Polls != c.polls || s.ReplyDelay != c.delay || s.RetryAfter != c.retryAfter || len(sc.Rules) != c.rules {
				t.Errorf("%+v", sc)
			}
		})
	}
}
