package config

// RedactTypes is Redact for other types of credentials.
var RedactTypes = redacted
