package attest

// Type is a type of credential. The configuration and "dpsd check" use only its fields.
// To add a type, implement Credential with a Type method, and add the type to Types.
type Type struct {
	// Name is the value of the key "type" in a [[credential]].
	Name string
	// Keys lists the other keys, which are all required. c is a credential of this type; if
	// it is nil, the references are zero values.
	Keys func(c Credential) []Key
	// New returns a credential with a reference for each key.
	New func(reference func(key string) Reference) Credential
	// Warning returns a warning of "dpsd check" about a usable credential and the advice,
	// or "".
	Warning func(registrationID string) (detail, advice string)
}

// Key is a key of a [[credential]].
type Key struct {
	Name string
	// Reference is the value of the key.
	Reference *Reference
	// Secret means that the file must not be readable by other users.
	Secret bool
	// Signer means that the reference may name a signer.
	Signer bool
}

// NewType returns the type of the credentials C. keys lists the keys, with pointers into
// the credential. warning may be nil.
func NewType[C Credential](name string, keys func(*C) []Key, warning func(registrationID string) (detail, advice string)) Type {
	if warning == nil {
		warning = func(string) (string, string) { return "", "" }
	}
	return Type{name, func(c Credential) []Key {
		credential, _ := c.(C)
		return keys(&credential)
	}, func(reference func(string) Reference) Credential {
		var credential C
		for _, k := range keys(&credential) {
			*k.Reference = reference(k.Name)
		}
		return credential
	}, warning}
}

// Types returns the types of credentials that a configuration may name.
func Types() []Type { return []Type{SymmetricKey{}.Type(), X509{}.Type()} }
