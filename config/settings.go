package config

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
)

// Setting is one key with its effective value.
type Setting struct {
	// Table is the name of the key's table, such as "dps".
	Table string
	// Element is the index of a [[credential]] or [[consumer]], counted from 0.
	Element int
	// Key is the name of the key.
	Key string
	// Value is a string, an int64, a bool or a []string, in the form of the file, or nil if the key
	// is not set and has no default. A secret is a reference.
	Value any
	// Line and Column are the position of the key in the file. They are 0 if the file does
	// not set the key; then Value is the default.
	Line, Column int
}

// Header returns the line above the keys of the table, such as "[dps]" or "[[credential]]".
func (s Setting) Header() string {
	return tables(new(Config), attest.Types()).find(s.Table).header()
}

// settings lists every key, in the order of the reference.
func settings(doc document.Document, all tableList, c *Config) (list []Setting) {
	add := func(at document.Path, table string, element int, key string, value any) {
		place := doc.Place(at.Key(key))
		list = append(list, Setting{table, element, key, value, place.Line, place.Column})
	}
	for _, t := range all {
		at := root.Key(t.name)
		switch t.name {
		case "credential":
			for i, c := range c.Credentials {
				add(at.Index(i), t.name, i, "type", c.Type().Name)
				for _, k := range c.Type().Keys(c) {
					add(at.Index(i), t.name, i, k.Name, k.Reference.String())
				}
			}
		case "consumer":
			for i := range c.Consumers {
				for _, k := range consumerKeys(&c.Consumers[i]) {
					add(at.Index(i), t.name, i, k.name, k.written())
				}
			}
		default:
			for _, k := range t.keys {
				add(at, t.name, 0, k.name, k.written())
			}
		}
	}
	return list
}

// TOML returns the setting as a line of a configuration, without a newline, or "" if it has
// no value.
func (s Setting) TOML() string {
	if s.Value == nil {
		return ""
	}
	return s.Key + " = " + toTOML(s.Value)
}

// TOML returns a configuration with the keys of set, whose names include the table, such as
// "dps.id_scope".
func TOML(set map[string]any) string {
	var b strings.Builder
	for _, t := range tables(new(Config), attest.Types()) {
		header := "\n" + t.header() + "\n"
		for _, k := range t.keys {
			if value := set[t.name+"."+k.name]; value != nil {
				b.WriteString(header + Setting{Key: k.name, Value: value}.TOML() + "\n")
				header = ""
			}
		}
	}
	return b.String()
}

// Check returns an error if a value is invalid for a key, such as "dps.id_scope".
func Check(key string, value any) *Error {
	table, name, _ := strings.Cut(key, ".")
	return tables(new(Config), attest.Types()).find(table).find(name).check(value)
}

// toTOML returns a string, an int64, a bool or a []string in TOML. A JSON string is also a basic
// string of TOML unless it contains DEL, which no value does.
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
