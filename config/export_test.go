package config

import "github.com/dpsd-project/dpsd/attest"

// Keys lists the tables and the keys of each that Parse knows.
func Keys() map[string][]string { return tables(new(Config), attest.Types()).names() }

// ParseTypes and RedactTypes are ParseSettings and Redact for other types of credentials.
var (
	ParseTypes  = parse
	RedactTypes = redacted
)
