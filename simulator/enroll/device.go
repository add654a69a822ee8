package enroll

import (
	"net/url"
	"slices"
	"strings"
	"time"
)

// Hubs returns the host names of the hubs that the enrollments can assign, in alphabetical order.
func (entries Entries) Hubs() []string {
	var names []string
	for i := range entries {
		for _, h := range entries[i].hubs {
			names = append(names, strings.ToLower(h.Name))
		}
		for _, c := range entries[i].Custom {
			if c.Hub != "" {
				names = append(names, strings.ToLower(c.Hub))
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// HubToken verifies the token with which a device connects to a hub, and returns when it
// expires. The hub knows the keys of the enrollment of the device. The resources are those that
// the token may be for: {hub}/devices/{deviceId} with each name of the hub.
func (entries Entries) HubToken(resources []string, registrationID, password string, now time.Time) (time.Time, *Refusal) {
	refuse := func(e Explanation) (time.Time, *Refusal) {
		return time.Time{}, &Refusal{401003, "IotHubUnauthorized", e}
	}
	unauthorized := func(reason string) (time.Time, *Refusal) { return refuse(Explanation{Reason: reason}) }
	token, wrong := parseToken(password)
	if wrong != nil {
		return refuse(*wrong)
	}
	if policy := policyOf(password); policy != "" {
		return unauthorized("the token's skn names a policy of the hub; a device's token has no skn")
	}
	resource, err := url.PathUnescape(token.resource)
	switch {
	case err != nil:
		return unauthorized("the token's sr is not correctly percent-encoded")
	case !slices.ContainsFunc(resources, func(r string) bool { return within(resource, r) }):
		return refuse(Explanation{Reason: "the token is for a different resource", Expected: Quote(resources[0]), Given: Quote(resource)})
	case now.Unix() >= token.expiry:
		return refuse(*token.explainExpiry(now))
	}
	fitting, individual := entries.of(registrationID)
	for _, n := range fitting {
		for _, key := range n.keys {
			if !individual {
				key = DeriveKey(key, registrationID)
			}
			if token.signedBy(key) {
				return time.Unix(token.expiry, 0), nil
			}
		}
	}
	if len(fitting) == 0 {
		return unauthorized("the device is no longer enrolled")
	}
	return refuse(entries.explainSignature(token, fitting, resource, registrationID))
}

// policyOf returns the skn of a token.
func policyOf(password string) string {
	_, parameters, _ := strings.Cut(password, " ")
	for pair := range strings.SplitSeq(parameters, "&") {
		if key, value, _ := strings.Cut(pair, "="); key == "skn" {
			return value
		}
	}
	return ""
}

// within reports whether the resource of a token is the wanted one, or part of it. The case of
// the host name does not matter, and that of the device ID does.
func within(resource, wanted string) bool {
	host, path, _ := strings.Cut(resource, "/")
	wantedHost, wantedPath, _ := strings.Cut(wanted, "/")
	return strings.EqualFold(host, wantedHost) && (path == wantedPath || strings.HasPrefix(path, wantedPath+"/"))
}
