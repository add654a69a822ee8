// Package hostname checks host names.
package hostname

import "strings"

// Valid reports whether s is a host name as defined by RFC 1123 §2.1: labels of letters,
// digits and hyphens, separated by dots. A label has 1 to 63 characters and neither begins
// nor ends with a hyphen; the name has at most 253 characters. An IPv4 address is valid
// too.
func Valid(s string) bool {
	if len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
				return false
			}
		}
	}
	return true
}
