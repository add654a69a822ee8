package config

import "github.com/dpsd-project/dpsd/attest"

// Keys lists the tables and the keys of each that Parse knows.
func Keys() map[string][]string { return tables(new(Config), attest.Types()).names() }

// ParseTypes is ParseSettings with other types of credentials.
var ParseTypes = parse
