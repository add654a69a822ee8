package config

// Keys lists the tables and the keys of each that Parse knows.
func Keys() map[string][]string { return names() }
