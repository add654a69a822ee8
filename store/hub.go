package store

import "strings"

// SameHub reports whether two host names belong to one IoT hub, which has a classic name,
// NAME.azure-devices.net, and a device name, NAME.device.azure-devices.net. SameHub also
// supports the domains of the other clouds.
func SameHub(a, b string) bool { return classicName(a) == classicName(b) }

// classicName returns the classic name for a hub's device name. It returns other names
// unchanged in lower case.
func classicName(host string) string {
	name, domain, _ := strings.Cut(strings.ToLower(host), ".")
	if classic, found := strings.CutPrefix(domain, "device."); found && strings.HasPrefix(classic, "azure-devices.") {
		domain = classic
	}
	return name + "." + domain
}
