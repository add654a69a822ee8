package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// Fingerprint is the same for two configurations exactly when they mean the same to this
// version of dpsd: comments, order and keys that have their default make no difference.
func (c Config) Fingerprint() string {
	c.DPS.RegistrationID.FromCertificate = nil // an address, of the first of the credentials
	sum := sha256.Sum256(fmt.Appendf(nil, "%#v", c))
	return "sha256:" + hex.EncodeToString(sum[:])
}
