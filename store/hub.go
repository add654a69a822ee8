package store

import "strings"

// SameHub reports whether two host names are names of one IoT hub: its classic name,
// NAME.azure-devices.net, and its device name, NAME.device.azure-devices.net. The domains
// of the other clouds are known, too.
func SameHub(a, b string) bool { return classicName(a) == classicName(b) }

// classicName turns a hub's device name into the classic one. Other names stay as they
// are, in lower case.
func classicName(host string) string {
	name, domain, _ := strings.Cut(strings.ToLower(host), ".")
	if classic, found := strings.CutPrefix(domain, "device."); found && strings.HasPrefix(classic, "azure-devices.") {
		domain = classic
	}
	return name + "." + domain
}
