package classify

import (
	"strings"

	"github.com/dpsd-project/dpsd/fault"
)

// Cloud is one of Azure's.
type Cloud struct {
	Name   string
	Domain string // the last label of its names
	// Roots are the common names of the authorities that its certificates lead to. The
	// public cloud changes from one to another without notice.
	Roots []string
	// Sovereign is a cloud whose roots distributions do not carry any more, and whose
	// service learns new API versions later than that of the public cloud.
	Sovereign bool
}

// globalRoot1 is in no public bundle since April 2026, and valid until 2031.
const globalRoot1 = "DigiCert Global Root CA"

// clouds are Azure's, the public one first. It is never changed after start-up.
var clouds = []Cloud{
	{Name: "Azure", Domain: "net", Roots: []string{"DigiCert Global Root G2", "Microsoft RSA Root Certificate Authority 2017"}},
	{Name: "Azure Government", Domain: "us", Roots: []string{globalRoot1}, Sovereign: true},
	{Name: "Azure operated by 21Vianet (China)", Domain: "cn", Roots: []string{globalRoot1}, Sovereign: true},
}

// PublicCloud is what a name that is none of Azure's is compared with.
func PublicCloud() Cloud { return clouds[0] }

// CloudOf returns the cloud that the name of an endpoint or a hub belongs to.
func CloudOf(host string) (cloud Cloud, found bool) {
	host = strings.ToLower(host)
	for _, c := range clouds {
		if strings.HasSuffix(host, ".azure-devices-provisioning."+c.Domain) || strings.HasSuffix(host, ".azure-devices."+c.Domain) {
			return c, true
		}
	}
	return Cloud{}, false
}

// Azure knows the names of DPS in Azure's clouds.
func Azure(host string) bool {
	_, found := CloudOf(host)
	return found && strings.Contains(strings.ToLower(host), ".azure-devices-provisioning.")
}

// Trust is the circumstance of a certificate for the host that is not trusted.
func Trust(host string) fault.Circumstance {
	if c, _ := CloudOf(host); c.Sovereign {
		return fault.SovereignCloud
	}
	return ""
}
