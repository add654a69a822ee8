package scenario

import (
	"cmp"
	"slices"
	"strconv"
	"time"
)

// BuiltInFeatures returns the table of api-versions and their features. The caller may modify
// the result.
func BuiltInFeatures() map[string][]string {
	return map[string][]string{
		"2019-03-31":         {},
		"2021-06-01":         {},
		"2021-10-01":         {},
		"2025-07-01-preview": {FeatureCSR},
		"2026-11-01":         {FeatureCSR},
		"2026-11-02-preview": {FeatureCSR, FeatureProfile},
	}
}

// Serves reports whether the service accepts a device with this api-version.
func (s *Settings) Serves(apiVersion string) bool {
	if len(s.APIVersions) > 0 {
		return slices.Contains(s.APIVersions, apiVersion)
	}
	_, known := s.Features[apiVersion]
	return known || s.UnknownAPIVersion != "refuse"
}

// Live returns the settings of the live service, as far as they are known: it replies after
// 300 ms, and a device is assigned with its first poll, 3 s after its register request. Some
// clients depend on both.
func Live() Settings {
	return Settings{Polls: new(1), RetryAfter: "3", ReplyDelay: 300 * time.Millisecond}
}

// Fast returns settings without any wait: the register request is answered immediately and
// with the assignment.
func Fast() Settings { return Settings{Polls: new(0)} }

// withDefaults fills in the defaults. A service that asks for an immediate poll does not limit
// the polls.
func (s Settings) withDefaults() Settings {
	s.Polls = cmp.Or(s.Polls, new(2))
	s.RetryAfter = cmp.Or(s.RetryAfter, "3")
	s.CertificateLife = cmp.Or(s.CertificateLife, 30*24*time.Hour)
	if s.Features == nil {
		s.Features = BuiltInFeatures()
	}
	if len(s.CSRKeys) == 0 {
		s.CSRKeys = []string{"P-256", "P-384", "RSA-2048"}
	}
	if s.PollLimit == nil {
		s.PollLimit = new(5)
		if seconds, err := strconv.Atoi(s.RetryAfter); err == nil && seconds < 2 {
			s.PollLimit = new(0)
		}
	}
	return s
}
