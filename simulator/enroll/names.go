package enroll

import "strings"

// IsRegistrationID checks the grammar of the service: up to 128 letters,
// digits and -._: with a letter or digit first, and a letter, digit or hyphen last.
func IsRegistrationID(id string) bool {
	alphanumeric := func(c byte) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
	}
	if id == "" || len(id) > 128 {
		return false
	}
	for i := range len(id) {
		if !alphanumeric(id[i]) && !strings.ContainsRune("-._:", rune(id[i])) {
			return false
		}
	}
	last := id[len(id)-1]
	return alphanumeric(id[0]) && (alphanumeric(last) || last == '-')
}

// isHostName is as strict as a device must be with an assigned hub.
func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-") != "" {
			return false
		}
	}
	return true
}
