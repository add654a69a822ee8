package classify

import (
	"strings"

	"github.com/dpsd-project/dpsd/fault"
)

// Cloud is one of the clouds of Azure.
type Cloud struct {
	Name   string
	Domain string // the last part of its names
	// Roots are the common names of the root certificates of its servers. The public cloud
	// switches between them without notice.
	Roots []string
	// Sovereign reports whether distributions no longer include the cloud's roots, and
	// whether its service supports new API versions later than that of the public cloud.
	Sovereign bool
}

// globalRoot1 was removed from the public bundles in April 2026 and is valid until 2031.
const globalRoot1 = "DigiCert Global Root CA"

// clouds are the clouds of Azure, starting with the public one. The variable does not
// change after start-up.
var clouds = []Cloud{
	{Name: "Azure", Domain: "net", Roots: []string{"DigiCert Global Root G2", "Microsoft RSA Root Certificate Authority 2017"}},
	{Name: "Azure Government", Domain: "us", Roots: []string{globalRoot1}, Sovereign: true},
	{Name: "Azure operated by 21Vianet (China)", Domain: "cn", Roots: []string{globalRoot1}, Sovereign: true},
}

// PublicCloud returns the public cloud, with which names outside Azure are compared.
func PublicCloud() Cloud { return clouds[0] }

// CloudOf returns the cloud of the name of an endpoint or a hub.
func CloudOf(host string) (cloud Cloud, found bool) {
	host = strings.ToLower(host)
	for _, c := range clouds {
		if strings.HasSuffix(host, ".azure-devices-provisioning."+c.Domain) || strings.HasSuffix(host, ".azure-devices."+c.Domain) {
			return c, true
		}
	}
	return Cloud{}, false
}

// Azure reports whether host is a name of DPS in one of the clouds of Azure.
func Azure(host string) bool {
	_, found := CloudOf(host)
	return found && strings.Contains(strings.ToLower(host), ".azure-devices-provisioning.")
}

// Trust returns the circumstance of an untrusted certificate for the host.
func Trust(host string) fault.Circumstance {
	if c, _ := CloudOf(host); c.Sovereign {
		return fault.SovereignCloud
	}
	return ""
}
