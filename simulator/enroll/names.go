package enroll

import "regexp"

var (
	registrationID = regexp.MustCompile(`^[A-Za-z0-9]([-._:A-Za-z0-9]{0,126}[-A-Za-z0-9])?$`)
	hostName       = regexp.MustCompile(`^([-A-Za-z0-9]{1,63}\.)*[-A-Za-z0-9]{1,63}$`)
)

// IsRegistrationID checks the grammar of the service: up to 128 letters,
// digits and -._: with a letter or digit first, and a letter, digit or hyphen last.
func IsRegistrationID(id string) bool { return registrationID.MatchString(id) }

// isHostName is as strict as a device must be with an assigned hub.
func isHostName(s string) bool { return len(s) <= 253 && hostName.MatchString(s) }
