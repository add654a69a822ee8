// Package hostname says which texts are names of hosts. It is pure.
package hostname

import "strings"

// Valid reports whether s is a host name as RFC 1123 §2.1 has it: letters, digits and
// hyphens in labels of 1 to 63 characters that neither begin nor end with a hyphen, with
// dots between them, and at most 253 characters in all. An IPv4 address is one, too.
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
