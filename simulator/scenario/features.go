package scenario

import (
	"cmp"
	"slices"
	"strconv"
	"time"
)

// BuiltInFeatures gives the table of api-versions and what they can do. The
// result is the caller's own.
func BuiltInFeatures() map[string][]string {
	return map[string][]string{
		"2019-03-31":         {},
		"2021-06-01":         {},
		"2021-10-01":         {},
		"2025-07-01-preview": {FeatureCSR},
		"2026-11-02-preview": {FeatureCSR, FeatureProfile},
	}
}

// FeaturesOf returns what an api-version can do, and whether it is known at all.
func (s *Settings) FeaturesOf(apiVersion string) ([]string, bool) {
	table := s.Features
	if table == nil {
		table = BuiltInFeatures()
	}
	all, known := table[apiVersion]
	return all, known
}

// Serves reports whether a device of this api-version is let in.
func (s *Settings) Serves(apiVersion string) bool {
	if len(s.APIVersions) > 0 {
		return slices.Contains(s.APIVersions, apiVersion)
	}
	_, known := s.FeaturesOf(apiVersion)
	return known || s.UnknownAPIVersion != "refuse"
}

// PollsAllowed returns how many polls a device has in 10 s, 0 for no limit. A service that
// asks for a poll immediately does not punish it.
func (s *Settings) PollsAllowed() int {
	if s.PollLimit != nil {
		return *s.PollLimit
	}
	if seconds, err := strconv.Atoi(s.RetryAfterText()); err == nil && seconds < 2 {
		return 0
	}
	return 5
}

// ThrottleText returns the retry-after of a 429: whole seconds, unless the scenario says
// otherwise.
func (s *Settings) ThrottleText(wait time.Duration) string {
	if s.ThrottleRetryAfter != "" {
		return s.ThrottleRetryAfter
	}
	return strconv.Itoa(int((wait + time.Second - 1) / time.Second))
}

// PollsNeeded returns how many polls a registration takes until its final answer.
func (s *Settings) PollsNeeded() int {
	if s.Polls == nil {
		return 2
	}
	return *s.Polls
}

// RetryAfterText returns the retry-after of a 202.
func (s *Settings) RetryAfterText() string { return cmp.Or(s.RetryAfter, "3") }
