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

// HubGrant is what a token allows its device or module to do at a hub.
type HubGrant struct {
	Expiry time.Time
	// Below is the part of the token's resource that follows the identity, such as
	// "messages/events". If it is empty, the token is valid for everything that the identity may do.
	Below string
}

// HubToken verifies the token with which a device uses a hub. The hub knows the keys in the
// enrollment of the device. The resource of the token must be one of the resources, which are
// {hub}/devices/{deviceId} with each name of the hub, or a part of one.
func (entries Entries) HubToken(resources []string, registrationID, password string, now time.Time) (HubGrant, *Refusal) {
	token, grant, refused := readHubToken(resources, password, now)
	if refused != nil {
		return HubGrant{}, refused
	}
	fitting, individual := entries.of(registrationID)
	for _, n := range fitting {
		for _, key := range n.keys {
			if !individual {
				key = DeriveKey(key, registrationID)
			}
			if token.signedBy(key) {
				return grant, nil
			}
		}
	}
	if len(fitting) == 0 {
		return HubGrant{}, refuseHubToken(Explanation{Reason: "the device is no longer enrolled"})
	}
	resource, _ := url.PathUnescape(token.resource) // readHubToken has reported an error
	return HubGrant{}, refuseHubToken(entries.explainSignature(token, fitting, resource, registrationID))
}

// ModuleToken verifies the token with which a module uses a hub. The keys are those of its
// module identity. The resources are {hub}/devices/{deviceId}/modules/{moduleId} with each name of
// the hub.
func ModuleToken(resources []string, keys [][]byte, password string, now time.Time) (HubGrant, *Refusal) {
	token, grant, refused := readHubToken(resources, password, now)
	switch {
	case refused != nil:
		return HubGrant{}, refused
	case !slices.ContainsFunc(keys, token.signedBy):
		return HubGrant{}, refuseHubToken(Explanation{
			Reason: "the token is not signed with a key of the module",
			Advice: "A module has its own keys, which are in its identity at the hub. The key of the device does not sign its tokens.",
		})
	}
	return grant, nil
}

func refuseHubToken(e Explanation) *Refusal { return &Refusal{401003, "IotHubUnauthorized", e} }

// readHubToken checks everything in a token except its signature.
func readHubToken(resources []string, password string, now time.Time) (sasToken, HubGrant, *Refusal) {
	refuse := func(e Explanation) (sasToken, HubGrant, *Refusal) { return sasToken{}, HubGrant{}, refuseHubToken(e) }
	token, wrong := parseToken(password)
	if wrong != nil {
		return refuse(*wrong)
	}
	if policy := policyOf(password); policy != "" {
		return refuse(Explanation{Reason: "the token's skn names a policy of the hub; a device's token has no skn"})
	}
	resource, err := url.PathUnescape(token.resource)
	if err != nil {
		return refuse(Explanation{Reason: "the token's sr is not correctly percent-encoded"})
	}
	for _, wanted := range resources {
		switch below, found := within(resource, wanted); {
		case !found:
		case now.Unix() >= token.expiry:
			return refuse(*token.explainExpiry(now))
		default:
			return token, HubGrant{Expiry: time.Unix(token.expiry, 0), Below: below}, nil
		}
	}
	return refuse(Explanation{Reason: "the token is for a different resource", Expected: Quote(resources[0]), Given: Quote(resource)})
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

// within reports whether the resource of a token is the wanted resource or a part of it, and returns
// the part. The case of the host name does not matter; the case of the device ID does.
func within(resource, wanted string) (below string, found bool) {
	host, path, _ := strings.Cut(resource, "/")
	wantedHost, wantedPath, _ := strings.Cut(wanted, "/")
	rest, found := strings.CutPrefix(path, wantedPath)
	if !found || !strings.EqualFold(host, wantedHost) || rest != "" && rest[0] != '/' {
		return "", false
	}
	return strings.TrimPrefix(rest, "/"), true
}
