package simulator

import (
	"slices"
	"strconv"
	"time"
)

// What an api-version can do besides registering.
const (
	featureCSR     = "csr"               // certificates are issued
	featureProfile = "connectionProfile" // the hub's protocol is told
)

// lastSticky is the last api-version under which a device keeps its hub
// whatever the re-provision policy says, DPS page "IoT Hub Device reprovisioning concepts".
const lastSticky = "2018-04-01"

// BuiltInFeatures gives the table of api-versions and what they can do. The
// result is the caller's own.
func BuiltInFeatures() map[string][]string {
	return map[string][]string{
		"2019-03-31":         {},
		"2021-06-01":         {},
		"2021-10-01":         {},
		"2025-07-01-preview": {featureCSR},
		"2026-11-02-preview": {featureCSR, featureProfile},
	}
}

// features gives what an api-version can do, and whether it is known at all.
func (s *Settings) features(apiVersion string) ([]string, bool) {
	table := s.Features
	if table == nil {
		table = BuiltInFeatures()
	}
	all, known := table[apiVersion]
	return all, known
}

// serves tells whether a device of this api-version is let in.
func (s *Settings) serves(apiVersion string) bool {
	if len(s.APIVersions) > 0 {
		return slices.Contains(s.APIVersions, apiVersion)
	}
	_, known := s.features(apiVersion)
	return known || s.UnknownAPIVersion != "refuse"
}

// The intervals of the service's limits, DPS page "Azure IoT Hub Device Provisioning Service limits".
const (
	pollInterval     = 10 * time.Second
	registerInterval = time.Minute
)

// pollLimit gives the polls of a device in pollInterval, 0 for no limit. A
// service that asks for a poll at once does not punish it.
func (s *Settings) pollLimit() int {
	if s.PollLimit != nil {
		return *s.PollLimit
	}
	if seconds, err := strconv.Atoi(s.retryAfter()); err == nil && seconds < 2 {
		return 0
	}
	return 5
}

// checkService checks the settings of this file.
func (s *Settings) checkService(bad func(key, format string, args ...any)) {
	if s.UnknownAPIVersion != "" && s.UnknownAPIVersion != "serve" && s.UnknownAPIVersion != "refuse" {
		bad("unknown_api_version", "%q is none of serve, refuse", s.UnknownAPIVersion)
	}
	for version, all := range s.Features {
		if !isAPIVersion(version) {
			bad("features", "%q is not of the form YYYY-MM-DD[-preview]", version)
		}
		for _, f := range all {
			if f != featureCSR && f != featureProfile {
				bad("features", "%q is none of %s, %s", f, featureCSR, featureProfile)
			}
		}
	}
	if s.PollLimit != nil && *s.PollLimit < 0 {
		bad("poll_limit", "%d is negative", *s.PollLimit)
	}
	if s.RegisterLimit < 0 {
		bad("register_limit", "%d is negative", s.RegisterLimit)
	}
}

// limiter lets limit events of an interval through at once, and after that
// one more each interval/limit. A client that comes a little early now and
// then lives on what it has left. (Generic cell rate algorithm, ITU-T I.371.)
type limiter struct {
	next time.Time // when the next event would be due if all came evenly
}

// take counts an event and gives 0, or leaves it out and tells how long until one is free.
func (l *limiter) take(now time.Time, limit int, interval time.Duration) time.Duration {
	if limit <= 0 {
		return 0
	}
	each := interval / time.Duration(limit)
	if early := l.next.Add(each - interval).Sub(now); early > 0 {
		return early
	}
	if l.next.Before(now) {
		l.next = now
	}
	l.next = l.next.Add(each)
	return 0
}

// retryText is the retry-after of a 429, in whole seconds.
func (s *Settings) retryText(wait time.Duration) string {
	if s.ThrottleRetryAfter != "" {
		return s.ThrottleRetryAfter
	}
	return strconv.Itoa(int((wait + time.Second - 1) / time.Second))
}
