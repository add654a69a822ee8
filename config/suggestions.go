package config

import (
	"maps"
	"slices"

	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/nearest"
)

// unknown reports a key that its table does not have. It suggests a key of this table with
// a similar name, or a key of another table with the same name.
func (c *checker) unknown(at document.Path, name string, value any, table string) {
	e := Error{Problem: "unknown key"}
	if _, ok := value.(map[string]any); ok {
		e.Problem = "unknown table"
		if c.known[name] != nil {
			e.Nearest = name
		}
	}
	if e.Nearest == "" {
		e.Nearest = c.nearest(at, name, c.known[table])
	}
	if e.Nearest == "" {
		e.Nearest = c.elsewhere(name)
	}
	c.Report(at.Key(name), e)
}

// unknownTop reports an unknown table, or a key above all tables.
func (c *checker) unknownTop(name string, value any) {
	switch value.(type) {
	case map[string]any, []any:
		c.Report(root.Key(name), Error{Problem: "unknown table", Nearest: c.nearest(root, name, slices.Sorted(maps.Keys(c.known)))})
	default:
		c.Report(root.Key(name), Error{Problem: "unknown key", Nearest: c.elsewhere(name), Remedy: "write each key below the [table] that it belongs to"})
	}
}

// nearest returns the key of a table that was probably meant, or "".
func (c *checker) nearest(table document.Path, word string, names []string) string {
	name := nearest.Name(word, names)
	if name != "" {
		c.meant[table.Key(name)] = true
	}
	return name
}

// elsewhere returns "table.key" for the first key of the reference that has exactly this name,
// or "".
func (c *checker) elsewhere(name string) string {
	for _, t := range c.tables {
		if t.find(name) != nil {
			c.meant[root.Key(t.name).Key(name)] = true
			return t.name + "." + name
		}
	}
	return ""
}
