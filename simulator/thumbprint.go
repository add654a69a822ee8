package simulator

import (
	"crypto/sha1" //nolint:gosec // the portal names certificates by SHA-1; nothing is signed with it
	"fmt"
)

func sha1Hex(b []byte) string {
	return fmt.Sprintf("%x", sha1.Sum(b)) //nolint:gosec // as above
}
