package config

import (
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/dpsd-project/dpsd/attest"
)

// Setting is one key with the value that holds for it.
type Setting struct {
	// Table is the name of its table, such as "dps".
	Table string
	// Element tells one [[credential]] from the others, from 0.
	Element int
	// Key is the name of the key.
	Key string
	// Value is a string, an int64 or a []string, as it would be written in the file;
	// nil when the key is not set and has no default. A secret is a reference.
	Value any
	// Line and Column are where the file sets the key; 0 when it does not, and Value is
	// the default.
	Line, Column int
}

// tableOrder is that of the annotated reference.
var tableOrder = []string{"dps", "credential", "transport", "provisioning", "retry", "state", "control", "log"}

// ParseSettings is Parse, and lists every key there is, in the order of the reference.
// Written one after the other, those with a value are the same configuration again.
func ParseSettings(name string, r io.Reader) (*Config, []Setting, error) {
	c, doc, err := parse(name, r)
	if err != nil {
		return nil, nil, err
	}
	var all []Setting
	add := func(at path, table string, element int, key string, value any) {
		place := doc.places[at.key(key)]
		all = append(all, Setting{table, element, key, value, place.line, place.column})
	}
	tables := new(checker).tables(c)
	for _, table := range tableOrder {
		at := path("").key(table)
		if table != "credential" {
			for _, k := range tables[table] {
				add(at, table, 0, k.name, written(k.to))
			}
			continue
		}
		for i, credential := range c.Credentials {
			var kind string
			var keys []key
			switch v := credential.(type) {
			case attest.SymmetricKey:
				kind, keys = typeSymmetricKey, []key{{name: "key", to: &v.Key}}
			case attest.X509:
				kind, keys = typeX509, []key{{name: "certificate", to: &v.Certificate}, {name: "private_key", to: &v.PrivateKey}}
			}
			add(at.index(i), table, i, "type", kind)
			for _, k := range keys {
				add(at.index(i), table, i, k.name, written(k.to))
			}
		}
	}
	return c, all, nil
}

// written is the value at to as it would stand in the file.
func written(to any) any {
	text := func(s string) any {
		if s == "" {
			return nil
		}
		return s
	}
	switch v := to.(type) {
	case *string:
		return text(*v)
	case *attest.Reference:
		return text(v.String())
	case *[]string:
		return *v
	case *int:
		return int64(*v)
	case *time.Duration:
		return brief(*v)
	case *fs.FileMode:
		return fmt.Sprintf("%04o", v.Perm())
	}
	panic(fmt.Sprintf("config: a key of type %T", to)) // a new type of key; TestSettings meets it
}

// TOML writes the setting as a line of a configuration, without the line's end; "" when
// it has no value.
func (s Setting) TOML() string {
	if s.Value == nil {
		return ""
	}
	return s.Key + " = " + toTOML(s.Value)
}

// toTOML writes a string, an int64 or a []string. A JSON string is a basic string of
// TOML too, as long as it holds no DEL, which no value does.
func toTOML(value any) string {
	switch v := value.(type) {
	case string:
		var b strings.Builder
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		_ = encoder.Encode(v) // a string can always be encoded
		return strings.TrimSuffix(b.String(), "\n")
	case []string:
		elements := make([]string, len(v))
		for i, element := range v {
			elements[i] = toTOML(element)
		}
		return "[" + strings.Join(elements, ", ") + "]"
	}
	return fmt.Sprint(value)
}
