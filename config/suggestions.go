package config

import (
	"maps"
	"slices"

	"github.com/dpsd-project/dpsd/config/document"
	"github.com/dpsd-project/dpsd/nearest"
)

// unknown reports a key that its table does not have. The nearest one is looked for
// there first, then in the other tables by its very name.
func (c *checker) unknown(at document.Path, name string, value any, table string) {
	e := Error{Problem: "unknown key"}
	if _, ok := value.(map[string]any); ok {
		e.Problem = "unknown table"
		if c.known[name] != nil {
			e.Nearest = name
		}
	}
	if e.Nearest == "" {
		if e.Nearest = nearest.Name(name, c.known[table]); e.Nearest != "" {
			c.meant[at.Key(e.Nearest)] = true
		}
	}
	if e.Nearest == "" {
		e.Nearest = c.elsewhere(name)
	}
	c.Report(at.Key(name), e)
}

// unknownTop reports an unknown table, or a key that stands above all tables.
func (c *checker) unknownTop(at document.Path, name string, value any) {
	e := Error{Problem: "unknown table"}
	switch value.(type) {
	case map[string]any, []any:
		if e.Nearest = nearest.Name(name, slices.Sorted(maps.Keys(c.known))); e.Nearest != "" {
			c.meant[root.Key(e.Nearest)] = true
		}
	default:
		e.Problem = "unknown key"
		e.Nearest = c.elsewhere(name)
		e.Remedy = "every key stands below the [table] it belongs to"
	}
	c.Report(at, e)
}

// elsewhere returns "table.key" for a key of this very name, or "".
func (c *checker) elsewhere(name string) string {
	for _, table := range slices.Sorted(maps.Keys(c.known)) {
		if slices.Contains(c.known[table], name) {
			c.meant[root.Key(table).Key(name)] = true
			return table + "." + name
		}
	}
	return ""
}
