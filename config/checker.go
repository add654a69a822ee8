package config

import (
	"fmt"
	"maps"
	"slices"

	"github.com/dpsd-project/dpsd/attest"
	"github.com/dpsd-project/dpsd/config/document"
)

// checker converts a document to a Config and collects the errors.
type checker struct {
	document.Checker
	types  []attest.Type
	tables tableList              // tables with pointers into the Config
	known  map[string][]string    // names of all keys, by table
	meant  map[document.Path]bool // keys that an unknown key was probably meant to be; they are not missing
	first  string                 // type of the first credential; "" if it is unknown
}

const root = document.Path("")

// config checks the whole document and fills in to.
func (c *checker) config(to *Config) {
	if len(c.Values) == 0 {
		c.Report(root, Error{Problem: "the file sets no keys", Remedy: "start from a copy of the annotated dpsd.toml"})
		return
	}
	for _, name := range slices.Sorted(maps.Keys(c.Values)) {
		at, value, t := root.Key(name), c.Values[name], c.tables.find(name)
		values, isTable := value.(map[string]any)
		_, isArray := value.([]any)
		switch {
		case name == "credential":
			to.Credentials = c.credentials(at, value)
		case name == "consumer":
			to.Consumers = c.consumers(at, value)
		case t.keys == nil:
			c.unknownTop(name, value)
		case isTable:
			t.reset()
			c.table(at, values, t)
		case isArray:
			c.Report(at, Error{Problem: "this table may appear only once", Remedy: "write [" + name + "], with single brackets"})
		default:
			c.Report(at, Error{Problem: "must be a table, not " + document.TypeOf(value), Nearest: c.elsewhere(name), Remedy: "write [" + name + "] and its keys below it"})
		}
	}
	c.missing(to)
	c.certificate(to)
	c.together(to)
}

// table reads the keys of one table.
func (c *checker) table(at document.Path, values map[string]any, t table) {
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if k := t.find(name); k != nil {
			k.read(at.Key(name), values[name], c.Report)
		} else {
			c.unknown(at, name, values[name], t.name)
		}
	}
}

// element is an element of an array of tables. values is nil if it is not a table.
type element struct {
	at     document.Path
	values map[string]any
}

// elements returns the elements of an array of tables, and reports those that are not tables.
func (c *checker) elements(at document.Path, name string, value any) []element {
	remedy := "write [[" + name + "]], with double brackets"
	array, isArray := value.([]any)
	place := at.Index
	if _, isTable := value.(map[string]any); isTable {
		c.Report(at, Error{Problem: "must be an array of tables", Remedy: remedy})
		array, place = []any{value}, func(int) document.Path { return at }
	} else if !isArray {
		c.Report(at, Error{Problem: "must be an array of tables, not " + document.TypeOf(value), Remedy: remedy})
	}
	all := make([]element, len(array))
	for i, one := range array {
		values, ok := one.(map[string]any)
		if !ok {
			c.Report(place(i), Error{Problem: "must be a table, not " + document.TypeOf(one), Remedy: remedy})
		}
		all[i] = element{place(i), values}
	}
	return all
}

// credentials reads [[credential]]. The element of an invalid credential is nil.
func (c *checker) credentials(at document.Path, value any) []attest.Credential {
	elements := c.elements(at, "credential", value)
	all := make([]attest.Credential, len(elements))
	for i, e := range elements {
		if e.values == nil {
			continue
		}
		var kind string
		if all[i], kind = c.credential(e.at, e.values); i == 0 {
			c.first = kind
		}
	}
	return all
}

// credential reads one credential. It also returns the name of its type, or "" if the type
// is unknown.
func (c *checker) credential(at document.Path, values map[string]any) (attest.Credential, string) {
	before := c.Reported()
	one := newCredential(c.types)
	c.table(at, values, table{name: "credential", keys: one.keys})
	i := slices.IndexFunc(c.types, func(t attest.Type) bool { return t.Name == one.kind })
	if i < 0 {
		if values["type"] == nil && !c.meant[at.Key("type")] {
			c.ReportMissing(at, "type", oneOf(typeNames(c.types)))
		}
		return nil, ""
	}
	t := c.types[i]
	needed := keyNames(t)
	for _, name := range needed {
		if values[name] == nil && !c.meant[at.Key(name)] {
			c.ReportMissing(at, name, fmt.Sprintf("a credential of type %q needs it", t.Name))
		}
	}
	for _, k := range one.keys[1:] { // all but "type"
		if values[k.name] != nil && !slices.Contains(needed, k.name) {
			c.Report(at.Key(k.name), Error{Problem: fmt.Sprintf("does not apply to type %q", t.Name), Remedy: "write a separate [[credential]] for each credential"})
		}
	}
	if c.Reported() > before {
		return nil, t.Name
	}
	return t.New(func(key string) attest.Reference { return *one.references[key] }), t.Name
}
