// Package uri parses PKCS#11 URIs, RFC 7512.
package uri

import (
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
)

// URI names a private key in a token, and the library that accesses the token. An empty field
// matches everything.
type URI struct {
	// Token, Manufacturer, Model and Serial describe the token.
	Token, Manufacturer, Model, Serial string
	// Slot is the number of the slot that contains the token, or nil.
	Slot *uint
	// Object is the label of the key, and ID its CKA_ID.
	Object string
	ID     []byte
	// Module is the absolute path of the library.
	Module string
}

// Parse parses a URI. It must contain a module-path, and an object or id that describes the key.
// An unsupported attribute is an error, because if it were ignored, the URI could match another
// key. PINs are also unsupported, because a URI is not secret.
func Parse(text string) (URI, error) {
	rest, ok := strings.CutPrefix(text, "pkcs11:")
	if !ok {
		return URI{}, errors.New(`a PKCS#11 URI begins with "pkcs11:"`)
	}
	path, query, _ := strings.Cut(rest, "?")
	var u URI
	seen := map[string]bool{}
	for _, part := range []struct {
		text, separator string
		set             func(name, value string) error
	}{{path, ";", u.setPath}, {query, "&", u.setQuery}} {
		for attribute := range strings.SplitSeq(part.text, part.separator) {
			if attribute == "" && part.text == "" {
				continue
			}
			name, value, ok := strings.Cut(attribute, "=")
			if !ok || value == "" {
				return URI{}, fmt.Errorf("the attribute %q has no value", name)
			}
			if seen[name] {
				return URI{}, fmt.Errorf("the attribute %q occurs twice", name)
			}
			seen[name] = true
			value, err := url.PathUnescape(value)
			if err != nil {
				return URI{}, fmt.Errorf("the value of %q is not valid: %w", name, err)
			}
			if err := part.set(name, value); err != nil {
				return URI{}, err
			}
		}
	}
	switch {
	case u.Module == "":
		return URI{}, errors.New("module-path is missing: add ?module-path=, and the absolute path of the PKCS#11 library")
	case u.Object == "" && u.ID == nil:
		return URI{}, errors.New("object and id are missing: add the label or the ID of the private key")
	}
	return u, nil
}

func (u *URI) setPath(name, value string) error {
	switch name {
	case "token":
		u.Token = value
	case "manufacturer":
		u.Manufacturer = value
	case "model":
		u.Model = value
	case "serial":
		u.Serial = value
	case "slot-id":
		number, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return fmt.Errorf("slot-id is not a number: %q", value)
		}
		slot := uint(number)
		u.Slot = &slot
	case "object":
		u.Object = value
	case "id":
		u.ID = []byte(value)
	case "type":
		if value != "private" {
			return fmt.Errorf("type=%s is not the type of a private key", value)
		}
	default:
		return fmt.Errorf("the attribute %q is not supported", name)
	}
	return nil
}

func (u *URI) setQuery(name, value string) error {
	switch name {
	case "module-path":
		if !filepath.IsAbs(value) {
			return fmt.Errorf("module-path is not absolute: %q", value)
		}
		u.Module = value
	case "pin-value", "pin-source":
		return fmt.Errorf("the attribute %q is not supported: the PIN is the systemd credential \"pin\"", name)
	default:
		return fmt.Errorf("the attribute %q is not supported", name)
	}
	return nil
}
