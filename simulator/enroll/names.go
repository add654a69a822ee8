package enroll

import "regexp"

var (
	registrationID = regexp.MustCompile(`^[A-Za-z0-9]([-._:A-Za-z0-9]{0,126}[-A-Za-z0-9])?$`)
	hostName       = regexp.MustCompile(`^([-A-Za-z0-9]{1,63}\.)*[-A-Za-z0-9]{1,63}$`)
)

// IsRegistrationID checks the service's grammar: up to 128 letters, digits and -._: that
// begin with a letter or digit and end with a letter, digit or hyphen.
func IsRegistrationID(id string) bool { return registrationID.MatchString(id) }

// IsHostName checks the form of a host name, as strictly as a device must check its assigned hub.
func IsHostName(s string) bool { return len(s) <= 253 && hostName.MatchString(s) }
