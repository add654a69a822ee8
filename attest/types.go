package attest

// Type is a type of credential: all that the configuration and "dpsd check" know of one.
// A new type is a Credential whose method Type returns it, and an element of Types.
type Type struct {
	// Name is the value of the key "type" in a [[credential]].
	Name string
	// Keys lists the other keys. All are required. c is a credential of this type; with
	// nil, they refer to nothing.
	Keys func(c Credential) []Key
	// New makes a credential with a reference for each key.
	New func(reference func(key string) Reference) Credential
	// Warning is what "dpsd check" says of a credential that can be used, and what to do
	// about it; "" for nothing.
	Warning func(registrationID string) (detail, advice string)
}

// Key is a key of a [[credential]].
type Key struct {
	Name string
	// Reference is what the key says.
	Reference *Reference
	// Secret says that the reference leads to something that nobody else may read.
	Secret bool
}

// NewType returns the type of the credentials C. keys lists the keys, with pointers into
// the credential; a nil warning is for none.
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
