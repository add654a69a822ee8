package config

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
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

// settings lists every key, in the order of the reference.
func settings(doc document.Document, all tableList, credentials []attest.Credential) (list []Setting) {
	add := func(at document.Path, table string, element int, key string, value any) {
		place := doc.Place(at.Key(key))
		list = append(list, Setting{table, element, key, value, place.Line, place.Column})
	}
	for _, t := range all {
		at := root.Key(t.name)
		if t.name == "credential" {
			for i, c := range credentials {
				add(at.Index(i), t.name, i, "type", c.Type().Name)
				for _, k := range c.Type().Keys(c) {
					add(at.Index(i), t.name, i, k.Name, k.Reference.String())
				}
			}
			continue
		}
		for _, k := range t.keys {
			add(at, t.name, 0, k.name, k.written())
		}
	}
	return list
}

// TOML writes the setting as a line of a configuration, without the line's end; "" when
// it has no value.
func (s Setting) TOML() string {
	if s.Value == nil {
		return ""
	}
	return s.Key + " = " + toTOML(s.Value)
}

// TOML writes the keys that are set, each by its table and name, such as "dps.id_scope".
func TOML(set map[string]any) string {
	var b strings.Builder
	for _, t := range tables(new(Config), attest.Types()) {
		header := "\n[" + t.name + "]\n"
		if t.name == "credential" {
			header = "\n[[" + t.name + "]]\n"
		}
		for _, k := range t.keys {
			if value := set[t.name+"."+k.name]; value != nil {
				b.WriteString(header + Setting{Key: k.name, Value: value}.TOML() + "\n")
				header = ""
			}
		}
	}
	return b.String()
}

// Check returns what is wrong with a value for a key, such as "dps.id_scope"; nil for
// nothing.
func Check(key string, value any) *Error {
	table, name, _ := strings.Cut(key, ".")
	return tables(new(Config), attest.Types()).find(table).find(name).check(value)
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
